"""Sweeps on clusters of several nodes with made-up accelerators: where trials run, and what survives what."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from dfvt.cluster.interruption import start_trials_at_work
from tests.cluster.test_sweep import assert_each_trial_once, records, runs, write_spec
from tests.conftest import Project
from tests.servers import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
MANIFEST = "data/dataset/manifest.json"
OUTAGE_SECONDS = 60
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

    def add(self, num_accelerators: int, **environment: str) -> Any:
        return self.cluster.add_node(
            num_cpus=4,
            resources={"accelerator": num_accelerators},
            object_store_memory=OBJECT_STORE,
            env_vars=environment,
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
        output, _ = driver.communicate()
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
    while not happened():
        assert driver.poll() is None, nodes.log()
        time.sleep(0.2)


def nodes_of(project: Project, lr: float) -> list[str]:
    """The node of each worker of the trial with that learning rate."""
    (run,) = (run for run in runs(project) if float(run.data.params["lr"]) == lr)
    return str(run.data.tags["ray.nodes"]).split()


def states(project: Project) -> list[Path]:
    return list(project.path.glob(".dfvt/sweeps/nodes/trials/*/latest.pth"))


@pytest.mark.slow
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


def test_the_doctor_examines_every_node(
    nodes: Nodes, prepared: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, address = ("python", "-m", "dfvt", "doctor", "--cluster"), {"RAY_ADDRESS": nodes.cluster.address}
    healthy = prepared.run(*command, **address)
    assert healthy.returncode == 0, healthy.stderr
    assert healthy.stdout.count("reachable") == 1

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ill = nodes.cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=OBJECT_STORE)
    result = prepared.run(*command, **address)
    assert result.returncode == 1
    assert result.stdout.count("reachable") == 2
    (problem,) = result.stderr.splitlines()[-1:]
    assert f"{ill.node_id[:6]}: GPUs: Ray counts 1 here, torch can use none" in problem


@pytest.mark.slow
def test_a_trial_starts_smaller_when_it_may_and_each_node_copies_the_data_once(
    nodes: Nodes, prepared: Project, tmp_path: Path
) -> None:
    for _ in range(2):
        nodes.add(num_accelerators=1)
    root = prepared.path / str(json.loads((prepared.path / MANIFEST).read_text())["root"])
    source = Path(shutil.move(root, tmp_path / "storage"))
    text = SPEC.replace("1.0e-4, 1.0e-3", "1.0e-4") + "num_workers: 3\nmin_workers: 1\n"
    text += f"data_root: {tmp_path / 'node data'}\ndata_source: {source}\n"
    nodes.finish(nodes.start(write_spec(prepared, text)))
    assert_each_trial_once(prepared, "nodes", ["finished"])
    assert len(nodes_of(prepared, 1e-4)) == 2
    folder = prepared.path / ".dfvt/sweeps/nodes/trials/0001"
    log = (folder / "log.txt").read_text()
    assert "2 processes instead of 3: the global batch stays 12, 6 images a process in 2 parts" in log
    assert len((folder / "curve.csv").read_text().split()) == 1 + 24 // 12
    assert log.count("copies ") == 1


@pytest.mark.slow
def test_trials_wait_for_nodes_that_an_autoscaler_makes(nodes: Nodes, prepared: Project) -> None:
    text = SPEC.replace("1.0e-4, 1.0e-3", "1.0e-4")
    text += "autoscaling: true\nuse_gpu: false\nmax_concurrent_trials: 1\n"
    driver = nodes.start(write_spec(prepared, text))
    wait_until(lambda: bool(runs(prepared)), driver, nodes)  # the trial has begun, its worker fits nowhere
    nodes.add(num_accelerators=1)
    nodes.finish(driver)
    assert_each_trial_once(prepared, "nodes", ["finished"])


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


def test_whom_trials_ask_is_lost_with_no_node_but_the_drivers() -> None:
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=4, object_store_memory=OBJECT_STORE)
    try:
        ray.init(cluster.address, log_to_driver=False)
        actors = [start_trials_at_work() for _ in range(4)]
        asked = [
            actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()) for actor in actors
        ]
        assert set(ray.get(asked)) == {ray.get_runtime_context().get_node_id()}
    finally:
        ray.shutdown()
        cluster.shutdown()


def start_server(project: Project, port: int) -> subprocess.Popen[str]:
    """An MLflow server over the project's database; returns when it answers."""
    server = subprocess.Popen(
        [
            *(str(project.path / ".venv/bin/python"), "-m", "mlflow", "server", "--workers=1"),
            *("--host=127.0.0.1", f"--port={port}", "--backend-store-uri=sqlite:///mlflow.db"),
        ],
        cwd=project.path,
        env=project.environment(MLFLOW_DISABLE_TELEMETRY="true"),
        stdout=(project.path / "server.log").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return server
        except OSError:
            assert server.poll() is None, (project.path / "server.log").read_text()
            time.sleep(0.5)


def kill(server: subprocess.Popen[str]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.slow
def test_a_minute_without_the_tracking_server_loses_nothing(nodes: Nodes, prepared: Project) -> None:
    nodes.add(num_accelerators=2)
    port = free_port()
    server = start_server(prepared, port)
    try:
        uri = f"http://127.0.0.1:{port}"
        text = SPEC.replace("num_epochs: 1", "num_epochs: 3")
        driver = nodes.start(write_spec(prepared, text), MLFLOW_TRACKING_URI=uri)
        wait_until(lambda: len(states(prepared)) == 2, driver, nodes)
        kill(server)
        time.sleep(OUTAGE_SECONDS)
        server = start_server(prepared, port)
        nodes.finish(driver)
    finally:
        kill(server)
    assert_each_trial_once(prepared, "nodes", ["finished", "finished"])
    client = MlflowClient(tracking_uri=f"sqlite:///{prepared.path}/mlflow.db")
    for run in runs(prepared):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == list(range(1, 19))  # 3 epochs of 24 images, 4 at a time


@pytest.mark.slow
def test_a_trial_that_hangs_is_tried_again(nodes: Nodes, prepared: Project) -> None:
    nodes.add(num_accelerators=1)
    text = SPEC.replace("1.0e-4, 1.0e-3", "1.0e-4").replace("num_epochs: 1", "num_epochs: 3")
    driver = nodes.start(write_spec(prepared, text + "trial_seconds: 60\n"))
    wait_until(lambda: bool(states(prepared)), driver, nodes)
    workers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "TrainingWorker" in " ".join(process.info["cmdline"] or [])
    ]
    assert len(workers) == 1, workers
    workers[0].send_signal(signal.SIGSTOP)
    nodes.finish(driver)
    assert_each_trial_once(prepared, "nodes", ["finished"])
    assert "the training took longer than its 60 seconds" in nodes.log()
    assert not workers[0].is_running()
