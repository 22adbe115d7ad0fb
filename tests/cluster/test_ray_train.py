"""Trainings on a cluster: the one that RAY_ADDRESS names, with several workers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Project, copy_project

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return copy_project(tmp_path / "a project")


@pytest.fixture
def cluster(project: Project, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of one node, as `ray start` makes it; yields the environment that reaches it."""
    ray = str(Path(sys.executable).with_name("ray"))
    environment = project.environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)
    start = [ray, "start", "--head", "--port=0", "--include-dashboard=false", "--num-cpus=2", "--block"]
    log = (tmp_path / "ray.log").open("w")
    head = subprocess.Popen(start, cwd=project.path, env=environment, stdout=log, stderr=log)
    try:
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert head.poll() is None, (tmp_path / "ray.log").read_text()
            try:
                head.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        address = (tmp_path / "ray.log").read_text().split("Local node IP: ")[1].split()[0]
        yield {
            "RAY_ADDRESS": "auto",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "IP": address,
        }
    finally:
        head.terminate()
        head.wait(30)
        log.close()


def test_two_workers_train_on_the_given_cluster(project: Project, cluster: dict[str, str]) -> None:
    project.set_params(train__num_workers=2, train__batch_size=2)
    result = project.repro("train@tiny", **cluster)
    assert result.returncode == 0, result.stderr
    lines = (project.path / "runs/tiny/curve.csv").read_text().split()
    assert len(lines) == 1 + 12  # 2 epochs of 24 images, 2 in each of 2 workers
    assert json.loads((project.path / "runs/tiny/run.json").read_text())["tags"]["ray.job_id"] != "none"


def test_more_workers_than_gpus_is_one_sentence(project: Project) -> None:
    project.set_params(train__use_gpu=True)
    result = project.repro("train@tiny")
    assert result.returncode == 2
    assert "train.num_workers is 1 with train.use_gpu, but Ray has 0 GPUs" in result.stderr.splitlines()[-1]
