"""COCO evaluation of detectors, in one process or many."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from faster_coco_eval import COCOeval_faster
from mmcv.parallel import is_module_wrapper
from mmcv.runner import get_dist_info
from pycocotools.coco import COCO

from dfvt.data.loading import build_test_loader
from dfvt.data.samples import Batch
from dfvt.engine.compat import to_device
from dfvt.engine.detection import encoded_results

# COCO's twelve numbers: average precisions as the contract names them, then average recalls.
METRIC_SUFFIXES = ("", "_50", "_75", "_s", "_m", "_l")
RECALL_SUFFIXES = ("_1", "_10", "_100", "_s", "_m", "_l")
METRIC_NAMES = tuple(f"{kind}_mAP{suffix}" for kind in ("bbox", "segm") for suffix in METRIC_SUFFIXES)
# pycocotools' precision after one right detection is 1 − 2⁻⁵², not 1: the last bits of a mean may differ.
NUM_DECIMALS = 9


@dataclass(frozen=True)
class PrecisionCurve:
    """Precision at COCO's 101 recall levels, IoU 0.5, mean over the classes; NaN if no class has objects."""

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
    num_at_once: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Any] | None:
    """mmdet results of every image of a test data set, masks as RLE; the processes share the images.

    Returns them in the data set's order in the first process, None in the others. `progress(done, total)` is
    called in the first process for its own share. Every process needs the same weights and buffers.
    `num_at_once` images of one shape pass together, on a GPU eight unless said: what is found does not depend
    on the others, and a GPU has nothing to wait for.

    Raises:
        ValueError: an image cannot be read.
    """
    rank, world_size = get_dist_info()
    if is_module_wrapper(model):
        model = cast(torch.nn.Module, model.module)
    was_training = model.training
    model.eval()
    on_gpu = device.type == "cuda"
    num_at_once = num_at_once or (8 if on_gpu else 1)
    indices = range(rank, len(dataset), world_size)
    order = sorted(indices, key=partial(image_shape, dataset)) if num_at_once > 1 else list(indices)
    found: list[Any] = []
    with encoded_results(model, device) as results_of:
        loader = build_test_loader(dataset, order, num_workers, pin_memory=on_gpu)
        for inputs in batches_of_one_shape(loader, num_at_once):
            found += results_of(together([to_device(one, device) for one in inputs]))
            if progress and rank == 0:
                progress(len(found), len(indices))
    model.train(was_training)
    results = [result for _, result in sorted(zip(order, found, strict=True), key=itemgetter(0))]
    if world_size == 1:
        return results
    shares: list[Any] = [None] * world_size
    dist.all_gather_object(shares, results)
    if rank:
        return None
    return [shares[index % world_size][index // world_size] for index in range(len(dataset))]


def image_shape(dataset: Any, index: int) -> tuple[float, int, int]:
    """Sorts images of a shape, and of nearly one, beside each other, where their sizes are known."""
    infos = getattr(dataset, "data_infos", None)
    if infos is None:  # of a data set of several
        return 0.0, 0, index
    return infos[index]["width"] / infos[index]["height"], infos[index]["width"], index


def batches_of_one_shape(loader: Iterable[Batch], num_at_once: int) -> Iterator[list[dict[str, Any]]]:
    """Inputs of up to so many images that follow each other and have one shape; those of several views alone.

    Raises:
        ValueError: an image cannot be read.
    """
    waiting: list[dict[str, Any]] = []
    for batch in loader:
        if batch.inputs is None:
            raise ValueError(batch.unreadable[0])
        if waiting and (
            len(waiting) == num_at_once
            or len(batch.inputs["img"]) > 1
            or batch.inputs["img"][0].shape != waiting[0]["img"][0].shape
            or len(waiting[0]["img"]) > 1
        ):
            yield waiting
            waiting = []
        waiting.append(batch.inputs)
    if waiting:
        yield waiting


def together(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The inputs of one batch of several."""
    if len(inputs) == 1:
        return inputs[0]
    images = torch.cat([one["img"][0] for one in inputs])
    return {"img": [images], "img_metas": [[meta for one in inputs for meta in one["img_metas"][0]]]}


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
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        detections = detections_of(dataset.coco, records)
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
    curve = present.mean(axis=1) if present.size else np.full_like(recall, np.nan)
    into.precision[iou_type] = PrecisionCurve(recall, curve)


def detections_of(truth: COCO, records: list[dict[str, Any]]) -> COCO:
    """Return COCO result records as COCO's evaluation takes them; pycocotools refuses an empty list."""
    if records:
        return truth.loadRes([dict(record) for record in records])
    detections = COCO()
    detections.dataset = {**truth.dataset, "annotations": []}
    detections.createIndex()
    return detections


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
