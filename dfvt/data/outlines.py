"""Outlines of objects in COCO's format: polygons, or run lengths, as numbers or compressed to text.

Source of the format: pycocotools' `maskApi`, whose own reader trusts what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

Box = tuple[float, float, float, float]
Polygons = list[list[float]]  # x1, y1, x2, y2, … in pixels


class RunLengths(msgspec.Struct, frozen=True):
    """Lengths of runs of 0 and 1 in turn, column by column, 0 first."""

    size: tuple[int, int]  # height, width
    counts: str | list[int]


class Fault(Enum):
    """Why an outline is no mask of its image."""

    MISSING = "no polygon of three or more corners, and no run lengths"
    FAR_OUTSIDE = "corners farther outside of the image than it is large"
    WRONG_RUNS = "run lengths that do not fill the image"


@dataclass(frozen=True)
class Outline:
    """What an outline was found to be.

    Attributes:
        fault: why it is no mask, if it is none.
        area: in pixels, of one that is.
        bbox: x, y, width, height of the pixels, or of the polygons' corners.
        num_short_polygons: those of fewer than three corners, beside others that are whole.
    """

    fault: Fault | None = None
    area: float = math.nan
    bbox: Box | None = None
    num_short_polygons: int = 0


_DECODER = msgspec.json.Decoder(Polygons | RunLengths)


def read_outline(content: bytes | msgspec.Raw) -> Polygons | RunLengths | None:
    """The outline of an annotation's `segmentation`; None where it is not in COCO's format."""
    try:
        return _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def judge_outline(content: bytes | msgspec.Raw, height: int, width: int) -> Outline:
    """Measures an outline in an image of `height` × `width` pixels, and says what is wrong with it."""
    outline = read_outline(content)
    if outline is None:
        return Outline(Fault.MISSING)
    if isinstance(outline, RunLengths):
        counts = counts_of(outline.counts) if isinstance(outline.counts, str) else outline.counts
        if not counts or min(counts) < 0 or sum(counts) != height * width or outline.size != (height, width):
            return Outline(Fault.WRONG_RUNS)
        return Outline(area=sum(counts[1::2]), bbox=bbox_of_runs(counts, height))
    # mmdet and pycocotools judge a list by its first polygon
    num_short = sum(not is_polygon(polygon) for polygon in outline)
    if not outline or not is_polygon(outline[0]):
        return Outline(Fault.MISSING)
    whole = [polygon for polygon in outline if is_polygon(polygon)]
    if any(reaches_far(polygon, height, width) for polygon in whole):
        return Outline(Fault.FAR_OUTSIDE)
    runs = coco_mask.merge(coco_mask.frPyObjects(whole, height, width))
    x = [value for polygon in whole for value in polygon[0::2]]
    y = [value for polygon in whole for value in polygon[1::2]]
    bbox = (min(x), min(y), max(x) - min(x), max(y) - min(y))
    return Outline(area=float(coco_mask.area(runs)), bbox=bbox, num_short_polygons=num_short)


def bbox_of_runs(counts: Sequence[int], height: int) -> Box | None:
    """x, y, width, height of the pixels that runs of columns of `height` pixels fill; None of none."""
    ends = np.cumsum(np.asarray(counts, np.int64))
    starts, ends = ends[0::2][: len(counts) // 2], ends[1::2]
    filled = ends > starts
    if not filled.any():
        return None
    starts, lasts = starts[filled], ends[filled] - 1
    left, right = starts[0] // height, lasts[-1] // height
    # a run that goes on in the next column fills the rows from the top to the bottom
    several = (starts // height != lasts // height).any()
    top, bottom = (0, height - 1) if several else ((starts % height).min(), (lasts % height).max())
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def is_polygon(numbers: Sequence[float]) -> bool:
    """Whether these are the coordinates of three or more corners."""
    return len(numbers) >= 6 and len(numbers) % 2 == 0


def reaches_far(polygon: Sequence[float], height: int, width: int) -> bool:
    """Whether corners are farther outside than the image is large: drawing them takes time and memory."""
    x, y = polygon[0::2], polygon[1::2]
    return min(x) < -width or max(x) > 2 * width or min(y) < -height or max(y) > 2 * height


def counts_of(text: str) -> list[int] | None:
    """The run lengths that pycocotools compressed to `text`; None where it is not such a text.

    Each is written in groups of five bits, the lowest first, from the fourth on as the difference to the
    last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value = shift = 0
    return None if shift else counts
