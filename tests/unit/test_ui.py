"""`make ui` serves MLflow, says where the runs are, and leaves the machine to a training."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock
from urllib.request import urlopen

import psutil
import pytest
from mlflow import MlflowClient

from dfvt.tracking import server
from dfvt.tracking.addresses import artifact_root, tracking_uri
from dfvt.tracking.mlflow import RunRecorder

ROOT = Path(__file__).parents[2]


def start_ui(folder: Path, port: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "ui", "--port", port],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("profile: mini\ntracking: {experiment: team/shelves}\n")
    return tmp_path


def test_a_busy_port_is_a_sentence_that_names_another(project: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = start_ui(project, str(other.getsockname()[1]))
        _, stderr = process.communicate()
    assert process.returncode == 2
    assert re.fullmatch(
        r"ui: port \d+ is in use .*: choose another one, such as make ui PORT=50\d\d\n", stderr
    )


def test_it_is_one_server_process_and_names_the_page_of_the_runs(project: Path) -> None:
    experiment = MlflowClient(f"sqlite:///{project}/mlflow.db").create_experiment("team/shelves")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start_ui(project, str(port))
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if line.startswith("ui: "))
        address = f"http://127.0.0.1:{port}"
        assert line.startswith(
            f"ui: {address}/#/experiments/{experiment}/runs?workflowType=machine_learning "
        )
        with urlopen(address) as page:
            assert b"MLflow" in page.read()
        # MLflow's command, and the server that it starts
        assert len(psutil.Process(process.pid).children(recursive=True)) <= 2
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_pages_of_a_moved_project_show_its_artifacts(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RunRecorder.open(
        tracking_uri(project), "e", artifact_root=artifact_root(project), run_name="r", tags={}, params={}
    )
    recorder.log_text("text", "note.txt")
    place = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(project, place)
    monkeypatch.chdir(place)
    monkeypatch.setattr(server, "start_server", lambda port: Mock(wait=lambda: 0, poll=lambda: 0))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert server.serve(server.another_port(), "e") == 0
    with closing(sqlite3.connect("mlflow.db")) as connection:
        (address,) = connection.execute("SELECT artifact_uri FROM runs").fetchone()
    assert address == (place / "mlartifacts" / recorder.run_id / "artifacts").as_uri()
