"""The counted size of a detector is the one of the published code, and counting leaves the detector alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmcv import Config
from mmdet.models import build_detector
from torch import nn

from dfvt.models.complexity import Complexity, measure_complexity

PROJECT = Path(__file__).parents[2]
# Of the published code at 800 x 1280: parameters, those of the backbone, multiply-adds as mmdet 2.x counts,
# and the same with the products inside attention.
COUNTED = {
    "tiny": (23_769_651, 3_680_067, 176.90e9, 176.85e9),
    "small": (31_118_805, 10_844_901, 194.47e9, 194.52e9),
    "base": (57_392_840, 36_996_056, 235.94e9, 236.70e9),
}


def build(config: str) -> nn.Module:
    """The config's detector with shapes but no values, which takes no time."""
    with torch.device("meta"):
        return build_detector(Config.fromfile(str(PROJECT / "configs" / config)).model)


def attributes(model: nn.Module) -> list[tuple[str, set[str], int, bool]]:
    return [(n, set(vars(m)), len(m._forward_hooks), m.training) for n, m in model.named_modules()]


@pytest.mark.parametrize("variant", COUNTED)
def test_counts_of_the_published_detectors(variant: str) -> None:
    num_params, backbone_params, flops, flops_with_attention = COUNTED[variant]
    measured = measure_complexity(build(f"DFvT/maskrcnn_DFvT_{variant}_1x_coco.py"), (800, 1280))
    assert (measured.num_params, measured.backbone_params) == (num_params, backbone_params)
    assert measured.flops == pytest.approx(flops, rel=2e-4)
    assert measured.flops_with_attention == pytest.approx(flops_with_attention, rel=3e-5)
    assert measured.input_shape == (800, 1280)


def test_a_detector_with_weights_counts_as_one_without_and_stays_as_it_was() -> None:
    config = "mini/maskrcnn_DFvT_tiny_mini.py"
    model = build_detector(Config.fromfile(str(PROJECT / "configs" / config)).model).train()
    before = attributes(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    measured = measure_complexity(model, (128, 160))

    assert measured == measure_complexity(build(config), (128, 160))
    assert isinstance(measured.flops, int) and isinstance(measured.flops_with_attention, int)
    assert attributes(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_every_proposal_adds_one_pass_of_its_head() -> None:
    model = build("mini/maskrcnn_DFvT_tiny_mini.py")

    def count(num_proposals: int, num_mask_proposals: int) -> Complexity:
        return measure_complexity(model, (64, 64), num_proposals, num_mask_proposals)

    base = count(1, 1)
    box_head = model.roi_head.bbox_head
    products = sum(m.weight.numel() for m in box_head.modules() if isinstance(m, nn.Linear))
    assert count(11, 1).flops_with_attention - base.flops_with_attention == 10 * products
    assert count(1, 3).flops - base.flops == 2 * (count(1, 2).flops - base.flops) > 0


def test_a_module_that_is_no_two_stage_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear cannot be measured"):
        measure_complexity(nn.Linear(1, 1), (64, 64))
