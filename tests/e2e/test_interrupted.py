"""A stopped experiment leaves no process, and the next `make repro` carries on."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from dfvt.models.checkpoints import read_checkpoint
from tests.conftest import Project

pytestmark = pytest.mark.e2e


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
    """Wait until the training has written a state that can be resumed."""
    while process.poll() is None:
        states = list((project.path / ".dfvt/train").glob("tiny-*/latest.pth"))
        if states:
            return states[0].parent
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"the training ended early: {process.stderr.read() if process.stderr else ''}")


def processes_of(project: Project) -> list[psutil.Process]:
    """Live processes that work in the project or for its session of Ray."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if environment.get("PYTHONPATH") == str(project.path) and process.pid != os.getpid():
            found.append(process)
    return found


def assert_no_processes(project: Project) -> None:
    _, alive = psutil.wait_procs(processes_of(project), timeout=20)
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


# Ctrl-C reaches every process of the job, `kill` and the end of a container the first one only.
@pytest.mark.parametrize(("send", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
def test_stopped_in_the_middle_it_carries_on(
    long_project: Project, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    process = start_training(long_project)
    state = wait_for_state(long_project, process)
    run_id = json.loads((state / "run.json").read_text())["mlflow_run_id"]
    send(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert_no_processes(long_project)
    assert not (long_project.path / "runs/tiny").exists()
    told = (state / "curve.csv").read_text().split()[-1].split(",")[0]
    assert read_checkpoint(state / "latest.pth")["meta"]["iter"] == int(told), "its last step was kept"

    result = long_project.repro("train@tiny")
    assert result.returncode == 0, result.stderr
    assert "train@tiny: continues after step" in result.stderr
    noted = json.loads((long_project.path / "runs/tiny/run.json").read_text())
    assert noted["mlflow_run_id"] == run_id
    assert_no_processes(long_project)
    steps = [
        line.split(",")[0] for line in (long_project.path / "runs/tiny/curve.csv").read_text().split()[1:]
    ]
    assert steps == [str(step) for step in range(1, 12 * 6 + 1)]
    assert_each_point_once(long_project)


def test_killed_outright_it_leaves_no_ray_and_carries_on(long_project: Project) -> None:
    process = start_training(long_project)
    wait_for_state(long_project, process)
    stage = next(p for p in processes_of(long_project) if p.cmdline()[2:4] == ["pipelines", "train"])
    stage.kill()
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert_no_processes(long_project)
    result = long_project.repro("train@tiny")
    assert result.returncode == 0, result.stderr
    assert "train@tiny: continues after step" in result.stderr
    assert_each_point_once(long_project)
