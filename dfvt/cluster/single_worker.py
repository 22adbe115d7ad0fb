"""A training in one worker: an actor of Ray, placed as its resources say, and no other process.

Ray Train starts six processes around a worker, each of which imports Ray Train for seconds. They connect
several workers and watch over them: a single worker needs neither.
"""

from __future__ import annotations

import os
import queue
import threading
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from dfvt.cluster.relay import Event
from dfvt.cluster.training_job import TrainingJob
from dfvt.cluster.worker import Place, import_engine, train_in_worker
from dfvt.cluster.workers import Scaling, WorkerFailedError, Workers

if TYPE_CHECKING:
    import torch


class TrainingWorker:
    """The actor: its methods run in threads beside each other."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.stop = threading.Event()

    def prepare(self) -> None:
        """Import what the training needs, while the process that trains with this worker opens its run."""
        import_engine()

    def train(self, job: TrainingJob, *, use_gpu: bool, attempt: str) -> None:
        """Train; see `dfvt.cluster.worker.train_in_worker`."""
        import_engine()  # `prepare` may be at it, and the device needs torch
        train_in_worker(job, Place(0, 0, own_device(use_gpu=use_gpu)), attempt, self.events.put, self.stop)

    def receive(self, seconds: float) -> list[Event]:
        """Return the events that there are; wait for the first."""
        received = []
        with suppress(queue.Empty):
            received.append(self.events.get(timeout=seconds))
            while True:
                received.append(self.events.get_nowait())
        return received

    def ask_to_stop(self) -> None:
        """Let the training end with its present step."""
        self.stop.set()


def own_device(*, use_gpu: bool) -> torch.device:
    """Return what Ray gave this actor to compute on: torch counts only the GPUs that a process can see."""
    import torch

    if not use_gpu:
        return torch.device("cpu")
    (own,) = map(str, ray.get_gpu_ids())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    device = torch.device("cuda", visible.split(",").index(own) if visible else int(own))
    torch.cuda.set_device(device)
    return device


class SingleWorker(Workers):
    """A worker that is one actor, which imports what it needs from now on."""

    def __init__(self, job: TrainingJob, scaling: Scaling) -> None:
        self.job, self.use_gpu = job, scaling.use_gpu
        resources = dict(scaling.resources_per_worker)
        worker: Any = ray.remote(TrainingWorker)
        self.actor = worker.options(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_concurrency=len(("prepare", "train", "receive", "ask_to_stop")),
            scheduling_strategy="DEFAULT",  # not within the placement group of Ray Tune's trial
        ).remote()
        self.actor.prepare.remote()

    def train(self) -> None:
        try:
            ray.get(self.actor.train.remote(self.job, use_gpu=self.use_gpu, attempt=uuid.uuid4().hex))
        except RayError as error:
            raise WorkerFailedError(0, error) from error

    def receive(self, seconds: float) -> list[Event]:
        return ray.get(self.actor.receive.remote(seconds))

    def ask_to_stop(self) -> None:
        self.actor.ask_to_stop.remote()

    def kill(self) -> None:
        ray.kill(self.actor)

    def release(self) -> None:
        with suppress(RayError):
            self.kill()
