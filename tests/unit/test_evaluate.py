"""COCO numbers under the names of the contract, whatever the detector says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcv import Config
from pycocotools import mask as rle

from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.evaluate import CocoEvaluation, evaluate_results

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


def test_no_predictions_are_worth_nothing(dataset: Any) -> None:
    boxes = [np.zeros((0, 5)) for _ in dataset.CLASSES]
    nothing: list[Any] = [(boxes, [[] for _ in dataset.CLASSES])] * len(dataset)
    evaluation = evaluate_results(dataset, nothing)
    assert evaluation.metrics == dict.fromkeys(NAMES, 0.0)
    assert evaluation.class_ap["segm"] == dict.fromkeys(dataset.CLASSES, 0.0)
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
