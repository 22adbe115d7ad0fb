"""mmdet's choice of detections among classified regions, for all images of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv import ConfigDict
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor

from dfvt.models.boxes import decode, is_plain_coder
from dfvt.models.proposals import is_plain_nms, keep_greedily

# Suppression compares each candidate of an image with each other one: of more, mmdet's own does it.
MOST_CANDIDATES = 4096


def chooses_as_mmdet(bbox_head: Any, cfg: ConfigDict) -> bool:
    """Whether `choose_detections` finds what `multiclass_nms` does after this head."""
    return (
        isinstance(bbox_head, BBoxHead)
        and type(bbox_head).get_bboxes is BBoxHead.get_bboxes
        and not bbox_head.custom_cls_channels
        and is_plain_coder(bbox_head.bbox_coder)
        and is_plain_nms(cfg.get("nms"))
    )


@torch.no_grad()
def choose_detections(
    bbox_head: Any,
    rois: Tensor,
    cls_score: Tensor,
    bbox_pred: Tensor,
    img_metas: Sequence[dict[str, Any]],
    cfg: ConfigDict,
    *,
    rescale: bool,
) -> list[tuple[Tensor, Tensor]] | None:
    """What `BBoxHead.get_bboxes` gives for each image: boxes with scores (n, 5), and labels (n).

    Args:
        rois: (R, 5) of all images, one image's after the other's, as `bbox2roi` makes them.
        cls_score: (R, num_classes + 1) logits.
        bbox_pred: (R, 4·num_classes), or (R, 4) of a head that is class-agnostic.
        rescale: give boxes in the original images.

    Among equal scores the order is that of the regions; mmdet's depends on the device. None where an image
    has more candidates than can be done at once.
    """
    num_images, device = len(img_metas), rois.device
    scores = cls_score.softmax(dim=-1)[:, :-1]
    rows, labels = (scores > cfg.score_thr).nonzero(as_tuple=True)
    images = rois[rows, 0].long()
    counts = torch.bincount(images, minlength=num_images)
    most = int(counts.max())
    if most > MOST_CANDIDATES:
        return None
    deltas = bbox_pred.unflatten(1, (-1, 4))
    deltas = deltas[rows, labels if deltas.shape[1] > 1 else 0]
    bboxes = decode(bbox_head.bbox_coder, rois[rows, 1:], deltas)
    if bbox_head.bbox_coder.clip_border:
        shapes = torch.tensor([meta["img_shape"][:2] for meta in img_metas], device=device)
        bboxes = torch.minimum(bboxes.clamp(min=0), shapes.flip(1).repeat(1, 2).to(bboxes)[images])
    if rescale:
        bboxes = bboxes / scale_factors(img_metas, bboxes)[images]
    scores = scores[rows, labels]
    # each class moved where mmcv's `batched_nms` moves it: the coordinates round as there
    largest = bboxes.new_zeros(num_images).scatter_reduce(
        0, images, bboxes.amax(dim=1), "amax", include_self=False
    )
    moved = bboxes + (labels.to(bboxes) * (largest + 1)[images])[:, None]

    order = scores.sort(descending=True, stable=True).indices
    order = order[images[order].sort(stable=True).indices]
    images, labels, bboxes, scores, moved = (one[order] for one in (images, labels, bboxes, scores, moved))
    places = torch.arange(len(images), device=device) - (counts.cumsum(0) - counts)[images]
    padded, falling = moved.new_zeros(num_images, most, 4), scores.new_zeros(num_images, most)
    valid = torch.zeros(num_images, most, dtype=torch.bool, device=device)
    padded[images, places], falling[images, places], valid[images, places] = moved, scores, True
    keep = keep_greedily(padded, falling, valid, cfg.nms.iou_threshold)
    if cfg.max_per_img > 0:
        keep &= keep.cumsum(dim=1) <= cfg.max_per_img
    chosen = keep[images, places].nonzero().squeeze(1)
    numbers = keep.sum(dim=1).tolist()
    found = torch.cat([bboxes[chosen], scores[chosen, None]], dim=1)
    return list(zip(found.split(numbers), labels[chosen].split(numbers), strict=True))


def scale_factors(img_metas: Sequence[dict[str, Any]], like: Tensor) -> Tensor:
    """By what the images (B, 4) were resized: x, y, x, y."""
    return torch.stack([torch.as_tensor(meta["scale_factor"]) for meta in img_metas]).to(like)
