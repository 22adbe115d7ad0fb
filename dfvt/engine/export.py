"""A detector's networks as programs of torch.export, which need nothing of this package to run.

They are the parts that compute the same whatever is on an image. Between them is what does not: anchors are
decoded and suppressed, regions cut out of the maps, masks pasted. Those are operators of mmcv (RoIAlign, NMS)
and loops over images, which torch.export does not take; `export.json` has their settings.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmcv import Config
from mmdet.models import RPNHead, StandardRoIHead, TwoStageDetector
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, load, save

import dfvt
from dfvt.data.files import write_whole
from dfvt.engine.dataset_configs import tested_data
from dfvt.engine.loaders import steps_of
from dfvt.engine.predict import Prediction, Predictor

DENSE, BBOX_HEAD, MASK_HEAD = "dense", "bbox_head", "mask_head"
MANIFEST = "export.json"
STRIDE = 32  # of the coarsest map of a backbone
MAX_ROIS = 2**20
TOLERANCE = 0.01  # of outputs, as a share of the largest: other kernels add in another order, TF32 rounds
WH_RATIO_CLIP = 16 / 1000  # mmdet's, which no config changes
Programs = dict[str, ExportedProgram]


class DensePart(nn.Module):
    """Images (N, 3, H, W) to the neck's maps, and the RPN's scores and deltas on each of them."""

    def __init__(self, detector: TwoStageDetector) -> None:
        super().__init__()
        self.backbone, self.rpn_head = detector.backbone, detector.rpn_head
        self.neck = detector.neck if detector.with_neck else nn.Identity()

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        maps = tuple(self.neck(self.backbone(images)))
        scores, deltas = self.rpn_head(maps)
        return maps, tuple(scores), tuple(deltas)


def require_exportable(detector: nn.Module) -> None:
    """Checks that a detector has the parts that are known here.

    Raises:
        ValueError: it is no Mask R-CNN or Faster R-CNN of mmdet's.
    """
    if not (
        isinstance(detector, TwoStageDetector)
        and isinstance(detector.rpn_head, RPNHead)
        and type(detector.roi_head) is StandardRoIHead
        and not detector.roi_head.with_shared_head
    ):
        raise ValueError(
            "only detectors with an RPNHead and a StandardRoIHead can be exported (Mask and Faster R-CNN)"
        )


@torch.no_grad()
def export_detector(detector: TwoStageDetector, batch_size: int, height: int, width: int) -> Programs:
    """The programs of a detector in evaluation mode, by their names.

    `dense` takes images of this size and number, `bbox_head` and `mask_head` the features of any number of
    regions from two on.

    Raises:
        ValueError: the detector is none that can be exported, or a side is no multiple of 32.
    """
    require_exportable(detector)
    if min(height, width) < STRIDE or height % STRIDE or width % STRIDE:
        raise ValueError(f"the shape {height} × {width} must be of multiples of {STRIDE}")
    programs = {}
    for name, (network, example) in networks_of(detector, (batch_size, 3, height, width)).items():
        rois = Dim("num_rois", min=2, max=MAX_ROIS)
        shapes = None if name == DENSE else ({0: rois},)
        programs[name] = export(network, (example,), dynamic_shapes=shapes, strict=False)
    return programs


def networks_of(detector: TwoStageDetector, shape: Sequence[int]) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return the networks that become programs, each with an input of the right size: noise.

    Args:
        detector: in evaluation mode.
        shape: of the images, (N, 3, H, W).
    """
    roi_head = detector.roi_head
    heads = {BBOX_HEAD: (roi_head.bbox_head, roi_head.bbox_roi_extractor)}
    if roi_head.with_mask:
        heads[MASK_HEAD] = (roi_head.mask_head, roi_head.mask_roi_extractor)
    noise = torch.Generator().manual_seed(0)
    device = next(detector.parameters()).device
    networks: dict[str, tuple[nn.Module, Tensor]] = {
        DENSE: (DensePart(detector).eval(), torch.randn(*shape, generator=noise).to(device))
    }
    for name, (head, extractor) in heads.items():
        sides = extractor.roi_layers[0].output_size
        features = torch.randn(8, extractor.out_channels, *sides, generator=noise)
        networks[name] = (head, features.to(device))
    return networks


@torch.no_grad()
def output_differences(
    detector: TwoStageDetector, programs: Programs, shape: Sequence[int]
) -> dict[str, float]:
    """Compare what the programs compute with what the detector's networks compute, on noise.

    This says something of every detector, also of one that finds nothing on the images at hand.

    Args:
        detector: in evaluation mode.
        programs: its programs.
        shape: of their images, (N, 3, H, W).

    Returns:
        The largest difference of each program's outputs, as a share of the largest value of that output.
    """
    differences = {}
    for name, (network, example) in networks_of(detector, shape).items():
        pairs = zip(tensors_of(network(example)), tensors_of(programs[name].module()(example)), strict=True)
        differences[name] = max(
            float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12)) for ours, theirs in pairs
        )
    return differences


def tensors_of(outputs: Any) -> list[Tensor]:
    """List the tensors of nested tuples."""
    return (
        [outputs] if isinstance(outputs, Tensor) else [part for item in outputs for part in tensors_of(item)]
    )


def save_programs(programs: Programs, manifest: Mapping[str, Any], folder: Path) -> None:
    """Writes `NAME.pt2` of each program, and `export.json` at last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        partial = folder / f".{name}.partial.pt2"
        save(program, partial)
        partial.replace(folder / f"{name}.pt2")
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def load_programs(folder: Path) -> Programs:
    """The programs in a folder."""
    return {path.stem: load(path) for path in sorted(folder.glob("[!.]*.pt2"))}


def describe_export(
    cfg: Config, detector: TwoStageDetector, classes: Sequence[str], programs: Programs
) -> dict[str, Any]:
    """What stands in `export.json`: what the programs take and give, the settings of what lies between.

    Raises:
        ValueError: the config loads images otherwise than upright and in the order BGR, which nobody who uses
            the programs would know.
    """
    loader = next(iter(steps_of(tested_data(cfg).pipeline)))
    kind = loader.get("color_type", "color"), loader.get("channel_order", "bgr")
    if kind != ("color", "bgr"):
        raise ValueError(
            f"the config loads images with color_type={kind[0]!r} and channel_order={kind[1]!r}: an export "
            "knows 'color' and 'bgr' alone"
        )
    steps = [step for step in tested_data(cfg).pipeline if step.type == "MultiScaleFlipAug"]
    transforms = {step.type: step for one in steps for step in one.transforms}
    normalize = transforms.get("Normalize", {})
    roi_head, anchors = detector.roi_head, detector.rpn_head.prior_generator
    rpn, rcnn = (dict(detector.test_cfg[part]) for part in ("rpn", "rcnn"))
    described = {
        "versions": {"dfvt": dfvt.__version__, "torch": torch.__version__},
        "classes": list(classes),
        "images": {
            "scaled_to": sorted(steps[0].img_scale) if steps else None,  # the short side, the long side
            "keep_ratio": transforms.get("Resize", {}).get("keep_ratio"),
            "interpolation": "bilinear",
            "mean": normalize.get("mean"),
            "std": normalize.get("std"),
            "channels": "RGB" if normalize.get("to_rgb") else "BGR",
            "padding": "with 0 behind the normalised image, at the right and below",
        },
        "programs": {name: shapes_of(program) for name, program in programs.items()},
        "rpn": {
            # x1, y1, x2, y2 of the anchors of the first cell of each map; those of others are strides away
            "anchors": [level.tolist() for level in anchors.base_anchors],
            "strides": [list(stride) for stride in anchors.strides],
            "order": "rows, columns, anchors",
            "score": "sigmoid",
            "deltas": coder_of(detector.rpn_head.bbox_coder),
            **{key: rpn[key] for key in ("nms_pre", "max_per_img", "min_bbox_size")},
            "nms_iou": rpn["nms"]["iou_threshold"],
            "nms_of": "each map alone",
        },
        "bbox": {
            "regions": extractor_of(roi_head.bbox_roi_extractor),
            "score": "softmax, the background last",
            "deltas": coder_of(roi_head.bbox_head.bbox_coder),
            "reg_class_agnostic": roi_head.bbox_head.reg_class_agnostic,
            "score_thr": rcnn["score_thr"],
            "max_per_img": rcnn["max_per_img"],
            "nms_iou": rcnn["nms"]["iou_threshold"],
            "nms_of": "each class alone, of boxes in the image's own size",
        },
    }
    if MASK_HEAD in programs:
        described["mask"] = {
            "regions": extractor_of(roi_head.mask_roi_extractor),
            "score": "sigmoid, of the object's class",
            "class_agnostic": roi_head.mask_head.class_agnostic,
            "mask_thr_binary": rcnn["mask_thr_binary"],
        }
    return dict(json.loads(json.dumps(described)))


def coder_of(coder: Any) -> dict[str, Any]:
    """How deltas become boxes: of the centre in sides of the box, and logarithms of the sides."""
    return {"means": coder.means, "stds": coder.stds, "largest_log": abs(math.log(WH_RATIO_CLIP))}


def extractor_of(extractor: Any) -> dict[str, Any]:
    """How regions are cut out of the first maps."""
    align = extractor.roi_layers[0]
    return {
        "output_size": list(align.output_size),
        "strides": extractor.featmap_strides,
        "sampling_ratio": align.sampling_ratio,
        "aligned": align.aligned,
        "level": "floor(log2(sqrt(width * height) / finest_scale + 1e-6)), of those that there are",
        "finest_scale": extractor.finest_scale,
    }


def shapes_of(program: ExportedProgram) -> dict[str, Any]:
    """The shapes of what a program takes and gives; sizes that may vary are names."""
    metas = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}

    def shape(name: str) -> list[int | str]:
        return [side if isinstance(side, int) else "R >= 2" for side in metas[name].shape]

    outputs = [shape(name) for name in program.graph_signature.user_outputs if isinstance(name, str)]
    given: dict[str, Any] = {"outputs": outputs}
    if len(outputs) % 3 == 0 and len(outputs) > 3:  # of `dense`: as many maps, scores and deltas
        number = len(outputs) // 3
        parts = [outputs[start : start + number] for start in (0, number, 2 * number)]
        given = dict(zip(("maps", "scores", "deltas"), parts, strict=True))
    (taken,) = program.graph_signature.user_inputs
    return {"input": shape(str(taken)), **given}


class Padded(nn.Module):
    """Calls `inner` with images padded to a shape."""

    def __init__(self, inner: nn.Module | Callable[[Tensor], Any], shape: Sequence[int]) -> None:
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, images: Tensor) -> Any:
        _, _, height, width = self.shape
        return self.inner(F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2])))


def padded(detector: TwoStageDetector, shape: Sequence[int]) -> TwoStageDetector:
    """A copy of a detector that sees images padded to a shape."""
    detector = copy.deepcopy(detector)
    detector.backbone = Padded(detector.backbone, shape)
    return detector


def with_programs(detector: TwoStageDetector, programs: Programs, shape: Sequence[int]) -> TwoStageDetector:
    """A copy of a detector that computes with the programs what they are for, on images padded to a shape."""
    detector = copy.deepcopy(detector)
    modules = {name: program.module() for name, program in programs.items()}
    rpn: list[Any] = []

    def dense(images: Tensor) -> Any:
        maps, *rpn[:] = modules[DENSE](images)
        return maps

    def at_least_two(module: nn.Module) -> Callable[[Tensor], Any]:
        def call(features: Tensor) -> Any:
            number = len(features)
            if number >= 2:
                return module(features)
            found = module(
                features.new_zeros(2, *features.shape[1:]).index_copy(
                    0, torch.arange(number, device=features.device), features
                )
            )
            return tuple(one[:number] for one in found) if isinstance(found, tuple) else found[:number]

        return call

    detector.backbone, detector.neck = Padded(dense, shape), None
    detector.rpn_head.forward = lambda maps: tuple(rpn)
    detector.roi_head.bbox_head.forward = at_least_two(modules[BBOX_HEAD])
    if MASK_HEAD in modules:
        detector.roi_head.mask_head.forward = at_least_two(modules[MASK_HEAD])
    return detector


@dataclass(frozen=True)
class Agreement:
    """How far what two detectors find on images is apart.

    Attributes:
        num_images, num_objects: that were compared, and found on them.
        different: images on which not the same number of objects, or others, were found.
        score, box: the largest differences of scores and of boxes in pixels.
        mask_iou: the least IoU of a mask and its counterpart, 1 where there are none.
        too_large: images that do not fit the shape.
        needed: the least height and width, in multiples of 32, that hold all images.
    """

    num_images: int
    num_objects: int
    different: list[Path]
    score: float
    box: float
    mask_iou: float
    too_large: list[Path]
    needed: tuple[int, int]


def check_export(
    predictor: Predictor,
    programs: Programs,
    shape: Sequence[int],
    paths: Sequence[Path],
    progress: Callable[[int], object] = lambda number: None,
) -> Agreement:
    """Compares the predictions of a detector with those through its programs, image by image.

    Both pad images to the shape of the programs, whose batch must be of one image.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no image.
    """
    original, exported = copy.copy(predictor), copy.copy(predictor)
    original.model = padded(predictor.model, shape)
    exported.model = with_programs(predictor.model, programs, shape)
    num_objects, score, box, iou = 0, 0.0, 0.0, 1.0
    different: list[Path] = []
    too_large: list[Path] = []
    needed = (0, 0)
    for path in paths:
        progress(1)
        try:
            prepared = original.prepare(original.read(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        height, width = (math.ceil(side / STRIDE) * STRIDE for side in prepared["img"][0].shape[1:])
        needed = max(needed[0], height), max(needed[1], width)
        if height > shape[2] or width > shape[3]:
            too_large.append(path)
            continue
        (expected,), (found,) = original.predict([prepared]), exported.predict([prepared])
        num_objects += len(expected.scores)
        if not np.array_equal(expected.labels, found.labels):
            different.append(path)
            continue
        score = max(score, float(np.abs(expected.scores - found.scores).max(initial=0)))
        box = max(box, float(np.abs(expected.boxes - found.boxes).max(initial=0)))
        iou = min(iou, least_iou(expected, found))
    return Agreement(len(paths) - len(too_large), num_objects, different, score, box, iou, too_large, needed)


def least_iou(expected: Prediction, found: Prediction) -> float:
    """The least IoU of a mask and its counterpart; two empty ones agree."""
    ious = [
        coco_mask.iou([one], [other], [0]).item() if coco_mask.area(one) or coco_mask.area(other) else 1.0
        for one, other in zip(expected.masks or [], found.masks or [], strict=True)
    ]
    return min(ious, default=1.0)
