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


def draws_as_mmdet(mask_head: Any) -> bool:
    """Whether `encode_masks` has the masks of this head."""
    return isinstance(mask_head, FCNMaskHead) and (type(mask_head).get_seg_masks is FCNMaskHead.get_seg_masks)


@contextmanager
def masks_as_run_lengths(model: Any) -> Iterator[bool]:
    """In the body a detector's masks are COCO's run lengths, if its mask head is one that is known.

    mmdet asks the device for one bitmap after the other, and turns each of them round before it is encoded,
    which takes longer than the detector.
    """
    head: Any = getattr(getattr(model, "roi_head", None), "mask_head", None)
    known = draws_as_mmdet(head)
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
    scale = torch.as_tensor(scale_factor, dtype=torch.float32)
    bboxes, (height, width) = det_bboxes[:, :4], ori_shape[:2]
    if rescale:
        bboxes = bboxes / scale.to(bboxes)
    else:
        height, width = (
            round(float(side) * float(by)) for side, by in ((height, scale[1]), (width, scale[0]))
        )
    own = of_their_classes(head, probabilities, det_labels)
    found = encode_in_place(own, bboxes, (height, width), rcnn_test_cfg.mask_thr_binary)
    return by_class(found, det_labels.tolist(), head.num_classes)


def of_their_classes(head: Any, probabilities: Tensor, labels: Tensor) -> Tensor:
    """Of the masks (n, num_classes, h, w) of detections those (n, 1, h, w) of the classes they have."""
    if head.class_agnostic:
        return probabilities
    return probabilities[torch.arange(len(labels), device=labels.device), labels][:, None]


def by_class(found: list[Any], labels: list[int], num_classes: int) -> list[list[Any]]:
    """What was found, in its order, among its class."""
    sorted_out: list[list[Any]] = [[] for _ in range(num_classes)]
    for label, one in zip(labels, found, strict=True):
        sorted_out[label].append(one)
    return sorted_out


def encode_in_place(
    probabilities: Tensor, bboxes: Tensor, size: tuple[int, int], threshold: float
) -> list[dict[str, Any]]:
    """Run lengths of masks (n, 1, h, w), drawn at boxes (n, 4) of an image of that height and width."""
    height, width = size
    found: list[dict[str, Any]] = []
    on_cpu = bboxes.device.type == "cpu"  # there each is drawn alone, in its box
    num_at_once = 1 if on_cpu else max(MOST_PIXELS // (height * width), 1)
    for some, places in zip(probabilities.split(num_at_once), bboxes.split(num_at_once), strict=True):
        drawn, region = _do_paste_mask(some, places, height, width, skip_empty=on_cpu)
        bits = (drawn >= threshold).transpose(1, 2)  # run lengths go down the columns
        if region:
            rows, across = region
            columns = np.zeros((len(some), width, height), dtype=np.uint8)
            columns[:, across, rows] = bits.numpy()
            found += run_lengths.encode(columns.transpose(2, 1, 0))
        else:
            found += encode_columns(bits)
    return found


def encode_columns(bits: Tensor) -> list[dict[str, Any]]:
    """Run lengths of masks (n, width, height): where they change is looked for on their device."""
    number, width, height = bits.shape
    if not number:
        return []
    flat = bits.flatten(1)
    masks, places = (flat[:, 1:] != flat[:, :-1]).nonzero(as_tuple=True)
    counts = torch.bincount(masks, minlength=number)
    begin_with_object, numbers, changes = (one.cpu().numpy() for one in (flat[:, 0], counts, places + 1))
    uncompressed = []
    for starts, own in zip(begin_with_object, np.split(changes, numbers.cumsum()[:-1]), strict=True):
        runs = np.diff(own, prepend=0, append=width * height)
        # the first run is of background, of none where an object begins
        uncompressed.append({"size": [height, width], "counts": [0, *runs] if starts else runs})
    return run_lengths.frPyObjects(uncompressed, height, width)
