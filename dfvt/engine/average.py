"""Exponential moving average (EMA) of a detector's weights."""

from __future__ import annotations

import torch
from mmcv import Config
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Averages the weights after each update; BatchNorm statistics are the newest ones.

    Evaluation and the final checkpoint use the averaged detector.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def module(self) -> nn.Module:
        """The averaged detector."""
        return self.averaged.module

    def update(self, model: nn.Module) -> None:
        """Moves the average towards a detector's weights."""
        self.averaged.update_parameters(model)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Averaged weights, and how many updates they are of."""
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.averaged.load_state_dict(state)


def build_average(cfg: Config, model: nn.Module) -> WeightAverage | None:
    """The average that `ema = dict(decay=0.9998)` of a config asks for.

    Raises:
        ValueError: the decay is not between 0 and 1.
    """
    section = cfg.get("ema")
    if not section:
        return None
    decay = section.get("decay", 0.9998)
    if not 0 < decay < 1:
        raise ValueError(f"ema.decay {decay!r} must be between 0 and 1")
    return WeightAverage(model, decay)
