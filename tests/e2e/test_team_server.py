"""MLflow as a team has it: PostgreSQL below, passwords before it, eight writers at once."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dfvt.tracking.mlflow import RunRecorder
from tests.servers import free_port

BINARIES = next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None) or shutil.which("initdb")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BINARIES, reason="PostgreSQL is not installed (Debian: apt-get install postgresql)"
    ),
]
NUM_WRITERS, NUM_STEPS = 8, 300


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database that asks for a password."""
    assert BINARIES
    folder, port, password = Path(tempfile.mkdtemp()), free_port(), secrets.token_hex(8)
    binaries = Path(BINARIES).parent
    user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)
    data, log = str(folder / "data"), str(folder / "log")

    def run(name: str, *arguments: str) -> None:
        environment = {**os.environ, "PGPASSWORD": password}
        subprocess.run([*user, str(binaries / name), *arguments], check=True, env=environment, cwd="/")

    try:
        run("initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        run("pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
            yield f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{port}/mlflow"
        finally:
            run("pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's server with authentication; the administrator's password is `secret-enough`."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    environment = {
        **os.environ,
        "MLFLOW_AUTH_ADMIN_PASSWORD": "secret-enough",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "2"]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[
                -3000:
            ]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def signed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret-enough")


def open_run(server: str, folder: Path, number: int) -> RunRecorder:
    return RunRecorder.open(
        server,
        "team",
        artifact_root=folder,
        run_name=f"{number}",
        tags={"writer": f"{number}"},
        params={"lr": number},
    )


@pytest.mark.usefixtures("signed_in")
def test_eight_writers_at_once_lose_and_double_nothing(server: str, tmp_path: Path) -> None:
    def write(number: int) -> str:
        recorder = open_run(server, tmp_path, number)
        for first in range(0, NUM_STEPS, 30):
            recorder.log_curve(
                [(step, {"train/loss": number + step, "train/lr": 0.1}) for step in range(first, first + 30)]
            )
        recorder.log_text("the config", "config.py")
        recorder.finish()
        return recorder.run_id

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        runs = list(pool.map(write, range(NUM_WRITERS)))
    client = MlflowClient(server)
    for number, run_id in enumerate(runs):
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["writer"] == run.data.params["lr"] == str(number)
        history = client.get_metric_history(run_id, "train/loss")
        assert [(point.step, point.value) for point in history] == [
            (step, float(number + step)) for step in range(NUM_STEPS)
        ]
        assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["config.py"]
    assert len(client.search_experiments(filter_string="name = 'team'")) == 1


def test_without_a_password_the_store_refuses_in_a_sentence(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a wrong one")
    with pytest.raises(ValueError, match="refuses") as refused:
        open_run(server, tmp_path, 0)
    assert "\n" not in str(refused.value)
    assert "MLFLOW_TRACKING_USERNAME" in str(refused.value)
