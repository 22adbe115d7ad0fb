"""Without `tracking.required`, runs are filed here while their server is away, and sent there once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from dfvt.cli import main
from dfvt.cluster.notes import note_run, read_note
from dfvt.tracking.deferred import attach_noted, choose_store
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.models import register_model
from dfvt.tracking.store import MEANT_FOR, SENT_AS, SENT_FROM, Store

AWAY = "http://someone:secret@127.0.0.1:9"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    return tmp_path


def open_run(store: Store, name: str, parent: str | None = None) -> RunRecorder:
    return RunRecorder.open(
        store.uri,
        "dfvt",
        artifact_root=Path("mlartifacts"),
        run_name=name,
        tags={"git.commit": "beef", **store.tags},
        params={"lr": 0.1},
        parent_run_id=parent,
    )


def runs_there(uri: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("dfvt")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "each is there once"
    return {str(run.info.run_name): run for run in runs}


def test_the_own_store_is_taken_where_the_server_need_not_answer(project: Path) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match=r"cannot be reached at 127\.0\.0\.1:9"):
        choose_store(project, required=True, noted=None, warn=said.append)
    assert not said
    store = choose_store(project, required=False, noted=None, warn=said.append)
    assert store.uri == f"sqlite:///{project}/mlflow.db"
    assert "cannot be reached" in said[0] and "`dfvt runs sync` sends them" in said[0]
    assert "secret" not in f"{said}{store}" and "someone" not in f"{said}{store}"


def test_a_run_that_was_begun_here_goes_on_here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = choose_store(project, required=False, noted=None, warn=lambda said: None)
    note_run(project / "run.json", open_run(store, "first"), store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/server.db")  # it is back
    noted = read_note(project / "run.json")
    assert choose_store(project, required=False, noted=noted, warn=pytest.fail) == store
    elsewhere = choose_store(project, required=False, noted=None, warn=pytest.fail)
    assert elsewhere == Store(f"sqlite:///{project}/server.db")


def test_a_database_that_cannot_be_used_is_an_error_all_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/no/folder/mlflow.db")
    with pytest.raises(ValueError, match="which does not exist"):
        choose_store(project, required=False, noted=None, warn=pytest.fail)


def test_runs_are_sent_whole_and_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = choose_store(project, required=False, noted=None, warn=lambda said: None)
    sweep = open_run(store, "sweep")
    trial = open_run(store, "trial", parent=sweep.run_id)
    curve = [(step, {"train/loss": 1.0 / (1 + step), "train/lr": 0.1}) for step in range(1500)]
    trial.log_curve([*curve, (1500, {"train/loss": math.nan})])
    Path("config.py").write_text("a = 1\n")
    trial.log_artifact(Path("config.py"))
    trial.log_artifact(Path("config.py"), "model")
    trial.log_dataset("mini", "abc", project, profile="{}", schema="{}")
    register_model(trial, "dfvt-mini", tags={"a": "b"}, metrics={"bbox_mAP": 0.25}, metric="bbox_mAP")
    for recorder in (trial, sweep):
        recorder.finish("KILLED" if recorder is sweep else "FINISHED")
    running = open_run(store, "running")
    RunRecorder.open(
        store.uri, "dfvt", artifact_root=Path("mlartifacts"), run_name="own", tags={}, params={}
    ).finish()
    assert main(["runs", "sync"]) == 2, "the server is still away"
    assert "cannot be reached" in capsys.readouterr().err

    there = f"sqlite:///{project}/server.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    with monkeypatch.context() as broken:
        broken.setattr(RunRecorder, "log_artifacts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["runs", "sync"]) == 130
    capsys.readouterr()
    assert main(["runs", "sync"]) == 0
    assert "trial: sent, with all that it has" in capsys.readouterr().out
    assert main(["runs", "sync"]) == 0
    assert "sent, with" not in capsys.readouterr().out, "nothing is sent twice"

    found = runs_there(there)
    assert set(found) == {"sweep", "trial"}
    assert found["sweep"].info.status == "KILLED" and found["trial"].info.status == "FINISHED"
    sent, here = found["trial"], MlflowClient(store.uri).get_run(trial.run_id)
    assert sent.data.tags["mlflow.parentRunId"] == found["sweep"].info.run_id
    assert sent.data.tags["git.commit"] == "beef" and sent.data.tags[SENT_FROM] == trial.run_id
    assert MEANT_FOR not in sent.data.tags and here.data.tags[SENT_AS] == sent.info.run_id
    assert (sent.info.start_time, sent.info.end_time) == (here.info.start_time, here.info.end_time)
    assert sent.data.params == {"lr": "0.1"}
    assert sent.inputs.dataset_inputs[0].dataset.name == "mini"
    client, source = MlflowClient(there), MlflowClient(store.uri)
    for name in ("train/loss", "train/lr"):
        ours, theirs = (
            [(one.step, repr(one.value), one.timestamp) for one in of.get_metric_history(run_id, name)]
            for of, run_id in ((client, sent.info.run_id), (source, trial.run_id))
        )
        assert ours == theirs
    assert {one.path for one in client.list_artifacts(sent.info.run_id)} == {"config.py", "model"}
    champion = client.get_model_version_by_alias("dfvt-mini", "champion")
    assert champion.run_id == sent.info.run_id and champion.tags["a"] == "b"

    running.finish("KILLED")
    assert main(["runs", "sync"]) == 0
    assert set(runs_there(there)) == {"sweep", "trial", "running"}
    running.reopen()  # and goes on, with more than was sent
    running.log_metrics({"train/loss": 0.5}, step=7)
    running.finish()
    assert main(["runs", "sync"]) == 0
    again = runs_there(there)["running"]
    assert again.info.status == "FINISHED" and again.data.metrics == {"train/loss": 0.5}


def test_what_comes_later_goes_where_a_run_is_by_then(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = choose_store(project, required=False, noted=None, warn=lambda said: None)
    folder = Path(".dfvt/sweeps/s/trials/0001")
    folder.mkdir(parents=True)
    recorder = open_run(store, "trial")
    note_run(Path(".dfvt/sweeps/s/run.json"), open_run(store, "sweep"), store)
    (folder / "trial.json").write_text(json.dumps({"mlflow_run_id": recorder.run_id}))
    noted = {"mlflow_run_id": recorder.run_id, "tracking_uri": store.uri, "meant_for": "x"}
    assert attach_noted(noted, project).run_id == recorder.run_id
    recorder.finish()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/server.db")
    (folder / "curve.csv").write_text("step,epoch,loss,lr\n1,1,0.5,0.1\n")
    assert main(["runs", "sync"]) == 0
    sent = attach_noted(noted, project)
    assert sent.uri.endswith("server.db") and sent.run_id != recorder.run_id
    assert sent.last_step("train/loss") == 1, "points that only the curve file has are sent too"
