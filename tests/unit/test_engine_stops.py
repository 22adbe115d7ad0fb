"""A training that is asked to stop, or killed, goes on from where it was and ends as if it had not been."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv import Config

from dfvt.engine import states
from dfvt.engine.callbacks import Callback, StepRecord, TrainingStart
from dfvt.engine.config import load_config
from dfvt.engine.config_text import config_text
from dfvt.engine.hooks import TrainingStopped
from dfvt.engine.train import TrainResult, train
from dfvt.models.checkpoints import read_checkpoint

NUM_EPOCHS, EPOCH = 3, 4  # iterations of an epoch
NUM_KILLS = 20


def long_config(config: Config) -> Config:
    """Twelve iterations with drop path, a falling rate, an average and updates of three iterations each."""
    config = copy.deepcopy(config)
    schedule = {"policy": "step", "step": [2], "warmup": "linear", "warmup_iters": 6, "warmup_ratio": 0.1}
    config.merge_from_dict(
        {
            "runner.max_epochs": NUM_EPOCHS,
            "lr_config": {"_delete_": True, **schedule},
            "optimizer_config.cumulative_iters": 3,
            "ema": {"decay": 0.9},
            "log_config.interval": 1,
            "checkpoint_config": {"interval": 1, "by_epoch": False},
        }
    )
    return config


@pytest.fixture(scope="module")
def whole(session_config: Config, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """What the training ends with when nothing happens to it."""
    return train(long_config(session_config), tmp_path_factory.mktemp("whole"), seed=5)


class StopAt:
    """Asks to stop when it is asked for the n-th time, from 1."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


class Start(Callback):
    step = -1

    def on_start(self, start: TrainingStart) -> None:
        self.step = start.step


def assert_same_outcome(one: TrainResult, other: TrainResult) -> None:
    assert (one.step, one.metrics) == (other.step, other.metrics)
    for name in ("checkpoint.pth", "latest.pth", "best.pth"):
        assert same(
            *(comparable(read_checkpoint(result.checkpoint.with_name(name))) for result in (one, other))
        ), name


def comparable(content: dict[str, Any]) -> dict[str, Any]:
    """Without what is measured, and without the config, whose intervals of checkpoints may differ."""
    log, meta = content.get("log"), {**content["meta"], "config": ""}
    return {**content, "meta": meta, "log": None if log is None else sorted(log[0])}


def same(one: Any, other: Any) -> bool:
    """Whether two trees of values are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("number", [1, 4, 5, 8])
def test_a_training_that_was_asked_to_stop_goes_on_exactly(
    session_config: Config, whole: TrainResult, tmp_path: Path, number: int
) -> None:
    config = long_config(session_config)
    config.checkpoint_config = {"interval": 100}  # the stop itself writes the state
    with pytest.raises(TrainingStopped) as stopped:
        train(config, tmp_path, seed=5, stop_asked=StopAt(number))
    start = Start()
    config.checkpoint_config = {"interval": 1, "by_epoch": False}
    result = train(config, tmp_path, seed=5, callbacks=[start])
    assert start.step == stopped.value.step
    # It is asked after each iteration and after each epoch.
    assert stopped.value.step == number - number // (EPOCH + 1)
    assert_same_outcome(result, whole)


def test_a_stop_between_the_last_iteration_and_its_validation_loses_neither(
    session_config: Config, whole: TrainResult, tmp_path: Path
) -> None:
    config = long_config(session_config)
    with pytest.raises(TrainingStopped) as stopped:
        train(config, tmp_path, seed=5, stop_asked=StopAt(3 * (EPOCH + 1) - 1))
    assert stopped.value.step == NUM_EPOCHS * EPOCH
    assert not (tmp_path / "checkpoint.pth").exists()
    assert_same_outcome(train(config, tmp_path, seed=5), whole)


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_loader_processes_end_with_a_training_that_is_finished(config: Config, tmp_path: Path) -> None:
    """A process that ends with them waits five seconds for each of them."""
    config.data.workers_per_gpu = 2
    train(config, tmp_path, seed=5)
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("no_collection")
def test_loader_processes_end_with_a_stopped_training_whoever_keeps_the_exception(
    config: Config, tmp_path: Path
) -> None:
    config.data.workers_per_gpu = 2
    with pytest.raises(TrainingStopped) as kept:
        train(config, tmp_path, seed=5, stop_asked=StopAt(6))
    assert multiprocessing.active_children() == []
    assert kept.value.step


class Report(Callback):
    """Tells another process where the training has begun, and the end of each iteration."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def on_start(self, start: TrainingStart) -> None:
        self.connection.send(start.step)

    def on_step(self, record: StepRecord) -> None:
        self.connection.send(record.step)


def train_reporting(config: Path, folder: Path, connection: Connection) -> None:
    """What the processes that are killed do; the disk is slow, so that moments inside a write are many."""
    torch.set_num_threads(1)
    sync = os.fsync

    def slow_sync(descriptor: int) -> None:
        time.sleep(0.03)
        sync(descriptor)

    states.os.fsync = slow_sync  # type: ignore[assignment]
    train(load_config(config), folder, seed=5, callbacks=[Report(connection)])


def wait_for_random_moment(reports: Connection, rng: random.Random) -> None:
    """Return in the middle of one of the next iterations, however long it takes, or after the training."""
    with suppress(EOFError):  # the training has ended
        for _ in range(rng.randint(1, 4)):
            before = time.monotonic()
            reports.recv()
        time.sleep(rng.uniform(0, time.monotonic() - before))


@pytest.mark.usefixtures("preloaded_forkserver")
def test_a_training_that_is_killed_twenty_times_ends_as_if_it_had_not_been(
    session_config: Config, whole: TrainResult, tmp_path: Path
) -> None:
    """Killed at random moments, and every fourth time inside the writing of a state."""
    (tmp_path / "config.py").write_text(config_text(long_config(session_config), formatted=False))
    context = multiprocessing.get_context("forkserver")  # it imports once; processes begin at once
    rng = random.Random(11)
    num_kills = num_inside_writes = num_trainings = 0
    steps: list[int] = []
    while num_kills < NUM_KILLS:
        num_trainings += 1
        folder = tmp_path / f"training{num_trainings}"
        ended = False
        while not ended:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=train_reporting, args=(tmp_path / "config.py", folder, theirs))
            process.start()
            theirs.close()
            steps.append(ours.recv())
            partial = folder / ".latest.pth.partial"
            if num_kills < NUM_KILLS and num_kills % 4 == 0:
                while process.is_alive() and not partial.exists():
                    time.sleep(0.001)
            elif num_kills < NUM_KILLS:
                wait_for_random_moment(ours, rng)
            else:
                process.join()
            process.kill()
            process.join()
            ended = process.exitcode == 0
            if not ended:
                assert process.exitcode == -signal.SIGKILL
                num_kills += 1
                num_inside_writes += partial.exists()
        result = TrainResult(folder / "checkpoint.pth", whole.step, whole.metrics)
        assert read_checkpoint(folder / "latest.pth")["metrics"] == whole.metrics
        assert_same_outcome(result, whole)
    assert num_inside_writes >= NUM_KILLS // 4
    assert len(set(steps)) > 5, f"they went on from places all over the training: {steps}"


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_the_command_with_its_state_on_disk(
    session_config: Config, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    config = long_config(session_config)
    config.merge_from_dict({"runner.max_epochs": 500, "checkpoint_config": {"interval": 100}})
    (tmp_path / "config.py").write_text(config_text(config, formatted=False))
    command = [sys.executable, "-m", "dfvt", "train", "config.py", "--gpus", "0", "--work-dir", "work"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "work/curve.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    asked = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == exit_code, said
    assert time.monotonic() - asked < 30, "within the grace of a spot machine"
    step = read_checkpoint(tmp_path / "work/latest.pth")["meta"]["iter"]
    assert f"dfvt: stopped after step {step}; the same command goes on from there" in said
    assert "Traceback" not in said
