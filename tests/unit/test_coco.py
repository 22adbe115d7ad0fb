"""Data sets in COCO layout: what is wrong is said in one sentence, and the hash is that of the content."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dfvt.data.coco import (
    DatasetManifest,
    IntegrityReport,
    describe_dataset,
    read_annotations,
    validate_dataset,
)
from dfvt.data.shapes import generate_shapes

TRAIN_JSON = "annotations/instances_train2017.json"
VAL_JSON = "annotations/instances_val2017.json"
COCO128 = Path(os.environ.get("DFVT_COCO128", Path(__file__).resolve().parents[3] / "shared" / "coco128"))


def describe(root: Path) -> DatasetManifest:
    return describe_dataset(
        "custom",
        root,
        train_annotations=TRAIN_JSON,
        train_images="train2017",
        val_annotations=VAL_JSON,
        val_images="val2017",
        generated=False,
    )


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(root: Path, error: type[Exception]) -> str:
    """The sentence with which a data set is refused."""
    with pytest.raises(error) as caught:
        describe(root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert str(root) in message
    return message


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pristine"
    generate_shapes(path, num_train=8, num_val=3, height=64, width=64)
    return path


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "set"))


def test_a_sound_data_set_is_described_and_validated(root: Path) -> None:
    manifest = describe(root)
    assert manifest.classes == ("disk", "box", "triangle", "star")
    assert (manifest.num_train_images, manifest.num_val_images) == (8, 3)
    assert manifest.train_annotations_path == root / TRAIN_JSON
    assert manifest.train_images_path == root / "train2017"
    assert manifest.val_annotations_path == root / VAL_JSON
    assert manifest.val_images_path == root / "val2017"
    report = validate_dataset(manifest)
    assert report.problems == ()
    assert report.train.num_images == 8
    assert report.train.num_crowd == 1
    assert report.train.num_annotations == sum(report.train.num_objects.values()) + 1
    assert IntegrityReport.model_validate_json(report.model_dump_json()) == report


def test_paths_of_a_relative_root_are_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    manifest = describe(Path("set"))
    assert manifest.root == Path("set")
    assert manifest.val_images_path == root / "val2017"


def test_report_does_not_depend_on_where_the_data_lies(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_annotation(bbox=[5, 5, 0, 5])(root)
    monkeypatch.chdir(tmp_path)
    report = validate_dataset(describe(Path("set")))
    assert report.warnings
    assert str(tmp_path) not in report.model_dump_json()


def test_manifest_survives_saving_and_loading(root: Path, tmp_path: Path) -> None:
    manifest, path = describe(root), tmp_path / "new folder" / "dataset.json"
    manifest.save(path)
    assert DatasetManifest.load(path) == manifest
    assert [entry.name for entry in path.parent.iterdir()] == ["dataset.json"]
    assert json.loads(path.read_text())["classes"] == ["disk", "box", "triangle", "star"]


def test_manifest_cannot_be_changed(root: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        describe(root).data_hash = "0"


def test_a_missing_manifest_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset.json is missing: run `dvc repro fetch_data`\.$"):
        DatasetManifest.load(tmp_path / "dataset.json")


@given(content=st.text())
def test_no_text_makes_a_broken_manifest_fail_otherwise(
    content: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.json is no data set manifest \([^\n]*\)[^\n]*\.$"):
        DatasetManifest.load(path)


@given(content=st.binary(max_size=40))
def test_nonsense_annotations_are_refused_in_one_sentence(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "nonsense.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"nonsense.json is [^\n]*\.$"):
        read_annotations(path)


def test_hash_does_not_depend_on_where_the_data_lies(root: Path, tmp_path: Path) -> None:
    before = describe(root).data_hash
    assert describe(root.rename(tmp_path / "elsewhere")).data_hash == before


@pytest.mark.parametrize(
    "path", [TRAIN_JSON, VAL_JSON, "train2017/000000000003.jpg", "val2017/000001000002.jpg"]
)
def test_hash_changes_with_one_byte(root: Path, path: str) -> None:
    before = describe(root).data_hash
    content = bytearray((root / path).read_bytes())
    if path.endswith(".json"):
        content += b" "
    else:
        content[len(content) // 2] ^= 1
    (root / path).write_bytes(content)
    assert describe(root).data_hash != before


def test_hash_changes_when_two_images_are_swapped(root: Path) -> None:
    before = describe(root).data_hash
    first, second = sorted((root / "train2017").iterdir())[:2]
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    assert describe(root).data_hash != before


def test_classes_come_in_the_order_of_their_ids(root: Path) -> None:
    for path in (TRAIN_JSON, VAL_JSON):
        edit(root / path, lambda content: content["categories"].reverse())
    assert describe(root).classes == ("disk", "box", "triangle", "star")


def test_missing_root(tmp_path: Path) -> None:
    assert "is not a directory: set data.root" in refusal(tmp_path / "nowhere", FileNotFoundError)


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a directory: set data.root" in refusal(tmp_path / "file", FileNotFoundError)


@pytest.mark.parametrize("path", [TRAIN_JSON, VAL_JSON])
def test_missing_annotation_file(root: Path, path: str) -> None:
    (root / path).unlink()
    assert f"{path} is missing: put COCO annotations there" in refusal(root, FileNotFoundError)


def test_missing_image_folder(root: Path) -> None:
    shutil.rmtree(root / "val2017")
    assert "val2017 is not a directory: set data.val_images" in refusal(root, FileNotFoundError)


def test_missing_images(root: Path) -> None:
    for name in ("000000000004.jpg", "000000000006.jpg"):
        (root / "train2017" / name).unlink()
    message = refusal(root, FileNotFoundError)
    assert message.startswith("2 of 8 images named in ")
    assert f"missing in {root / 'train2017'}, the first is 000000000004.jpg: add them" in message


@pytest.mark.parametrize("length", [0, 1, 300, -1])
def test_truncated_annotation_file(root: Path, length: int) -> None:
    path = root / VAL_JSON
    path.write_bytes(path.read_bytes()[:length])
    assert f"{VAL_JSON} is truncated or not JSON" in refusal(root, ValueError)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_annotation_file_without_a_part(root: Path, key: str) -> None:
    edit(root / TRAIN_JSON, lambda content: content.pop(key))
    assert f"{TRAIN_JSON} is not in COCO's instance format ({key}: Field required)" in refusal(
        root, ValueError
    )


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("images", "width", "64"),
        ("images", "file_name", None),
        ("annotations", "bbox", [0, 0, 5]),
        ("annotations", "bbox", [0, 0, 5, float("nan")]),
        ("annotations", "image_id", "1"),
        ("annotations", "segmentation", [["a", "b"]]),
        ("categories", "name", 7),
    ],
)
def test_annotation_file_with_a_wrong_value(root: Path, part: str, field: str, value: object) -> None:
    edit(root / TRAIN_JSON, lambda content: content[part][2].update({field: value}))
    assert f"{TRAIN_JSON} is not in COCO's instance format ({part}.2.{field}: " in refusal(root, ValueError)


def test_annotation_file_without_images(root: Path) -> None:
    edit(root / VAL_JSON, lambda content: content["images"].clear())
    assert f"{VAL_JSON} names no images" in refusal(root, ValueError)


def test_annotation_file_without_classes(root: Path) -> None:
    edit(root / VAL_JSON, lambda content: content["categories"].clear())
    assert f"{VAL_JSON} has no categories" in refusal(root, ValueError)


@pytest.mark.parametrize(("kind", "value"), [("id", 2), ("name", "box")])
def test_annotation_file_with_a_class_twice(root: Path, kind: str, value: object) -> None:
    edit(root / TRAIN_JSON, lambda content: content["categories"][3].update({kind: value}))
    assert f"{TRAIN_JSON} has 2 categories with the {kind} {value}" in refusal(root, ValueError)


@pytest.mark.parametrize("change", [{"id": 9}, {"name": "sphere"}])
def test_splits_with_different_classes(root: Path, change: dict[str, Any]) -> None:
    edit(root / VAL_JSON, lambda content: content["categories"][0].update(change))
    message = refusal(root, ValueError)
    assert TRAIN_JSON in message and VAL_JSON in message and "have different categories" in message


def train_annotation(**change: object) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        edit(root / TRAIN_JSON, lambda content: content["annotations"][0].update(change))

    return apply


def remove_image(root: Path) -> None:
    (root / "train2017" / "000000000002.jpg").unlink()


def empty_image(root: Path) -> None:
    (root / "train2017" / "000000000002.jpg").write_bytes(b"")


def truncate_image(root: Path) -> None:
    path = root / "train2017" / "000000000002.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def repeat_image_id(root: Path) -> None:
    edit(root / TRAIN_JSON, lambda content: content["images"][1].update(id=1))


@pytest.mark.parametrize(
    ("damage", "field", "example", "sentence"),
    [
        (remove_image, "missing_images", "000000000002.jpg", "missing images"),
        (truncate_image, "unreadable_images", "000000000002.jpg", "images that cannot be decoded"),
        (empty_image, "unreadable_images", "000000000002.jpg", "images that cannot be decoded"),
        (train_annotation(segmentation=[]), "empty_segmentations", "100", "without an outline"),
        (train_annotation(segmentation=[[1, 1, 9, 9]]), "empty_segmentations", "100", "without an outline"),
        (
            train_annotation(segmentation={"size": [64, 64]}),
            "empty_segmentations",
            "100",
            "without an outline",
        ),
        (train_annotation(category_id=99), "unknown_category_ids", "100", "category id that is not listed"),
        (train_annotation(image_id=99), "unknown_image_ids", "100", "image id that is not listed"),
        (train_annotation(id=200), "duplicate_ids", "annotation 200", "ids that are used more than once"),
        (repeat_image_id, "duplicate_ids", "image 1", "ids that are used more than once"),
    ],
)
def test_what_stops_a_training_is_a_problem(
    root: Path, damage: Callable[[Path], object], field: str, example: str, sentence: str
) -> None:
    manifest = describe(root)
    damage(root)
    report = validate_dataset(manifest)
    assert getattr(report.train, field).count == 1
    assert getattr(report.train, field).examples == (example,)
    assert getattr(report.val, field).count == 0
    problem = next(problem for problem in report.problems if sentence in problem)
    assert problem.startswith(f"{root / TRAIN_JSON}: ")
    assert f"(1, the first is {example}): " in problem
    assert "\n" not in problem


def other_size(root: Path) -> None:
    edit(root / TRAIN_JSON, lambda content: content["images"][0].update(height=65))


@pytest.mark.parametrize(
    ("damage", "field", "example", "sentence"),
    [
        (other_size, "size_mismatches", "000000000001.jpg", "images of another size than stated"),
        (
            train_annotation(bbox=[50, 50, 20, 5]),
            "boxes_outside_image",
            "100",
            "a box that reaches out of the image",
        ),
        (
            train_annotation(bbox=[5, 5, 0, 5]),
            "empty_boxes",
            "100",
            "a box narrower or lower than a pixel",
        ),
    ],
)
def test_what_does_not_stop_a_training_is_a_warning(
    root: Path, damage: Callable[[Path], object], field: str, example: str, sentence: str
) -> None:
    damage(root)
    report = validate_dataset(describe(root))
    assert getattr(report.train, field).examples == (example,)
    assert report.problems == ()
    assert any(sentence in warning and str(root / TRAIN_JSON) in warning for warning in report.warnings)


def test_boxes_off_by_rounding_are_accepted(root: Path) -> None:
    train_annotation(bbox=[0, 0, 64.4, 64.01])(root)
    assert validate_dataset(describe(root)).train.boxes_outside_image.count == 0


def test_a_split_without_objects_is_a_problem(root: Path) -> None:
    edit(root / VAL_JSON, lambda content: content["annotations"].clear())
    report = validate_dataset(describe(root))
    assert report.problems == (f"{root / VAL_JSON}: no object is annotated: annotate some.",)
    assert report.val.num_images_without_objects == 3


def test_images_in_both_splits_are_found_by_content(root: Path) -> None:
    shutil.copy(root / "train2017" / "000000000003.jpg", root / "val2017" / "000001000001.jpg")
    report = validate_dataset(describe(root))
    assert report.shared_images.examples == ("000001000001.jpg",)
    assert any("images with the content of a training image (1, " in warning for warning in report.warnings)


def test_images_that_only_end_alike_are_not_shared(root: Path) -> None:
    content = bytearray((root / "train2017" / "000000000003.jpg").read_bytes())
    content[len(content) - 600] ^= 1
    (root / "val2017" / "000001000001.jpg").write_bytes(content)
    assert validate_dataset(describe(root)).shared_images.count == 0


@pytest.mark.skipif(not COCO128.is_dir(), reason=f"{COCO128} is absent (DFVT_COCO128 names another place)")
def test_real_coco_images_validate() -> None:
    manifest = describe_dataset(
        "custom",
        COCO128,
        train_annotations=TRAIN_JSON,
        train_images="train2017",
        val_annotations=TRAIN_JSON,
        val_images="train2017",
        generated=False,
    )
    report = validate_dataset(manifest)
    assert len(manifest.classes) == 80
    assert manifest.classes[:2] == ("person", "bicycle")
    assert report.problems == ()
    assert report.train.num_images == 128
    assert report.train.num_annotations == 939
    assert report.train.num_crowd == 10
    assert report.train.num_images_without_objects == 2
    assert report.shared_images.count == 128
    assert any("images with the content of a training image (128, " in warning for warning in report.warnings)
