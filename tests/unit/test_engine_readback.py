"""A training is built with the values that it is labelled with, or does not start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mmcv import Config

from dfvt.engine.callbacks import Callback, TrainingStart
from dfvt.engine.options import merge_options
from dfvt.engine.train import train

VALUES: dict[str, Any] = {
    "optimizer.lr": 3e-4,
    "optimizer.betas": [0.8, 0.99],
    "optimizer.type": "AdamW",
    "lr_config.warmup_iters": 3,
    "optimizer_config.grad_clip.max_norm": 7.0,
    "runner.max_epochs": 1,
    "data.samples_per_gpu": 4,
    "model.backbone.drop_path_rate": 0.3,
    "model.roi_head.bbox_head.num_classes": 4,
    "model.train_cfg.rcnn.sampler.num": 8,
}


class StoppedError(Exception):
    """Ends a training before its first iteration."""


class Started(Callback):
    def on_start(self, start: TrainingStart) -> None:
        self.start = start
        raise StoppedError


def begin(cfg: Config, work_dir: Path, expected: dict[str, Any]) -> TrainingStart:
    started = Started()
    with pytest.raises(StoppedError):
        train(cfg, work_dir, callbacks=[started], expected=expected)
    return started.start


def test_what_was_built_is_what_was_asked_for(config: Config, tmp_path: Path) -> None:
    values = {key: value for key, value in VALUES.items() if key != "model.roi_head.bbox_head.num_classes"}
    merge_options(config, {**values, "model.backbone.mlp_ratio": 2.0})
    start = begin(config, tmp_path, {**VALUES, "model.backbone.mlp_ratio": 2.0, "log_config.interval": 2})
    assert start.not_read_back == ("model.backbone.mlp_ratio", "log_config.interval")


@pytest.mark.parametrize("key", VALUES)
def test_another_value_than_asked_for_is_an_error(config: Config, tmp_path: Path, key: str) -> None:
    other = "SGD" if key.endswith("type") else [0.5, 0.5] if key.endswith("betas") else 77
    with pytest.raises(ValueError) as caught:
        train(config, tmp_path, expected={key: other})
    assert re.fullmatch(
        f"the training was built with {key} = .*, not with {re.escape(repr(other))}", str(caught.value)
    )
    assert not list(tmp_path.glob("*.pth"))
