"""The generated shapes: the same bytes from the same seed, sound annotations, small and quickly made."""

import json
import time
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dfvt.data import shapes
from dfvt.data.shapes import MIN_VISIBLE_PIXELS, SHAPE_CLASSES, generate_shapes

SPLITS = ("train2017", "val2017")
# Enough for a crowd and an image without objects in the training split.
SMALL: dict[str, Any] = {"num_train": 60, "num_val": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "made for everyone" / "set"
    generate_shapes(path, **SMALL)
    return path


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def decode(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    rle = coco_mask.frPyObjects(annotation["segmentation"], height, width)
    return coco_mask.decode(coco_mask.merge(rle) if isinstance(rle, list) else rle).astype(bool)


def annotations(root: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    return content


def test_same_seed_gives_the_same_bytes_elsewhere(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "elsewhere", **SMALL)
    assert digests(tmp_path / "elsewhere") == digests(root)


def test_another_seed_gives_other_images(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "set", seed=1, **SMALL)
    before, after = digests(root), digests(tmp_path / "set")
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_an_image_does_not_depend_on_the_number_of_images(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / "set", num_train=7, num_val=3)
    few = {name: digest for name, digest in digests(tmp_path / "set").items() if name.endswith(".jpg")}
    assert len(few) == 10
    assert few.items() <= digests(root).items()
    for split in SPLITS:
        more = annotations(root, split)["annotations"]
        assert all(annotation in more for annotation in annotations(tmp_path / "set", split)["annotations"])


def test_train_and_val_are_disjoint(root: Path) -> None:
    train, val = (annotations(root, split) for split in SPLITS)
    for key in ("images", "annotations"):
        ids = [record["id"] for record in train[key] + val[key]]
        assert len(set(ids)) == len(ids)
    images = [digest for name, digest in digests(root).items() if name.endswith(".jpg")]
    assert len(set(images)) == SMALL["num_train"] + SMALL["num_val"]


def test_annotations_name_the_images_on_disk_and_hold_no_date(root: Path) -> None:
    for split in SPLITS:
        content = annotations(root, split)
        assert {image["file_name"] for image in content["images"]} == {
            p.name for p in (root / split).iterdir()
        }
        assert content["licenses"]
        assert not [key for key in content["info"] if "date" in key]
        assert [category["name"] for category in content["categories"]] == [
            item.name for item in SHAPE_CLASSES
        ]
        for image in content["images"]:
            decoded = cv2.imread(str(root / split / image["file_name"]))
            assert decoded is not None and decoded.shape == (image["height"], image["width"], 3) == (
                128,
                160,
                3,
            )


def test_boxes_and_areas_are_those_of_the_decoded_masks(root: Path) -> None:
    for split in SPLITS:
        coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
        assert coco.anns
        for annotation in coco.anns.values():
            mask = coco.annToMask(annotation)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert annotation["area"] == mask.sum()


def test_objects_do_not_overlap_as_later_ones_hide_earlier_ones(root: Path) -> None:
    coco = COCO(str(root / "annotations" / "instances_train2017.json"))
    for image_id in coco.imgs:
        masks = [coco.annToMask(item) for item in coco.loadAnns(coco.getAnnIds(image_id))]
        shared = sum((mask.astype(int) for mask in masks), np.zeros((128, 160), int)) > 1
        # Outlines share the pixels that they run through.
        assert not cv2.erode(shared.astype(np.uint8), np.ones((3, 3), np.uint8)).any()


def test_polygons_agree_with_the_drawn_masks() -> None:
    num_holes = 0
    for index in range(40):
        _, objects = shapes._draw_image(
            np.random.default_rng(index), 128, 160, is_empty=False, has_crowd=False
        )
        for item in objects:
            drawn = cv2.resize(item.visible * 255, (160, 128), interpolation=cv2.INTER_AREA) >= 128
            decoded = decode(shapes._annotate(item, 128, 160), 128, 160)
            overlap = (drawn & decoded).sum() / (drawn | decoded).sum()
            assert overlap >= (0.95 if drawn.sum() >= 32**2 else 0.85)
            num_holes += len(cv2.findContours(item.visible, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]) > 1
    assert num_holes, "no object with a hole or several parts was among them"


def test_objects_of_all_classes_and_scales_occur(tmp_path: Path) -> None:
    started = time.process_time()
    generate_shapes(tmp_path / "set")
    assert time.process_time() - started < 15
    assert sum(path.stat().st_size for path in (tmp_path / "set").rglob("*") if path.is_file()) < 8e6

    train, val = (annotations(tmp_path / "set", split) for split in SPLITS)
    areas = np.array([item["area"] for item in train["annotations"] if not item["iscrowd"]])
    assert np.mean(areas < 32**2) > 0.05
    assert np.mean((areas >= 32**2) & (areas < 96**2)) > 0.3
    assert np.sum(areas >= 96**2) > 5
    for content in (train, val):
        counts = np.bincount([item["category_id"] for item in content["annotations"]], minlength=5)[1:]
        assert counts.min() > 0.2 * counts.sum()
        num_crowds = sum(item["iscrowd"] for item in content["annotations"])
        assert 0.02 <= num_crowds / len(content["images"]) <= 0.04
    with_objects = {item["image_id"] for item in train["annotations"]}
    assert len(train["images"]) - len(with_objects) == 1


def test_crowds_are_uncompressed_run_lengths(root: Path) -> None:
    crowds = [item for item in annotations(root, "train2017")["annotations"] if item["iscrowd"]]
    assert crowds
    for crowd in crowds:
        counts, size = crowd["segmentation"]["counts"], crowd["segmentation"]["size"]
        assert size == [128, 160]
        assert sum(counts) == 128 * 160
        assert sum(counts[1::2]) == crowd["area"]


@given(mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_run_lengths_decode_to_the_mask(mask: list[list[bool]]) -> None:
    array = np.array(mask)
    segmentation = {"counts": shapes._run_lengths(array), "size": list(array.shape)}
    assert np.array_equal(decode({"segmentation": segmentation}, *array.shape), array)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**64 - 1), height=st.integers(32, 140), width=st.integers(32, 200))
def test_every_object_lies_in_its_image_and_can_be_seen(seed: int, height: int, width: int) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        generate_shapes(root, seed=seed, num_train=7, num_val=1, height=height, width=width)
        for split in SPLITS:
            for item in annotations(root, split)["annotations"]:
                left, top, box_width, box_height = item["bbox"]
                assert left >= 0 and top >= 0 and box_width >= 1 and box_height >= 1
                assert left + box_width <= width and top + box_height <= height
                assert item["area"] >= 0.6 * MIN_VISIBLE_PIXELS
                if not item["iscrowd"]:
                    assert all(len(polygon) >= 6 for polygon in item["segmentation"])
                    xs = [x for polygon in item["segmentation"] for x in polygon[0::2]]
                    ys = [y for polygon in item["segmentation"] for y in polygon[1::2]]
                    assert min(xs) >= 0 and max(xs) <= width and min(ys) >= 0 and max(ys) <= height


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("num_train", -1),
        ("num_train", 0),
        ("num_val", 0),
        ("num_val", 10**7),
        ("height", 31),
        ("width", 0),
    ],
)
def test_nonsense_is_refused_in_one_sentence(name: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^data.shapes.{name} is {value}: .*[.]$"):
        generate_shapes(tmp_path / "set", **{**SMALL, name: value})
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split = shapes._write_split

    def interrupt_at_val(root: Path, name: str, *args: Any) -> None:
        if name == "val2017":
            raise KeyboardInterrupt
        write_split(root, name, *args)

    monkeypatch.setattr(shapes, "_write_split", interrupt_at_val)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / "set", num_train=2, num_val=2)
    assert not list(tmp_path.iterdir())


def test_an_earlier_generated_set_is_replaced(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "set", num_train=3, num_val=1)
    generate_shapes(tmp_path / "set", num_train=2, num_val=1)
    assert len(list((tmp_path / "set" / "train2017").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no generated shapes: remove it or choose another folder"):
        generate_shapes(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
