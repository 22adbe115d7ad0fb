"""The stages train and evaluate beside their MLflow runs: each run ends, and errors stay what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from filelock import Timeout
from mlflow import MlflowClient

from dfvt.data.manifest import DatasetManifest
from dfvt.settings import Settings
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.store import NOTED_RUN
from pipelines.evaluate import recorder_of
from pipelines.train import ended_on_error, file_results, one_training, open_run

SETTINGS = Settings(profile="mini")
DATASET = DatasetManifest(
    name="mini",
    root=Path("data"),
    train_annotations=Path("train.json"),
    train_images=Path("train"),
    val_annotations=Path("val.json"),
    val_images=Path("val"),
    num_train_images=1,
    num_val_images=1,
    classes=("disc",),
    data_hash="1a2b" * 16,
    generated=True,
)


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def statuses(project: Path) -> dict[str, str]:
    """The status of each run by its id."""
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("dfvt")
    assert experiment is not None
    return {run.info.run_id: run.info.status for run in client.search_runs([experiment.experiment_id])}


def open_tiny(note: Path) -> RunRecorder:
    return open_run(SETTINGS, SETTINGS.train.for_variant("tiny"), note, {"git.commit": "beef"}, DATASET)


def test_a_run_whose_beginning_fails_is_ended_and_goes_on_in_the_next_start(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = project / "state/run.json"
    with monkeypatch.context() as context:
        broken = Mock(side_effect=OSError("no space left"))
        context.setattr("dfvt.cluster.origins.record_origin", broken)
        with pytest.raises(OSError, match="no space left"):
            open_tiny(note)
    noted = json.loads(note.read_text())
    assert statuses(project) == {noted["mlflow_run_id"]: "FAILED"}
    assert noted["tracking_uri"] == "sqlite:///mlflow.db"
    recorder = open_tiny(note)
    assert statuses(project) == {recorder.run_id: "RUNNING"}
    client = MlflowClient(recorder.uri)
    assert client.get_run(recorder.run_id).inputs.dataset_inputs[0].dataset.name == "mini"
    assert client.list_artifacts(recorder.run_id, "origin")


def test_the_trainings_error_is_the_one_that_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    client = Mock()
    client.set_terminated.side_effect = ConnectionError("nobody answers")
    recorder = RunRecorder(client, "http://host", "abc")
    for error in (RuntimeError("the loss is not finite"), KeyboardInterrupt(), SystemExit(143)):
        with pytest.raises(type(error)) as caught, ended_on_error(recorder):
            raise error
        assert caught.value is error
        assert "nobody answers: the run abc is not ended there" in capsys.readouterr().err
    assert [call.args[1] for call in client.set_terminated.call_args_list] == ["FAILED", "KILLED", "KILLED"]


def test_a_training_that_has_ended_says_so_when_mlflow_does_not_take_its_results(tmp_path: Path) -> None:
    recorder = Mock()
    file_results(recorder, tmp_path, "{}")
    recorder.log_text.assert_called_once_with("{}", "config.json")
    recorder.finish.assert_called_once()
    recorder.log_artifact.side_effect = ConnectionError("the MLflow store http://host cannot be reached")
    with pytest.raises(RuntimeError, match="cannot be reached; the training has ended: the same command"):
        file_results(recorder, tmp_path, "{}")


def test_two_trainings_do_not_share_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfvt.cluster.records.LOCK_SECONDS", 0.0)
    state = tmp_path / "tiny-1a2b"
    with (
        one_training(state),
        pytest.raises(ValueError, match="another process trains with the state"),
        one_training(state),
    ):
        pass
    with one_training(state):
        pass


def test_a_lock_that_the_training_itself_waits_for_is_no_second_training(tmp_path: Path) -> None:
    with pytest.raises(Timeout), one_training(tmp_path / "tiny-1a2b"):
        raise Timeout("another lock")
    with one_training(tmp_path / "tiny-1a2b"):
        pass


@pytest.mark.parametrize("store", ["sqlite:////gone/mlflow.db", "http://127.0.0.1:9"])
def test_a_clone_evaluates_into_one_run_of_its_own(
    project: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    run = project / "runs/tiny"
    run.mkdir(parents=True)
    (run / "config.py").write_text("lr = 0.1\n")
    noted = {"mlflow_run_id": "0" * 32, "tracking_uri": store, "tags": {"a": "b"}}
    (run / "run.json").write_text(json.dumps(noted))
    first = recorder_of(SETTINGS, "tiny", run / "run.json")
    assert "the evaluation is filed in a new run" in capsys.readouterr().err
    second = recorder_of(SETTINGS, "tiny", run / "run.json")
    assert statuses(project) == {first.run_id: "FINISHED"} and second.run_id == first.run_id
    client = MlflowClient(first.uri)
    tags = client.get_run(first.run_id).data.tags
    assert (tags["a"], tags[NOTED_RUN]) == ("b", "0" * 32)
    assert {file.path for file in client.list_artifacts(first.run_id)} == {"config.py", "config.json"}
    assert json.loads((run / "run.json").read_text()) == noted, "it is an output of the stage train"
