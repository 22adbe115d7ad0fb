"""Whether this machine, or each node of a cluster, has what a training needs."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dfvt.cluster.records import DATASET_MANIFEST
from dfvt.cluster.session import ray_folder
from dfvt.data.manifest import DatasetManifest
from dfvt.tracking.reachable import require_reachable

if TYPE_CHECKING:
    from dfvt.cluster.nodes import Node

SHARED_MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = {"free disk": 5 * 10**9, "/dev/shm": 10**9}  # states and curves; batches of loader processes


@dataclass(frozen=True)
class Expectation:
    """What every node is compared with.

    Attributes:
        versions: of Python and of packages on the machine that asks.
        num_gpus: that Ray believes the node to have.
        dataset: what was prepared, if anything was.
        tracking_uri: where runs go.
    """

    versions: dict[str, str]
    num_gpus: int
    dataset: DatasetManifest | None
    tracking_uri: str


@dataclass(frozen=True)
class Check:
    """What was found, and in one sentence what would fail because of it."""

    name: str
    found: str
    problem: str | None = None


@dataclass(frozen=True)
class NodeReport:
    """All checks of a node."""

    node: str
    checks: tuple[Check, ...]

    @property
    def problems(self) -> list[str]:
        return [f"{self.node}: {check.name}: {check.problem}" for check in self.checks if check.problem]


def versions_here() -> dict[str, str]:
    """Versions that all processes of a training must share."""
    packages = ("torch", "mmcv-full", "mmdet", "ray", "mlflow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def examine_cluster(dataset: DatasetManifest | None, tracking_uri: str) -> list[NodeReport]:
    """The report of each node of the connected cluster, from a task on it."""
    from dfvt.cluster.nodes import Unanswered, on_each_node  # imports Ray, which this machine alone needs not

    answers = on_each_node(examine_node, Expectation(versions_here(), 0, dataset, tracking_uri))
    return [
        unanswered(node.name, answer.reason) if isinstance(answer, Unanswered) else answer
        for node, answer in answers.items()
    ]


def examine_node(node: Node, expected: Expectation) -> NodeReport:
    """The report of the node that this task runs on."""
    return examine(replace(expected, num_gpus=node.num_gpus), node.name)


def unanswered(name: str, reason: str) -> NodeReport:
    """The report of a node that gave none."""
    return NodeReport(name, (Check("answer", "none", f"tasks do not run there ({reason})"),))


def examine(expected: Expectation, node: str, *, starts_ray: bool = False) -> NodeReport:
    """The report of the machine that this process runs on, under the name `node`.

    Args:
        expected: what the machine is compared with.
        node: the name of the machine in the report.
        starts_ray: whether a training here starts a Ray of its own, not one of a cluster's nodes.
    """
    probes: dict[str, Callable[[Expectation], tuple[str, str | None]]] = {
        "versions": probe_versions,
        "GPUs": probe_gpus,
        "mmcv ops": probe_ops,
        "free disk": lambda _: probe_space("free disk", Path(tempfile.gettempdir())),
        "/dev/shm": lambda _: probe_space("/dev/shm", SHARED_MEMORY),
        **({"sockets": probe_sockets} if starts_ray else {}),
        "data": probe_data,
        "MLflow": probe_tracking,
    }
    checks = []
    for name, probe in probes.items():
        try:
            found, problem = probe(expected)
        except Exception as error:  # whatever breaks here breaks a training: it is the report
            found, problem = "broken", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        checks.append(Check(name, found, problem))
    return NodeReport(node, tuple(checks))


def probe_versions(expected: Expectation) -> tuple[str, str | None]:
    here = versions_here()
    different = [
        f"{name} is {here[name]}, {version} where the sweep starts"
        for name, version in expected.versions.items()
        if here[name] != version
    ]
    found = f"python {here['python']}, torch {here['torch']}"
    return found, ("; ".join(different) + ": install the same" if different else None)


def probe_gpus(expected: Expectation) -> tuple[str, str | None]:
    import torch

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not usable:
        problem = f"Ray counts {expected.num_gpus} here, torch can use none: install a driver for it"
        return "none", problem if expected.num_gpus else None
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return f"{usable} {torch.cuda.get_device_name(0)}, nccl {nccl}", None


def probe_ops(_: Expectation) -> tuple[str, str | None]:
    import torch
    from mmcv.ops import nms

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0]], device=device)
        kept = nms(boxes, torch.tensor([0.5, 0.9], device=device), 0.5)[1]
        if kept.tolist() != [1]:
            return device, f"NMS on {device} gives a wrong result: compile mmcv-full there with make setup"
    return " ".join(devices), None


def probe_space(name: str, folder: Path) -> tuple[str, str | None]:
    free, wanted = shutil.disk_usage(folder).free, MIN_FREE_BYTES[name]
    problem = f"{free / 1e9:.1f} GB are free in {folder}, trainings need {wanted / 1e9:.0f} GB"
    return f"{free / 1e9:.1f} GB", problem if free < wanted else None


def probe_sockets(_: Expectation) -> tuple[str, str | None]:
    try:
        folder = ray_folder()
    except ValueError as error:
        return "path too long", str(error)
    return f"in {folder}" if folder else "fit", None


def probe_data(expected: Expectation) -> tuple[str, str | None]:
    if expected.dataset is None:
        return "not prepared", None
    missing = [
        path
        for path in (
            expected.dataset.train_annotations_path,
            expected.dataset.train_images_path,
            expected.dataset.val_annotations_path,
            expected.dataset.val_images_path,
        )
        if not path.exists()
    ]
    if missing:
        return "missing", f"{missing[0]} does not exist there: share it, or name a data_source in the sweep"
    return expected.dataset.data_hash[:12], None


def probe_tracking(expected: Expectation) -> tuple[str, str | None]:
    try:
        require_reachable(expected.tracking_uri)
    except ValueError as error:
        return "unreachable", str(error)
    return "reachable", None


def examine_here(home: Path, tracking_uri: str) -> NodeReport:
    """The report of this machine."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    num_gpus = 0 if hidden else len(list(Path("/dev").glob("nvidia[0-9]*")))
    return examine(
        Expectation(versions_here(), num_gpus, dataset_of(home), tracking_uri),
        socket.gethostname(),
        starts_ray=not os.environ.get("RAY_ADDRESS"),
    )


def dataset_of(home: Path) -> DatasetManifest | None:
    """The data set that was prepared in a project, if any was; its root is absolute."""
    file = home / DATASET_MANIFEST
    if not file.is_file():
        return None
    manifest = DatasetManifest.load(file)
    return manifest.model_copy(update={"root": (home / manifest.root).absolute()})
