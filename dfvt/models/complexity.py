"""Size of a whole detector: parameters and the multiply-adds of one forward, counted without arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import get_model_complexity_info
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class PartComplexity:
    """Size of a part of a detector; the numbers are those of `Complexity`."""

    num_params: int
    flops: int
    flops_with_attention: int


@dataclass(frozen=True)
class Complexity:
    """Size of one detector at one input.

    `num_params` and `backbone_params` count trainable and frozen parameters, buffers not.
    `flops` and `flops_with_attention` are multiply-adds, explained at `measure_complexity`.
    `input_shape` is the height and width of the image in pixels.
    `parts` are `backbone`, `neck` (if there is one) and `heads`, which add up to the whole.
    """

    num_params: int
    backbone_params: int
    flops: int
    flops_with_attention: int
    input_shape: tuple[int, int]
    parts: dict[str, PartComplexity]


class PartForward(nn.Module):
    """Modules of a detector and one pass through them, for counters that run a module on an image."""

    def __init__(self, modules: Iterable[nn.Module], run: Callable[[], Any]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.run = run

    def forward(self, _: Tensor) -> None:
        """Runs, whatever the input, and keeps what comes out in `outputs`."""
        self.outputs = self.run()


def count_part(part: PartForward) -> PartComplexity:
    """Runs a part once, its tensors without values, and counts; its `outputs` are there afterwards."""
    with torch.no_grad(), FlopCounterMode(display=False) as products:
        flops, _ = get_model_complexity_info(part, (1,), print_per_layer_stat=False, as_strings=False)
    return PartComplexity(
        num_params=sum(p.numel() for p in part.parameters()),
        flops=int(flops),
        flops_with_attention=products.get_total_flops() // 2,
    )


def roi_features(extractor: Any, like: Tensor, num_rois: int) -> Tensor:
    """Uninitialised features (num_rois, C, h, w) of the shape that an mmdet RoI extractor returns."""
    height, width = extractor.roi_layers[0].output_size
    return like.new_empty(num_rois, extractor.out_channels, height, width)


def on_meta_device(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters and buffers have shapes but no values, made without copying any."""
    shells: dict[int, Tensor] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    shells |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    return copy.deepcopy(model, shells)


def measure_complexity(
    model: nn.Module, input_shape: tuple[int, int], num_proposals: int = 1000, num_mask_proposals: int = 100
) -> Complexity:
    """Counts the parameters and multiply-adds of a two-stage mmdet detector; `model` itself is left alone.

    One multiply-add is one FLOP. What RoIAlign, NMS and decoding do is in neither of the two counts:

    - `flops` counts as mmdet 2.x does (`mmcv.cnn.get_model_complexity_info`): layers that are modules, namely
      convolutions with their biases, linear layers without, two operations an element of BatchNorm and
      LayerNorm and one of ReLU. Products inside attention, SiLU, GELU and functional calls count nothing.
    - `flops_with_attention` counts as `torch.utils.flop_counter` does, halved: convolutions and matrix
      products alone, those inside attention (q·k and attention·v over the padded windows) included.

    Args:
        model: Mask R-CNN or Faster R-CNN as mmdet builds it, on any device.
        input_shape: height and width in pixels of the one image.
        num_proposals, num_mask_proposals: RoIs that pass the box and the mask head.

    Raises:
        ValueError: `model` is not a two-stage detector.
    """
    if not getattr(model, "with_rpn", False) or not getattr(model, "with_roi_head", False):
        raise ValueError(
            f"the complexity of a {type(model).__name__} cannot be measured: it has no RPN or RoI head"
        )
    detector: Any = on_meta_device(model).float()
    images = torch.empty(1, 3, *input_shape, device="meta")
    backbone = PartForward([detector.backbone], lambda: detector.backbone(images))
    parts = {"backbone": count_part(backbone)}
    features = backbone.outputs
    if detector.with_neck:
        neck = PartForward([detector.neck], lambda: detector.neck(backbone.outputs))
        parts["neck"] = count_part(neck)
        features = neck.outputs

    def run_heads() -> None:
        roi_head = detector.roi_head
        detector.rpn_head(features)
        roi_head.bbox_head(roi_features(roi_head.bbox_roi_extractor, images, num_proposals))
        if roi_head.with_mask:
            roi_head.mask_head(roi_features(roi_head.mask_roi_extractor, images, num_mask_proposals))

    parts["heads"] = count_part(PartForward([detector.rpn_head, detector.roi_head], run_heads))
    return Complexity(
        num_params=sum(p.numel() for p in model.parameters()),
        backbone_params=parts["backbone"].num_params,
        flops=sum(part.flops for part in parts.values()),
        flops_with_attention=sum(part.flops_with_attention for part in parts.values()),
        input_shape=input_shape,
        parts=parts,
    )
