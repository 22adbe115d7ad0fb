"""`MaxIoUAssigner` for a whole batch on a GPU, without memory for each pair of candidate and object.

Imported where there is a GPU alone: it needs Triton, whose functions take no annotations. Overlaps are
rounded as torch rounds them, so that every decision is the same: no fused additions, full divisions.
"""

from __future__ import annotations

import torch
import triton
from mmdet.core.bbox.assigners import MaxIoUAssigner
from torch import Tensor
from triton import language as tl

from dfvt.models.boxes import EPSILON

NO_OVERLAP = -1.0
BLOCK = 256


@triton.jit
def overlaps_with(objects, present, at, left, top, right, bottom, counted, epsilon):  # type: ignore[no-untyped-def]
    """Intersections over unions of a block of candidates with one object; −1 where either does not count."""
    x1, y1 = tl.load(objects + at * 4), tl.load(objects + at * 4 + 1)
    x2, y2 = tl.load(objects + at * 4 + 2), tl.load(objects + at * 4 + 3)
    width = tl.maximum(tl.minimum(right, x2) - tl.maximum(left, x1), 0.0)
    height = tl.maximum(tl.minimum(bottom, y2) - tl.maximum(top, y1), 0.0)
    shared = width * height
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - shared
    overlaps = tl.div_rn(shared, tl.maximum(union, epsilon))
    return tl.where(counted & (tl.load(present + at) != 0), overlaps, -1.0)


@triton.jit
def find_best(  # type: ignore[no-untyped-def]
    candidates,
    counted,
    objects,
    present,
    best,
    nearest,
    best_of_object,
    num_candidates,
    candidates_stride,
    num_objects,
    epsilon,
    block: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * block + tl.arange(0, block)
    inside = rows < num_candidates
    own = tl.load(counted + image * num_candidates + rows, inside, 0) != 0
    at = candidates + image * candidates_stride + rows * 4
    left, top = tl.load(at, inside, 0.0), tl.load(at + 1, inside, 0.0)
    right, bottom = tl.load(at + 2, inside, 0.0), tl.load(at + 3, inside, 0.0)
    most = tl.full([block], -1.0, tl.float32)
    which = tl.zeros([block], tl.int32)
    for index in range(num_objects):
        place = image * num_objects + index
        overlaps = overlaps_with(objects, present, place, left, top, right, bottom, own, epsilon)
        which = tl.where(overlaps > most, index, which)
        most = tl.maximum(most, overlaps)
        # numbers from 0 are ordered as their bits are, and −1 is below all of them
        tl.atomic_max(best_of_object + place, tl.max(overlaps, axis=0).to(tl.int32, bitcast=True))
    tl.store(best + image * num_candidates + rows, most, inside)
    tl.store(nearest + image * num_candidates + rows, which, inside)


@triton.jit
def find_claims(  # type: ignore[no-untyped-def]
    candidates,
    counted,
    objects,
    present,
    best_of_object,
    claimed,
    num_candidates,
    candidates_stride,
    num_objects,
    epsilon,
    min_overlap,
    block: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * block + tl.arange(0, block)
    inside = rows < num_candidates
    own = tl.load(counted + image * num_candidates + rows, inside, 0) != 0
    at = candidates + image * candidates_stride + rows * 4
    left, top = tl.load(at, inside, 0.0), tl.load(at + 1, inside, 0.0)
    right, bottom = tl.load(at + 2, inside, 0.0), tl.load(at + 3, inside, 0.0)
    last = tl.zeros([block], tl.int32)
    for index in range(num_objects):
        place = image * num_objects + index
        most = tl.load(best_of_object + place).to(tl.float32, bitcast=True)
        if (most >= min_overlap) & (tl.load(present + place) != 0):
            overlaps = overlaps_with(objects, present, place, left, top, right, bottom, own, epsilon)
            last = tl.where(overlaps == most, index + 1, last)
    tl.store(claimed + image * num_candidates + rows, last, inside)


def assign_on_gpu(
    bboxes: Tensor, present: Tensor, candidates: Tensor, counted: Tensor, assigner: MaxIoUAssigner
) -> tuple[Tensor, Tensor, Tensor]:
    """Of candidates (B, N, 4) the best overlap with an object, with which, and who claims them, (B, N) each.

    `bboxes` (B, G, 4) are objects where `present` (B, G), and candidates take part where `counted` (B, N).
    Claims are 1 + the index of the last object that has its own best overlap there, 0 without one.
    """
    (num_images, num_objects), num_candidates = present.shape, candidates.shape[1]
    bboxes, present = bboxes.float().contiguous(), present.to(torch.int8)
    counted = counted.to(torch.int8).contiguous()
    # the anchors of all images are the same memory
    stride = 0 if candidates.stride(0) == 0 else num_candidates * 4
    flat = candidates[:1].contiguous() if stride == 0 else candidates.contiguous()
    best = torch.empty(num_images, num_candidates, device=bboxes.device)
    nearest, claimed = (torch.zeros_like(best, dtype=torch.int32) for _ in range(2))
    best_of_object = torch.full_like(bboxes[..., 0], NO_OVERLAP).view(torch.int32)
    grid = (triton.cdiv(num_candidates, BLOCK), num_images)
    if not num_candidates:
        return best, nearest, claimed
    options = {"block": BLOCK, "num_warps": 4, "enable_fp_fusion": False}
    find_best[grid](
        *(flat, counted, bboxes, present, best, nearest, best_of_object),
        *(num_candidates, stride, num_objects, EPSILON),
        **options,
    )
    if assigner.match_low_quality:
        find_claims[grid](
            *(flat, counted, bboxes, present, best_of_object, claimed),
            *(num_candidates, stride, num_objects, EPSILON, assigner.min_pos_iou),
            **options,
        )
    return best, nearest, claimed
