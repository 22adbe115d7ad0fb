"""What is wrong with a data set is found, named, and counted."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from mmcv import ConfigDict
from PIL import ExifTags, Image

from dfvt.data.coco import describe_dataset, read_annotations
from dfvt.data.validation import (
    DatasetReport,
    Finding,
    SplitReport,
    check_split,
    judge_split,
    validate_dataset,
)
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.evaluate import evaluate_results
from tests.unit.test_coco import TRAIN_JSON, VAL_JSON, describe, edit, pristine, root
from tests.unit.test_images import png_of_size

__all__ = ["pristine", "root"]  # fixtures
COCO128 = Path(os.environ.get("DFVT_COCO128", Path(__file__).resolve().parents[3] / "shared" / "coco128"))


def test_a_sound_data_set_has_no_problems(root: Path) -> None:
    report = validate_dataset(describe(root))
    assert report.problems == ()
    assert report.splits["train"].num_images == 8
    assert report.splits["train"].num_crowd == 1
    assert report.splits["train"].num_annotations == sum(report.splits["train"].num_objects.values()) + 1
    assert DatasetReport.model_validate_json(report.model_dump_json()) == report


def test_report_does_not_depend_on_where_the_data_lies(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_annotation(bbox=[5, 5, 0, 5])(root)
    monkeypatch.chdir(tmp_path)
    report = validate_dataset(describe(Path("set")))
    assert report.warnings
    assert str(tmp_path) not in report.model_dump_json()


def train_annotation(**change: object) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        edit(root / TRAIN_JSON, lambda content: content["annotations"][0].update(change))

    return apply


def remove_image(root: Path) -> None:
    (root / "train2017" / "000000000002.jpg").unlink()


def other_size(root: Path) -> None:
    edit(root / TRAIN_JSON, lambda content: content["images"][0].update(height=65))


def empty_image(root: Path) -> None:
    (root / "train2017" / "000000000002.jpg").write_bytes(b"")


def truncate_image(root: Path) -> None:
    path = root / "train2017" / "000000000002.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def repeat_image(root: Path) -> None:
    edit(root / TRAIN_JSON, lambda content: content["images"].append({**content["images"][0], "id": 77}))


def name_outside(root: Path) -> None:
    edit(
        root / TRAIN_JSON,
        lambda content: content["images"][0].update(file_name="../train2017/000000000001.jpg"),
    )


def repeat_image_id(root: Path) -> None:
    edit(root / TRAIN_JSON, lambda content: content["images"][1].update(id=1))


def first_image_id(new: int) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        number = content["images"][0]["id"]
        for item, key in (
            (content["images"][0], "id"),
            *((item, "image_id") for item in content["annotations"]),
        ):
            item[key] = new if item[key] == number else item[key]

    return lambda root: edit(root / TRAIN_JSON, change)


@pytest.mark.parametrize(
    ("damage", "field", "example", "sentence"),
    [
        (remove_image, "missing_images", "000000000002.jpg", "missing images"),
        (truncate_image, "unreadable_images", "000000000002.jpg", "images that cannot be decoded"),
        (empty_image, "unreadable_images", "000000000002.jpg", "images that cannot be decoded"),
        (other_size, "size_mismatches", "000000000001.jpg", "images of another size than stated"),
        (train_annotation(segmentation=[]), "missing_outlines", "100", "without an outline"),
        (train_annotation(segmentation=[[1, 1, 9, 9]]), "missing_outlines", "100", "without an outline"),
        (train_annotation(segmentation=[["a", "b"]]), "missing_outlines", "100", "without an outline"),
        (train_annotation(segmentation={"size": [64, 64]}), "missing_outlines", "100", "without an outline"),
        (
            train_annotation(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
            "outlines_far_outside",
            "100",
            "an outline far outside of the image",
        ),
        (
            train_annotation(segmentation={"size": [64, 64], "counts": [0, 4095]}),
            "wrong_run_lengths",
            "100",
            "run lengths that do not fill their image",
        ),
        (train_annotation(iscrowd=2), "wrong_crowd_flags", "100", "iscrowd is neither 0 nor 1"),
        (train_annotation(category_id=99), "unknown_category_ids", "100", "category id that is not listed"),
        (train_annotation(image_id=99), "unknown_image_ids", "100", "image id that is not listed"),
        (train_annotation(id=0), "zero_ids", "0", "with the id 0"),
        (
            train_annotation(id=-1),
            "unevaluated_ids",
            "annotation -1",
            "ids that COCO's evaluation cannot hold",
        ),
        (
            train_annotation(id=2**63),
            "unevaluated_ids",
            f"annotation {2**63}",
            "which are those of images and",
        ),
        (
            first_image_id(2**53 + 1),
            "unevaluated_ids",
            f"image {2**53 + 1}",
            "ids that COCO's evaluation cannot hold",
        ),
        (first_image_id(-5), "unevaluated_ids", "image -5", "ids that COCO's evaluation cannot hold"),
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
    assert getattr(report.splits["train"], field).count == 1
    assert getattr(report.splits["train"], field).examples == (example,)
    assert getattr(report.splits["val"], field).count == 0
    problem = next(problem for problem in report.problems if sentence in problem)
    assert problem.startswith(f"{root / TRAIN_JSON}: ")
    assert re.search(rf"\(1, the first is {example}(, it is .*)?\): ", problem)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("damage", "field", "example", "sentence"),
    [
        (
            train_annotation(bbox=[50, 50, 20, 5]),
            "boxes_outside_image",
            "100",
            "a box that reaches out of the image",
        ),
        (
            train_annotation(bbox=[5, 5, 0, 5], iscrowd=0),
            "untrained",
            "100",
            "is narrower or lower than a pixel or outside",
        ),
        (train_annotation(bbox=[-30, 5, 20, 5], iscrowd=0), "untrained", "100", "or outside"),
        (train_annotation(area=0, iscrowd=0), "untrained", "100", "or whose area is 0"),
        (
            train_annotation(bbox=[50, 50, 10, 10], iscrowd=0),
            "misplaced_boxes",
            "100",
            "is not that of their",
        ),
        (
            train_annotation(segmentation=[[5, 5, 9, 5, 7, 5]], iscrowd=0),
            "empty_masks",
            "100",
            "whose mask has no pixel",
        ),
        (repeat_image, "repeated_images", "000000000001.jpg", "that are listed more than once"),
        (name_outside, "names_outside", "../train2017/000000000001.jpg", "lead out of the folder"),
        (
            train_annotation(segmentation=[[8, 8, 24, 8, 24, 24, 8, 24], [1, 1, 2, 2]]),
            "short_polygons",
            "100",
            "a polygon of fewer than three corners beside others",
        ),
        (train_annotation(area=1e4, iscrowd=0), "area_mismatches", "100", "is not that of their mask"),
    ],
)
def test_what_does_not_stop_a_training_is_a_warning(
    root: Path, damage: Callable[[Path], object], field: str, example: str, sentence: str
) -> None:
    damage(root)
    report = validate_dataset(describe(root))
    assert getattr(report.splits["train"], field).examples == (example,)
    assert report.problems == ()
    assert any(sentence in warning and str(root / TRAIN_JSON) in warning for warning in report.warnings)


def test_boxes_off_by_rounding_are_accepted(root: Path) -> None:
    train_annotation(bbox=[0, 0, 64.4, 64.01])(root)
    assert validate_dataset(describe(root)).splits["train"].boxes_outside_image.count == 0


def test_a_split_without_objects_is_a_problem(root: Path) -> None:
    edit(root / VAL_JSON, lambda content: content["annotations"].clear())
    report = validate_dataset(describe(root))
    assert report.problems == (f"{root / VAL_JSON}: no object is annotated: annotate some.",)
    assert report.splits["val"].num_images_without_objects == 3


def test_images_in_both_splits_are_found_by_content(root: Path) -> None:
    shutil.copy(root / "train2017" / "000000000003.jpg", root / "val2017" / "000001000001.jpg")
    report = validate_dataset(describe(root))
    assert report.shared_images.examples == ("000001000001.jpg",)
    assert any(
        "images with the content of one of another split (1, " in warning for warning in report.warnings
    )


def test_images_that_only_end_alike_are_not_shared(root: Path) -> None:
    content = bytearray((root / "train2017" / "000000000003.jpg").read_bytes())
    content[len(content) - 600] ^= 1
    (root / "val2017" / "000001000001.jpg").write_bytes(content)
    assert validate_dataset(describe(root)).shared_images.count == 0


def test_an_image_that_is_stored_lying_has_the_size_that_loaders_see(root: Path) -> None:
    path = root / "train2017" / "000000000002.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (80, 48)).save(path, exif=exif)
    edit(root / TRAIN_JSON, lambda content: content["images"][1].update(width=48, height=80))
    assert validate_dataset(describe(root)).splits["train"].size_mismatches.count == 0
    assert mmcv.imread(path).shape[:2] == (80, 48)


def test_an_image_that_the_annotations_state_as_it_is_stored(root: Path) -> None:
    path = root / "train2017" / "000000000002.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (80, 48)).save(path, exif=exif)
    edit(root / TRAIN_JSON, lambda content: content["images"][1].update(width=80, height=48))
    for decode in (True, False):
        report = validate_dataset(describe(root), decode_images=decode)
        assert report.splits["train"].turned_sizes.examples == (path.name,)
        assert report.splits["train"].size_mismatches.count == 0
        assert any("color_ignore_orientation" in problem for problem in report.problems)
        report = validate_dataset(describe(root), decode_images=decode, color_type="color_ignore_orientation")
        assert report.splits["train"].turned_sizes.count == report.splits["train"].size_mismatches.count == 0


@pytest.mark.parametrize(
    ("mode", "kind"), [("F", "tiff"), ("I", "tiff"), ("RGB", "pcx"), ("RGB", "tga"), ("RGB", "sgi")]
)
def test_an_image_that_the_training_cannot_decode_is_a_problem(root: Path, mode: str, kind: str) -> None:
    path = root / "train2017" / "000000000002.jpg"
    Image.new(mode, Image.open(path).size).save(path, format=kind)
    assert mmcv.imread(path) is None
    (problem,) = validate_dataset(describe(root)).problems
    assert "images that cannot be decoded (1, the first is 000000000002.jpg, " in problem
    assert f"({kind.upper()} image of mode {mode}): save it as JPEG or PNG" in problem


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "tiff", "webp", "gif", "ppm", "jpeg2000", "avif"])
@pytest.mark.parametrize("size", [(33, 9), (48, 80), (80, 48)])
def test_an_image_that_the_training_decodes_is_sound(root: Path, kind: str, size: tuple[int, int]) -> None:
    path = root / "train2017" / "000000000002.jpg"
    Image.new("RGB", size).save(path, format=kind)
    edit(root / TRAIN_JSON, lambda content: content["images"][1].update(width=size[0], height=size[1]))
    report = validate_dataset(describe(root)).splits["train"]
    assert mmcv.imread(path).shape[:2] == size[::-1]
    assert report.unreadable_images.count == report.size_mismatches.count == 0


@pytest.mark.parametrize("side", [13_400, 10_001])
def test_an_image_that_is_too_large_is_called_too_large(root: Path, side: int) -> None:
    path = root / "train2017" / "000000000002.jpg"
    path.write_bytes(png_of_size(side, side))
    for decode in (True, False):
        (problem,) = validate_dataset(describe(root), decode_images=decode).problems
        assert "images with more than 100,000,000 pixels (1, the first is 000000000002.jpg): scale" in problem


def test_a_damaged_image_that_the_training_decodes_is_a_warning(root: Path) -> None:
    path = root / "train2017" / "000000000002.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    content = bytearray(path.read_bytes())
    content[3000:3002] = b"\xff\xd8"  # the start of another image
    path.write_bytes(content)
    edit(root / TRAIN_JSON, lambda content: content["images"][1].update(width=80, height=64))
    report = validate_dataset(describe(root))
    assert mmcv.imread(path) is not None
    assert report.splits["train"].damaged_images.count == 1 and not report.problems
    sentence = "partly with wrong pixels (1, the first is 000000000002.jpg, "
    assert any(sentence in one for one in report.warnings)


def test_images_that_are_too_small_to_train_on_are_told(root: Path) -> None:
    edit(root / TRAIN_JSON, lambda content: content["images"][1].update(width=31, height=64))
    report = validate_dataset(describe(root))
    assert report.splits["train"].small_images.count == 1
    assert any("under 32 pixels wide or high, which are not trained on" in one for one in report.warnings)

    def shrink(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image.update(width=64, height=31)

    for file in (TRAIN_JSON, VAL_JSON):
        edit(root / file, shrink)
    problems = [one for one in validate_dataset(describe(root)).problems if "are not trained on" in one]
    assert [str(root / TRAIN_JSON) in one and "scale the images up" in one for one in problems] == [True]


def test_a_backslash_in_the_name_of_a_missing_image_is_told(root: Path) -> None:
    name = "train2017\\000000000002.jpg"
    edit(root / TRAIN_JSON, lambda content: content["images"][1].update(file_name=name))
    content = read_annotations(root / TRAIN_JSON)
    report = check_split(content, root / "train2017")
    assert report.missing_images.count == 0 and report.backslash_names.examples == (name,)
    (problem,) = judge_split(root / TRAIN_JSON, report).problems
    assert "with a backslash in their file_name, as Windows writes paths" in problem and "with /" in problem


def corners(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def normalised(box: list[float]) -> list[float]:
    return [value / 64 for value in box]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda item: item.update(bbox=corners(item["bbox"])),
            "export boxes as x, y, width, height in pixels",
        ),
        (lambda item: item.update(bbox=normalised(item["bbox"])), "which are not trained on"),
        (lambda item: item.update(bbox=[5, 5, 20, 20]), "whose box (x, y, width, height) is not that"),
        (lambda item: item.update(area=-1), "which are not trained on"),
        (lambda item: item.update(segmentation=[[9, 9, 9, 9, 9, 9]]), "whose mask has no pixel"),
    ],
)
def test_a_fault_of_most_objects_is_a_problem(
    root: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    def apply(content: dict[str, Any]) -> None:
        for item in content["annotations"]:
            if not item["iscrowd"]:
                change(item)

    edit(root / TRAIN_JSON, apply)
    problems = validate_dataset(describe(root)).problems
    assert any("more than half of all " in problem and sentence in problem for problem in problems)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7)])
def test_tiny_images(root: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(root / "train2017" / "000000000002.jpg")
    report = validate_dataset(describe(root)).splits["train"]
    assert (report.unreadable_images.count, report.size_mismatches.count) == (0, 1)


def test_headers_alone_do_not_show_that_an_image_is_cut(root: Path) -> None:
    truncate_image(root)
    manifest = describe(root)
    assert validate_dataset(manifest, decode_images=False).splits["train"].unreadable_images.count == 0
    assert validate_dataset(manifest).splits["train"].unreadable_images.count == 1


def test_sizes_and_crowds_are_counted(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for area, item in zip([0.5, 100, 1024, 9215.9, 9216], content["annotations"], strict=False):
            item.update(area=area, iscrowd=0, image_id=3)
        del content["annotations"][5:]
        content["annotations"].append({**content["annotations"][0], "id": 7, "iscrowd": 1, "image_id": 4})

    edit(root / TRAIN_JSON, change)
    report = validate_dataset(describe(root)).splits["train"]
    sizes = report.object_sizes
    assert (sizes.small, sizes.medium, sizes.large) == (2, 2, 1)
    assert sizes.num_by_side == {0: 1, 8: 1, 32: 1, 64: 2}
    assert report.num_images_by_objects == {0: 7, 5: 1}
    assert report.num_images_without_objects == 6  # a crowd is something
    assert report.num_crowd == 1


def test_data_that_the_user_calls_coco_are_compared_with_coco(root: Path) -> None:
    names = ["person", *(f"class {number}" for number in range(78)), "toothbrush"]
    for path in (TRAIN_JSON, VAL_JSON):
        categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        edit(root / path, lambda content, given=categories: content.update(categories=given))
    sentence = "8 images and 18 annotations, COCO 2017's own file has 118,287 and 860,001."
    mine, coco = (describe(root).model_copy(update={"name": name}) for name in ("custom", "coco2017"))
    assert not any(sentence in warning for warning in validate_dataset(mine).warnings)
    assert any(sentence in warning for warning in validate_dataset(coco).warnings)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([0, -1, 1, 1e308, -1e308, 1e-308, 65_536, 2**31, "", "\0", "..", "1" * 40])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something may be changed."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    )
    return [place] + [below for key, inner in entries for below in places(inner, (*place, key))]


def alike(value: Any) -> st.SearchStrategy[Any]:
    """Values that may well be taken for this one."""
    if isinstance(value, int):
        return st.integers(value - 3, value + 3) | st.integers(-1, 200)
    if isinstance(value, float):
        return st.floats(value - 3, value + 3) | st.floats(-100, 200) | st.integers(-1, 200)
    if isinstance(value, list):
        return (
            st.permutations(value) | st.lists(st.sampled_from(value), max_size=9) if value else st.just([0])
        )
    return json_values


@given(data=st.data())
@settings(max_examples=300)
def test_what_is_called_good_can_be_trained_on(pristine: Path, data: st.DataObject) -> None:
    """Any value of an annotation file is replaced by any other, or is removed."""
    content = json.loads((pristine / VAL_JSON).read_text())
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        place = data.draw(st.sampled_from(places(content)[1:]), "place")
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        change = data.draw(st.sampled_from(["other", "alike", "alike", "alike", "remove"]), "change")
        if change == "remove":
            del holder[place[-1]]
        else:
            values = alike(holder[place[-1]]) if change == "alike" else json_values
            holder[place[-1]] = data.draw(values, "value")
    path = pristine / "annotations/changed.json"
    path.write_text(json.dumps(content))
    try:
        read = read_annotations(path)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    if judge_split(path, check_split(read, pristine / "val2017")).problems:
        return
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
    ]
    names = [item.name for item in sorted(read.categories, key=lambda item: item.id)]
    cfg = {
        "type": "CocoDataset",
        "ann_file": str(path),
        "img_prefix": str(pristine / "val2017"),
        "classes": names,
        "pipeline": pipeline,
    }
    dataset = build_coco_dataset(ConfigDict(cfg), test_mode=False)
    event("trained on")
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["img"].shape[:2] == (sample["gt_masks"].height, sample["gt_masks"].width)


def with_ids(root: Path, images: int, annotations: int, categories: int) -> None:
    """Moves all ids of the validation split."""

    def change(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["id"] += images
        for item in content["annotations"]:
            item.update(id=item["id"] + annotations, image_id=item["image_id"] + images)
            item["category_id"] += categories
        for category in content["categories"]:
            category["id"] += categories

    edit(root / VAL_JSON, change)


def evaluate_truth(root: Path) -> dict[str, float]:
    """What an evaluation says of detections a pixel beside the truth."""
    path = root / VAL_JSON
    names = [category["name"] for category in json.loads(path.read_text())["categories"]]
    cfg = {"type": "CocoDataset", "ann_file": str(path), "classes": names, "pipeline": []}
    dataset = build_coco_dataset(ConfigDict(cfg), test_mode=True)
    results = []
    for index in range(len(dataset)):
        truth = dataset.get_ann_info(index)
        boxes = np.c_[truth["bboxes"] + 1, np.linspace(0.9, 0.3, len(truth["bboxes"]))].astype(np.float32)
        results.append([boxes[truth["labels"] == label] for label in range(len(names))])
    return evaluate_results(dataset, results).metrics


def test_evaluation_is_right_with_all_ids_that_the_check_calls_sound(root: Path) -> None:
    expected = evaluate_truth(root)
    assert 0.2 < expected["bbox_mAP"] < 0.95
    rng = random.Random(0)
    limits = {"images": 2**53, "annotations": 2**63, "categories": 2**53}
    offsets = [
        {**dict.fromkeys(limits, 0), kind: sign * limit} for kind, limit in limits.items() for sign in (-1, 1)
    ]
    offsets += [{kind: sign * (limit - 10**7) for kind, limit in limits.items()} for sign in (-1, 1)]
    offsets += [
        {kind: rng.randint(-2 * limit, 2 * limit) for kind, limit in limits.items()} for _ in range(8)
    ]
    content, num_sound = (root / VAL_JSON).read_text(), 0
    for offset in offsets:
        (root / VAL_JSON).write_text(content)
        with_ids(root, **offset)
        read = read_annotations(root / VAL_JSON)
        problems = judge_split(root / VAL_JSON, check_split(read, root / "val2017")).problems
        try:
            assert evaluate_truth(root) == expected, offset
        except ValueError as error:
            assert problems and "COCO's evaluation cannot hold: number images and categories from 1" in str(
                error
            )
        num_sound += not problems
    assert 0 < num_sound < len(offsets)


def test_annotations_are_numbered_anew_where_their_ids_would_be_taken_for_none(root: Path) -> None:
    expected = evaluate_truth(root)
    first = min(item["id"] for item in json.loads((root / VAL_JSON).read_text())["annotations"])
    for offset in (-first, -first - 5):  # from 0, as many exports do; below 0
        with_ids(root, 0, offset, 0)
        assert evaluate_truth(root) == expected
        with_ids(root, 0, -offset, 0)


@pytest.mark.parametrize(
    ("num_images", "is_coco", "warned"),
    [(32, False, False), (32, True, True), (4_999, False, True), (5_000, False, False)],
)
def test_counts_are_those_of_coco_where_the_data_claim_to_be_coco(
    num_images: int, is_coco: bool, warned: bool
) -> None:
    classes = ["person", *(f"class {number}" for number in range(78)), "toothbrush"]
    report = SplitReport.model_construct(
        num_images=num_images,
        num_annotations=36_781,
        num_objects=dict.fromkeys(classes, 1),
        **{
            name: Finding.of([])
            for name, field in SplitReport.model_fields.items()
            if field.annotation is Finding
        },
    )
    sentence = f"{num_images:,} images and 36,781 annotations, COCO 2017's own file has 5,000 and 36,781."
    for name, of_name in (("instances_val2017.json", warned), ("mine.json", False)):
        verdict = judge_split(Path(name), report, is_coco=is_coco)
        assert verdict.warnings == ((f"{name}: {sentence}",) if of_name else ())
    others = report.model_copy(update={"num_objects": {**report.num_objects, "mine": 1}})
    assert judge_split(Path("instances_val2017.json"), others, is_coco=is_coco).warnings == ()


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
    assert report.splits["train"].num_images == 128
    assert report.splits["train"].num_annotations == 939
    assert report.splits["train"].num_crowd == 10
    assert report.splits["train"].num_images_without_objects == 2
    assert report.splits["train"].area_mismatches.count == 0
    assert report.shared_images.count == 128
    assert any(
        "images with the content of one of another split (128, " in warning for warning in report.warnings
    )
