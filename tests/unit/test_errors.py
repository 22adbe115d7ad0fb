"""Errors are found as TIDE defines them, on top of matches that are COCO's own."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dfvt.reports.error_plots import plot_confusion, plot_errors
from dfvt.reports.errors import KINDS, confusions_of, costs_of, judge, order_images, write_errors
from dfvt.settings import VARIANTS

NAMES = {1: "cat", 2: "dog", 7: "bird"}
SIDE = 100


def coco_of(annotations: list[dict[str, Any]], num_images: int = 1) -> COCO:
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": i, "width": SIDE, "height": SIDE, "file_name": f"{i}.jpg"} for i in range(num_images)
        ],
        "categories": [{"id": number, "name": name} for number, name in NAMES.items()],
        "annotations": [{"id": i, "iscrowd": 0, **one} for i, one in enumerate(annotations, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def item(category_id: int, bbox: tuple[float, ...], score: float | None = None, image: int = 0) -> dict:
    """An annotation, or a prediction if it has a score; its mask fills its box."""
    x, y, w, h = bbox
    bitmap = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    bitmap[round(y) : round(y + h), round(x) : round(x + w)] = 1
    encoded = rle.encode(bitmap)
    mask = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    content = {"image_id": image, "category_id": category_id, "bbox": list(bbox), "segmentation": mask}
    return content | ({"area": w * h} if score is None else {"score": score})


CAT = (10, 10, 40, 40)
NEAR = (20, 20, 40, 40)  # IoU 0.39 with it
FAR = (60, 60, 30, 30)


@pytest.mark.parametrize(
    ("predictions", "kind"),
    [
        ([(2, CAT, 0.9)], "classification"),
        ([(1, NEAR, 0.9)], "localisation"),
        ([(2, NEAR, 0.9)], "both"),
        ([(1, CAT, 0.9), (1, CAT, 0.8)], "duplicate"),
        ([(1, FAR, 0.9)], "background"),
        ([], "missed"),
    ],
)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_each_kind_of_error_is_told_from_the_others(
    predictions: list[tuple[int, tuple[float, ...], float]], kind: str, iou_type: Any
) -> None:
    truth = coco_of([item(1, CAT)])
    costs = costs_of(judge(truth, [item(*one) for one in predictions], iou_type))
    expected = {kind: 1} | ({"missed": 1} if kind in ("both", "background") else {})
    assert {one: number for one, (number, _) in costs.items() if number} == expected


def test_what_an_error_costs_is_what_its_repair_gains() -> None:
    truth = coco_of([item(1, CAT), item(2, FAR)])
    wrong_class = judge(truth, [item(2, CAT, 0.9), item(2, FAR, 0.8)], "bbox")
    assert wrong_class.ap == pytest.approx((0 + 0.5) / 2)
    costs = costs_of(wrong_class)
    assert costs["classification"] == (1, pytest.approx(1 - 0.25))
    assert costs["missed"] == (0, 0)  # the cat was meant
    badly_placed = judge(truth, [item(1, NEAR, 0.9), item(1, NEAR, 0.8), item(2, FAR, 0.8)], "bbox")
    assert costs_of(badly_placed)["localisation"] == (2, pytest.approx(0.5))
    missed = judge(truth, [item(1, CAT, 0.9)], "bbox")
    assert costs_of(missed)["missed"] == (1, pytest.approx(0.5))


def test_crowd_regions_count_neither_way() -> None:
    truth = coco_of([item(1, CAT), item(1, FAR) | {"iscrowd": 1}])
    judgement = judge(truth, [item(1, CAT, 0.9), item(1, (62, 62, 10, 10), 0.95), item(2, FAR, 0.5)], "bbox")
    assert judgement.ap == 1 and judgement.num_objects == {1: 1}
    assert [one.kind for one in judgement.detections] == [None, "background"]


places = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(5, 40)] * 2)
objects = st.tuples(st.sampled_from(list(NAMES)), places, st.integers(0, 2), st.booleans())
found = st.tuples(st.sampled_from(list(NAMES)), places, st.integers(0, 2), st.integers(1, 999))


@settings(max_examples=60)
@given(
    truth=st.lists(objects, min_size=1, max_size=10),
    predictions=st.lists(found, min_size=1, max_size=14, unique_by=lambda one: one[3]),
    copies=st.lists(st.integers(0, 9), max_size=6),
)
def test_matches_and_ap_are_those_of_coco(
    truth: list[Any], predictions: list[Any], copies: list[int]
) -> None:
    annotations = [
        item(class_, place, image=image) | {"iscrowd": int(crowd and number % 3 == 0)}
        for number, (class_, place, image, crowd) in enumerate(truth)
    ]
    results = [item(class_, place, score / 1000, image) for class_, place, image, score in predictions]
    for number, index in enumerate(copies):  # close to objects, or there would be no matches
        class_, (x, y, w, h), image, _ = truth[index % len(truth)]
        results.append(item(class_, (x + number, y, w, h), 0.0005 + number / 10000, image))
    coco = coco_of(annotations, num_images=3)
    judgement = judge(coco, results, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes([dict(one) for one in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = evaluation.stats[1]
    assert np.isnan(judgement.ap) if expected < 0 else judgement.ap == pytest.approx(expected, abs=1e-9)
    if expected >= 0:
        assert all(cost > -1e-9 for kind, (_, cost) in costs_of(judgement).items() if kind != "missed")
    table = confusions_of(judgement, NAMES, 0.0)
    real = table[table["actual"] != "(background)"]
    numbers = {NAMES[class_]: number for class_, number in judgement.num_objects.items()}
    assert real.groupby("actual")["number"].sum().to_dict() == numbers


def test_confusions_say_what_objects_were_taken_for() -> None:
    truth = coco_of([item(1, CAT), item(2, FAR), item(7, (0, 90, 8, 8))])
    found = [item(2, CAT, 0.9), item(2, FAR, 0.8), item(1, (80, 0, 9, 9), 0.7), item(7, (0, 90, 8, 8), 0.2)]
    table = confusions_of(judge(truth, found, "bbox"), NAMES, 0.5)
    assert [tuple(row) for row in table.itertuples(index=False)] == [
        ("(background)", "cat", 1),
        ("bird", "(missed)", 1),
        ("cat", "dog", 1),
        ("dog", "dog", 1),
    ]


def test_a_class_named_as_a_marker_is_not_the_marker() -> None:
    truth = coco_of([item(1, CAT), item(2, FAR)])
    judgement = judge(truth, [item(1, (80, 0, 9, 9), 0.7)], "bbox")
    table = confusions_of(judgement, {1: "(background)", 2: "(missed)", 7: "bird"}, 0.5)
    assert [tuple(row) for row in table.itertuples(index=False)] == [
        ("((background))", "(missed)", 1),
        ("((missed))", "(missed)", 1),
        ("(background)", "((background))", 1),
    ]


def test_images_are_ordered_by_what_went_right_on_them() -> None:
    truth = coco_of([item(1, CAT, image=i) for i in range(4)] + [item(2, FAR, image=3)], num_images=6)
    found = [item(1, CAT, 0.9, image=i) for i in (1, 2, 3)] + [item(2, FAR, 0.9, image=3)]
    found += [item(1, (80, 0, 9, 9), 0.8, image=2), item(1, FAR, 0.1, image=1), item(1, FAR, 0.9, image=5)]
    judgement = judge(truth, found, "bbox")
    assert order_images(judgement, 0.5) == [3, 1, 2, 0]  # both objects, one, one and a mistake, none


def test_tables_and_pictures_are_written(tmp_path: Path) -> None:
    truth = coco_of([item(1, CAT), item(2, FAR)])
    for variant in VARIANTS:
        folder = tmp_path / variant
        folder.mkdir()
        predictions = {iou_type: [item(2, CAT, 0.9)] for iou_type in ("bbox", "segm")}
        assert write_errors(truth, predictions, folder, 0.5) == [0]
    table = pd.read_csv(tmp_path / "tiny/errors.csv")
    assert table["error"].tolist() == [*KINDS, *KINDS]
    assert table["number"].tolist() == [1, 0, 0, 0, 0, 1] * 2
    plot_errors(tmp_path, VARIANTS, tmp_path / "errors.png")
    plot_confusion(tmp_path / "tiny/confusion.csv", "evaluate@tiny", tmp_path / "confusion.png")
    for name in ("errors.png", "confusion.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "small/errors.csv").unlink()
    with pytest.raises(FileNotFoundError, match="run `dvc repro evaluate@small`"):
        plot_errors(tmp_path, VARIANTS, tmp_path / "errors.png")
