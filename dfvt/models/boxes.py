"""mmdet's arithmetic of boxes, to the last bit, without the constants that it sends to the device each time.

Such a transfer waits until the device has done all that it was asked for before.
"""

from __future__ import annotations

import math

import torch
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder
from torch import Tensor

EPSILON = 1e-6  # the least union


def overlaps_between(bboxes: Tensor, others: Tensor) -> Tensor:
    """Intersections over unions (B, G, N) of boxes (B, G, 4) and (B, N, 4), as `bbox_overlaps`."""
    area, other_area = ((one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1]) for one in (bboxes, others))
    top_left = torch.max(bboxes[:, :, None, :2], others[:, None, :, :2])
    bottom_right = torch.min(bboxes[:, :, None, 2:], others[:, None, :, 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    union = area[..., None] + other_area[:, None] - shared
    return shared / union.clamp(min=EPSILON)


def is_plain_coder(coder: object) -> bool:
    """Whether `encode` and `decode` do what a box coder does."""
    return isinstance(coder, DeltaXYWHBBoxCoder) and not coder.add_ctr_clamp


def require_plain_coder(head: str, coder: object) -> None:
    """Raises ValueError for a box coder that `encode` and `decode` are not."""
    if not is_plain_coder(coder):
        raise ValueError(f"{head} takes a DeltaXYWHBBoxCoder without add_ctr_clamp: set fast_heads=False")


def encode(coder: DeltaXYWHBBoxCoder, bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
    """What leads from boxes (..., 4) to others, (..., 4), as `DeltaXYWHBBoxCoder.encode`."""
    centre, size = _centre(bboxes), bboxes[..., 2:] - bboxes[..., :2]
    gt_centre, gt_size = _centre(gt_bboxes), gt_bboxes[..., 2:] - gt_bboxes[..., :2]
    moved, scaled = (gt_centre - centre) / size, torch.log(gt_size / size)
    columns = [*moved.unbind(-1), *scaled.unbind(-1)]
    return torch.stack(
        [(one - mean) / std for one, mean, std in zip(columns, coder.means, coder.stds, strict=True)], dim=-1
    )


def decode(coder: DeltaXYWHBBoxCoder, bboxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (..., 4) moved by what was predicted, as `DeltaXYWHBBoxCoder.decode` without borders."""
    columns = zip(deltas.unbind(-1), coder.means, coder.stds, strict=True)
    plain = torch.stack([one * std + mean for one, mean, std in columns], dim=-1)
    size = bboxes[..., 2:] - bboxes[..., :2]
    limit = abs(math.log(16 / 1000))  # mmdet's `wh_ratio_clip`
    centre = _centre(bboxes) + size * plain[..., :2]
    half = size * plain[..., 2:].clamp(-limit, limit).exp() * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def _centre(bboxes: Tensor) -> Tensor:
    return (bboxes[..., :2] + bboxes[..., 2:]) * 0.5
