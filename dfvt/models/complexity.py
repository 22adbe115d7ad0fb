"""Size of a whole detector: parameters and the multiply-adds of one forward, counted without arithmetic."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import get_model_complexity_info
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """Size of one detector at one input.

    `num_params` and `backbone_params` count trainable and frozen parameters, buffers not.
    `flops` and `flops_with_attention` are multiply-adds, explained at `measure_complexity`.
    `input_shape` is the height and width of the image in pixels.
    """

    num_params: int
    backbone_params: int
    flops: int
    flops_with_attention: int
    input_shape: tuple[int, int]


class DetectorForward(nn.Module):
    """One forward of a two-stage detector, its RoI heads on features of the shape that RoIAlign returns."""

    def __init__(self, detector: Any, num_proposals: int, num_mask_proposals: int) -> None:
        super().__init__()
        self.detector: Any = detector
        self.num_proposals = num_proposals
        self.num_mask_proposals = num_mask_proposals

    def forward(self, images: Tensor) -> None:
        features = self.detector.extract_feat(images)
        self.detector.rpn_head(features)
        roi_head = self.detector.roi_head
        roi_head.bbox_head(roi_features(roi_head.bbox_roi_extractor, images, self.num_proposals))
        if roi_head.with_mask:
            roi_head.mask_head(roi_features(roi_head.mask_roi_extractor, images, self.num_mask_proposals))


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
    forward = DetectorForward(on_meta_device(model).float(), num_proposals, num_mask_proposals)
    with torch.no_grad(), FlopCounterMode(display=False) as products:
        flops, _ = get_model_complexity_info(
            forward, (3, *input_shape), print_per_layer_stat=False, as_strings=False
        )
    return Complexity(
        num_params=sum(p.numel() for p in model.parameters()),
        backbone_params=sum(p.numel() for p in model.get_submodule("backbone").parameters()),
        flops=int(flops),
        flops_with_attention=products.get_total_flops() // 2,
        input_shape=input_shape,
    )
