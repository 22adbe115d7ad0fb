"""Sweeps on clusters of several nodes with made-up accelerators: where trials run, and what survives what."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.cluster.test_sweep import assert_each_trial_once, records, runs, write_spec
from tests.conftest import Project

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
OBJECT_STORE = 80 * 2**20
SPEC = """
name: nodes
algorithm: grid
resources_per_worker: {accelerator: 1}
num_epochs: 1
batch_size: 4
cfg_options: {log_config.interval: 1, checkpoint_config.interval: 1, checkpoint_config.by_epoch: false}
space:
  lr: {grid: [1.0e-4, 1.0e-3]}
"""


class Nodes:
    """A cluster that grows and shrinks; its nodes know the copy of the project alone."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": OBJECT_STORE},
        )

    def add(self, num_accelerators: int) -> Any:
        return self.cluster.add_node(
            num_cpus=4, resources={"accelerator": num_accelerators}, object_store_memory=OBJECT_STORE
        )

    def start(self, spec: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a sweep, as a driver of the cluster."""
        return subprocess.Popen(
            [str(self.project.path / ".venv/bin/python"), "-m", "dfvt", "sweep", spec],
            cwd=self.project.path,
            env=self.project.environment(RAY_ADDRESS=self.cluster.address, **environment),
            stdout=subprocess.PIPE,
            stderr=(self.project.path / "sweep.log").open("a"),
            text=True,
        )

    def finish(self, driver: subprocess.Popen[str]) -> str:
        output, _ = driver.communicate(timeout=500)
        assert driver.returncode == 0, self.log()
        return output

    def log(self) -> str:
        return (self.project.path / "sweep.log").read_text()


@pytest.fixture
def nodes(prepared: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for name, value in prepared.environment().items():
        monkeypatch.setenv(name, value)  # the nodes' processes have this process's
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):  # made-up accelerators are visible
        monkeypatch.delenv(name, raising=False)
    nodes = Nodes(prepared)
    yield nodes
    nodes.cluster.shutdown()


def wait_until(happened: Callable[[], bool], driver: subprocess.Popen[str], nodes: Nodes) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert driver.poll() is None and time.monotonic() < deadline, nodes.log()
        time.sleep(0.2)


def nodes_of(project: Project, lr: float) -> list[str]:
    """The node of each worker of the trial with that learning rate."""
    (run,) = (run for run in runs(project) if float(run.data.params["lr"]) == lr)
    return str(run.data.tags["ray.nodes"]).split()


def states(project: Project) -> list[Path]:
    return list(project.path.glob(".dfvt/sweeps/nodes/trials/*/latest.pth"))


def test_trials_are_packed_on_nodes_and_span_two_when_they_must(nodes: Nodes, prepared: Project) -> None:
    for _ in range(2):
        nodes.add(num_accelerators=2)
    text = SPEC.replace("1.0e-4, 1.0e-3", "1.0e-4") + "num_workers: 2\n"
    nodes.finish(nodes.start(write_spec(prepared, text)))
    assert_each_trial_once(prepared, "nodes", ["finished"])
    assert len(set(nodes_of(prepared, 1e-4))) == 1

    text = SPEC.replace("1.0e-4, 1.0e-3", "2.0e-4").replace("name: nodes", "name: wide")
    nodes.finish(nodes.start(write_spec(prepared, text + "num_workers: 3\n")))
    assert [record["status"] for record in records(prepared, "wide")] == ["finished"]
    assert sorted(map(nodes_of(prepared, 2e-4).count, set(nodes_of(prepared, 2e-4)))) == [1, 2]


@pytest.mark.slow
def test_the_trial_of_a_lost_node_moves_to_another(nodes: Nodes, prepared: Project) -> None:
    handles = {node.node_id: node for node in (nodes.add(num_accelerators=1), nodes.add(num_accelerators=1))}
    text = SPEC.replace("num_epochs: 1", "num_epochs: 4")
    driver = nodes.start(write_spec(prepared, text))
    wait_until(lambda: len(states(prepared)) == 2, driver, nodes)
    (lost,) = nodes_of(prepared, 1e-4)
    nodes.cluster.remove_node(handles[lost], allow_graceful=False)
    nodes.finish(driver)
    assert_each_trial_once(prepared, "nodes", ["finished", "finished"])
    (moved,) = nodes_of(prepared, 1e-4)
    assert moved in handles and moved != lost


@pytest.mark.slow
def test_a_trial_that_hangs_is_tried_again(nodes: Nodes, prepared: Project) -> None:
    nodes.add(num_accelerators=1)
    text = SPEC.replace("1.0e-4, 1.0e-3", "1.0e-4").replace("num_epochs: 1", "num_epochs: 3")
    driver = nodes.start(write_spec(prepared, text + "trial_seconds: 60\n"))
    wait_until(lambda: bool(states(prepared)), driver, nodes)
    workers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
    ]
    assert len(workers) == 1, workers
    workers[0].send_signal(signal.SIGSTOP)
    nodes.finish(driver)
    assert_each_trial_once(prepared, "nodes", ["finished"])
    assert "the training took longer than its 60 seconds" in nodes.log()
    assert not workers[0].is_running()
