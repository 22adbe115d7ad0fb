"""Proposals, detections and masks of a batch at once are those that mmdet finds image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import Config, ConfigDict
from mmdet.core import bbox2roi
from mmdet.models import build_head
from mmdet.models.roi_heads import StandardRoIHead
from pycocotools import mask as run_lengths

from dfvt.data.loading import build_test_loader
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.detection import detecting_at_once
from dfvt.engine.evaluate import together
from dfvt.engine.segments import encode_columns, masks_as_run_lengths
from dfvt.models import detections
from dfvt.models.detections import choose_detections
from dfvt.models.proposals import is_plain_nms


@given(
    seed=st.integers(0, 10**6),
    numbers=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    agnostic=st.booleans(),
    rescale=st.booleans(),
    score_thr=st.sampled_from([0.0, 0.3, 0.9]),
    max_per_img=st.sampled_from([-1, 3, 100]),
)
@settings(max_examples=80, derandomize=True)
def test_detections_are_those_of_mmdet(
    seed: int,
    numbers: list[int],
    agnostic: bool,
    rescale: bool,
    score_thr: float,
    max_per_img: int,
) -> None:
    torch.manual_seed(seed)
    head: Any = build_head({"type": "Shared2FCBBoxHead", "num_classes": 3, "reg_class_agnostic": agnostic})
    cfg = ConfigDict(score_thr=score_thr, nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=max_per_img)
    metas = [
        {
            "img_shape": (40 + 9 * image, 60 - 7 * image, 3),
            "scale_factor": np.array([1.5, 1.25, 1.5, 1.25], dtype=np.float32) + image / 8,
        }
        for image in range(len(numbers))
    ]
    corners = [(torch.rand(2, number, 2) * 60).sort(dim=0).values for number in numbers]
    rois = bbox2roi([torch.cat([*one], dim=1) for one in corners])
    logits = torch.randn(len(rois), 4) * 2
    deltas = torch.randn(len(rois), 4 if agnostic else 12)
    parts = zip(*(one.split(numbers) for one in (rois, logits, deltas)), metas, strict=True)
    expected = [
        head.get_bboxes(*own, meta["img_shape"], meta["scale_factor"], rescale=rescale, cfg=cfg)
        if len(own[0])
        else (torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
        for *own, meta in parts
    ]
    found = choose_detections(head, rois, logits, deltas, metas, cfg, rescale=rescale)
    assert found is not None
    for (rows, labels), (expected_rows, expected_labels) in zip(found, expected, strict=True):
        assert torch.equal(rows, expected_rows)
        assert torch.equal(labels, expected_labels)


@given(
    seed=st.integers(0, 10**6),
    number=st.integers(0, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.2, 0.8, 1.0]),
)
@settings(max_examples=100, derandomize=True)
def test_run_lengths_are_found_where_masks_change(
    seed: int, number: int, height: int, width: int, share: float
) -> None:
    bits = np.random.default_rng(seed).random((number, width, height)) < share
    expected = [run_lengths.encode(np.asfortranarray(mask.transpose(1, 0).astype(np.uint8))) for mask in bits]
    assert encode_columns(torch.from_numpy(bits)) == expected


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"type": "nms", "iou_threshold": 0.5}, True),
        ({"iou_threshold": 0.5}, True),
        ({"type": "soft_nms", "iou_threshold": 0.5}, False),
        ({"type": "nms", "iou_threshold": 0.5, "class_agnostic": True}, False),
        (None, False),
    ],
)
def test_suppression_of_another_kind_is_left_to_mmdet(options: dict[str, Any] | None, plain: bool) -> None:
    assert is_plain_nms(options and ConfigDict(options)) == plain


@pytest.fixture(scope="module")
def inputs(session_config: Config) -> dict[str, Any]:
    """Images of one shape, and of several sizes as files."""
    dataset = build_coco_dataset(session_config.data.val, test_mode=True)
    batches = [batch.inputs for batch in build_test_loader(dataset, range(len(dataset)), 0)]
    shape = batches[0]["img"][0].shape
    return together([one for one in batches if one["img"][0].shape == shape])


def results_of(model: Any, way: Any, inputs: dict[str, Any], *, rescale: bool = True) -> list[Any]:
    with torch.no_grad(), way(model) as encoded:
        assert encoded
        return model(return_loss=False, rescale=rescale, **inputs)


def assert_equal(results: list[Any], expected: list[Any]) -> None:
    assert len(results) == len(expected)
    for (boxes, masks), (expected_boxes, expected_masks) in zip(results, expected, strict=True):
        for rows, expected_rows in zip(boxes, expected_boxes, strict=True):
            np.testing.assert_array_equal(rows, expected_rows)
        assert masks == expected_masks


@pytest.mark.parametrize("rescale", [True, False])
def test_a_batch_has_the_results_of_mmdet(detector: Any, inputs: dict[str, Any], rescale: bool) -> None:
    expected = results_of(detector, masks_as_run_lengths, inputs, rescale=rescale)
    assert len(expected) > 1
    assert sum(len(rows) for boxes, _ in expected for rows in boxes) > 5 * len(expected)
    assert_equal(results_of(detector, detecting_at_once, inputs, rescale=rescale), expected)


def test_too_many_candidates_are_left_to_mmdet(
    detector: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results_of(detector, masks_as_run_lengths, inputs)
    monkeypatch.setattr(detections, "MOST_CANDIDATES", 5)
    assert_equal(results_of(detector, detecting_at_once, inputs), expected)


def test_a_batch_where_nothing_is_found_has_empty_results(
    detector: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(detector.roi_head.test_cfg, "score_thr", 1.1)
    expected = results_of(detector, masks_as_run_lengths, inputs)
    assert_equal(results_of(detector, detecting_at_once, inputs), expected)


def test_heads_that_are_not_known_do_what_they_do(
    detector: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnHead(StandardRoIHead):
        def simple_test_bboxes(self, *arguments: Any, **options: Any) -> Any:
            return super().simple_test_bboxes(*arguments, **options)

    monkeypatch.setattr(detector.roi_head, "__class__", OwnHead)
    monkeypatch.setitem(detector.rpn_head.test_cfg, "nms", ConfigDict(type="soft_nms", iou_threshold=0.7))
    with detecting_at_once(detector):
        assert "simple_test" not in vars(detector.roi_head)
        assert "get_bboxes" not in vars(detector.rpn_head)


def test_heads_are_mmdets_own_again_afterwards(detector: Any) -> None:
    with pytest.raises(KeyError), detecting_at_once(detector):
        assert "simple_test" in vars(detector.roi_head)
        assert "get_bboxes" in vars(detector.rpn_head)
        raise KeyError
    assert "simple_test" not in vars(detector.roi_head)
    assert "get_bboxes" not in vars(detector.rpn_head)
