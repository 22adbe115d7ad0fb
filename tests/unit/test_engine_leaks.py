"""A long training takes no more memory and no more file handles than a short one."""

from __future__ import annotations

import gc
from pathlib import Path
from statistics import median

import psutil
from mmcv import Config

from dfvt.engine.callbacks import Callback, StepRecord
from dfvt.engine.train import train

NUM_STEPS, SETTLED = 200, 80


class Footprint(Callback):
    """Python's objects, the process's memory, open files and threads after iterations, once they settled."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int]] = []

    def on_step(self, record: StepRecord) -> None:
        if record.step < SETTLED:
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
    for column in (3, 4):  # a state that is being written has a file and a thread for a moment
        files_or_threads = [median(row[column] for row in half) for half in (first, second)]
        assert files_or_threads[1] <= files_or_threads[0], footprint.rows
