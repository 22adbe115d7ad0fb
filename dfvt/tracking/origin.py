"""What a run began with, kept with it: packages, uncommitted changes, dvc.lock and the data set.

Uncommitted changes may hold secrets. They are copied into a store that is a file in the project. To another
store only the names of the changed files go, and the hash of the changes, unless the user wants more.
"""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfvt.tracking.addresses import is_inside
from dfvt.tracking.lineage import git_changes, git_diff

if TYPE_CHECKING:  # processes of trials start without MLflow
    from dfvt.tracking.mlflow import RunRecorder
    from dfvt.tracking.store import Store

FOLDER = "origin"
KEPT = "env.python"  # a tag of each run that has its origin
NAMED = ("torch", "torchvision", "mmcv-full", "mmdet", "ray", "mlflow")


@dataclass(frozen=True)
class Origin:
    """Files of a project and its environment; those that do not exist, or stay here, are None.

    Attributes:
        packages: name==version of everything that is installed, a line each.
        changes: the names of the files that differ from the commit, a line each.
        diff: how they differ.
        dvc_lock: the file.
        tags: the versions that numbers depend on most, and the sha256 of the diff.
    """

    packages: str
    changes: str | None
    diff: bytes | None
    dvc_lock: bytes | None
    tags: dict[str, str]


@dataclass(frozen=True)
class TrainingData:
    """A data set as a run's input: its hash says what is in it, `source` where it was."""

    name: str
    data_hash: str
    source: Path
    num_images: int
    classes: tuple[str, ...]


def keeps_changes(upload_changes: bool | Literal["auto"], store: Store, project: Path) -> bool:
    """Tell whether the uncommitted changes of a project are copied into a store.

    Args:
        upload_changes: `tracking.upload_changes` of params.yaml; `auto` allows it for a store in the project
            whose runs stay there.
        store: where the run is filed.
        project: the folder of the project.
    """
    if upload_changes == "auto":
        return store.meant_for is None and is_inside(store.uri, project)
    return upload_changes


def collect_origin(project: Path, *, with_diff: bool) -> Origin:
    """Return what runs of the project in a folder begin with; see `keeps_changes` for `with_diff`."""
    installed = {item.metadata["Name"]: item.version for item in distributions() if item.metadata["Name"]}
    tags = {KEPT: platform.python_version()}
    for name in NAMED:
        with suppress(PackageNotFoundError):
            tags[f"env.{name}"] = version(name)
    lock = project / "dvc.lock"
    diff = git_diff(project)
    if diff:
        tags["git.diff"] = hashlib.sha256(diff).hexdigest()
    return Origin(
        packages="".join(f"{name}=={installed[name]}\n" for name in sorted(installed, key=str.lower)),
        changes=git_changes(project) if diff else None,
        diff=diff if with_diff else None,
        dvc_lock=lock.read_bytes() if lock.is_file() else None,
        tags=tags,
    )


def record_origin(recorder: RunRecorder, origin: Origin, data: TrainingData) -> None:
    """Keep with a run what it began with. Raises as `RunRecorder.log_curve` does."""
    for name, content in (
        ("packages.txt", origin.packages.encode()),
        ("changed_files.txt", origin.changes and origin.changes.encode()),
        ("uncommitted.diff", origin.diff),
        ("dvc.lock", origin.dvc_lock),
    ):
        if content:
            recorder.log_bytes(content, f"{FOLDER}/{name}")
    recorder.log_dataset(
        data.name,
        data.data_hash,
        data.source,
        profile=json.dumps({"num_train_images": data.num_images, "num_classes": len(data.classes)}),
        schema=json.dumps({"classes": data.classes}),
    )
    recorder.set_tags(origin.tags)  # the last, so that what was interrupted is kept again
