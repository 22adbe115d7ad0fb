"""An update that the loss scaler skips moves nothing, the average included."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dfvt.engine.average import WeightAverage
from dfvt.engine.hooks import OptimizerStep
from dfvt.engine.precision import Precision

CPU = torch.device("cpu")


def runner_of(precision: Precision) -> Any:
    """As much of a runner as an update needs."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return SimpleNamespace(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        scaler=precision.build_scaler(CPU),
        precision=precision,
        average=WeightAverage(model, decay=0.5),
        num_gathered=0,
        update_is_due=lambda: True,
    )


def update(runner: Any, factor: float) -> None:
    """A whole iteration whose loss is `factor` times a sum."""
    runner.scaler.scale(runner.model(torch.ones(1, 3)).sum() * factor).backward()
    runner.num_gathered = 1
    OptimizerStep(None).after_train_iter(runner)


def weights(module: nn.Module) -> list[float]:
    return [value for parameter in module.parameters() for value in parameter.detach().flatten().tolist()]


@pytest.mark.parametrize(
    "precision",
    [
        Precision(torch.float16, {"init_scale": 1024.0}),
        Precision(torch.float16, {"init_scale": 512.0}, 512.0),
    ],
    ids=["dynamic", "fixed"],
)
def test_a_skipped_update_leaves_the_average(precision: Precision) -> None:
    runner = runner_of(precision)
    update(runner, 1.0)  # the average begins as a copy
    update(runner, 1.0)
    before = weights(runner.model), weights(runner.average.module), int(runner.average.averaged.n_averaged)
    update(runner, float("inf"))
    assert weights(runner.model) == before[0]
    assert weights(runner.average.module) == before[1]
    assert int(runner.average.averaged.n_averaged) == before[2] == 2
    if precision.fixed_loss_scale:
        assert runner.scaler.get_scale() == precision.fixed_loss_scale
    update(runner, 1.0)
    assert weights(runner.model) != before[0]
    middle = [(new + old) / 2 for new, old in zip(weights(runner.model), before[1], strict=True)]
    assert weights(runner.average.module) == pytest.approx(middle)


def test_without_a_scaler_each_update_moves_the_average() -> None:
    runner = runner_of(Precision())
    for _ in range(3):
        update(runner, 1.0)
    assert int(runner.average.averaged.n_averaged) == 3
