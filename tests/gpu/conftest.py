"""A mini config on generated images, and a listener, for the tests that need a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfvt.data.coco import describe_dataset
from dfvt.data.shapes import generate_shapes
from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord
from dfvt.engine.config import load_config, use_dataset, write_config

PROJECT = Path(__file__).parents[2]
NUM_VAL = 13  # no multiple of two


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is float32, not TF32, in what a test computes itself.

    Trainings, tests and predictions obey `tf32` of their config, by default that of production.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DFvT-T's mini config on a few generated images, two epochs of eight iterations."""
    folder = tmp_path_factory.mktemp("project")
    generate_shapes(folder / "data", num_train=32, num_val=NUM_VAL, height=128, width=160)
    paths = {f"{split}_images": f"{split}2017" for split in ("train", "val")}
    paths |= {f"{split}_annotations": f"annotations/instances_{split}2017.json" for split in ("train", "val")}
    manifest = describe_dataset("mini", folder / "data", generated=True, **paths)
    options = {"runner.max_epochs": 2, "evaluation.interval": 2, "lr_config.warmup_iters": 4}
    cfg = load_config(PROJECT / "configs/mini/maskrcnn_DFvT_tiny_mini.py", options)
    use_dataset(cfg, manifest)
    write_config(cfg, folder / "config.py")
    return folder / "config.py"


class Recorder(Callback):
    """Losses, and the numbers of the last validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def on_step(self, record: StepRecord) -> None:
        self.losses.append(record.losses["loss"])

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.metrics = record.metrics
