"""What a training takes of its machine stands beside its learning curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmcv import Config

from dfvt.engine.callbacks import Callback, StepRecord
from dfvt.engine.system import SystemMetrics
from dfvt.engine.train import train


def test_a_machine_has_a_load_memory_and_a_disk() -> None:
    system = SystemMetrics(torch.device("cpu"))
    held = np.ones(32_000_000)
    numbers = system.sample()
    assert numbers["process_memory_usage_megabytes"] > held.nbytes / 1e6
    for name in ("cpu_utilization", "system_memory_usage", "disk_usage"):
        assert 0 <= numbers[f"{name}_percentage"] <= 100
    assert numbers["disk_available_megabytes"] > 0
    assert not any("gpu" in name for name in numbers)


def test_each_record_of_a_training_has_them(config: Config, tmp_path: Path) -> None:
    class Records(Callback):
        seen: list[StepRecord] = []  # noqa: RUF012

        def on_step(self, record: StepRecord) -> None:
            self.seen.append(record)

    config.merge_from_dict({"runner.max_epochs": 1, "evaluation.interval": 0})
    train(config, tmp_path, callbacks=[records := Records()])
    assert records.seen
    assert all(record.system["process_memory_usage_megabytes"] > 100 for record in records.seen)
