"""Masks of detections as COCO's run lengths, without a bitmap for each on its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from pycocotools import mask as run_lengths
from torch import Tensor

MOST_PIXELS = 2**26  # of the masks that are drawn at once on a GPU


@contextmanager
def masks_as_run_lengths(model: Any) -> Iterator[bool]:
    """In the body a detector's masks are COCO's run lengths, if its mask head is one that is known.

    mmdet asks the device for one bitmap after the other, and turns each of them round before it is encoded,
    which takes longer than the detector.
    """
    head: Any = getattr(getattr(model, "roi_head", None), "mask_head", None)
    known = isinstance(head, FCNMaskHead) and type(head).get_seg_masks is FCNMaskHead.get_seg_masks
    if known:

        def encoded(mask_pred: Any, *arguments: Any, **options: Any) -> list[list[Any]]:
            return encode_masks(head, mask_pred, *arguments, **options)

        head.get_seg_masks = encoded
    try:
        yield known
    finally:
        if known:
            del head.get_seg_masks


def encode_masks(
    head: Any,
    mask_pred: Any,
    det_bboxes: Tensor,
    det_labels: Tensor,
    rcnn_test_cfg: Any,
    ori_shape: tuple[int, ...],
    scale_factor: Any,
    rescale: bool,
) -> list[list[dict[str, Any]]]:
    """The run lengths of the masks that `FCNMaskHead.get_seg_masks` draws, by class."""
    # the masks after several augmentations are probabilities already
    probabilities = mask_pred.sigmoid() if isinstance(mask_pred, Tensor) else det_bboxes.new_tensor(mask_pred)
    if not head.class_agnostic:
        probabilities = probabilities[torch.arange(len(probabilities)), det_labels][:, None]
    scale = torch.as_tensor(scale_factor, dtype=torch.float32)
    bboxes, (height, width) = det_bboxes[:, :4], ori_shape[:2]
    if rescale:
        bboxes = bboxes / scale.to(bboxes)
    else:
        height, width = (
            round(float(side) * float(by)) for side, by in ((height, scale[1]), (width, scale[0]))
        )
    found: list[dict[str, Any]] = []
    on_cpu = bboxes.device.type == "cpu"  # there each is drawn alone, in its box
    num_at_once = 1 if on_cpu else max(MOST_PIXELS // (height * width), 1)
    for some, places in zip(probabilities.split(num_at_once), bboxes.split(num_at_once), strict=True):
        drawn, region = _do_paste_mask(some, places, height, width, skip_empty=on_cpu)
        bits = (drawn >= rcnn_test_cfg.mask_thr_binary).transpose(1, 2)  # run lengths go down the columns
        columns = np.zeros((len(some), width, height), dtype=np.uint8)
        if region:
            rows, across = region
            columns[:, across, rows] = bits.numpy()
        else:
            columns = bits.contiguous().byte().cpu().numpy()
        found += run_lengths.encode(columns.transpose(2, 1, 0))
    by_class: list[list[dict[str, Any]]] = [[] for _ in range(head.num_classes)]
    for label, one in zip(det_labels.tolist(), found, strict=True):
        by_class[label].append(one)
    return by_class
