"""A sweep whose nodes share nothing but an S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfvt.data.storage import StorageFolder
from tests.cluster.test_nodes import SPEC, Nodes, nodes, wait_until  # noqa: F401  (nodes is a fixture)
from tests.cluster.test_sweep import runs, write_spec
from tests.conftest import Project
from tests.servers import s3_server

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]


@pytest.fixture
def storage() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch) as address:
        yield address


def folder_of(tmp_path: Path, name: str) -> str:
    """A folder for temporary files of a machine of its own."""
    (tmp_path / name).mkdir()
    return str(tmp_path / name)


@pytest.mark.slow
def test_a_sweep_outlives_its_node_and_its_driver(
    storage: str,
    nodes: Nodes,  # noqa: F811
    prepared: Project,
    tmp_path: Path,
) -> None:
    spec = write_spec(prepared, SPEC.replace("1.0e-4, 1.0e-3", "1.0e-4") + f"storage: '{storage}'\n")
    sweep = StorageFolder(storage) / "nodes"
    trial = sweep / "trials/0001"
    first = nodes.add(1, TMPDIR=folder_of(tmp_path, "first"))
    driver = nodes.start(spec, TMPDIR=folder_of(tmp_path, "driver"))
    wait_until(lambda: trial.info("latest.pth") is not None, driver, nodes)
    driver.kill()
    driver.wait()
    nodes.cluster.remove_node(first)

    status = prepared.run("python", "-m", "dfvt", "sweep", "status", str(sweep))
    assert status.returncode == 0 and "1 trials" in status.stderr, status.stderr
    nodes.add(1, TMPDIR=folder_of(tmp_path, "second"))
    nodes.finish(nodes.start(spec, TMPDIR=folder_of(tmp_path, "other driver")))
    assert "still does" in nodes.log(), "nobody compares clocks"

    record = json.loads(trial.read("trial.json") or b"")
    assert record["status"] == "finished" and record["epoch"] == 1
    assert b"continues after step" in (trial.read("log.txt") or b"")
    assert {"checkpoint.pth", "config.py", "curve.csv", "val.csv"} <= set(trial.files())
    (run,) = runs(prepared)
    assert run.info.run_id == record["mlflow_run_id"] and run.info.status == "FINISHED"
    results = prepared.run("python", "-m", "dfvt", "sweep", "results", str(sweep))
    assert results.returncode == 0 and "| finished |" in results.stdout, results.stdout
    assert not list((prepared.path / ".dfvt/sweeps").glob("*/trials")), "nothing relied on a shared folder"
    assert not list((tmp_path / "second").rglob("latest.pth"))


@pytest.mark.slow
def test_a_population_hands_states_on_between_nodes_that_share_nothing(
    storage: str,
    nodes: Nodes,  # noqa: F811
    prepared: Project,
    tmp_path: Path,
) -> None:
    text = SPEC.replace("name: nodes", "name: population").replace("num_epochs: 1", "num_epochs: 2")
    text = text.replace("grid\n", "random\nnum_samples: 2\n")
    text = text.replace("grid: [1.0e-4, 1.0e-3]", "loguniform: [1.0e-5, 1.0e-2]")
    text = text.replace("log_config.interval: 1", "log_config.interval: 1, evaluation.interval: 1")
    text += f"scheduler: pbt\nscheduler_options: {{perturbation_interval: 1}}\nstorage: '{storage}'\n"
    for name in ("first", "second"):
        nodes.add(1, TMPDIR=folder_of(tmp_path, name))
    nodes.finish(nodes.start(write_spec(prepared, text), TMPDIR=folder_of(tmp_path, "driver")))

    results = prepared.run(
        "python", "-m", "dfvt", "sweep", "results", str(StorageFolder(storage) / "population")
    )
    assert results.stdout.count("| finished | 2/2 |") == 2, results.stdout
    assert [run.info.status for run in runs(prepared)] == ["FINISHED"] * 2
    assert sum("dfvt.taken_over.1" in run.data.tags for run in runs(prepared)) == 1, nodes.log()
