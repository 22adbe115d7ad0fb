"""COCO numbers under the names of the contract, whatever the detector says."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import Config, ConfigDict
from mmdet.datasets.api_wrappers import COCO
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval

from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.evaluate import CocoEvaluation, evaluate_iou_type, evaluate_results

SUFFIXES = ("", "_50", "_75", "_s", "_m", "_l")
NAMES = [f"{kind}_mAP{suffix}" for kind in ("bbox", "segm") for suffix in SUFFIXES]


@pytest.fixture(scope="module")
def dataset(session_config: Config) -> Any:
    return build_coco_dataset(session_config.data.val, test_mode=True)


def results_of(dataset: Any, keep: int | None = None, score: float = 0.9) -> list[Any]:
    """mmdet results that repeat the ground truth, of label `keep` alone if given."""
    results = []
    for image_id in dataset.img_ids:
        boxes: list[list[list[float]]] = [[] for _ in dataset.CLASSES]
        masks: list[list[Any]] = [[] for _ in dataset.CLASSES]
        for annotation in dataset.coco.imgToAnns[image_id]:
            label = dataset.cat2label[annotation["category_id"]]
            if annotation["iscrowd"] or keep not in (None, label):
                continue
            x, y, width, height = annotation["bbox"]
            boxes[label].append([x, y, x + width, y + height, score])
            masks[label].append(rle.encode(np.asfortranarray(dataset.coco.annToMask(annotation))))
        results.append(([np.array(rows, dtype=float).reshape(-1, 5) for rows in boxes], masks))
    return results


@pytest.fixture(scope="module")
def perfect(dataset: Any) -> CocoEvaluation:
    return evaluate_results(dataset, results_of(dataset))


def test_metrics_have_the_names_of_the_contract(perfect: CocoEvaluation) -> None:
    assert list(perfect.metrics) == NAMES


def test_the_ground_truth_itself_is_perfect(perfect: CocoEvaluation, dataset: Any) -> None:
    present = {dataset.cat2label[annotation["category_id"]] for annotation in dataset.coco.anns.values()}
    for kind in ("bbox", "segm"):
        assert perfect.metrics[f"{kind}_mAP"] == pytest.approx(1.0)
        assert all(value == pytest.approx(1.0) or value == -1 for value in perfect.metrics.values())
        assert list(perfect.class_ap[kind]) == list(dataset.CLASSES)
        assert all(perfect.class_ap[kind][dataset.CLASSES[label]] == pytest.approx(1.0) for label in present)
        curve = perfect.precision[kind]
        assert curve.recall.shape == curve.precision.shape == (101,)
        assert curve.precision.min() == pytest.approx(1.0)


def test_no_predictions_are_worth_nothing_where_there_are_objects(
    dataset: Any, perfect: CocoEvaluation
) -> None:
    boxes = [np.zeros((0, 5)) for _ in dataset.CLASSES]
    nothing: list[Any] = [(boxes, [[] for _ in dataset.CLASSES])] * len(dataset)
    evaluation = evaluate_results(dataset, nothing)
    assert evaluation.metrics == {name: min(value, 0.0) for name, value in perfect.metrics.items()}
    assert evaluation.recalls == {name: min(value, 0.0) for name, value in perfect.recalls.items()}
    for kind, of_class in perfect.class_ap.items():
        assert evaluation.class_ap[kind] == {name: min(value, 0.0) for name, value in of_class.items()}
    assert -1 in evaluation.metrics.values(), "no object is large, so there is no number for large ones"
    assert evaluation.precision["bbox"].precision.max() == 0


def test_ap_of_a_class_counts_that_class_alone(dataset: Any) -> None:
    counts = np.bincount([dataset.cat2label[item["category_id"]] for item in dataset.coco.anns.values()])
    label = int(counts.argmax())
    evaluation = evaluate_results(dataset, results_of(dataset, keep=label))
    ap = evaluation.class_ap["bbox"]
    assert ap.pop(dataset.CLASSES[label]) == pytest.approx(1.0)
    assert set(ap.values()) <= {0.0, -1.0}


def test_boxes_without_masks_are_evaluated_alone(dataset: Any) -> None:
    evaluation = evaluate_results(dataset, [boxes for boxes, _ in results_of(dataset)])
    assert list(evaluation.metrics) == NAMES[:6]
    assert evaluation.metrics["bbox_mAP"] == pytest.approx(1.0)


def test_the_size_of_a_mask_is_its_own_not_its_box(dataset: Any) -> None:
    found, other = results_of(dataset), results_of(dataset, score=0.95)
    # False ones, whose size decides in which of the numbers they count: what is on the image before.
    results = [
        (
            [np.concatenate(pair) for pair in zip(boxes, other_boxes, strict=True)],
            [[*pair[0], *pair[1]] for pair in zip(masks, other_masks, strict=True)],
        )
        for (boxes, masks), (other_boxes, other_masks) in zip(found, other[-1:] + other[:-1], strict=True)
    ]
    evaluation = evaluate_results(dataset, results)
    assert 0 < evaluation.metrics["segm_mAP"] < 1
    assert all("bbox" in record for record in evaluation.predictions["segm"]), "pictures draw it"
    stock = dataset.evaluate(results, metric=["bbox", "segm"], logger="silent")
    assert evaluation.metrics == pytest.approx({name: float(stock[name]) for name in NAMES}, abs=6e-4)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Any, list[dict[str, Any]]]:
    """Ground truth of a few images, crowds and empty images among it, and detections with tied scores."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_images, num_classes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    side = 160
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i + 3, "height": side, "width": side} for i in range(num_images)],
        "categories": [{"id": 2 * i + 1, "name": str(i)} for i in range(num_classes)],
        "annotations": [],
    }

    def box_of(rng: np.random.Generator) -> list[float]:
        size = np.exp(rng.uniform(np.log(6), np.log(150), 2))
        return [*(rng.uniform(0, 1, 2) * (side - size)), *size]

    def polygon_of(x: float, y: float, width: float, height: float) -> list[list[float]]:
        return [[x, y, x + width, y, x + width / 2, y + height]]

    records = []
    for image in truth.dataset["images"]:
        for _ in range(rng.integers(0, 6)):
            box, category = box_of(rng), int(2 * rng.integers(0, num_classes) + 1)
            segmentation = polygon_of(*box)
            truth.dataset["annotations"].append(
                {
                    "id": len(truth.dataset["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3] / 2,
                    "iscrowd": int(rng.random() < 0.2),
                    "segmentation": segmentation,
                }
            )
            for _ in range(rng.integers(0, 40)):
                moved = [float(value) for value in np.array(box) * rng.uniform(0.85, 1.15, 4)]
                mask = rle.merge(rle.frPyObjects(polygon_of(*moved), side, side))
                records.append(
                    {
                        "image_id": image["id"],
                        "category_id": category if rng.random() < 0.8 else 1,
                        "bbox": moved,
                        "score": round(float(rng.random()), 1),
                        "segmentation": {**mask, "counts": mask["counts"].decode()},
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    truth.img_ann_map, truth.cat_img_map = truth.imgToAnns, truth.catToImgs
    return truth, records


@given(scenes())
@settings(max_examples=40, derandomize=True)
def test_the_numbers_are_those_of_pycocotools_to_the_last_digit(
    scene: tuple[Any, list[dict[str, Any]]],
) -> None:
    truth, records = scene
    cat_ids, img_ids = truth.get_cat_ids(), truth.get_img_ids()
    dataset = SimpleNamespace(coco=truth, cat_ids=cat_ids, img_ids=img_ids, CLASSES=[str(i) for i in cat_ids])
    if not records:
        return  # pycocotools refuses them; a test of its own says what we do
    for iou_type in ("bbox", "segm"):
        ours = CocoEvaluation({}, {}, {}, {}, predictions={iou_type: records})
        evaluate_iou_type(dataset, iou_type, records, ours)
        keys = {"bbox"} if iou_type == "segm" else set()
        plain = [{key: value for key, value in record.items() if key not in keys} for record in records]
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = COCOeval(truth, truth.loadRes(plain), iou_type)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
        assert list(ours.numbers.values()) == [round(value, 9) for value in theirs.stats.tolist()]


def test_labels_follow_the_classes_whatever_the_order_in_the_file(config: Config, tmp_path: Path) -> None:
    content = json.loads(Path(config.data.val.ann_file).read_text())
    shuffled = tmp_path / "shuffled.json"
    shuffled.write_text(json.dumps({**content, "categories": content["categories"][::-1]}))
    straight = build_coco_dataset(config.data.val, test_mode=True)
    config.data.val.ann_file = str(shuffled)
    other = build_coco_dataset(config.data.val, test_mode=True)
    assert other.cat2label == straight.cat2label
    assert other.cat_ids == straight.cat_ids
    assert evaluate_results(other, results_of(straight)).class_ap == (
        evaluate_results(straight, results_of(straight)).class_ap
    )
    both = [config.data.val, {"type": "RepeatDataset", "times": 2, "dataset": config.data.val}]
    wrapped = build_coco_dataset(ConfigDict(type="ConcatDataset", datasets=both), test_mode=True)
    direct, repeated = wrapped.datasets
    assert direct.cat2label == repeated.dataset.cat2label == straight.cat2label
