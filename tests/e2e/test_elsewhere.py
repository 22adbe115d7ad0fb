"""A project that works in another folder than it was made in files its runs where they belong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import Project

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def runs_of(project: Project) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project.path}/mlflow.db")
    experiment = client.get_experiment_by_name("dfvt")
    assert experiment is not None
    runs: list[Run] = client.search_runs([experiment.experiment_id])
    return runs


def test_runs_of_temporary_copies_of_copied_projects_and_of_clones(prepared: Project, tmp_path: Path) -> None:
    prepared.set_params(train__num_epochs=1)
    done = prepared.run("python", "-m", "dvc", "exp", "run", "--temp", "train@tiny")
    (run,) = runs_of(prepared)
    assert run.info.status == "FINISHED", done.stdout + done.stderr
    assert list((prepared.path / "mlartifacts" / run.info.run_id).rglob("config.json"))

    assert prepared.repro("train@tiny").returncode == 0
    noted = json.loads((prepared.path / "runs/tiny/run.json").read_text())
    assert noted["tracking_uri"] == "sqlite:///mlflow.db"
    copied, clone = Project(tmp_path / "copied"), Project(tmp_path / "clone")
    for project in (copied, clone):
        shutil.copytree(prepared.path, project.path, symlinks=True)
    (clone.path / "mlflow.db").unlink()  # git and DVC have no copy of it
    shutil.rmtree(clone.path / "mlartifacts")
    before = {run.info.run_id: run.data.metrics for run in runs_of(prepared)}
    for project in (copied, clone):
        result = project.repro("evaluate@tiny")
        assert result.returncode == 0, result.stdout + result.stderr
        (evaluated,) = [run for run in runs_of(project) if "bbox_mAP" in run.data.metrics]
        assert evaluated.data.tags["git.commit"] == noted["tags"]["git.commit"]
        assert (evaluated.info.run_id == noted["mlflow_run_id"]) == (project is copied)
        assert list((project.path / "mlartifacts" / evaluated.info.run_id).rglob("per_class.csv"))
    assert {run.info.run_id: run.data.metrics for run in runs_of(prepared)} == before
    assert not list((prepared.path / "mlartifacts").rglob("per_class.csv"))
