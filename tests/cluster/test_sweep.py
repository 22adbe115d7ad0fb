"""Sweeps on one machine: what they refuse, what they leave, what becomes of them when they are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
import pytest
from mlflow import MlflowClient

from dfvt.cli import main
from tests.conftest import FREE, Project

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
SPEC = """
name: two
algorithm: grid
num_epochs: 2
batch_size: 4
cfg_options: {log_config.interval: 1}
space:
  lr: {grid: [1.0e-4, 1.0e-3]}
"""


def write_spec(project: Project, text: str = SPEC) -> str:
    (project.path / "sweep.yaml").write_text(text)
    return "sweep.yaml"


def records(project: Project, name: str) -> list[dict[str, Any]]:
    folder = project.path / ".dfvt/sweeps" / name / "trials"
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*/trial.json"))]


def runs(project: Project) -> list[Any]:
    client = MlflowClient(tracking_uri=f"sqlite:///{project.path}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, filter_string="tags.`dfvt.sweep` != ''")


def parent(project: Project) -> Any:
    """The run of the sweep; there is one however often it was started."""
    client = MlflowClient(tracking_uri=f"sqlite:///{project.path}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, filter_string="tags.`dfvt.sweep_run` != ''")
    return run


def assert_each_trial_once(project: Project, name: str, statuses: list[str]) -> None:
    """Every trial has one record, one MLflow run with its parameters and end, and nothing is left over."""
    found = records(project, name)
    assert [record["status"] for record in found] == statuses
    by_id = {run.info.run_id: run for run in runs(project)}
    assert {run.data.tags["mlflow.parentRunId"] for run in by_id.values()} == {parent(project).info.run_id}
    assert parent(project).info.status == "FINISHED"
    assert parent(project).data.metrics["num_finished"] == statuses.count("finished")
    assert sorted(by_id) == sorted(record["mlflow_run_id"] for record in found)
    for record in found:
        run = by_id[record["mlflow_run_id"]]
        assert run.info.status == ("FAILED" if record["status"] == "failed" else "FINISHED")
        assert float(run.data.params["lr"]) == record["assignment"]["lr"]
        if record["status"] == "finished":
            assert record["epoch"] == record["num_epochs"]
            assert run.data.metrics["val/bbox_mAP"] == record["metrics"]["bbox_mAP"]
            assert run.data.metrics["num_params"] > 1e6 and run.data.metrics["flops"] > 1e8
            artifacts = urlsplit(run.info.artifact_uri)
            if artifacts.scheme == "file":
                assert Path(unquote(artifacts.path), "config.py").is_file()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            SPEC.replace("lr: {grid", "model.backbone.drop_path: {grid"),
            "the config has no key model.backbone.drop_path, the nearest is model.backbone.drop_path_rate",
        ),
        (
            SPEC.replace("lr: {grid: [1.0e-4,", "model.backbone.drop_path_rate: {grid: [0.1, lots,"),
            "with model.backbone.drop_path_rate: lots the config's model cannot be built",
        ),
        (SPEC + "metric: bbox_map", "metric bbox_map is none of bbox_mAP, bbox_mAP_50"),
        (
            SPEC.replace("interval: 1", "interval: 1, evaluation.interval: 0"),
            "evaluation.interval is 0, so th",
        ),
        (SPEC + "profile: custom\n", "profile is custom, but the data set in data/dataset is of mini"),
    ],
)
def test_what_cannot_run_is_one_sentence(
    prepared: Project,
    text: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(prepared.path)
    for name in FREE:
        monkeypatch.delenv(name, raising=False)
    assert main(["sweep", write_spec(prepared, text)]) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert main(["sweep", "status", "two"]) == 2, "it was never begun: the corrected spec may have its name"


def test_a_sweep_that_its_ray_cannot_hold_is_one_sentence(prepared: Project) -> None:
    result = prepared.run("python", "-m", "dfvt", "sweep", write_spec(prepared, SPEC + "use_gpu: true"))
    assert result.returncode == 2, result.stderr
    assert "a trial needs 1 GPUs (num_workers 1), but this machine has 0" in result.stderr.splitlines()[-1]
    status = prepared.run("python", "-m", "dfvt", "sweep", "status", "two")
    assert status.returncode == 2, "it was never begun: the corrected spec may have its name"


def test_a_plan_lists_the_trials_and_starts_nothing(prepared: Project) -> None:
    text = SPEC + "images_per_second: 0.5\n"
    result = prepared.run("python", "-m", "pipelines.sweep", write_spec(prepared, text), "--plan")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["   1  variant=tiny  lr=0.0001", "   2  variant=tiny  lr=0.001"]
    assert lines[2].startswith(
        "tiny: num_epochs 2 (spec), batch_size 4 (spec), lr of each trial, seed 0 (par"
    )
    assert "at once on this machine (" in lines[3]
    assert lines[4:] == [
        "2 trials, at most 4 epochs of 24 images",
        "at most 0.1 GPU-hours at 0.5 images/s",
    ]
    assert result.stderr.splitlines() == [
        "sweep sweep: loads Ray, mmdet and MLflow",
        "sweep two: checks the spec, the configs and the data set",
    ]
    assert not (prepared.path / ".dfvt/sweeps").exists()


def processes_of(pid: int) -> list[psutil.Process]:
    """A process and all that it started, the last to be started first."""
    driver = psutil.Process(pid)
    return [*reversed(driver.children(recursive=True)), driver]


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(prepared: Project) -> None:
    spec = write_spec(prepared, SPEC + "max_concurrent_trials: 1\n")
    command = [str(prepared.path / ".venv/bin/python"), "-m", "dfvt", "sweep", spec]
    log = (prepared.path / "sweep.log").open("w")
    driver = subprocess.Popen(
        command,
        cwd=prepared.path,
        env=prepared.environment(),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    trials = prepared.path / ".dfvt/sweeps/two/trials"
    curve = trials / "0002/curve.csv"
    try:
        while not (curve.is_file() and len(curve.read_text().splitlines()) > 1):
            assert driver.poll() is None, Path(log.name).read_text()
            time.sleep(0.02)
        # In the middle of its second trial, which would soon be over. Ray's workers have groups of their own.
        for process in processes_of(driver.pid):
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        second = prepared.run("python", "-m", "dfvt", "sweep", spec)
        assert second.returncode == 2, second.stderr
        assert "is running already" in second.stderr.splitlines()[-1]
    finally:
        for process in processes_of(driver.pid):  # its Ray too, as when the machine goes
            with suppress(psutil.NoSuchProcess):
                process.kill()
        driver.wait()
        log.close()
    assert [record["status"] for record in records(prepared, "two")] == ["finished", "running"]
    checkpoint = trials / "0001/checkpoint.pth"
    written = checkpoint.stat().st_mtime_ns

    result = prepared.run("python", "-m", "dfvt", "sweep", spec)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if not line.startswith(("sweep ", "as a file"))]
    assert not said, "nothing of Ray, Tune or Optuna"
    assert "BasicVariantGenerator" not in result.stdout
    assert "Failed to fetch metrics" not in result.stderr, "Tune misses files that MLflow has instead"
    assert_each_trial_once(prepared, "two", ["finished", "finished"])
    assert checkpoint.stat().st_mtime_ns == written
    client = MlflowClient(tracking_uri=f"sqlite:///{prepared.path}/mlflow.db")
    for run in runs(prepared):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, 13))  # 2 epochs of 24 images, 4 at a time
    assert result.stdout.count("| finished | 2/2 |") == 2

    other = write_spec(prepared, SPEC.replace("1.0e-3", "2.0e-3"))
    result = prepared.run("python", "-m", "dfvt", "sweep", other)
    assert result.returncode == 2
    assert "was begun with another spec" in result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_so_and_goes_on(prepared: Project, number: signal.Signals) -> None:
    text = SPEC.replace("num_epochs: 2", "num_epochs: 12")  # else it may be over before it hears of it
    # no state but that of the interruption
    text = text.replace("log_config.interval: 1", "log_config.interval: 1, checkpoint_config.interval: 1000")
    spec = write_spec(prepared, text + "max_concurrent_trials: 1\n")
    log = (prepared.path / "sweep.log").open("w")
    driver = subprocess.Popen(
        [str(prepared.path / ".venv/bin/python"), "-m", "dfvt", "sweep", spec],
        cwd=prepared.path,
        env=prepared.environment(),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        while not any(record["num_epochs"] for record in records(prepared, "two")):
            assert driver.poll() is None, Path(log.name).read_text()
            time.sleep(0.2)
        driver.send_signal(number)
        assert driver.wait() == 130, Path(log.name).read_text()
    finally:
        driver.kill()
        log.close()
    assert "Traceback" not in Path(log.name).read_text()
    status = prepared.run("python", "-m", "dfvt", "sweep", "status", "two")
    assert "2 trials: 1 interrupted, 1 waiting" in status.stderr
    assert [run.info.status for run in runs(prepared)] == ["KILLED"]
    result = prepared.run("python", "-m", "dfvt", "sweep", spec)
    assert result.returncode == 0, result.stderr
    assert_each_trial_once(prepared, "two", ["finished", "finished"])
    log_text = (prepared.path / ".dfvt/sweeps/two/trials/0001/log.txt").read_text()
    assert "continues after step" in log_text
    client = MlflowClient(tracking_uri=f"sqlite:///{prepared.path}/mlflow.db")
    for run in runs(prepared):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == list(range(1, 73))  # 12 epochs of 24 images, 4 at a time


@pytest.mark.slow
def test_a_trial_that_fails_does_not_end_the_others(prepared: Project) -> None:
    text = SPEC.replace("num_epochs: 2", "num_epochs: 1\nmax_failures: 0")
    text = text.replace("1.0e-3]}", "1.0e-3]}\n  optimizer_config.grad_clip.max_norm: {grid: [1.0, wide]}")
    text = text.replace("[1.0e-4, 1.0e-3]", "[1.0e-4]")
    result = prepared.run("python", "-m", "dfvt", "sweep", write_spec(prepared, text))
    assert result.returncode == 0, result.stderr
    assert_each_trial_once(prepared, "two", ["finished", "failed"])
    assert "trial 0002 of 2 failed:" in result.stderr
    assert "trial 0002 failed: " in result.stderr.splitlines()[-2], "below the table too"
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_sweep_without_a_result_has_failed_and_says_why(prepared: Project) -> None:
    text = SPEC.replace("num_epochs: 2", "num_epochs: 1\nmax_failures: 1")
    text = text.replace("1.0e-3]}", "1.0e-3]}\n  optimizer_config.grad_clip.max_norm: {grid: [wide]}")
    result = prepared.run("python", "-m", "dfvt", "sweep", write_spec(prepared, text))
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1] == "sweep two: all 2 trials failed"
    assert result.stderr.count("it is started again (1 of 1 times)") == 2
    assert "Traceback" not in result.stderr
    assert parent(prepared).info.status == "FAILED"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "options"), [("hyperband", "{reduction_factor: 2}"), ("median", "{grace_period: 1}")]
)
def test_each_scheduler_leaves_whole_trials(prepared: Project, scheduler: str, options: str) -> None:
    text = SPEC.replace("[1.0e-4, 1.0e-3]", "[1.0e-4, 1.0e-3, 1.0e-2]")
    text += f"scheduler: {scheduler}\nscheduler_options: {options}\n"
    text = text.replace("log_config.interval: 1", "log_config.interval: 1, evaluation.interval: 1")
    result = prepared.run("python", "-m", "dfvt", "sweep", write_spec(prepared, text))
    assert result.returncode == 0, result.stderr
    statuses = [record["status"] for record in records(prepared, "two")]
    assert len(statuses) == 3 and set(statuses) <= {"finished", "stopped"}
    assert "finished" in statuses
    assert_each_trial_once(prepared, "two", statuses)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_the_worst_of_a_population_goes_on_from_the_best(prepared: Project, scheduler: str) -> None:
    text = SPEC.replace("grid\n", "random\nnum_samples: 2\n")
    text = text.replace("grid: [1.0e-4, 1.0e-3]", "loguniform: [1.0e-5, 1.0e-2]")
    text += f"scheduler: {scheduler}\nscheduler_options: {{perturbation_interval: 1}}\n"
    text = text.replace("log_config.interval: 1", "log_config.interval: 1, evaluation.interval: 1")
    result = prepared.run("python", "-m", "dfvt", "sweep", write_spec(prepared, text))
    assert result.returncode == 0, result.stderr
    found = records(prepared, "two")
    assert [(record["status"], record["epoch"]) for record in found] == [("finished", 2)] * 2
    changed = [record for record in found if record["taken_over"]]
    assert len(changed) == 1, result.stderr
    by_id = {run.info.run_id: run for run in runs(prepared)}
    assert len(by_id) == 2
    client = MlflowClient(tracking_uri=f"sqlite:///{prepared.path}/mlflow.db")
    for record in found:
        run = by_id[record["mlflow_run_id"]]
        assert run.info.status == "FINISHED"
        lrs = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "settings/lr")}
        assert lrs[max(lrs)] == record["assignment"]["lr"]
        assert float(run.data.params["lr"]) == lrs[0], "a parameter is what it began with"
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == sorted(set(steps)) and len(steps) == 2 * 6
        for number, change in enumerate(record["taken_over"], 1):
            said = run.data.tags[f"dfvt.taken_over.{number}"]
            assert said == f"{change['name']} after epoch {change['epoch']}"
            assert change["name"] in {other["name"] for other in found} - {record["name"]}
            assert 1e-5 <= change["assignment"]["lr"] <= 1e-2


@pytest.mark.slow
def test_a_budget_ends_the_sweep(prepared: Project) -> None:
    text = SPEC.replace("[1.0e-4, 1.0e-3]", "[1.0e-4, 1.0e-3, 1.0e-2]") + "budget_gpu_hours: 0.001\n"
    text += "max_concurrent_trials: 1\n"
    text = text.replace("log_config.interval: 1", "log_config.interval: 1, evaluation.interval: 1")
    result = prepared.run("python", "-m", "dfvt", "sweep", write_spec(prepared, text))
    assert result.returncode == 0, result.stderr
    statuses = [record["status"] for record in records(prepared, "two")]
    assert statuses == ["stopped"]
    assert_each_trial_once(prepared, "two", statuses)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        "algorithm: optuna\nscheduler: asha\nscheduler_options: {grace_period: 1, reduction_factor: 2}",
        pytest.param(
            "algorithm: bohb\nscheduler: bohb\nscheduler_options: {reduction_factor: 2}",
            marks=pytest.mark.skipif(find_spec("hpbandster") is None, reason="needs the extra bohb"),
        ),
    ],
    ids=["optuna", "bohb"],
)
def test_trials_that_a_searcher_chose_and_a_scheduler_stopped_are_whole(
    prepared: Project, choice: str
) -> None:
    text = f"""
name: searched
{choice}
num_samples: 3
num_epochs: 2
batch_size: 4
cfg_options: {{log_config.interval: 1, evaluation.interval: 1}}
space:
  lr: {{loguniform: [1.0e-5, 1.0e-2]}}
  seed: {{randint: [0, 9]}}
"""
    result = prepared.run("python", "-m", "dfvt", "sweep", write_spec(prepared, text))
    assert result.returncode == 0, result.stderr
    statuses = [record["status"] for record in records(prepared, "searched")]
    assert len(statuses) == 3 and set(statuses) <= {"finished", "stopped"}
    assert "finished" in statuses
    assert_each_trial_once(prepared, "searched", statuses)
    for record in records(prepared, "searched"):
        assert 1e-5 <= record["assignment"]["lr"] <= 1e-2
        assert (record["status"] == "finished") == (record["epoch"] == 2)
