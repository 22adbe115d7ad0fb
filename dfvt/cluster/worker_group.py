"""A training in several workers: Ray Train places them together and connects them for torch."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from queue import Empty
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Queue

from dfvt.cluster.relay import Event
from dfvt.cluster.training_job import TrainingJob
from dfvt.cluster.worker import Place, train_in_worker
from dfvt.cluster.workers import Scaling, WorkerFailedError, Workers


class WorkerGroup(Workers):
    """Ray Train's workers: it starts them when they are to train."""

    def __init__(self, job: TrainingJob, scaling: Scaling) -> None:
        self.actors: dict[int, ActorHandle] = {}
        self.events, self.stops = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
        self.trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "job": job, "events": self.events, "stops": self.stops, "attempt": uuid.uuid4().hex
            },
            torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=scaling.num_workers,
                use_gpu=scaling.use_gpu,
                resources_per_worker=dict(scaling.resources_per_worker),
            ),
            run_config=RunConfig(
                storage_path=str((job.remote or job.work_dir) / "ray"),
                failure_config=FailureConfig(max_failures=0),
            ),
        )  # fmt: skip

    def on_worker(self, rank: int, node_id: str, actor: ActorHandle, device: str) -> None:
        self.actors[rank] = actor

    def train(self) -> None:
        try:
            self.trainer.fit()
        except WorkerGroupError as error:
            if not error.worker_failures:
                raise
            rank, failure = min(error.worker_failures.items())
            raise WorkerFailedError(rank, failure) from error

    def receive(self, seconds: float) -> list[Event]:
        try:
            return [self.events.get(timeout=seconds)]
        except Empty:
            return []

    def ask_to_stop(self) -> None:
        self.stops.put(None)

    def kill(self) -> None:
        for actor in self.actors.values():
            ray.kill(actor)

    def release(self) -> None:
        """Do nothing: Ray Train has freed their places."""


def train_worker(arguments: dict[str, Any]) -> None:
    """What every worker of a group runs."""
    context, stop = get_context(), threading.Event()
    place = Place(context.get_world_rank(), context.get_local_rank(), get_device())
    if place.rank == 0:  # when it stops all do
        threading.Thread(target=wait_for_stop, args=(arguments["stops"], stop), daemon=True).start()
    train_in_worker(arguments["job"], place, arguments["attempt"], arguments["events"].put, stop)


def wait_for_stop(stops: Queue, stop: threading.Event) -> None:
    """Sets the flag when the process that listens asks for it."""
    with suppress(RayError):  # the session is over
        stops.get()
        stop.set()
