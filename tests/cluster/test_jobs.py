"""A sweep as a job: a cluster with token authentication, `ray job submit` and `dfvt sweep --submit`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.test_sweep import assert_each_trial_once, runs, write_spec
from tests.conftest import Project
from tests.servers import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
MAX_UPLOAD_BYTES = 5_000_000
SPEC = """
name: job
algorithm: grid
num_epochs: 1
batch_size: 4
cfg_options: {log_config.interval: 1}
space:
  lr: {grid: [1.0e-4]}
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """What Ray unpacks and logs; the paths of sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        yield Path(folder)


@pytest.fixture
def cluster(prepared: Project, ray_folder: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head with its job server on loopback; yields the environment that reaches it."""
    # The environment's own path: Ray does not quote one with spaces when it starts a job.
    environment = prepared.environment(**TOKEN, RAY_USAGE_STATS_ENABLED="0")
    environment["PATH"] = os.pathsep.join([f"{sys.prefix}/bin", environment["PATH"]])
    del environment["PYTHONPATH"]  # a job runs the code that was uploaded
    port = free_port()
    start = ["ray", "start", "--head", "--port=0", "--num-cpus=2", "--block", f"--temp-dir={ray_folder}"]
    start += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    log = tmp_path / "ray.log"
    with log.open("w") as stream:
        head = subprocess.Popen(
            start, cwd=tmp_path, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            time.sleep(0.2)
        yield {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}", **TOKEN}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def test_a_sweep_runs_as_a_job(prepared: Project, cluster: dict[str, str], ray_folder: Path) -> None:
    prepared.commit("prepared")
    spec = write_spec(prepared, SPEC)
    commit = prepared.run("git", "rev-parse", "HEAD").stdout.strip()

    refused = prepared.run(
        *("python", "-m", "dfvt", "sweep", spec, "--submit"),
        RAY_API_SERVER_ADDRESS=cluster["RAY_API_SERVER_ADDRESS"],
    )
    assert refused.returncode == 2, refused.stderr
    assert "it wants a token" in refused.stderr.splitlines()[-1]

    job = prepared.run("python", "-m", "dfvt", "sweep", spec, "--submit", **cluster)
    assert job.returncode == 0, job.stderr
    name = re.search(r"submitted as (\S+);", job.stdout)
    assert name
    log = prepared.run("ray", "job", "logs", name[1], "--follow", **cluster)
    assert "| finished | 1/1 |" in log.stdout, log.stdout + log.stderr
    assert_each_trial_once(prepared, "job", ["finished"])
    (run,) = runs(prepared)
    assert run.data.tags["git.commit"] == commit

    again = prepared.run(
        *("ray", "job", "submit", "--working-dir", ".", "--runtime-env-json"),
        json.dumps({"env_vars": {"DFVT_HOME": str(prepared.path)}}),
        *("--", "python", "-m", "pipelines.sweep", spec),
        **cluster,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "| finished | 1/1 |" in again.stdout
    assert_each_trial_once(prepared, "job", ["finished"])

    uploads = list(ray_folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert uploads
    for folder in uploads:
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        assert sum(sizes) < MAX_UPLOAD_BYTES
        assert (folder / "dfvt/cluster/sweep.py").is_file() and not (folder / "data/dataset").exists()


def test_a_cluster_that_is_not_there_is_one_sentence(prepared: Project) -> None:
    spec = write_spec(prepared, SPEC)
    address = f"http://127.0.0.1:{free_port()}"
    result = prepared.run("python", "-m", "dfvt", "sweep", spec, "--submit", RAY_API_SERVER_ADDRESS=address)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "start the cluster, or set RAY_API_SERVER_ADDRESS" in line
