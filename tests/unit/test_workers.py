"""The workers of a training, as the process that listens knows them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest.mock import Mock

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, RayTaskError

from dfvt.cluster import train
from dfvt.cluster.relay import Event
from dfvt.cluster.single_worker import TrainingWorker, own_device
from dfvt.cluster.train import collect, explained, scaling_of
from dfvt.cluster.training_job import TrainingJob
from dfvt.cluster.workers import WorkerFailedError, Workers
from dfvt.engine.callbacks import Callback

JOB = TrainingJob(config="", work_dir=Path(), seed=0, num_workers=1, use_gpu="auto", lineage={})


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("dfvt.cluster.train", {"torch", "mmcv", "mmdet", "ray.train", "mlflow"}),
        ("dfvt.cluster.single_worker", {"torch", "mmcv", "mmdet", "ray.train", "mlflow"}),
        # As Ray Train's controller and queues import it: they take torch from Ray Train, and no detector.
        ("dfvt.cluster.worker_group", {"mmcv", "mmdet", "mlflow"}),
        # With these the stage `train` starts a training: mmcv reads its config, and imports torch.
        ("dfvt.engine.config, dfvt.engine.image_size, dfvt.cluster.mlflow_curves", {"mmdet", "ray.train"}),
    ],
)
def test_only_the_process_of_a_worker_imports_detectors(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*{heavy!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_a_worker_that_prepares_and_trains_at_once_imports_in_one_thread_at_a_time() -> None:
    """In a process of its own, which has imported nothing yet."""
    code = """
import builtins, threading
from dfvt.cluster import single_worker
importing, at_once = set(), set()
real = builtins.__import__
def noting(name, *arguments, **options):
    if name.split(".")[0] not in ("mmcv", "mmdet", "torch"):
        return real(name, *arguments, **options)
    thread = threading.get_ident()
    first = thread not in importing
    importing.add(thread)
    at_once.add(len(importing))
    try:
        return real(name, *arguments, **options)
    finally:
        if first:
            importing.discard(thread)
builtins.__import__ = noting
single_worker.train_in_worker = lambda *arguments: None
worker = single_worker.TrainingWorker()
train = lambda: worker.train(None, use_gpu=False, attempt="")
threads = [threading.Thread(target=target) for target in (worker.prepare, train)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*at_once)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1"]


def test_each_event_is_received_once_and_the_first_is_waited_for() -> None:
    worker = TrainingWorker()
    assert worker.receive(0.0) == []
    events: list[Event] = [("on_warning", (str(number),)) for number in range(3)]
    for event in events[:2]:
        worker.events.put(event)
    assert worker.receive(0.0) == events[:2]
    threading.Timer(0.05, worker.events.put, [events[2]]).start()
    assert worker.receive(60.0) == events[2:]


def test_what_comes_with_the_end_of_a_training_is_received_before_its_worker_goes() -> None:
    """The events between the last look and the end of the thread."""
    calls: list[str] = []
    left: list[list[Event]] = [[("on_warning", ("first",))], [], [("on_end", (Path("a.pth"),))], []]
    training = Mock()
    training.is_alive.side_effect = [True, False]

    def receive(seconds: float) -> list[Event]:
        calls.append("receive")
        return left.pop(0)

    workers = Mock()
    workers.receive.side_effect = receive
    workers.release.side_effect = lambda: calls.append("release")
    events: SimpleQueue[Event] = SimpleQueue()
    failure: list[BaseException] = []
    collect(workers, training, events, failure, threading.Event())
    assert [events.get_nowait()[0] for _ in range(2)] == ["on_warning", "on_end"]
    assert calls == ["receive"] * 4 + ["release"]
    assert not failure


class Pretended(Workers):
    """Workers that hand out these events, and train until they are asked to stop or killed."""

    def __init__(self, *events: Event) -> None:
        self.left = list(events)
        self.stop_asked = threading.Event()

    def train(self) -> None:
        self.stop_asked.wait(60)

    def receive(self, seconds: float) -> list[Event]:
        if self.left:
            return [self.left.pop(0)]
        self.stop_asked.wait(seconds)
        return []

    def ask_to_stop(self) -> None:
        self.stop_asked.set()

    kill = release = ask_to_stop


def test_no_call_of_ray_is_left_when_a_training_is_over() -> None:
    """After the end of the session such a call would connect to another cluster, or start one."""
    workers = Pretended(("on_warning", ("a line",)), ("on_end", (Path("checkpoint.pth"),)))
    train.run_training(JOB, [Callback()], workers=workers)
    assert train.LISTENING not in {thread.name for thread in threading.enumerate()}
    workers.stop_asked.set()


def test_the_workers_write_their_state_when_a_callback_fails() -> None:
    class Failing(Callback):
        def on_warning(self, message: str) -> None:
            raise TypeError("a fault in a callback")

    workers = Pretended(("on_warning", ("a line",)))
    with pytest.raises(TypeError, match="a fault in a callback"):
        train.run_training(JOB, [Failing()], workers=workers)
    assert workers.stop_asked.is_set()
    assert train.LISTENING not in {thread.name for thread in threading.enumerate()}


def task_error(cause: Exception) -> BaseException:
    """An error of an actor's method as `ray.get` raises it."""
    text = f"Traceback\n  in train\n{type(cause).__name__}: {cause}"
    return RayTaskError("train", text, cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("failure", "kind", "sentence"),
    [
        (task_error(ValueError("no images\nsecond line")), ValueError, "no images"),
        (task_error(FileNotFoundError("a.json is missing")), ValueError, "a.json is missing"),
        (
            task_error(RuntimeError("a loss was not finite")),
            RuntimeError,
            "the training failed in worker 0: RuntimeError: a loss was not finite",
        ),
        (ActorDiedError(), RuntimeError, f"the training failed in worker 0: {ActorDiedError.BASE_ERROR_MSG}"),
    ],
)  # fmt: skip
def test_the_failure_of_a_worker_is_one_sentence(
    failure: BaseException, kind: type[Exception], sentence: str
) -> None:
    error = explained(WorkerFailedError(0, failure))
    assert type(error) is kind
    assert str(error) == sentence


@pytest.mark.parametrize(
    ("visible", "own", "index"), [("3", 3, 0), ("2,3", "3", 1), (None, 1, 1), ("GPU-a,GPU-b", "GPU-b", 1)]
)
def test_a_worker_computes_on_the_gpu_that_ray_gave_it(
    visible: str | None, own: int | str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [own])
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert own_device(use_gpu=True) == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]
    assert own_device(use_gpu=False) == torch.device("cpu")


@pytest.mark.parametrize(("num_gpus", "wanted"), [(0, {"CPU": 4}), (2, {"CPU": 4, "GPU": 1})])
def test_a_single_worker_takes_the_processors_and_a_gpu_if_there_is_one(
    num_gpus: int, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": num_gpus})
    scaling = scaling_of(JOB)
    assert dict(scaling.resources_per_worker) == wanted
    assert scaling.use_gpu is bool(num_gpus)
