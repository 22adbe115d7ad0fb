"""The doctor names what would fail, and nothing else."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dfvt.cluster import doctor
from dfvt.cluster.doctor import Expectation, examine, versions_here
from dfvt.data.manifest import DatasetManifest


@pytest.fixture
def healthy(shapes: DatasetManifest, tmp_path: Path) -> Expectation:
    return Expectation(versions_here(), 0, shapes, f"sqlite:///{tmp_path}/mlflow.db")


def test_a_healthy_node_has_no_problems(healthy: Expectation) -> None:
    report = examine(healthy, "here")
    assert report.problems == []
    found = {check.name: check.found for check in report.checks}
    assert found["mmcv ops"].startswith("cpu")
    assert found["data"] == healthy.dataset.data_hash[:12]  # type: ignore[union-attr]
    assert found["MLflow"] == "reachable"


def test_each_lack_is_named(
    healthy: Expectation, shapes: DatasetManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(doctor.MIN_FREE_BYTES, "/dev/shm", shutil.disk_usage("/dev/shm").total + 1)
    ill = replace(
        healthy,
        versions={**healthy.versions, "torch": "1.7.0"},
        num_gpus=2,
        dataset=shapes.model_copy(update={"root": tmp_path / "elsewhere"}),
        tracking_uri="http://127.0.0.1:1",
    )
    report = examine(ill, "node 7")
    assert [check.name for check in report.checks if check.problem] == [
        "versions", "GPUs", "/dev/shm", "data", "MLflow"
    ]  # fmt: skip
    assert all(problem.startswith("node 7: ") and "\n" not in problem for problem in report.problems)
    versions, gpus, *_ = report.problems
    assert "torch is" in versions and "1.7.0 where the sweep starts" in versions
    assert "Ray counts 2 here, torch can use none" in gpus


def test_a_temporary_folder_whose_path_is_too_long_for_sockets_is_named(
    healthy: Expectation, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = examine(healthy, "here", starts_ray=True)
    assert report.problems == [] and "sockets" in [check.name for check in report.checks]
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 90)
    monkeypatch.setattr(doctor, "probe_space", lambda name, folder: ("enough", None))
    (problem,) = examine(healthy, "here", starts_ray=True).problems
    assert problem.startswith("here: sockets: ") and "set TMPDIR to a folder" in problem


def test_a_probe_that_breaks_is_a_problem(healthy: Expectation, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Expectation) -> tuple[str, str | None]:
        raise ImportError("libcudart.so.12: cannot open shared object file\nsecond line")

    monkeypatch.setattr(doctor, "probe_ops", broken)
    (problem,) = examine(healthy, "here").problems
    assert problem == "here: mmcv ops: ImportError: libcudart.so.12: cannot open shared object file"
