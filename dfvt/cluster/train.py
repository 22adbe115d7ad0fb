"""A training under Ray: the workers call the engine, this process listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

import ray
from ray.exceptions import RayError

from dfvt.cluster.relay import Event, is_last, replay
from dfvt.cluster.session import num_workers_that_fit
from dfvt.cluster.single_worker import SingleWorker
from dfvt.cluster.training_job import TrainingJob
from dfvt.cluster.workers import Scaling, WorkerFailedError, Workers
from dfvt.engine.callbacks import Callback

RELEASE_SECONDS = 60.0
END_SECONDS = 1.0  # for which a training that has ended may still run
LISTENING = "training events"
CLOSING_SECONDS = 10.0  # a wait for events takes half a second, and the answer its way
STOP_SECONDS = 20.0  # of the half minute that machines which are taken away usually grant


def start_workers(job: TrainingJob) -> Workers:
    """Start the workers of a training on the connected Ray.

    A single worker is one actor, which imports what it needs from now on. Several come from Ray Train, and
    begin to start with `run_training`.

    Raises:
        ValueError: the cluster cannot hold the workers.
    """
    scaling = scaling_of(job)
    if scaling.num_workers == 1:
        return SingleWorker(job, scaling)
    from dfvt.cluster.worker_group import WorkerGroup  # imports Ray Train and torch, which takes seconds

    return WorkerGroup(job, scaling)


def run_training(
    job: TrainingJob,
    callbacks: Sequence[Callback] = (),
    stop: threading.Event | None = None,
    workers: Workers | None = None,
) -> None:
    """Runs a training on the connected Ray; `callbacks` are called in this process.

    It returns as soon as the training has ended in all workers. Ray Train may still put its actors away:
    without a dashboard one of them waits twelve seconds for an answer. They end with the session. With
    `stop`, which ends the training early once it is set, their resources are free when it returns.

    Args:
        workers: those that `start_workers` has started for the job; by default they are started here.

    Raises:
        ValueError: the input is at fault, or the cluster cannot hold the workers.
        RuntimeError: the training failed, or took longer than `max_seconds`.
        KeyboardInterrupt, SystemExit: it was interrupted; the workers had `STOP_SECONDS` to finish their
            step and to write the state.
    """
    workers = workers or start_workers(job)
    # The main thread waits in Python alone, where Ctrl-C ends it: Ray Train would turn it into a success.
    events: SimpleQueue[Event] = SimpleQueue()
    failure: list[BaseException] = []

    def train() -> None:
        try:
            workers.train()
        except BaseException as error:  # handed to the calling thread
            failure.append(error)

    callbacks = [workers, *callbacks]
    closing = threading.Event()
    training = threading.Thread(target=train, daemon=True)
    listening = threading.Thread(
        target=collect, args=(workers, training, events, failure, closing), daemon=True, name=LISTENING
    )
    training.start()
    listening.start()
    ended, asked = False, False
    deadline = time.monotonic() + (job.max_seconds or float("inf"))
    try:
        while not ended and (listening.is_alive() or not events.empty()):
            if stop and stop.is_set() and not asked:
                workers.ask_to_stop()
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
        if stop:
            training.join(timeout=RELEASE_SECONDS)
            killed = training.is_alive()
            if killed:
                workers.kill()
                training.join(timeout=RELEASE_SECONDS)
            listening.join(timeout=RELEASE_SECONDS)  # it frees the workers' places
            if stop.is_set():
                if failure and not killed:
                    for callback in callbacks:
                        callback.on_warning(f"it failed while it was stopped: {explained(failure[0])}")
                return
        if ended:
            training.join(timeout=END_SECONDS)
            return
        training.join()
        if job.until_epoch and not failure:
            return
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):  # Ctrl-C, SIGTERM
            for callback in callbacks:
                callback.on_warning(
                    f"stops; the state is written first, which takes up to {STOP_SECONDS:.0f} s "
                    "(Ctrl-C once more does not wait)"
                )
        with suppress(RayError):
            workers.ask_to_stop()  # also if a callback failed: the workers write their state
        training.join(timeout=STOP_SECONDS)
        raise
    finally:
        # Once the session is over, a call of Ray's would connect to another cluster, or start one.
        closing.set()
        listening.join(timeout=CLOSING_SECONDS)
    cause = failure[0] if failure else RuntimeError("its records were lost on their way here")
    raise explained(cause) from cause


def collect(
    workers: Workers,
    training: threading.Thread,
    events: SimpleQueue[Event],
    failure: list[BaseException],
    closing: threading.Event,
) -> None:
    """Move events into a queue of this process until the training's thread has ended; then free the workers.

    What else ends it goes into `failure`, for the calling thread to raise: nobody reads this thread's output.

    Args:
        closing: set when nobody listens any more.
    """
    try:
        with suppress(RayError):  # the session is over: who ended it knows
            over = False
            while not over:
                over = closing.is_set() or not training.is_alive()  # asked before what comes until then
                while received := workers.receive(0.0 if over else 0.5):
                    for event in received:
                        events.put(event)
        workers.release()
    except Exception as error:
        failure.append(error)


def scaling_of(job: TrainingJob) -> Scaling:
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
    return Scaling(num_workers, wanted)


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


def explained(error: BaseException) -> Exception:
    """A worker's own error when it is about the input, otherwise one that says where the training failed."""
    if isinstance(error, WorkerFailedError):
        cause: BaseException | None = error.failure
        while cause is not None:
            # Ray's class for the error of a task has the error's own class as well, but not its text.
            if isinstance(cause, ValueError | FileNotFoundError) and not isinstance(cause, RayError):
                return ValueError(str(cause).splitlines()[0] if str(cause) else type(cause).__name__)
            cause = cause.__cause__ or getattr(cause, "cause", None)
        return RuntimeError(
            f"the training failed in worker {error.rank}: {str(error.failure).splitlines()[-1]}"
        )
    return RuntimeError(
        f"the training failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    )
