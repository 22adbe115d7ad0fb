"""COCO evaluation of detectors, in one process or many."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from faster_coco_eval import COCOeval_faster
from mmcv.parallel import is_module_wrapper
from mmcv.runner import get_dist_info
from mmdet.core import encode_mask_results

from dfvt.data.loading import build_test_loader
from dfvt.engine.compat import to_device

# COCO's twelve numbers: average precisions as the contract names them, then average recalls.
METRIC_SUFFIXES = ("", "_50", "_75", "_s", "_m", "_l")
RECALL_SUFFIXES = ("_1", "_10", "_100", "_s", "_m", "_l")
METRIC_NAMES = tuple(f"{kind}_mAP{suffix}" for kind in ("bbox", "segm") for suffix in METRIC_SUFFIXES)
# pycocotools' precision after one right detection is 1 − 2⁻⁵², not 1: the last bits of a mean may differ.
NUM_DECIMALS = 9


@dataclass(frozen=True)
class PrecisionCurve:
    """Precision at COCO's 101 recall levels, IoU 0.5, mean over the classes."""

    recall: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class CocoEvaluation:
    """COCO numbers of one set of predictions, those of pycocotools, rounded to nine decimals.

    Attributes:
        metrics: `bbox_mAP`, `bbox_mAP_50`, … `segm_mAP_l`, in [0, 1]; −1 where no object of that size exists.
        recalls: `bbox_AR_1`, `_10`, `_100` (detections an image), `_s`, `_m`, `_l`, and the same for `segm`.
        class_ap: AP of each class, by IoU type (`bbox`, `segm`).
        precision: precision–recall curve by IoU type.
        predictions: COCO result records by IoU type.
    """

    metrics: dict[str, float]
    recalls: dict[str, float]
    class_ap: dict[str, dict[str, float]]
    precision: dict[str, PrecisionCurve]
    predictions: dict[str, list[dict[str, Any]]]

    @property
    def numbers(self) -> dict[str, float]:
        """COCO's twelve numbers of each IoU type."""
        both = {**self.metrics, **self.recalls}
        return {
            name: value for kind in self.predictions for name, value in both.items() if name.startswith(kind)
        }


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    dataset: Any,
    device: torch.device,
    *,
    num_workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> list[Any] | None:
    """mmdet results of every image of a test data set, masks as RLE; the processes share the images.

    Returns them in the data set's order in the first process, None in the others. `progress(done, total)` is
    called in the first process for its own share. Every process needs the same weights and buffers.

    Raises:
        ValueError: an image cannot be read.
    """
    rank, world_size = get_dist_info()
    if is_module_wrapper(model):
        model = cast(torch.nn.Module, model.module)
    was_training = model.training
    model.eval()
    indices = range(rank, len(dataset), world_size)
    results: list[Any] = []
    for batch in build_test_loader(dataset, indices, num_workers):
        if batch.inputs is None:
            raise ValueError(batch.unreadable[0])
        (result,) = model(return_loss=False, rescale=True, **to_device(batch.inputs, device))
        if isinstance(result, tuple):
            boxes, masks = result
            result = (boxes, encode_mask_results(masks))
        results.append(result)
        if progress and rank == 0:
            progress(len(results), len(indices))
    model.train(was_training)
    if world_size == 1:
        return results
    shares: list[Any] = [None] * world_size
    dist.all_gather_object(shares, results)
    if rank:
        return None
    return [shares[index % world_size][index // world_size] for index in range(len(dataset))]


def evaluate_results(dataset: Any, results: list[Any]) -> CocoEvaluation:
    """COCO evaluation of mmdet results on an mmdet `CocoDataset`: boxes, and masks if there are any.

    faster-coco-eval computes the numbers of pycocotools, several times faster.
    """
    with_masks = bool(results) and isinstance(results[0], tuple)
    predictions: dict[str, list[dict[str, Any]]] = {}
    if with_masks:
        predictions["bbox"], predictions["segm"] = dataset._segm2json(results)
    else:
        predictions["bbox"] = dataset._det2json(results)
    evaluation = CocoEvaluation(metrics={}, recalls={}, class_ap={}, precision={}, predictions=predictions)
    for iou_type, records in predictions.items():
        evaluate_iou_type(dataset, iou_type, records, evaluation)
    return evaluation


def evaluate_iou_type(
    dataset: Any, iou_type: str, records: list[dict[str, Any]], into: CocoEvaluation
) -> None:
    """Evaluates COCO result records for one IoU type and enters the numbers `into` an evaluation."""
    if iou_type == "segm":  # with a box, pycocotools would take its area for the mask's
        records = [{key: value for key, value in record.items() if key != "bbox"} for record in records]
    names = [f"{iou_type}_mAP{suffix}" for suffix in METRIC_SUFFIXES]
    recall_names = [f"{iou_type}_AR{suffix}" for suffix in RECALL_SUFFIXES]
    recall = np.linspace(0, 1, 101)
    if not records:  # pycocotools refuses an empty list; without a detection every average precision is 0
        into.metrics.update(dict.fromkeys(names, 0.0))
        into.recalls.update(dict.fromkeys(recall_names, 0.0))
        into.class_ap[iou_type] = dict.fromkeys(dataset.CLASSES, 0.0)
        into.precision[iou_type] = PrecisionCurve(recall, np.zeros_like(recall))
        return
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        detections = dataset.coco.loadRes([dict(record) for record in records])
        coco_eval = COCOeval_faster(dataset.coco, detections, iou_type)
        coco_eval.params.catIds = dataset.cat_ids
        coco_eval.params.imgIds = dataset.img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    numbers = [round(float(value), NUM_DECIMALS) for value in coco_eval.stats[:12]]
    into.metrics.update(zip(names, numbers[:6], strict=True))
    into.recalls.update(zip(recall_names, numbers[6:], strict=True))
    # (IoU thresholds, recalls, classes) over all areas, at most 100 detections; the classes are sorted by id.
    precision = coco_eval.eval["precision"][..., 0, -1]
    axis_of = {cat_id: axis for axis, cat_id in enumerate(coco_eval.params.catIds)}
    into.class_ap[iou_type] = {
        name: defined_mean(precision[:, :, axis_of[cat_id]])
        for name, cat_id in zip(dataset.CLASSES, dataset.cat_ids, strict=True)
    }
    present = precision[0][:, (precision[0] > -1).all(axis=0)]
    curve = present.mean(axis=1) if present.size else np.zeros_like(recall)
    into.precision[iou_type] = PrecisionCurve(recall, curve)


def defined_mean(values: np.ndarray) -> float:
    """Mean of the values that COCO defines (> −1), or −1 when there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def evaluate_model(
    model: torch.nn.Module,
    dataset: Any,
    device: torch.device,
    *,
    num_workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> CocoEvaluation | None:
    """Predicts and evaluates; None in all processes but the first."""
    results = predict(model, dataset, device, num_workers=num_workers, progress=progress)
    return None if results is None else evaluate_results(dataset, results)
