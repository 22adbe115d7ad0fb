"""A stopped experiment leaves no process, and the next `make repro` carries on."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from dfvt.models.checkpoints import read_checkpoint
from tests.conftest import PATIENCE, Project

pytestmark = pytest.mark.e2e
NUM_EPOCHS, EPOCH = 6, 6  # iterations of an epoch


def start_training(project: Project) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [project.path / ".venv/bin/python", "-m", "pipelines.repro", "train@tiny"],
        cwd=project.path,
        env=project.environment(SHELL="/bin/sh"),  # which Ctrl-C ends, where bash waits for its child
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A background job of a script ignores Ctrl-C and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,  # as a shell starts a job: Ctrl-C reaches the whole group
    )


def wait_for_state(project: Project, process: subprocess.Popen[str]) -> Path:
    """Wait until the training has written a state that can be resumed; returns its folder."""
    while not (states := list((project.path / ".dfvt/train").glob("tiny-*/latest.pth"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return states[0].parent


def processes_of(project: Project) -> list[psutil.Process]:
    """Live processes that work in the project or for its session of Ray."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        code = environment.get("PYTHONPATH", "").split(os.pathsep)[0]  # see Project.environment
        if code == str(project.path) and process.pid != os.getpid():
            found.append(process)
    return found


def assert_no_processes(project: Project) -> None:
    _, alive = psutil.wait_procs(processes_of(project), timeout=PATIENCE)
    assert [process.cmdline() for process in alive] == []


def assert_each_point_once(project: Project) -> None:
    """MLflow has the curve as its file has it."""
    run_id = json.loads((project.path / "runs/tiny/run.json").read_text())["mlflow_run_id"]
    client = MlflowClient(f"sqlite:///{project.path / 'mlflow.db'}")
    for file, metric in (("curve.csv", "train/loss"), ("val.csv", "val/bbox_mAP")):
        with (project.path / "runs/tiny" / file).open() as table:
            rows = list(csv.DictReader(table))
        logged = sorted(client.get_metric_history(run_id, metric), key=lambda one: one.step)
        assert [one.step for one in logged] == [int(row["step"]) for row in rows]
        values = [float(row[metric.split("/")[1]]) for row in rows]
        assert [one.value for one in logged] == pytest.approx(values, rel=1e-5)


@pytest.fixture
def long_project(prepared: Project) -> Project:
    prepared.set_params(train__num_epochs=12)
    return prepared


def wait_for_iterations(state: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the training has gone on from its state."""
    before = len(steps_of(state))
    while len(steps_of(state)) <= before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def steps_of(folder: Path) -> list[int]:
    """Return the iterations whose losses stand in a training's file."""
    return [int(line.split(",")[0]) for line in (folder / "curve.csv").read_text().split()[1:]]


def assert_stopped(project: Project, process: subprocess.Popen[str], state: Path, number: int) -> None:
    """Its last iteration was kept, it has said no more than a sentence, and no process of it is left."""
    _, stderr = process.communicate()
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert_no_processes(project)
    assert not (project.path / "runs/tiny").exists()
    assert read_checkpoint(state / "latest.pth")["meta"]["iter"] == steps_of(state)[-1]


def test_stopped_in_the_middle_three_times_it_carries_on(prepared: Project) -> None:
    """By Ctrl-C, which reaches every process of the job; by `kill`, which reaches the first; by a crash."""
    prepared.set_params(train__num_epochs=NUM_EPOCHS)
    process = start_training(prepared)
    state = wait_for_state(prepared, process)
    run_id = json.loads((state / "run.json").read_text())["mlflow_run_id"]
    os.killpg(process.pid, signal.SIGINT)
    assert_stopped(prepared, process, state, signal.SIGINT)

    process = start_training(prepared)
    wait_for_iterations(state, process)
    os.kill(process.pid, signal.SIGTERM)
    assert_stopped(prepared, process, state, signal.SIGTERM)

    process = start_training(prepared)
    wait_for_iterations(state, process)
    (stage,) = (one for one in processes_of(prepared) if one.cmdline()[2:4] == ["pipelines", "train"])
    stage.kill()
    _, stderr = process.communicate()
    assert process.returncode == 128 + signal.SIGKILL, stderr
    assert_no_processes(prepared)

    result = prepared.repro("train@tiny")
    assert result.returncode == 0, result.stderr
    assert "train@tiny: continues after step" in result.stderr
    assert_no_processes(prepared)
    noted = json.loads((prepared.path / "runs/tiny/run.json").read_text())
    assert noted["mlflow_run_id"] == run_id
    assert steps_of(prepared.path / "runs/tiny") == list(range(1, NUM_EPOCHS * EPOCH + 1))
    assert_each_point_once(prepared)
