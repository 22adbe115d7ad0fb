"""What a run began with, kept with it: packages, uncommitted changes, dvc.lock and the data set."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

from dfvt.tracking.lineage import git_diff

if TYPE_CHECKING:  # processes of trials start without MLflow
    from dfvt.tracking.mlflow import RunRecorder

FOLDER = "origin"
NAMED = ("torch", "torchvision", "mmcv-full", "mmdet", "ray", "mlflow")


@dataclass(frozen=True)
class Origin:
    """Texts of a project and its environment; those that do not exist are None.

    Attributes:
        packages: name==version of everything that is installed, a line each.
        diff: what differs from the commit.
        dvc_lock: the file.
        tags: the versions that numbers depend on most.
    """

    packages: str
    diff: str | None
    dvc_lock: str | None
    tags: dict[str, str]


@dataclass(frozen=True)
class TrainingData:
    """A data set as a run's input: its hash says what is in it, `source` where it was."""

    name: str
    data_hash: str
    source: Path
    num_images: int
    classes: tuple[str, ...]


def collect_origin(project: Path) -> Origin:
    """What runs of the project in a folder begin with."""
    installed = {item.metadata["Name"]: item.version for item in distributions() if item.metadata["Name"]}
    tags = {"env.python": platform.python_version()}
    for name in NAMED:
        with suppress(PackageNotFoundError):
            tags[f"env.{name}"] = version(name)
    lock = project / "dvc.lock"
    return Origin(
        packages="".join(f"{name}=={installed[name]}\n" for name in sorted(installed, key=str.lower)),
        diff=git_diff(project),
        dvc_lock=lock.read_text(encoding="utf-8") if lock.is_file() else None,
        tags=tags,
    )


def record_origin(recorder: RunRecorder, origin: Origin, data: TrainingData) -> None:
    """Keep with a run what it began with. Raises ConnectionError as `RunRecorder.log_curve` does."""
    recorder.set_tags(origin.tags)
    for name, text in (
        ("packages.txt", origin.packages),
        ("uncommitted.diff", origin.diff),
        ("dvc.lock", origin.dvc_lock),
    ):
        if text:
            recorder.log_text(text, f"{FOLDER}/{name}")
    recorder.log_dataset(
        data.name,
        data.data_hash,
        data.source,
        profile=json.dumps({"num_train_images": data.num_images, "num_classes": len(data.classes)}),
        schema=json.dumps({"classes": data.classes}),
    )
