"""A training under Ray Train: the workers call the engine, this process listens."""

from __future__ import annotations

import platform
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Queue

from dfvt.cluster.relay import ClusterCallback, Event, QueueRelay, is_last, replay, worker_event
from dfvt.cluster.session import num_workers_that_fit
from dfvt.cluster.worker_folder import provide_weights, working_copy
from dfvt.data.manifest import DatasetManifest
from dfvt.data.provision import provide_dataset
from dfvt.data.storage import StorageFolder
from dfvt.engine.callbacks import Callback, EvaluationRecord
from dfvt.engine.console import quiet_libraries
from dfvt.engine.curves import CurveFiles

RELEASE_SECONDS = 60.0
STOP_SECONDS = 20.0  # of the half minute that machines which are taken away usually grant


@dataclass(frozen=True)
class TrainingJob:
    """What one training under Ray needs.

    Attributes:
        config: the whole mmdet config as text.
        work_dir: folder of the resumable state and the results, on a file system that every worker sees
            unless there is `remote`.
        remote: where they are kept then; each node works on a copy of its own.
        weights: where a node finds the backbone's weights if it lacks them.
        seed: see `dfvt.engine.train.train`.
        num_workers: processes; GPU workers have one GPU each, CPU workers an equal share of the cores.
        min_workers: with how many it starts where no more fit; the global batch stays.
        use_gpu: `auto` uses GPUs when the cluster has enough.
        lineage: goes into the checkpoint's meta data.
        cpus_per_worker: CPUs of a worker instead of its share of the cluster's.
        autoscaling: whether nodes come for workers that do not fit those that are there.
        resources_per_worker: resources that nodes declare themselves, beside CPUs and GPUs.
        dataset, data_source: each node makes sure to have it, see `dfvt.data.provision.provide_dataset`.
        expected: see `dfvt.engine.train.train`.
        max_seconds: after which the training counts as failed.
        until_epoch: the first validation after so many epochs ends it for now, its state is kept.
        take_over: see `dfvt.engine.train.train`.
    """

    config: str
    work_dir: Path
    seed: int
    num_workers: int
    use_gpu: bool | Literal["auto"]
    lineage: dict[str, str]
    min_workers: int | None = None
    cpus_per_worker: int | None = None
    autoscaling: bool = False
    resources_per_worker: Mapping[str, float] = field(default_factory=dict)
    dataset: DatasetManifest | None = None
    data_source: str | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)
    max_seconds: float | None = None
    until_epoch: int | None = None
    take_over: Path | None = None
    remote: StorageFolder | None = None
    weights: StorageFolder | None = None


class Workers(ClusterCallback):
    """Knows the workers of a training, to end those that do not end by themselves."""

    def __init__(self) -> None:
        self.actors: dict[int, ActorHandle] = {}

    def on_worker(self, rank: int, node_id: str, actor: ActorHandle, device: str) -> None:
        self.actors[rank] = actor

    def kill(self) -> None:
        """Ends their processes; Ray Train frees their places when it notices."""
        for actor in self.actors.values():
            ray.kill(actor)


def run_training(
    job: TrainingJob, callbacks: Sequence[Callback] = (), stop: threading.Event | None = None
) -> None:
    """Runs a training on the connected Ray; `callbacks` are called in this process.

    It returns as soon as the training has ended in all workers. Ray Train may still put its actors away:
    without a dashboard one of them waits twelve seconds for an answer. They end with the session. With
    `stop`, which ends the training early once it is set, their resources are free when it returns.

    Raises:
        ValueError: the input is at fault, or the cluster cannot hold the workers.
        RuntimeError: the training failed, or took longer than `max_seconds`.
        KeyboardInterrupt, SystemExit: it was interrupted; the workers had `STOP_SECONDS` to finish their
            step and to write the state.
    """
    scaling = scaling_of(job)
    relayed, stops = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "events": relayed, "stops": stops, "attempt": uuid.uuid4().hex},
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=scaling,
        run_config=RunConfig(
            storage_path=str((job.remote or job.work_dir) / "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    # The main thread waits in Python alone, where Ctrl-C ends it: Ray Train would turn it into a success.
    events: SimpleQueue[Event] = SimpleQueue()
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the calling thread
            failure.append(error)

    workers = Workers()
    callbacks = [workers, *callbacks]
    training = threading.Thread(target=fit, daemon=True)
    listening = threading.Thread(target=collect, args=(relayed, training, events, failure), daemon=True)
    training.start()
    listening.start()
    ended, asked = False, False
    deadline = time.monotonic() + (job.max_seconds or float("inf"))
    try:
        while not ended and (listening.is_alive() or not events.empty()):
            if stop and stop.is_set() and not asked:
                stops.put(None)
                asked, release = True, time.monotonic() + RELEASE_SECONDS
            if asked and time.monotonic() > release:
                break
            if time.monotonic() > deadline:
                workers.kill()  # without them their places would stay taken
                training.join(timeout=RELEASE_SECONDS)
                raise RuntimeError(f"the training took longer than its {job.max_seconds:g} seconds")
            try:
                event = events.get(timeout=0.5)
            except Empty:
                continue
            for callback in callbacks:
                replay(event, callback)
            ended = is_last(event)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        for callback in callbacks:
            callback.on_warning(
                f"stops; the state is written first, which takes up to {STOP_SECONDS:.0f} s "
                "(Ctrl-C once more does not wait)"
            )
        with suppress(RayError):
            stops.put(None)
        training.join(timeout=STOP_SECONDS)
        raise
    if stop:
        training.join(timeout=RELEASE_SECONDS)
        killed = training.is_alive()
        if killed:
            workers.kill()
            training.join(timeout=RELEASE_SECONDS)
        if stop.is_set():
            if failure and not killed:
                for callback in callbacks:
                    callback.on_warning(f"it failed while it was stopped: {explained(failure[0])}")
            return
    if not ended:
        training.join()
        if job.until_epoch and not failure:
            return
        error = failure[0] if failure else RuntimeError("its records were lost on their way here")
        raise explained(error) from error


def collect(
    relayed: Queue, training: threading.Thread, events: SimpleQueue[Event], failure: list[BaseException]
) -> None:
    """Move events into a queue of this process until the training's thread has ended.

    What else ends it goes into `failure`, for the calling thread to raise: nobody reads this thread's output.
    """
    try:
        with suppress(RayError):  # the session is over: who ended it knows
            while training.is_alive() or not relayed.empty():
                with suppress(Empty):
                    events.put(relayed.get(timeout=0.5))
    except Exception as error:
        failure.append(error)


def scaling_of(job: TrainingJob) -> ScalingConfig:
    """Workers and their resources on the connected cluster.

    Raises:
        ValueError: the cluster has fewer GPUs or CPUs than the workers need.
    """
    resources = ray.cluster_resources()
    num_gpus, num_cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0)
    least = job.min_workers or job.num_workers
    use_gpu = num_gpus >= least if job.use_gpu == "auto" else job.use_gpu
    if use_gpu and num_gpus < least and not job.autoscaling:
        raise ValueError(
            f"train.num_workers is {least} with train.use_gpu, but Ray has {num_gpus} GPUs: "
            "lower num_workers or set train.use_gpu to false"
        )
    if num_cpus < 1 and not job.autoscaling:
        raise ValueError("the Ray cluster has no CPUs for the training's workers: add a node with some")
    share = job.cpus_per_worker or num_cpus / job.num_workers
    wanted = {
        "CPU": int(share) if share >= 1 else share,
        **({"GPU": 1} if use_gpu else {}),
        **job.resources_per_worker,
    }
    num_workers = job.num_workers
    if job.min_workers:
        num_workers = num_workers_of(job, num_workers_that_fit(wanted))
    return ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=wanted)


def num_workers_of(job: TrainingJob, fitting: int) -> int:
    """The most workers that fit and can share the global batch evenly.

    Raises:
        ValueError: not even `min_workers` do.
    """
    from dfvt.engine.config_text import read_config_text

    assert job.min_workers
    global_batch = job.num_workers * read_config_text(job.config).data.samples_per_gpu
    for number in range(min(job.num_workers, fitting), job.min_workers - 1, -1):
        if global_batch % number == 0:
            return number
    raise ValueError(
        f"{fitting} workers fit the cluster, and none of {job.min_workers} to {job.num_workers} that do "
        f"share the global batch of {global_batch} images evenly: lower min_workers or change batch_size"
    )


def train_worker(arguments: dict[str, Any]) -> None:
    """What every worker runs; records leave the first one only."""
    job: TrainingJob = arguments["job"]
    quiet_libraries()
    from dfvt.engine.config_text import read_config_text
    from dfvt.engine.hooks import TrainingStopped
    from dfvt.engine.train import train  # mmdet takes seconds to import, which only workers need

    rank = get_context().get_world_rank()
    first = rank == 0
    arguments["events"].put(worker_event(rank, device_name(get_device())))

    def say(line: str) -> None:
        arguments["events"].put(("on_warning", (line,)))

    if job.dataset:
        provide_dataset(job.dataset, job.data_source, say)
    stop = threading.Event()
    if first:  # when it stops all do
        threading.Thread(target=wait_for_stop, args=(arguments["stops"], stop), daemon=True).start()
    cfg = read_config_text(job.config)
    provide_weights(cfg, job.weights)
    with (
        working_copy(
            job.work_dir,
            job.remote,
            arguments["attempt"],
            say,
            rank=rank,
            local_rank=get_context().get_local_rank(),
        ) as copy,
        suppress(TrainingStopped),
    ):
        train(
            cfg,
            copy.folder,
            seed=job.seed,
            device=get_device(),
            # The curves are written here, so that none of their rows is missing when this process outlives
            # the one that listens and has saved its state.
            callbacks=[
                CurveFiles(copy.folder),
                *copy.uploads,
                QueueRelay(arguments["events"]),
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
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"


class StopAfter(Callback):
    """Asks a training to stop with its first validation after a number of epochs, if one is given."""

    def __init__(self, epoch: int | None, stop: threading.Event) -> None:
        self.epoch, self.stop = epoch, stop

    def on_evaluation(self, record: EvaluationRecord) -> None:
        if self.epoch and record.epoch >= self.epoch:
            self.stop.set()


def wait_for_stop(stops: Queue, stop: threading.Event) -> None:
    """Sets the flag when the process that listens asks for it."""
    with suppress(RayError):  # the session is over
        stops.get()
        stop.set()


def explained(error: BaseException) -> Exception:
    """A worker's own error when it is about the input, otherwise one that says where the training failed."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = min(error.worker_failures.items())
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, ValueError | FileNotFoundError):
                return ValueError(str(cause).splitlines()[0] if str(cause) else type(cause).__name__)
            cause = cause.__cause__ or getattr(cause, "cause", None)
        return RuntimeError(f"the training failed in worker {rank}: {str(failure).splitlines()[-1]}")
    return RuntimeError(
        f"the training failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    )
