"""Masks become run lengths on a short way, images of a shape pass together: what is found is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import Config, ConfigDict
from mmdet.core import encode_mask_results
from mmdet.models import build_head

from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.detection import detect
from dfvt.engine.evaluate import predict
from dfvt.engine.segments import encode_masks, masks_as_run_lengths

CPU = torch.device("cpu")


@given(
    seed=st.integers(0, 10**6),
    number=st.integers(1, 6),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    rescale=st.booleans(),
    agnostic=st.booleans(),
    several_views=st.booleans(),
)
@settings(max_examples=60, derandomize=True)
def test_run_lengths_are_those_of_the_bitmaps(
    seed: int, number: int, height: int, width: int, rescale: bool, agnostic: bool, several_views: bool
) -> None:
    torch.manual_seed(seed)
    head: Any = build_head(
        {"type": "FCNMaskHead", "num_convs": 0, "num_classes": 3, "class_agnostic": agnostic}
    )
    sides = torch.tensor([width * 1.5, height * 1.25])  # of the image that was seen
    corners = (torch.rand(2, number, 2) * 1.2 - 0.1).clamp(0, 1).sort(dim=0).values * sides
    bboxes = torch.cat([*corners, torch.rand(number, 1)], dim=1)
    labels = torch.randint(0, 3, (number,))
    masks: Any = torch.randn(number, 1 if agnostic else 3, 28, 28)
    if several_views:
        masks = masks.sigmoid().numpy()
    arguments = (masks, bboxes, labels, ConfigDict(mask_thr_binary=0.5), (height, width, 3))
    scale = np.array([1.5, 1.25, 1.5, 1.25], dtype=np.float32)
    expected = encode_mask_results(head.get_seg_masks(*arguments, scale, rescale))
    assert encode_masks(head, *arguments, scale, rescale) == expected


def test_images_that_pass_together_have_what_they_have_alone(detector: Any, session_config: Config) -> None:
    dataset = build_coco_dataset(session_config.data.val, test_mode=True)
    alone, beside = (predict(detector, dataset, CPU, num_at_once=number) for number in (1, 3))
    assert alone is not None and beside is not None
    assert len(alone) == len(beside) == len(dataset)
    assert sum(len(rows) for boxes, _ in alone for rows in boxes) > 2 * len(dataset)
    for (boxes, masks), (other_boxes, other_masks) in zip(alone, beside, strict=True):
        for rows, others in zip(boxes, other_boxes, strict=True):
            np.testing.assert_allclose(others, rows, rtol=1e-4, atol=1e-3)
        assert [len(some) for some in masks] == [len(some) for some in other_masks]


def test_the_mask_head_is_mmdets_own_again_afterwards(detector: Any) -> None:
    head = detector.roi_head.mask_head
    with pytest.raises(KeyError), masks_as_run_lengths(detector) as known:
        assert known and "get_seg_masks" in vars(head)
        raise KeyError
    assert "get_seg_masks" not in vars(head)


def test_a_batch_without_memory_passes_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def model(*, img: list[torch.Tensor], img_metas: list[list[Any]], **options: Any) -> list[Any]:
        seen.append(len(img[0]))
        if len(img[0]) > 1 or img_metas[0] == ["large"]:
            raise torch.OutOfMemoryError
        return [float(img[0].sum())]

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    inputs = {"img": [torch.tensor([[1.0], [2.0], [3.0]])], "img_metas": [["a", "b", "c"]]}
    assert detect(model, inputs) == [1.0, 2.0, 3.0]
    assert seen == [3, 1, 1, 1]
    with pytest.raises(torch.OutOfMemoryError):
        detect(model, {"img": [torch.ones(1, 1)], "img_metas": [["large"]]})
