"""`make ui`: MLflow's server for the runs of this project, on this machine alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

from dfvt.tracking.addresses import ARTIFACTS, SQLITE, STORE_FILE
from dfvt.tracking.artifacts import relocate_artifacts

HOST = "127.0.0.1"
START_SECONDS = 300  # on a busy machine


def serve(port: int, experiment: str) -> int:
    """Serve until the server ends or is told to; returns the exit code.

    Args:
        port: on 127.0.0.1.
        experiment: whose page is printed.

    Raises:
        ValueError: the port cannot be had, or the store is damaged.
    """
    if not is_free(port):
        raise ValueError(
            f"port {port} is in use or not allowed: choose another one, such as make ui PORT={another_port()}"
        )
    if Path(STORE_FILE).exists():
        relocate_artifacts(Path(STORE_FILE).absolute())  # the project may have been moved or copied
    server = start_server(port)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: server.send_signal(number))
    try:
        address = f"http://{HOST}:{port}"
        if wait_until_ready(server, address):
            page = experiment_page(address, experiment)
            print(f"ui: {page} shows the runs; Ctrl-C ends the server", file=sys.stderr, flush=True)
        code = server.wait()
    except KeyboardInterrupt:  # the server gets it too
        server.wait()
        return 130
    return code if code >= 0 else 128 - code


def is_free(port: int) -> bool:
    """Whether a server can listen on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def another_port() -> int:
    """Return a port that is free now."""
    return next((port for port in range(5001, 5100) if is_free(port)), 0)


def start_server(port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server as one process; its four workers and seven job consumers are for teams."""
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    store = ["--backend-store-uri", f"{SQLITE}{STORE_FILE}", "--artifacts-destination", ARTIFACTS]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen([*command, *store], env=environment | os.environ)


def wait_until_ready(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server answers; False if it ended or is too slow."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, HTTPException), urlopen(f"{address}/health", timeout=5):
            return True
        time.sleep(0.2)
    return False


def experiment_page(address: str, name: str) -> str:
    """Return the page with the runs of an experiment, or MLflow's first page without such an experiment."""
    query = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(name, safe='')}"
    try:
        with urlopen(query, timeout=30) as answer:
            experiment_id = json.load(answer)["experiment"]["experiment_id"]
    except (HTTPError, OSError, HTTPException):
        return address
    # Without the parameter MLflow opens with its pages for language models.
    return f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
