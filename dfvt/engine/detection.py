"""Detections of a batch of images at once; mmdet goes from image to image, and asks the device for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmdet.core import bbox2result, bbox2roi, encode_mask_results
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import StandardRoIHead
from torch import Tensor

from dfvt.engine.precision import float32_products
from dfvt.engine.segments import (
    by_class,
    draws_as_mmdet,
    encode_in_place,
    masks_as_run_lengths,
    of_their_classes,
)
from dfvt.models.boxes import is_plain_coder
from dfvt.models.detections import choose_detections, chooses_as_mmdet, scale_factors
from dfvt.models.fast_rpn import Anchors, ImageSizes, proposals_of_maps
from dfvt.models.proposals import is_plain_nms


@contextmanager
def detecting_at_once(model: Any) -> Iterator[bool]:
    """In the body a detector chooses proposals and detections, and draws masks, for all images at once.

    It finds what it finds else; a head that is not known here does what it always does. Yields whether masks
    are COCO's run lengths, as `masks_as_run_lengths`.
    """
    rpn_head, roi_head = getattr(model, "rpn_head", None), getattr(model, "roi_head", None)
    with masks_as_run_lengths(model) as encoded, ExitStack() as replaced:
        if proposes_as_mmdet(rpn_head):
            replace(replaced, rpn_head, "get_bboxes", propose_at_once(rpn_head))
        if encoded and detects_as_mmdet(roi_head):
            replace(replaced, roi_head, "simple_test", detect_at_once(roi_head))
        yield encoded


@contextmanager
def encoded_results(model: Any, device: torch.device) -> Iterator[Callable[[dict[str, Any]], list[Any]]]:
    """A function for the body: mmdet results of a batch on `device`, masks as COCO's run lengths.

    A batch that the device has no memory for passes image by image. Its float32 products are computed as the
    config says that the detector was built from (`tf32`).
    """
    way = detecting_at_once if device.type == "cuda" else masks_as_run_lengths
    with float32_products(getattr(model, "tf32", None)), way(model) as encoded:

        def results_of(inputs: dict[str, Any]) -> list[Any]:
            results = detect(model, inputs)
            if encoded or not isinstance(results[0], tuple):
                return results
            return [(boxes, encode_mask_results(masks)) for boxes, masks in results]

        yield results_of


def detect(model: Any, inputs: dict[str, Any]) -> list[Any]:
    """mmdet results of a batch; one that the device has no memory for passes image by image."""
    try:
        return model(return_loss=False, rescale=True, **inputs)
    except torch.OutOfMemoryError:
        images, metas = inputs["img"][0], inputs["img_metas"][0]
        if len(images) == 1 or len(inputs["img"]) > 1:
            raise
    torch.cuda.empty_cache()
    singles = (
        {"img": [image[None]], "img_metas": [[meta]]} for image, meta in zip(images, metas, strict=True)
    )
    return [model(return_loss=False, rescale=True, **single)[0] for single in singles]


def replace(until: ExitStack, module: Any, name: str, by: Callable[..., Any]) -> None:
    """Gives a module another method until the stack ends."""
    setattr(module, name, by)
    until.callback(delattr, module, name)


def proposes_as_mmdet(rpn_head: Any) -> bool:
    """Whether `propose_at_once` has the proposals of this head."""
    return (
        isinstance(rpn_head, RPNHead)
        and type(rpn_head)._get_bboxes_single is RPNHead._get_bboxes_single
        and rpn_head.use_sigmoid_cls
        and is_plain_coder(rpn_head.bbox_coder)
        and is_plain_nms(rpn_head.test_cfg.get("nms"))
    )


def propose_at_once(rpn_head: Any) -> Callable[..., list[Tensor]]:
    """`RPNHead.get_bboxes` of a test, which waits for the device once."""
    anchors_of = Anchors(rpn_head.prior_generator)

    def get_bboxes(
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        score_factors: None = None,
        img_metas: Sequence[dict[str, Any]] = (),
        **options: Any,
    ) -> list[Tensor]:
        shapes = ImageSizes.of(img_metas, cls_scores[0].device).own
        proposals = proposals_of_maps(
            anchors_of, rpn_head.bbox_coder, cls_scores, bbox_preds, shapes, rpn_head.test_cfg
        )
        padded = torch.cat([proposals.bboxes, proposals.scores[..., None]], dim=-1)
        counts = proposals.valid.sum(dim=1).tolist()
        return [one[:count] for one, count in zip(padded, counts, strict=True)]

    return get_bboxes


def detects_as_mmdet(roi_head: Any) -> bool:
    """Whether `detect_at_once` has the detections of this head."""
    names = ("simple_test", "simple_test_bboxes", "simple_test_mask", "_bbox_forward", "_mask_forward")
    return (
        isinstance(roi_head, StandardRoIHead)
        and all(getattr(type(roi_head), name) is getattr(StandardRoIHead, name) for name in names)
        and chooses_as_mmdet(roi_head.bbox_head, roi_head.test_cfg)
        and draws_as_mmdet(roi_head.mask_head)
    )


def detect_at_once(roi_head: Any) -> Callable[..., list[Any]]:
    """`StandardRoIHead.simple_test` with masks as run lengths, which waits for the device a few times."""
    as_mmdet, cfg = roi_head.simple_test, roi_head.test_cfg
    num_classes = roi_head.bbox_head.num_classes

    def simple_test(
        x: Sequence[Tensor],
        proposal_list: Sequence[Tensor],
        img_metas: Sequence[dict[str, Any]],
        proposals: None = None,
        rescale: bool = False,
    ) -> list[Any]:
        rois, found = bbox2roi(proposal_list), None
        if len(rois):
            results = roi_head._bbox_forward(x, rois)
            cls_score, bbox_pred = results["cls_score"], results["bbox_pred"]
            found = choose_detections(
                roi_head.bbox_head, rois, cls_score, bbox_pred, img_metas, cfg, rescale=rescale
            )
        if found is None:
            return as_mmdet(x, proposal_list, img_metas, proposals, rescale)
        masks = encode_all(roi_head, x, found, img_metas, rescale=rescale)
        bboxes = torch.cat([torch.cat([rows, labels[:, None]], dim=1) for rows, labels in found]).cpu()
        detected = []
        for rows, own in zip(bboxes.split([len(labels) for _, labels in found]), masks, strict=True):
            labels = rows[:, 5].long()
            boxes = bbox2result(rows[:, :5], labels, num_classes)
            detected.append((boxes, by_class(own, labels.tolist(), num_classes)))
        return detected

    return simple_test


def encode_all(
    roi_head: Any,
    x: Sequence[Tensor],
    found: Sequence[tuple[Tensor, Tensor]],
    img_metas: Sequence[dict[str, Any]],
    *,
    rescale: bool,
) -> list[list[dict[str, Any]]]:
    """Run lengths of the masks of each image's detections, drawn together for images of one size."""
    numbers = [len(labels) for _, labels in found]
    encoded: list[list[dict[str, Any]]] = [[] for _ in found]
    if not sum(numbers):
        return encoded
    factors = scale_factors(img_metas, x[0].float())
    seen = [
        rows[:, :4] * factor if rescale else rows[:, :4]
        for (rows, _), factor in zip(found, factors, strict=True)
    ]
    logits = roi_head._mask_forward(x, bbox2roi(seen))["mask_pred"]
    labels = torch.cat([one for _, one in found])
    own = of_their_classes(roi_head.mask_head, logits.sigmoid(), labels).split(numbers)
    of_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for image, meta in enumerate(img_metas):
        height, width = meta["ori_shape"][:2]
        if not rescale:
            by_width, by_height = (float(one) for one in meta["scale_factor"][:2])
            height, width = round(height * by_height), round(width * by_width)
        of_size[height, width].append(image)
    for size, images in of_size.items():
        places = torch.cat([seen[one] / factors[one] if rescale else seen[one] for one in images])
        runs = iter(
            encode_in_place(
                torch.cat([own[one] for one in images]), places, size, roi_head.test_cfg.mask_thr_binary
            )
        )
        for one in images:
            encoded[one] = [next(runs) for _ in range(numbers[one])]
    return encoded
