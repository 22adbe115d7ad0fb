"""Trainings on a cluster: the one that RAY_ADDRESS names, with several workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Project

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@pytest.fixture
def cluster(prepared: Project, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of one node, as `ray start` makes it; yields the environment that reaches it."""
    ray = str(prepared.path / ".venv/bin/ray")
    environment = prepared.environment(**TOKEN)
    start = [ray, "start", "--head", "--port=0", "--include-dashboard=false", "--num-cpus=2", "--block"]
    log = (tmp_path / "ray.log").open("w")
    head = subprocess.Popen(
        start, cwd=prepared.path, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert head.poll() is None, (tmp_path / "ray.log").read_text()
            try:
                head.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        address = re.search(r"--address='([^']+)'", (tmp_path / "ray.log").read_text())
        assert address
        yield {"RAY_ADDRESS": address[1], **TOKEN}
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # asked to stop after a training, it took more than 30 s
        head.wait()
        log.close()


def test_two_workers_train_on_the_given_cluster(prepared: Project, cluster: dict[str, str]) -> None:
    prepared.set_params(train__num_workers=2, train__batch_size=2)
    result = prepared.repro("train@tiny", **cluster)
    assert result.returncode == 0, result.stderr
    lines = (prepared.path / "runs/tiny/curve.csv").read_text().split()
    assert len(lines) == 1 + 12  # 2 epochs of 24 images, 2 in each of 2 workers
    assert json.loads((prepared.path / "runs/tiny/run.json").read_text())["tags"]["ray.job_id"] != "none"


def test_more_workers_than_gpus_is_one_sentence(prepared: Project) -> None:
    prepared.set_params(train__use_gpu=True)
    result = prepared.repro("train@tiny")
    assert result.returncode == 2
    assert "train.num_workers is 1 with train.use_gpu, but Ray has 0 GPUs" in result.stderr.splitlines()[-1]
