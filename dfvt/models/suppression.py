"""Greedy non-maximum suppression of many problems at once on a GPU, without asking it for anything.

First, for each pair of boxes, a bit that says whether the better one covers the other; then one program a
problem goes through its boxes in order. Imported where there is a GPU alone: it needs Triton, which takes
other names of types for global variables: its functions have no annotations.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

BITS = 64


@triton.jit
def note_covered(  # type: ignore[no-untyped-def]
    bboxes, words, num_bboxes, num_words, iou_threshold, num_bits: tl.constexpr
):
    problem, row_block, word = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows = row_block * num_bits + tl.arange(0, num_bits)
    columns = word * num_bits + tl.arange(0, num_bits)
    row = bboxes + (problem * num_bboxes + rows) * 4
    column = bboxes + (problem * num_bboxes + columns) * 4
    in_rows, in_columns = rows < num_bboxes, columns < num_bboxes
    left, top = tl.load(row, in_rows, 0.0), tl.load(row + 1, in_rows, 0.0)
    right, bottom = tl.load(row + 2, in_rows, 0.0), tl.load(row + 3, in_rows, 0.0)
    other_left, other_top = tl.load(column, in_columns, 0.0), tl.load(column + 1, in_columns, 0.0)
    other_right, other_bottom = tl.load(column + 2, in_columns, 0.0), tl.load(column + 3, in_columns, 0.0)
    extent = tl.minimum(right[:, None], other_right[None]) - tl.maximum(left[:, None], other_left[None])
    height = tl.minimum(bottom[:, None], other_bottom[None]) - tl.maximum(top[:, None], other_top[None])
    shared = tl.maximum(extent, 0.0) * tl.maximum(height, 0.0)
    area = (right - left) * (bottom - top)
    other_area = (other_right - other_left) * (other_bottom - other_top)
    covered = shared > iou_threshold * (area[:, None] + other_area[None] - shared)
    covered = covered & (columns[None] > rows[:, None]) & in_columns[None]
    bits = tl.sum(covered.to(tl.int64) << tl.arange(0, num_bits).to(tl.int64)[None], axis=1)
    tl.store(words + (problem * num_bboxes + rows) * num_words + word, bits, in_rows)


@triton.jit
def choose_in_order(  # type: ignore[no-untyped-def]
    words, valid, keep, num_bboxes, num_words, num_bits: tl.constexpr, width: tl.constexpr
):
    problem = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, width)
    covered = tl.zeros([width], tl.int64)
    for index in range(num_bboxes):
        at = problem * num_bboxes + index
        word = tl.sum(tl.where(places == index // num_bits, covered, 0), axis=0)
        free = ((word >> (index % num_bits)) & 1) == 0
        kept = free & (tl.load(valid + at) != 0)
        row = tl.load(words + at * num_words + places, places < num_words, 0)
        covered = covered | tl.where(kept, row, 0)
        tl.store(keep + at, kept.to(tl.int8))


def keep_greedily_on_gpu(bboxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """As `dfvt.models.proposals.keep_greedily`, on the device where its boxes are."""
    num_problems, num_bboxes = valid.shape
    num_words = triton.cdiv(num_bboxes, BITS)
    words = torch.empty(num_problems, num_bboxes, num_words, dtype=torch.int64, device=bboxes.device)
    keep = torch.empty(num_problems, num_bboxes, dtype=torch.int8, device=bboxes.device)
    if keep.numel():
        note_covered[(num_problems, num_words, num_words)](
            bboxes.float().contiguous(), words, num_bboxes, num_words, iou_threshold, num_bits=BITS
        )
        choose_in_order[(num_problems,)](
            words,
            valid.to(torch.int8).contiguous(),
            keep,
            num_bboxes,
            num_words,
            num_bits=BITS,
            width=triton.next_power_of_2(num_words),
            num_warps=1,
        )
    return keep.bool()
