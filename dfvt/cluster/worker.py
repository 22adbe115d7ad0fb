"""What a worker of a training does in its own process, which alone imports torch and mmdet."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfvt.cluster.relay import Event, EventRelay, worker_event
from dfvt.cluster.training_job import TrainingJob
from dfvt.engine.callbacks import Callback, EvaluationRecord
from dfvt.engine.curves import CurveFiles
from dfvt.engine.imports import rare_collections

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Place:
    """Which of a training's workers a process is, in all and on its node, and on what it computes."""

    rank: int
    local_rank: int
    device: torch.device


ONE_IMPORT = threading.Lock()


def import_engine() -> None:
    """Import what a training needs, which takes seconds.

    Modules of mmcv import each other. If two threads imported them at once, one could get a module that is
    not complete; so the second thread waits for the first.
    """
    with ONE_IMPORT, rare_collections():
        from dfvt.engine.console import quiet_libraries

        quiet_libraries()
        import dfvt.engine.train  # noqa: F401


def train_in_worker(
    job: TrainingJob, place: Place, attempt: str, put: Callable[[Event], None], stop: threading.Event
) -> None:
    """Train as one of the workers; the records of the first one go to `put`.

    Args:
        attempt: a name that is the same for the workers which start together.
        put: takes the events that `dfvt.cluster.relay.replay` turns into calls.
        stop: ends the training early, with its state written, once it is set in any worker.
    """
    import_engine()
    from dfvt.cluster.worker_folder import provide_weights, working_copy
    from dfvt.data.provision import provide_dataset
    from dfvt.engine.config_text import read_config_text
    from dfvt.engine.hooks import TrainingStopped
    from dfvt.engine.train import train

    first = place.rank == 0
    put(worker_event(place.rank, device_name(place.device)))

    def say(line: str) -> None:
        put(("on_warning", (line,)))

    if job.dataset:
        provide_dataset(job.dataset, job.data_source, say)
    cfg = read_config_text(job.config)
    provide_weights(cfg, job.weights)
    with (
        working_copy(
            job.work_dir, job.remote, attempt, say, rank=place.rank, local_rank=place.local_rank
        ) as copy,
        suppress(TrainingStopped),
    ):
        train(
            cfg,
            copy.folder,
            seed=job.seed,
            device=place.device,
            # The curves are written here, so that none of their rows is missing when this process outlives
            # the one that listens and has saved its state.
            callbacks=[
                CurveFiles(copy.folder),
                *copy.uploads,
                EventRelay(put),
                StopAfter(job.until_epoch, stop),
            ]
            if first
            else [],
            meta=job.lineage,
            stop_asked=stop.is_set,
            expected=job.expected,
            num_processes=job.num_workers,
            take_over=job.take_over and copy.folder / job.take_over.name,
        )


def device_name(device: torch.device) -> str:
    """What a worker computes on, as its maker calls it."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"


class StopAfter(Callback):
    """Asks a training to stop with its first validation after a number of epochs, if one is given."""

    def __init__(self, epoch: int | None, stop: threading.Event) -> None:
        self.epoch, self.stop = epoch, stop

    def on_evaluation(self, record: EvaluationRecord) -> None:
        if self.epoch and record.epoch >= self.epoch:
            self.stop.set()
