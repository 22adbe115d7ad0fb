"""A detector's gradients are those of finite differences, for every batch, size and layout on a CPU."""

from __future__ import annotations

import pytest
import torch

from tests.finite_differences import float64_detector, loss_of, narrow_config, parts_of, slopes

CPU = torch.device("cpu")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 91), (32, 160)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_gradients_through_backbone_neck_and_heads_are_those_of_finite_differences(
    batch: int, height: int, width: int, layout: torch.memory_format, one_thread: None
) -> None:
    model = float64_detector(narrow_config(channels_last=layout is torch.channels_last), CPU)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)
    images = images.to(memory_format=layout)
    for name, (by_autograd, by_difference) in slopes(lambda: loss_of(model, images), parts_of(model)).items():
        assert by_autograd == pytest.approx(by_difference, rel=1e-4), name
