"""Data sets in COCO layout: what is wrong is said in one sentence, and the hash is that of the content."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dfvt.data.coco import describe_dataset, read_annotations
from dfvt.data.manifest import DatasetManifest
from dfvt.data.shapes import generate_shapes

TRAIN_JSON = "annotations/instances_train2017.json"
VAL_JSON = "annotations/instances_val2017.json"


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


def test_a_sound_data_set_is_described(root: Path) -> None:
    manifest = describe(root)
    assert manifest.classes == ("disk", "box", "triangle", "star")
    assert (manifest.num_train_images, manifest.num_val_images) == (8, 3)
    assert manifest.train_annotations_path == root / TRAIN_JSON
    assert manifest.train_images_path == root / "train2017"
    assert manifest.val_annotations_path == root / VAL_JSON
    assert manifest.val_images_path == root / "val2017"


def test_paths_of_a_relative_root_are_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    manifest = describe(Path("set"))
    assert manifest.root == Path("set")
    assert manifest.val_images_path == root / "val2017"


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
    assert f"{TRAIN_JSON} is not in COCO's instance format (Object missing required field {key})" in refusal(
        root, ValueError
    )


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("images", "width", "64"),
        ("images", "file_name", None),
        ("annotations", "bbox", [0, 0, 5]),
        ("annotations", "image_id", "1"),
        ("annotations", "area", None),
        ("annotations", "iscrowd", True),
        ("categories", "name", 7),
    ],
)
def test_annotation_file_with_a_wrong_value(root: Path, part: str, field: str, value: object) -> None:
    edit(root / TRAIN_JSON, lambda content: content[part][2].update({field: value}))
    assert f"{TRAIN_JSON} is not in COCO's instance format ({part}[2].{field}: " in refusal(root, ValueError)


def test_annotations_with_a_number_that_is_not_json(root: Path) -> None:
    edit(root / TRAIN_JSON, lambda content: content["annotations"][2].update(area=float("nan")))
    assert f"{TRAIN_JSON} is truncated or not JSON (it has NaN or Infinity" in refusal(root, ValueError)


def test_annotations_with_a_byte_order_mark(root: Path) -> None:
    (root / TRAIN_JSON).write_bytes(b"\xef\xbb\xbf" + (root / TRAIN_JSON).read_bytes())
    assert "it begins with a byte-order mark" in refusal(root, ValueError)


def test_a_name_that_is_too_long_is_of_no_image(root: Path) -> None:
    edit(root / TRAIN_JSON, lambda content: content["images"][0].update(file_name="x" * 5000))
    assert "1 of 8 images named in" in refusal(root, FileNotFoundError)


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
