"""A long training takes no more memory and no more file handles than a short one."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
from mmcv import Config

from dfvt.engine.callbacks import Callback, StepRecord
from dfvt.engine.train import train

NUM_STEPS, SETTLED, STEPS_BETWEEN = 200, 80, 4  # a look at all objects takes longer than a step


class Footprint(Callback):
    """Python's objects, the process's memory, open files and threads after iterations, once they settled."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int]] = []

    def on_step(self, record: StepRecord) -> None:
        if record.step < SETTLED or record.step % STEPS_BETWEEN:
            return
        gc.collect()
        process = psutil.Process()
        self.rows.append(
            (
                record.step,
                len(gc.get_objects()),
                process.memory_info().rss,
                process.num_fds(),
                process.num_threads(),
            )
        )


def test_200_iterations_leak_nothing(config: Config, tmp_path: Path) -> None:
    config.merge_from_dict(
        {
            "runner.max_epochs": NUM_STEPS // 4,
            "log_config.interval": 4,
            "evaluation.interval": 0,
            "checkpoint_config": {"interval": 7, "by_epoch": False},
        }
    )
    footprint = Footprint()
    train(config, tmp_path, callbacks=[footprint])
    assert footprint.rows[-1][0] == NUM_STEPS
    half = len(footprint.rows) // 2
    first, second = footprint.rows[:half], footprint.rows[half:]
    num_objects, resident = (
        min(row[column] for row in second) - max(row[column] for row in first) for column in (1, 2)
    )
    assert num_objects < 100, footprint.rows
    assert resident < 10_000_000, footprint.rows
    assert max(row[3] for row in second) <= max(row[3] for row in first), footprint.rows
    assert max(row[4] for row in second) <= max(row[4] for row in first), footprint.rows
