"""Without `tracking.required`, runs are filed here while their server is away, and sent there once."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from dfvt.cli import main
from dfvt.cluster.abandoned import end_runs
from dfvt.cluster.notes import continue_noted_run, note_run, read_note
from dfvt.cluster.records import lock_of
from dfvt.tracking.deferred import attach_noted, choose_store, file_again
from dfvt.tracking.mlflow import RunNotFoundError, RunRecorder
from dfvt.tracking.models import register_model
from dfvt.tracking.store import MEANT_FOR, NOTED_RUN, SENT_AS, SENT_FROM, Store

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
    note_run(project / "run.json", open_run(store, "first"), store, project)
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
    note_run(Path(".dfvt/sweeps/s/run.json"), open_run(store, "sweep"), store, project)
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


@pytest.fixture
def own(project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The project's own store."""
    shutil.copy(empty_database, project / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return choose_store(project, required=True, noted=None, warn=pytest.fail)


def test_a_note_means_the_store_of_the_project_that_it_is_in(
    own: Store, project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = open_run(own, "first")
    note_run(project / "run.json", recorder, own, project)
    note = (project / "run.json").read_text()
    assert json.loads(note)["tracking_uri"] == "sqlite:///mlflow.db"
    old = {"mlflow_run_id": recorder.run_id, "tracking_uri": own.uri}  # as versions before noted it
    copied, clone = (tmp_path_factory.mktemp(name) for name in ("copied", "clone"))
    shutil.copy(project / "mlflow.db", copied)
    for noted in (json.loads(note), old):
        assert attach_noted(noted, project).uri == own.uri
        attach_noted(noted, copied).log_metrics({"bbox_mAP": 0.5})
        with pytest.raises(RunNotFoundError, match=f"{recorder.run_id} is not in"):
            attach_noted(noted, clone)
        assert not list(clone.iterdir()), "a store is not made to look into it"
    assert RunRecorder.attach(f"sqlite:///{copied}/mlflow.db", recorder.run_id).uri.startswith("sqlite")
    assert not MlflowClient(own.uri).get_run(recorder.run_id).data.metrics

    monkeypatch.chdir(copied)
    Path("state").mkdir()
    Path("state/run.json").write_text(json.dumps(old))
    here = choose_store(copied, required=True, noted=old, warn=pytest.fail)
    again = continue_noted_run(Path("state/run.json"), here.uri, copied, pytest.fail)
    assert again and (again.run_id, again.uri) == (recorder.run_id, f"sqlite:///{copied}/mlflow.db")


def test_a_project_that_can_have_no_store_of_its_own_uses_the_one_that_is_named(
    own: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = open_run(own, "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own.uri)
    (folder := tmp_path / "100%").mkdir()
    assert attach_noted({"mlflow_run_id": recorder.run_id, "tracking_uri": own.uri}, folder).uri == own.uri
    with pytest.raises(RunNotFoundError):
        attach_noted({"mlflow_run_id": "0" * 32, "tracking_uri": own.uri}, folder)


def test_what_a_clone_evaluates_is_filed_in_one_run_of_its_own(own: Store, project: Path) -> None:
    noted = {
        "mlflow_run_id": "0" * 32,
        "tracking_uri": "sqlite:////home/somebody/project/mlflow.db",
        "tags": {"git.commit": "beef"},
        "params": {"lr": 0.1},
    }
    with pytest.raises(RunNotFoundError):
        attach_noted(noted, project)
    filed = file_again(noted, own, "dfvt", run_name="tiny mini", artifact_root=project / "mlartifacts")
    found = attach_noted(noted, project)
    assert (found.run_id, found.uri) == (filed.run_id, own.uri)
    run = MlflowClient(own.uri).get_run(filed.run_id)
    assert run.data.tags["git.commit"] == "beef" and run.data.tags[NOTED_RUN] == "0" * 32
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})


def test_sync_goes_past_runs_that_no_store_has_and_ends_those_that_nobody_works_on(
    own: Store, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(folder: str, name: str) -> RunRecorder:
        Path(folder).mkdir(parents=True)
        recorder = open_run(own, name)
        note_run(Path(folder, "run.json"), recorder, own, project)
        Path(folder, "curve.csv").write_text("step,epoch,loss,lr\n1,1,0.5,0.1\n")
        return recorder

    Path("runs/base").mkdir(parents=True)
    Path("runs/base/run.json").write_text(
        json.dumps({"mlflow_run_id": "0" * 32, "tracking_uri": "sqlite:////gone/mlflow.db"})
    )
    ended = trained("runs/tiny", "ended")
    Path("runs/tiny/checkpoint.pth").touch()
    killed, at_work = trained(".dfvt/train/tiny-1", "killed"), trained(".dfvt/train/tiny-2", "at work")
    sweep = trained(".dfvt/sweeps/s", "sweep")
    trials = {}
    for status in ("running", "finished", "failed"):
        (folder := Path(".dfvt/sweeps/s/trials", status)).mkdir(parents=True)
        trials[status] = open_run(own, f"trial {status}")
        note = {"mlflow_run_id": trials[status].run_id, "status": status}
        (folder / "trial.json").write_text(json.dumps(note))
    with lock_of(Path(".dfvt/train/tiny-2"), 0.0):
        assert main(["runs", "sync"]) == 0
    said = capsys.readouterr()
    assert "runs/base is left out" in said.err and "0" * 32 in said.err
    assert "runs/tiny: 1 points sent" in said.out
    statuses = {
        "ended": "FINISHED", "killed": "KILLED", "at work": "RUNNING", "sweep": "KILLED",
        "trial running": "KILLED", "trial finished": "FINISHED", "trial failed": "FAILED",
    }  # fmt: skip
    assert {name: run.info.status for name, run in runs_there(own.uri).items()} == statuses
    assert main(["runs", "sync", "runs/base"]) == 1, "it was asked for"
    for recorder in (ended, killed, at_work, sweep):
        assert recorder.last_step("train/loss") == 1


def test_a_sweep_that_is_stopped_ends_its_runs_at_once(own: Store) -> None:
    running, finished = open_run(own, "running"), open_run(own, "finished")
    finished.finish()
    end_runs(own.uri, [running.run_id, finished.run_id, "unknown"])
    assert {name: run.info.status for name, run in runs_there(own.uri).items()} == {
        "running": "KILLED",
        "finished": "FINISHED",
    }
    end_runs("http://127.0.0.1:9", [running.run_id])  # nobody answers


def test_what_was_half_sent_leaves_no_version_behind(
    project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow.db", "server.db"):
        shutil.copy(empty_database, project / name)
    store = choose_store(project, required=False, noted=None, warn=lambda said: None)
    recorder = open_run(store, "run")
    register_model(recorder, "dfvt-mini", tags={"a": "b"}, metrics={"bbox_mAP": 0.25}, metric="bbox_mAP")
    recorder.finish()
    there = f"sqlite:///{project}/server.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    with monkeypatch.context() as broken:
        set_tag = MlflowClient.set_tag

        def killed(client: MlflowClient, run_id: str, key: str, value: str) -> None:
            if key == SENT_AS:
                raise KeyboardInterrupt
            set_tag(client, run_id, key, value)

        broken.setattr(MlflowClient, "set_tag", killed)
        assert main(["runs", "sync"]) == 130
    assert main(["runs", "sync"]) == 0
    client = MlflowClient(there)
    (version,) = client.search_model_versions("name = 'dfvt-mini'")
    assert version.run_id == runs_there(there)["run"].info.run_id
    assert client.get_model_version_by_alias("dfvt-mini", "champion").version == version.version
