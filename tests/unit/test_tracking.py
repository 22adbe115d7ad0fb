"""Runs recorded in a real SQLite store, and the lineage that they carry."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import platform
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.server.security_utils import INVALID_HOST_MSG
from mlflow.tracking._tracking_service import utils as mlflow_utils

from dfvt.cluster.doctor import Expectation, probe_tracking
from dfvt.tracking.addresses import (
    address_of_note,
    artifact_root,
    noted_address,
    without_credentials,
    without_password,
)
from dfvt.tracking.lineage import collect_lineage, config_hash
from dfvt.tracking.mlflow import RefusedError, RunRecorder, require_reachable, tracking_uri
from dfvt.tracking.models import register_model
from dfvt.tracking.origin import TrainingData, collect_origin, keeps_changes, record_origin
from dfvt.tracking.store import Store


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = tmp_path / "a project, with # and ü"
    project.mkdir()
    return project


@pytest.fixture
def uri(project: Path, empty_database: Path) -> str:
    shutil.copy(empty_database, project / "mlflow.db")
    return tracking_uri(project)


def open_run(uri: str, project: Path, experiment: str = "dfvt", **params: object) -> RunRecorder:
    return RunRecorder.open(
        uri,
        experiment,
        artifact_root=project / "mlartifacts",
        run_name="tiny",
        tags={"dfvt.variant": "tiny"},
        params=params,
    )


def test_a_run_is_read_back_as_it_was_recorded(uri: str, project: Path) -> None:
    recorder = open_run(uri, project, lr=2e-4, resume=None)
    recorder.log_metrics({"bbox_mAP": 0.25, "bbox_mAP_s": -1, "segm_mAP": math.nan}, step=7)
    recorder.set_tags({"dfvt.variant": "small", "data.hash": "abc"})
    recorder.finish()

    run = MlflowClient(uri).get_run(recorder.run_id)
    assert run.info.run_name == "tiny"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.0002", "resume": "None"}
    assert run.data.metrics["bbox_mAP"] == 0.25
    assert run.data.metrics["bbox_mAP_s"] == -1
    assert math.isnan(run.data.metrics["segm_mAP"])
    assert run.data.tags["dfvt.variant"] == "small"
    assert run.data.tags["data.hash"] == "abc"


def test_long_curves_are_read_back(uri: str, project: Path) -> None:
    recorder = open_run(uri, project)
    recorder.log_curve((step, {"loss": 1 / (step + 1), "lr": 0.1}) for step in range(1200))
    recorder.log_metrics({"loss": 0.0}, step=1200)
    history = MlflowClient(uri).get_metric_history(recorder.run_id, "loss")
    points = sorted((metric.step, metric.value) for metric in history)
    assert points == [*((step, 1 / (step + 1)) for step in range(1200)), (1200, 0.0)]


def test_many_and_long_parameters_are_kept(uri: str, project: Path) -> None:
    long = "x" * 7000
    many = {f"model.option_{index}": index for index in range(230)}
    recorder = open_run(uri, project, **many, config=long)
    params = MlflowClient(uri).get_run(recorder.run_id).data.params
    assert len(params) == 231
    assert params["model.option_229"] == "229"
    assert params["config"] == long[:6000]
    (whole,) = (project / "mlartifacts").rglob("params/config.txt")
    assert whole.read_text() == long


def test_artifacts_lie_in_the_folder_of_the_project(uri: str, project: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    (gallery / "1.png").write_bytes(b"png")
    recorder = open_run(uri, project)
    recorder.log_artifact(gallery / "1.png")
    recorder.log_artifacts(gallery, "gallery")
    artifacts = project / "mlartifacts" / recorder.run_id / "artifacts"
    assert {str(file.relative_to(artifacts)) for file in artifacts.rglob("*.png")} == {
        "1.png",
        "gallery/1.png",
    }
    downloaded = MlflowClient(uri).download_artifacts(recorder.run_id, "gallery/1.png", str(tmp_path))
    assert Path(downloaded).read_bytes() == b"png"


def test_another_process_continues_a_run(uri: str, project: Path, tmp_path: Path) -> None:
    recorder = open_run(uri, project)
    worker = """
import sys
from dfvt.tracking.mlflow import RunRecorder
recorder = RunRecorder.attach(*sys.argv[1:])
recorder.log_metrics({"loss": 0.5}, step=3)
recorder.finish("KILLED")
"""
    done = subprocess.run(
        [sys.executable, "-c", worker, recorder.uri, recorder.run_id],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    run = MlflowClient(uri).get_run(recorder.run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"loss": 0.5}


def test_attaching_leaves_the_status(uri: str, project: Path) -> None:
    recorder = open_run(uri, project)
    recorder.finish("FAILED")
    RunRecorder.attach(uri, recorder.run_id).log_metrics({"bbox_mAP": 0.1})
    run = MlflowClient(uri).get_run(recorder.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"bbox_mAP": 0.1}


def test_a_run_that_was_stopped_is_opened_again(uri: str, project: Path) -> None:
    recorder = open_run(uri, project)
    recorder.finish("KILLED")
    client = MlflowClient(uri)
    RunRecorder.attach(uri, recorder.run_id).reopen()
    assert client.get_run(recorder.run_id).info.status == "RUNNING"
    recorder.finish()
    assert client.get_run(recorder.run_id).info.status == "FINISHED"


def test_runs_that_are_unknown_or_deleted_are_refused(uri: str, project: Path) -> None:
    with pytest.raises(ValueError, match="Run with id=nonsense not found"):
        RunRecorder.attach(uri, "nonsense")
    recorder = open_run(uri, project)
    MlflowClient(uri).delete_run(recorder.run_id)
    with pytest.raises(ValueError, match=f"run {recorder.run_id} .* is deleted; restore it"):
        RunRecorder.attach(uri, recorder.run_id)


def test_a_deleted_experiment_is_refused(uri: str, project: Path) -> None:
    open_run(uri, project)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("dfvt")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ValueError, match="experiment dfvt is deleted; restore it"):
        open_run(uri, project)


def test_a_refusal_is_no_outage_while_the_caller_handles_an_error_of_the_system(
    uri: str, project: Path
) -> None:
    recorder = open_run(uri, project)
    try:
        (project / "absent").read_bytes()
    except FileNotFoundError:
        with pytest.raises(RefusedError, match="Invalid value"):
            recorder.log_params({"a[0]": 1})


def test_a_run_with_impossible_parameters_is_marked_as_failed(uri: str, project: Path) -> None:
    with pytest.raises(ValueError, match=r"refuses: .*a\[0\]") as caught:
        open_run(uri, project, **{"a[0]": 1})
    assert "\n" not in str(caught.value)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("dfvt")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_runs_opened_at_the_same_time_share_one_experiment(uri: str, project: Path) -> None:
    start = threading.Barrier(4)

    def open_together(_: int) -> str:
        start.wait()
        return open_run(uri, project).run_id

    with ThreadPoolExecutor(4) as pool:
        runs = set(pool.map(open_together, range(4)))
    client = MlflowClient(uri)
    assert len({client.get_run(run).info.experiment_id for run in runs}) == 1
    assert len(runs) == 4


def test_the_experiment_of_a_faster_process_is_used(
    uri: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_run(uri, project)
    look_up = MlflowClient.get_experiment_by_name
    answers = iter([False, True])  # absent at the first look, made by the other process before the second
    monkeypatch.setattr(
        MlflowClient,
        "get_experiment_by_name",
        lambda client, name: look_up(client, name) if next(answers) else None,
    )
    second = open_run(uri, project)
    client = MlflowClient(uri)
    assert client.get_run(second.run_id).info.experiment_id == client.get_run(first.run_id).info.experiment_id


def test_a_new_database_appears_silently_and_complete(
    project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    database = project / "mlflow.db"
    made = []

    class Client(MlflowClient):
        """Another process makes the database while this one is still at it."""

        def __init__(self, tracking_uri: str) -> None:
            super().__init__(tracking_uri)
            made.append(tracking_uri)
            if len(made) == 1:
                assert not database.exists()
                shutil.copy(empty_database, database)

    monkeypatch.setattr("dfvt.tracking.mlflow.MlflowClient", Client)
    open_run(tracking_uri(project), project)
    assert made[1:] == [f"sqlite:///{database}"]
    assert MlflowClient(tracking_uri(project)).get_experiment_by_name("another") is not None
    assert [path.name for path in project.iterdir()] == ["mlflow.db"]
    assert capfd.readouterr() == ("", "")


def test_the_store_is_in_the_project_unless_the_environment_says_otherwise(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.parent)
    assert tracking_uri(Path(project.name)) == f"sqlite:///{project}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    assert tracking_uri(project) == f"sqlite:///{tmp_path}/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/../beside.db")
    assert tracking_uri(project) == f"sqlite:///{tmp_path}/beside.db"
    assert not keeps_changes("auto", Store(tracking_uri(project)), project), "it is outside of the project"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(project) == "http://tracking:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with pytest.raises(ValueError, match="cannot hold %; rename"):
        tracking_uri(tmp_path / "100%")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("nonsense", "is none of http, https"),
        ("", "is none of http, https"),
        ("file:///mlruns", "is none of http, https"),
        ("http://", "names no host"),
        ("http://[", "is no valid address"),
        ("http://host:port", "is no valid address"),
        ("http://a..b", "cannot be reached at a..b:80"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:1/db", r"//\*\*\*@127.0.0.1:1/db cannot be reached"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////no/such/folder/mlflow.db", "is in the folder /no/such/folder, which does not exist"),
    ],
)
def test_addresses_that_cannot_work_are_refused(
    address: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ValueError, match=problem) as caught:
        require_reachable(address)
    assert "correct MLFLOW_TRACKING_URI" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_files_that_are_no_database_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "mlflow.db"
    text.write_text("not a database, but long enough to have a header\n" * 10)
    for file in (text, tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            require_reachable(f"sqlite:///{file}")
    text.unlink()
    require_reachable(f"sqlite:///{text}")
    assert not text.exists()


def test_a_database_of_another_mlflow_version_is_left_alone(uri: str, project: Path) -> None:
    database = project / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update alembic_version set version_num = 'future'")
    before = database.read_bytes()
    with pytest.raises(ValueError, match=r"refuses: .*out-of-date database schema") as caught:
        open_run(uri, project)
    assert "\n" not in str(caught.value)
    assert database.read_bytes() == before


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port whose queue of connections is full, so that nobody gets an answer."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_an_unreachable_server_is_noticed_in_time(
    project: Path, silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
        open_run(f"http://127.0.0.1:{silent_server}", project)
    with pytest.raises(ValueError, match=r"cannot be reached at 127\.0\.0\.1:1 "):
        RunRecorder.attach("http://127.0.0.1:1", "run")
    assert time.monotonic() - start < 10


class Answers(BaseHTTPRequestHandler):
    """Gives each question the same answer."""

    status, kind, text = 200, "application/json", "{}"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.text.encode())))
        self.end_headers()
        self.wfile.write(self.text.encode())

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@contextmanager
def server_of(status: int, text: str, kind: str = "text/html") -> Iterator[int]:
    """The port of a server that gives each question this answer."""
    answers = type("Answers", (Answers,), {"status": status, "text": text, "kind": kind})
    with HTTPServer(("127.0.0.1", 0), answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize(
    ("status", "text", "sentence"),
    [
        (
            404,
            "<html><h1>Not Found</h1></html>",
            "is not an MLflow server: its answer has the HTTP status 404",
        ),
        (200, "<html>Welcome to nginx</html>", "is not an MLflow server: its answer has the HTTP status 200"),
        (502, "<html>Bad gateway</html>", "does not work at present (HTTP status 502)"),
        (
            401,
            "You are not authenticated.",
            "(HTTP status 401); set MLFLOW_TRACKING_USERNAME",
        ),
    ],
)
def test_what_answers_wrongly_is_refused_in_a_sentence_of_ours(
    project: Path, status: int, text: str, sentence: str
) -> None:
    with server_of(status, text) as port:
        for use in (require_reachable, lambda uri: open_run(uri, project)):
            with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
                use(f"http://127.0.0.1:{port}")
            assert "<" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_proxy")
def test_a_host_name_that_the_server_does_not_allow_is_no_wrong_password(project: Path) -> None:
    with server_of(403, INVALID_HOST_MSG, "text/plain") as port:
        uri = f"http://127.0.0.1:{port}"
        for use in (require_reachable, lambda uri: open_run(uri, project)):
            with pytest.raises(ValueError, match=f"--allowed-hosts 127.0.0.1:{port}") as caught:
                use(uri)
            assert "PASSWORD" not in str(caught.value)
        found, problem = probe_tracking(Expectation({}, 0, None, uri))
        assert found == "unreachable" and problem and "--allowed-hosts" in problem
        recorder = RunRecorder(MlflowClient(tracking_uri=uri), uri, "0" * 32)
        with pytest.raises(ValueError, match="--allowed-hosts"):
            recorder.finish()


def test_a_server_that_went_away_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        recorder = RunRecorder(MlflowClient(tracking_uri=uri), uri, "0" * 32)
        for send in (
            lambda: recorder.log_metrics({"loss": 1.0}),
            lambda: recorder.log_params({"lr": 1.0}),
            lambda: recorder.set_tags({"a": "b"}),
            lambda: recorder.log_artifacts(Path(__file__).parent / "schemas"),
            recorder.status,
            recorder.reopen,
            recorder.finish,
        ):
            with pytest.raises(ConnectionError, match=f"the MLflow store {uri} cannot be reached"):
                send()


@pytest.mark.usefixtures("no_proxy")
def test_a_server_that_is_out_of_order_is_a_connection_error() -> None:
    error = json.dumps({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "the database is locked"})
    with server_of(503, error, "application/json") as port:
        uri = f"http://127.0.0.1:{port}"
        recorder = RunRecorder(MlflowClient(tracking_uri=uri), uri, "0" * 32)
        with pytest.raises(ConnectionError, match=f"the MLflow store {uri} "):
            recorder.log_metrics({"loss": 1.0})


def test_an_error_on_its_way_is_neither_replaced_nor_held_up_by_mlflow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dfvt.tracking.mlflow._SECONDS_TO_ABANDON", 0.2)
    answer = threading.Event()

    class Client:
        def set_terminated(self, *_: object) -> None:
            answer.wait(30)

    with pytest.raises(ZeroDivisionError):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            RunRecorder(Client(), "http://me:secret@host", "abc").abandon("FAILED")  # type: ignore[arg-type]
            raise
    answer.set()
    assert "http://***@host does not answer: the run abc is not ended there" in capsys.readouterr().err

    class Broken:
        def set_terminated(self, *_: object) -> None:
            raise OSError("no space left")

    RunRecorder(Broken(), "uri", "abc").abandon("KILLED")  # type: ignore[arg-type]
    assert "no space left: the run abc is not ended there" in capsys.readouterr().err


def test_a_server_behind_a_proxy_is_reached_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with server_of(200, "{}", "application/json") as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        require_reachable("http://tracking.invalid:5000")


@pytest.fixture
def no_git_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set when a git hook runs the tests
        monkeypatch.delenv(name, raising=False)


def lineage(project: Path, **ray: str) -> dict[str, str]:
    return collect_lineage(
        project, variant="tiny", profile="mini", data_hash="d", config_hash=config_hash("model = 1"), **ray
    )


@pytest.mark.usefixtures("no_git_settings")
def test_lineage_without_git_dvc_and_ray_is_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    expected = {
        "dfvt.variant": "tiny",
        "dfvt.profile": "mini",
        "git.commit": "none",
        "git.dirty": "none",
        "dvc.lock": "none",
        "data.hash": "d",
        "config.hash": hashlib.sha256(b"model = 1").hexdigest(),
        "ray.job_id": "none",
        "ray.trial_id": "none",
    }
    assert lineage(project) == expected
    monkeypatch.setenv("PATH", "")
    assert lineage(project) == expected


@pytest.mark.usefixtures("no_git_settings")
def test_lineage_names_the_commit_and_what_differs_from_it(project: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout.strip()

    (project / "params.yaml").write_text("profile: mini\n")
    (project / "dvc.lock").write_text("one\n")
    git("init")
    assert lineage(project)["git.commit"] == "none"
    git("add", ".")
    git("commit", "-m", "first")

    (project / "dvc.lock").write_text("two\n")
    (project / "notes.txt").write_text("untracked\n")
    tags = lineage(project, ray_job_id="02000000", ray_trial_id="ab_1")
    assert tags["git.commit"] == git("rev-parse", "HEAD")
    assert tags["git.dirty"] == "false"
    assert tags["dvc.lock"] == hashlib.sha256(b"two\n").hexdigest()
    assert (tags["ray.job_id"], tags["ray.trial_id"]) == ("02000000", "ab_1")

    (project / "params.yaml").write_text("profile: custom\n")
    assert lineage(project)["git.dirty"] == "true"

    (project / ".git" / "config").write_text("nonsense [")
    with pytest.raises(ValueError, match=r"git cannot read the repository of .*bad config") as caught:
        lineage(project)
    assert "\n" not in str(caught.value)


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(project: Path) -> Path:
    """A project with a commit."""
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    (project / "code.py").write_text("x = 1\n")
    git(project, "init")
    git(project, "add", "code.py", "dvc.lock")
    git(project, "commit", "-m", "first")
    return project


def test_a_run_keeps_what_it_began_with(uri: str, project: Path) -> None:
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    (project / "code.py").write_text("x = 1\n")
    assert collect_origin(project, with_diff=True).diff is None  # no repository
    git(project, "init")
    git(project, "add", "code.py", "dvc.lock")
    assert collect_origin(project, with_diff=True).diff is None  # no commit
    git(project, "commit", "-m", "first")
    assert collect_origin(project, with_diff=True).diff is None
    (project / "code.py").write_text("x = 2\n")
    (project / "dvc.lock").write_text("schema: '2.1'\n")
    origin = collect_origin(project, with_diff=True)
    assert origin.diff is not None and b"+x = 2\n" in origin.diff and b"dvc.lock" not in origin.diff

    recorder = open_run(uri, project)
    data = TrainingData("shapes", "0123456789" * 6 + "abcd", project / "data", 220, ("square", "disc"))
    record_origin(recorder, origin, data)
    client = MlflowClient(uri)
    texts = origin_of(client, recorder.run_id)
    assert texts["origin/uncommitted.diff"] == origin.diff
    assert texts["origin/changed_files.txt"] == b" M code.py\n"
    assert texts["origin/dvc.lock"] == b"schema: '2.1'\n"
    assert f"mlflow=={version('mlflow')}" in texts["origin/packages.txt"].decode().splitlines()
    run = client.get_run(recorder.run_id)
    assert run.data.tags["env.torch"] == version("torch")
    assert run.data.tags["env.python"] == platform.python_version()
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.source) == ("shapes", str(project / "data"))
    assert data.data_hash.startswith(given.dataset.digest) and len(given.dataset.digest) >= 32
    assert json.loads(given.dataset.profile) == {"num_train_images": 220, "num_classes": 2}
    assert json.loads(given.dataset.schema) == {"classes": ["square", "disc"]}


def origin_of(client: MlflowClient, run_id: str) -> dict[str, bytes]:
    return {
        file.path: Path(client.download_artifacts(run_id, file.path)).read_bytes()
        for file in client.list_artifacts(run_id, "origin")
    }


def test_changes_in_any_encoding_are_kept_byte_for_byte(repository: Path, tmp_path: Path) -> None:
    (repository / "code.py").write_bytes("x = 'é'\n".encode("latin-1"))
    latin = os.fsdecode("prüfung.txt".encode("latin-1"))
    (repository / latin).write_text("new\n")
    git(repository, "add", latin)
    assert lineage(repository)["git.dirty"] == "true"
    origin = collect_origin(repository, with_diff=True)
    assert origin.diff is not None and b"+x = '\xe9'\n" in origin.diff
    assert origin.changes is not None and "pr\\xfcfung.txt" in origin.changes
    (tmp_path / "patch").write_bytes(origin.diff)
    git(repository, "reset", "--hard")
    git(repository, "apply", str(tmp_path / "patch"))
    assert (repository / "code.py").read_bytes() == b"x = '\xe9'\n"


def test_a_server_gets_the_names_of_changed_files_and_no_secret_in_them(uri: str, repository: Path) -> None:
    (repository / "code.py").write_text("password = 'secret'\n")
    here, server = Store(uri), Store("http://tracking:5000")
    waiting = Store(uri, meant_for="http://tracking:5000")
    kept = {
        setting: [keeps_changes(setting, store, repository) for store in (here, server, waiting)]
        for setting in ("auto", True, False)
    }
    assert kept == {"auto": [True, False, False], True: [True] * 3, False: [False] * 3}
    recorder = open_run(uri, repository)
    origin = collect_origin(repository, with_diff=False)
    record_origin(recorder, origin, TrainingData("shapes", "0" * 64, repository, 1, ("disc",)))
    client = MlflowClient(uri)
    texts = origin_of(client, recorder.run_id)
    assert texts["origin/changed_files.txt"] == b" M code.py\n"
    assert "origin/uncommitted.diff" not in texts and b"secret" not in b"".join(texts.values())
    diff = collect_origin(repository, with_diff=True).diff
    assert diff and client.get_run(recorder.run_id).data.tags["git.diff"] == hashlib.sha256(diff).hexdigest()


@pytest.mark.parametrize("copy", [False, True])
def test_a_moved_or_copied_project_keeps_its_artifacts_to_itself(
    uri: str, project: Path, tmp_path: Path, copy: bool
) -> None:
    (project / "params.yaml").write_text("profile: mini\n")
    first = open_run(uri, project)
    first.log_text("before", "note.txt")
    register_model(first, "m", tags={}, metrics={"bbox_mAP": 0.5}, metric="bbox_mAP")
    place = tmp_path / "elsewhere"
    (shutil.copytree if copy else shutil.move)(project, place)
    mlflow_utils._artifact_repos_cache.clear()  # no project is moved under a process that runs
    there = tracking_uri(place)
    second = open_run(there, place)
    second.log_text("after", "note.txt")
    again = RunRecorder.attach(there, first.run_id)
    again.log_text("later", "more.txt")
    client = MlflowClient(there)
    assert (place / "mlartifacts" / second.run_id / "artifacts/note.txt").read_text() == "after"
    assert (place / "mlartifacts" / first.run_id / "artifacts/more.txt").read_text() == "later"
    assert Path(client.download_artifacts(first.run_id, "note.txt")).read_text() == "before"
    if copy:
        names = {file.name for file in (project / "mlartifacts").rglob("*.txt")}
        assert names == {"note.txt"}, "nothing went into the first project"
    else:
        assert not project.exists()
    with closing(sqlite3.connect(place / "mlflow.db")) as connection:
        text = "\n".join(connection.iterdump())
    assert project.as_uri() not in text


@pytest.mark.parametrize("store_there", ["none", "without runs", "empty file"])
def test_artifacts_of_a_project_that_files_its_runs_here_stay_there(
    uri: str, project: Path, tmp_path: Path, empty_database: Path, store_there: str
) -> None:
    another = tmp_path / "another"
    recorder = open_run(uri, another)  # as earlier versions did
    recorder.log_text("text", "note.txt")
    if store_there == "without runs":
        shutil.copy(empty_database, another)
    elif store_there == "empty file":
        (another / "mlflow.db").touch()
    (project / "params.yaml").write_text("profile: mini\n")
    mlflow_utils._artifact_repos_cache.clear()
    RunRecorder.attach(uri, recorder.run_id).log_text("more", "more.txt")
    assert {file.name for file in (another / "mlartifacts").rglob("*.txt")} == {"note.txt", "more.txt"}
    open_run(uri, another, experiment="new").log_text("text", "own.txt")
    assert [file.name for file in (project / "mlartifacts").rglob("*.txt")] == ["own.txt"]


def test_the_copy_of_an_experiment_of_dvcs_has_the_store_of_its_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for copy in (".dvc/tmp/exps/standalone/tmp1a2b", ".dvc/tmp/exps/tmp1a2b"):
        (project / copy).mkdir(parents=True)
        monkeypatch.chdir(project / copy)
        assert tracking_uri(Path()) == tracking_uri(project) == f"sqlite:///{project}/mlflow.db"
        assert artifact_root(Path.cwd()) == project / "mlartifacts"
        with monkeypatch.context() as context:
            context.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
            assert tracking_uri(Path()) == f"sqlite:///{project}/own.db"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://host:5000/mlflow", "http://host:5000/mlflow"),
        ("http://me:secret@host:5000", "http://host:5000"),
        ("https://secret@host", "https://host"),
        (
            "postgresql+psycopg://me:se/c@r?et@host/db?sslmode=require",
            "postgresql+psycopg://host/db?sslmode=require",
        ),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret&x=1", "mssql+pyodbc:///?x=1"),
        ("sqlite:////a/folder/with@sign/mlflow.db", "sqlite:////a/folder/with@sign/mlflow.db"),
        ("databricks://profile", "databricks://profile"),
    ],
)
def test_credentials_are_in_no_address_that_is_written(
    uri: str, expected: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    store = Store(uri, meant_for=uri)
    noted = noted_address(uri, project)
    assert without_credentials(uri) == noted == store.address == store.meant_for == expected
    assert store.uri == uri, "the environment has them"
    if not uri.startswith("sqlite"):
        assert address_of_note(noted, project) == address_of_note(uri, project) == uri
    written = f"{store} {pickle.dumps(store)!r} {store.tags} {without_password(f'request to {uri} failed')}"
    assert "secret" not in written and "se/c" not in written
    old = Store.__new__(Store)
    old.__setstate__({"uri": uri, "meant_for": None})
    assert old == Store(uri)
