"""RoIAlign on a GPU from all levels of a channels-last pyramid at once.

mmcv's kernel has a thread for each number, and reads contiguous float32 maps: here a program has the channels
of a bin, which lie beside each other, in the precision that the maps have. Imported where there is a GPU
alone: it needs Triton, whose functions take no annotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

NUM_LEVELS = 4


@triton.jit
def level_of(roi, levels, map_0, map_1, map_2, map_3, sizes):  # type: ignore[no-untyped-def]
    """The map of an RoI, with height, width and scale."""
    level = tl.load(levels + roi)
    found = map_0
    if level == 1:
        found = map_1
    if level == 2:
        found = map_2
    if level == 3:
        found = map_3
    at = sizes + level * 3
    return found, tl.load(at).to(tl.int32), tl.load(at + 1).to(tl.int32), tl.load(at + 2)


@triton.jit
def bin_of(rois, roi, scale, place, num_bins: tl.constexpr):  # type: ignore[no-untyped-def]
    """The image, the corner and steps of the samples of a bin, and how many there are."""
    at = rois + roi * 5
    image = tl.load(at).to(tl.int64)
    left, top = tl.load(at + 1) * scale - 0.5, tl.load(at + 2) * scale - 0.5
    width = tl.load(at + 3) * scale - 0.5 - left
    height = tl.load(at + 4) * scale - 0.5 - top
    num_rows = tl.ceil(height / num_bins).to(tl.int32)
    num_columns = tl.ceil(width / num_bins).to(tl.int32)
    bin_height, bin_width = height / num_bins, width / num_bins
    top += (place // num_bins) * bin_height
    left += (place % num_bins) * bin_width
    return image, top, left, bin_height, bin_width, num_rows, num_columns


@triton.jit
def neighbours(at, size):  # type: ignore[no-untyped-def]
    """The two pixels beside a coordinate, the weight of the second, and whether it is inside."""
    inside = (at >= -1.0) & (at <= size)
    at = tl.maximum(at, 0.0)
    low = tl.minimum(at.to(tl.int32), size - 1)
    high = tl.minimum(low + 1, size - 1)
    weight = tl.where(low >= size - 1, 0.0, at - low)
    return low, high, weight, inside


@triton.jit
def pool(  # type: ignore[no-untyped-def]
    rois, levels, sizes, map_0, map_1, map_2, map_3, out, num_channels: tl.constexpr, num_bins: tl.constexpr
):
    roi, place = tl.program_id(0).to(tl.int64), tl.program_id(1)
    found, height, width, scale = level_of(roi, levels, map_0, map_1, map_2, map_3, sizes)
    image, top, left, bin_height, bin_width, num_rows, num_columns = bin_of(rois, roi, scale, place, num_bins)
    channels = tl.arange(0, num_channels)
    base = found + image * height * width * num_channels + channels
    total = tl.zeros([num_channels], tl.float32)
    for row in range(num_rows):
        up, down, lower, in_rows = neighbours(top + (row + 0.5) * bin_height / num_rows, height)
        for column in range(num_columns):
            before, after, right, in_columns = neighbours(
                left + (column + 0.5) * bin_width / num_columns, width
            )
            if in_rows & in_columns:
                total += (1 - lower) * (1 - right) * tl.load(base + (up * width + before) * num_channels)
                total += (1 - lower) * right * tl.load(base + (up * width + after) * num_channels)
                total += lower * (1 - right) * tl.load(base + (down * width + before) * num_channels)
                total += lower * right * tl.load(base + (down * width + after) * num_channels)
    total /= tl.maximum(num_rows * num_columns, 1)
    at = (roi * num_bins * num_bins + place) * num_channels + channels
    tl.store(out + at, total.to(out.dtype.element_ty))


@triton.jit
def spread(  # type: ignore[no-untyped-def]
    rois, levels, sizes, map_0, map_1, map_2, map_3, given, num_channels: tl.constexpr, num_bins: tl.constexpr
):
    roi, place = tl.program_id(0).to(tl.int64), tl.program_id(1)
    found, height, width, scale = level_of(roi, levels, map_0, map_1, map_2, map_3, sizes)
    image, top, left, bin_height, bin_width, num_rows, num_columns = bin_of(rois, roi, scale, place, num_bins)
    channels = tl.arange(0, num_channels)
    base = found + image * height * width * num_channels + channels
    at = (roi * num_bins * num_bins + place) * num_channels + channels
    share = tl.load(given + at).to(tl.float32) / tl.maximum(num_rows * num_columns, 1)
    for row in range(num_rows):
        up, down, lower, in_rows = neighbours(top + (row + 0.5) * bin_height / num_rows, height)
        for column in range(num_columns):
            before, after, right, in_columns = neighbours(
                left + (column + 0.5) * bin_width / num_columns, width
            )
            if in_rows & in_columns:
                tl.atomic_add(
                    base + (up * width + before) * num_channels,
                    (1 - lower) * (1 - right) * share,
                    sem="relaxed",
                )
                tl.atomic_add(
                    base + (up * width + after) * num_channels, (1 - lower) * right * share, sem="relaxed"
                )
                tl.atomic_add(
                    base + (down * width + before) * num_channels, lower * (1 - right) * share, sem="relaxed"
                )
                tl.atomic_add(
                    base + (down * width + after) * num_channels, lower * right * share, sem="relaxed"
                )


class PyramidRoIAlign(torch.autograd.Function):
    """RoI features (R, C, P, P), channels-last as the maps are."""

    @staticmethod
    def forward(
        ctx: Any, rois: Tensor, levels: Tensor, sizes: Tensor, num_bins: int, *maps: Tensor
    ) -> Tensor:
        num_channels = maps[0].shape[1]
        out = torch.empty(
            len(rois), num_bins, num_bins, num_channels, dtype=maps[0].dtype, device=maps[0].device
        )
        if len(rois):
            pool[(len(rois), num_bins**2)](
                *(rois, levels, sizes, *maps, out), num_channels=num_channels, num_bins=num_bins, num_warps=2
            )
        ctx.save_for_backward(rois, levels, sizes)
        ctx.num_bins, ctx.shapes, ctx.dtype = num_bins, [one.shape for one in maps], maps[0].dtype
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rois, levels, sizes = ctx.saved_tensors
        given = gradient.contiguous(memory_format=torch.channels_last)
        found = [
            torch.zeros(batch, height, width, channels, device=given.device)
            for batch, channels, height, width in ctx.shapes
        ]
        if len(rois):
            spread[(len(rois), ctx.num_bins**2)](
                *(rois, levels, sizes, *found, given),
                num_channels=ctx.shapes[0][1],
                num_bins=ctx.num_bins,
                num_warps=2,
            )
        return (None, None, None, None, *(one.permute(0, 3, 1, 2).to(ctx.dtype) for one in found))


def pyramid_roi_align(
    maps: Sequence[Tensor], rois: Tensor, levels: Tensor, sizes: Tensor, num_bins: int
) -> Tensor:
    """Features (R, C, P, P) of RoIs (R, 5), as `mmcv.ops.RoIAlign(aligned=True, sampling_ratio=0)` has them.

    `maps` are four of (B, C, H, W) whose C is a power of two, `levels` (R,) says which of them an RoI is on,
    and `sizes` (4, 3) has height, width and scale of each.
    """
    lying = [one.contiguous(memory_format=torch.channels_last) for one in maps]
    return PyramidRoIAlign.apply(rois.float().contiguous(), levels.int(), sizes, num_bins, *lying)
