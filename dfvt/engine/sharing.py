"""What one process of a node builds, and the others of that node copy."""

from __future__ import annotations

import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from mmcv.runner import get_dist_info

Built = TypeVar("Built")
NOT_PICKLABLE = (pickle.PicklingError, AttributeError, TypeError)  # what Python raises for a local function


def build_once_a_node(build: Callable[[], Built], key: str) -> Built:
    """Builds an object in one process of each node; the others of the node read its pickle.

    The annotations of COCO take gigabytes while they are read, and a tenth of that afterwards: eight
    processes that read them at once need more memory than many nodes have. All processes of a job call it.

    Args:
        build: makes the object. It is called in other processes too where the object cannot be copied.
        key: what the object is made from. Processes with another key build their own object.

    Raises:
        Exception: what `build` raises, in every process of the node.
    """
    rank, world_size = get_dist_info()
    if world_size == 1:
        return build()
    keys = of_all((socket.gethostname(), key))
    first = keys.index(keys[rank])
    with tempfile.TemporaryDirectory(prefix="dfvt-") as folder:  # nobody else may enter it
        built: Built | None = None
        path: Path | None = None
        failure: Exception | None = None
        if rank == first:
            try:
                built = build()
                path = pickled(built, Path(folder, "built.pickle")) if keys.count(keys[rank]) > 1 else None
            except Exception as error:  # raised below: the others must not wait for this process
                failure = error
        path = of_all(path)[first]
        if failure:
            raise failure
        if rank != first:
            built = pickle.loads(path.read_bytes()) if path else build()
        dist.barrier()  # the folder goes once all have read
    return cast(Built, built)


def pickled(value: object, path: Path) -> Path | None:
    """The file with a value's pickle; None where it cannot be made, and everybody has to build."""
    try:
        with path.open("wb") as file:
            pickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)
    except (*NOT_PICKLABLE, OSError):  # a user's own class may hold what has no pickle, a disk may be full
        return None
    return path


def of_all(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
