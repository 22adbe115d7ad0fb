"""A training that need not have its MLflow server: it begins without, and is filed there later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import Project
from tests.servers import free_port, mlflow_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_training_begins_without_its_server_and_is_filed_there_later(
    prepared: Project, tmp_path: Path
) -> None:
    port = free_port()
    server = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    prepared.set_params(train__num_epochs=2)
    refused = prepared.repro("evaluate@tiny", **server)
    assert refused.returncode == 2 and "cannot be reached" in refused.stderr

    prepared.set_params(tracking__required=False)
    result = prepared.repro("evaluate@tiny", **server)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "its runs go into mlflow.db, `dfvt runs sync` sends them when it is back" in result.stderr
    noted = json.loads((prepared.path / "runs/tiny/run.json").read_text())
    here = MlflowClient(f"sqlite:///{prepared.path}/mlflow.db")
    expected = here.get_run(noted["mlflow_run_id"])

    with mlflow_server(prepared, tmp_path, port) as address:
        for number_sent in (1, 0):
            synced = prepared.run("python", "-m", "dfvt", "runs", "sync", **server)
            assert synced.returncode == 0, synced.stderr
            assert synced.stdout.count("sent, with all that it has") == number_sent
        client = MlflowClient(address)
        experiment = client.get_experiment_by_name("dfvt")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED" and run.data.metrics == expected.data.metrics
        assert {one.path for one in client.list_artifacts(run.info.run_id)} >= {"model", "checkpoint.pth"}
        (model,) = client.search_registered_models()
        image = next((prepared.path / "data/dataset/shapes/val2017").iterdir())
        arguments = ("predict", f"models:/{model.name}@champion", str(image), "--out", "found")
        predicted = prepared.run("python", "-m", "dfvt", *arguments, **server)
        assert predicted.returncode == 0 and "on 1 images" in predicted.stdout, predicted.stderr
