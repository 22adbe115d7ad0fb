"""Outlines are what pycocotools makes of them, and nothing makes their reader fail."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from dfvt.data.outlines import Fault, counts_of, judge_outline, read_outline

masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def runs_of(mask: np.ndarray) -> list[int]:
    pixels = np.concatenate([[0], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(pixels)) if pixels.size else []
    return np.diff([0, *edges, mask.size]).tolist()


@given(mask=masks)
def test_run_lengths_are_measured_in_either_form(mask: np.ndarray) -> None:
    compressed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert counts_of(compressed) == runs_of(mask)
    for counts in (compressed, runs_of(mask)):
        content = json.dumps({"size": mask.shape, "counts": counts}).encode()
        outline = judge_outline(content, *mask.shape)
        assert (outline.fault, outline.area) == (None, mask.sum())
        expected = (
            coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist() if mask.any() else None
        )
        assert (list(outline.bbox) if outline.bbox else None) == expected
        assert judge_outline(content, mask.shape[0] + 1, mask.shape[1]).fault is Fault.WRONG_RUNS


@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_a_text_that_is_called_good_decodes(text: str) -> None:
    content = json.dumps({"size": [7, 9], "counts": text}).encode()
    outline = judge_outline(content, 7, 9)
    if outline.fault is None:
        assert coco_mask.decode({"size": [7, 9], "counts": text.encode()}).sum() == outline.area
    else:
        assert outline.fault is Fault.WRONG_RUNS


@given(content=st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
def test_no_content_makes_it_fail(content: bytes) -> None:
    assert judge_outline(content, 5, 5).fault in (Fault.MISSING, Fault.WRONG_RUNS, Fault.FAR_OUTSIDE, None)


def test_nested_without_an_end_is_no_outline() -> None:
    assert read_outline(b"[" * 1_000_000) is None


@pytest.mark.parametrize(
    ("polygons", "fault", "area", "num_short"),
    [
        ([[0, 0, 10, 0, 10, 10, 0, 10]], None, 100, 0),
        ([[0, 0, 10, 0, 10, 10, 0, 10], [5, 5, 15, 5, 15, 15, 5, 15]], None, 175, 0),
        ([[0, 0, 10, 0, 10, 10, 0, 10], [1, 1]], None, 100, 1),
        ([[0, 0, 10, 0, 10, 10, 0, 10], [], [3]], None, 100, 2),
        ([[1, 1], [0, 0, 10, 0, 10, 10, 0, 10]], Fault.MISSING, None, 0),
        ([[0, 0, 10, 0, 10, 10, 0]], Fault.MISSING, None, 0),
        ([[]], Fault.MISSING, None, 0),
        ([[-21, 0, 10, 0, 10, 10]], Fault.FAR_OUTSIDE, None, 0),
        ([[0, 0, 10, 0, 10, 41]], Fault.FAR_OUTSIDE, None, 0),
    ],
)
def test_polygons(
    polygons: list[list[float]], fault: Fault | None, area: float | None, num_short: int
) -> None:
    outline = judge_outline(json.dumps(polygons).encode(), 20, 20)
    assert (outline.fault, outline.num_short_polygons) == (fault, num_short)
    if area is not None:
        assert outline.area == area
