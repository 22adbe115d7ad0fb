"""Gradients of a whole detector beside finite differences, in float64, on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmcv import Config
from mmdet.core.mask import BitmapMasks
from torch import Tensor
from torch.nn import functional as F

from dfvt.engine.build import build_model
from dfvt.engine.config import load_config

CLASSES = ("square", "circle", "triangle", "ring")
EVERYTHING = 10**6  # samples: nothing is drawn
NARROW = {
    "model.backbone.mlp_ratio": 1.0,
    "model.backbone.drop_path_rate": 0.0,
    "model.neck.out_channels": 16,
    "model.rpn_head.in_channels": 16,
    "model.rpn_head.feat_channels": 16,
    "model.roi_head.bbox_roi_extractor.out_channels": 16,
    "model.roi_head.bbox_head.in_channels": 16,
    "model.roi_head.bbox_head.fc_out_channels": 32,
    "model.roi_head.mask_roi_extractor.out_channels": 16,
    "model.roi_head.mask_head.num_convs": 1,
    "model.roi_head.mask_head.in_channels": 16,
    "model.roi_head.mask_head.conv_out_channels": 16,
    "model.train_cfg.rpn.sampler.num": EVERYTHING,
    "model.train_cfg.rcnn.sampler.num": EVERYTHING,
}
CROSS_ENTROPY = F.binary_cross_entropy_with_logits
MINI = Path(__file__).parents[1] / "configs/mini/maskrcnn_DFvT_tiny_mini.py"


def narrow_config(**options: Any) -> Config:
    """A Mask R-CNN DFvT that takes tenths of a second, and whose losses have no chance in them."""
    return load_config(MINI, {**NARROW, **options})


def float64_detector(cfg: Config, device: torch.device) -> Any:
    """The config's detector in training mode; BatchNorm uses the statistics of the batch."""
    torch.manual_seed(0)
    model = build_model(cfg, CLASSES, device).double().train()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:  # with biases of 0 and scales of 1 some mistakes would not show
            torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.1)
    return model


def loss_of(model: Any, images: Tensor) -> Tensor:
    """The detector's loss with fixed proposals: the way from maps to proposals has no gradient in mmdet."""
    batch, _, height, width = images.shape
    bboxes = images.new_tensor([[4.0, 6.0, 40.0, 34.0], [20.0, 10.0, 62.0, 60.0]])
    labels = torch.tensor([0, 2], device=images.device)
    bitmaps = np.zeros((2, height, width), dtype=np.uint8)
    bitmaps[0, 8:30, 6:34] = 1
    bitmaps[1, 12:50, 24:60] = 1
    metas = [{"img_shape": (height, width, 3), "pad_shape": (height, width, 3)}] * batch
    moves = images.new_tensor([[-2.0, 1.0, 3.0, 2.0], [5.0, 5.0, -9.0, 8.0], [25.0, 20.0, 30.0, 40.0]])
    proposals = torch.cat([bboxes, (bboxes[:, None] + moves).flatten(0, 1)])
    proposals = torch.cat([proposals, proposals.new_ones(len(proposals), 1)], dim=1)
    objects: dict[str, Any] = {"gt_bboxes": [bboxes] * batch, "gt_labels": [labels] * batch}
    objects["gt_masks"] = [BitmapMasks(bitmaps, height, width)] * batch
    maps = model.neck(model.backbone(images))
    with patch.object(F, "binary_cross_entropy_with_logits", unrounded):
        losses = model.rpn_head.loss(*model.rpn_head(maps), objects["gt_bboxes"], metas)
        losses |= model.roi_head.forward_train(maps, metas, [proposals] * batch, **objects)
    parts = [one for name, loss in losses.items() if "loss" in name for one in _listed(loss)]
    return torch.stack([one.sum() for one in parts]).sum()


def unrounded(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Binary cross entropy in float64 though mmdet's targets are float32, which PyTorch would round it to."""
    return CROSS_ENTROPY(logits, targets.to(logits), **options)


def _listed(loss: Any) -> list[Tensor]:
    return loss if isinstance(loss, list) else [loss]


def slopes(
    loss: Callable[[], Tensor], parts: Mapping[str, list[Tensor]], step: float = 1e-8
) -> dict[str, tuple[float, float]]:
    """How fast a loss changes with each part's parameters in a random direction.

    The first number is that of autograd, the second that of a central difference.
    """
    generator = torch.Generator().manual_seed(1)
    gradients = iter(torch.autograd.grad(loss(), [one for part in parts.values() for one in part]))
    found = {}
    for name, parameters in parts.items():
        ways = [torch.randn(one.shape, generator=generator).to(one) for one in parameters]
        by_autograd = sum(float((next(gradients) * way).sum().detach()) for way in ways)
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                before = [one.clone() for one in parameters]
                torch._foreach_add_(parameters, ways, alpha=sign * step)
                values.append(float(loss()))
                torch._foreach_copy_(parameters, before)
        found[name] = by_autograd, (values[0] - values[1]) / (2 * step)
    return found


def parts_of(model: Any) -> dict[str, list[Tensor]]:
    """The parameters of the backbone, the neck and the heads."""
    modules = {"backbone": [model.backbone], "neck": [model.neck], "heads": [model.rpn_head, model.roi_head]}
    return {name: [p for module in part for p in module.parameters()] for name, part in modules.items()}
