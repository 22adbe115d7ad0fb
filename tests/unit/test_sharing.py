"""One process of a node builds, the others copy; nobody waits for one that failed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dfvt.engine.launch import launch
from dfvt.engine.sharing import build_once_a_node

pytestmark = pytest.mark.usefixtures("forked_processes")
CPU = torch.device("cpu")


def share(device: torch.device, folder: Path) -> None:
    """Shares objects of each kind; writes what this process got, and what it built."""
    rank, built, got = dist.get_rank(), [], {}

    def build(value: Any) -> Any:
        built.append(type(value).__name__)
        return value

    got["plain"] = build_once_a_node(lambda: build({"made by": rank}), key="same")
    got["own"] = build_once_a_node(lambda: build([rank]), key=str(rank == 2))
    got["lock"] = type(build_once_a_node(lambda: build(threading.Lock()), key="same")).__name__
    (folder / f"{rank}.json").write_text(json.dumps({"got": got, "built": built}))


def refuse(device: torch.device) -> None:
    def build() -> None:
        raise ValueError(f"the annotations are damaged, says process {dist.get_rank()}")

    build_once_a_node(build, key="same")


def test_one_process_of_those_with_the_same_key_builds(tmp_path: Path) -> None:
    launch(share, [CPU] * 3, tmp_path)
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [one["got"]["plain"] for one in said] == [{"made by": 0}] * 3
    assert [one["got"]["own"] for one in said] == [[0], [0], [2]]
    assert [one["built"] for one in said] == [["dict", "list", "lock"], ["lock"], ["list", "lock"]]


def test_what_cannot_be_built_is_everybodys_error() -> None:
    with pytest.raises(ValueError, match="the annotations are damaged, says process"):
        launch(refuse, [CPU] * 2)


def test_a_process_alone_builds_at_once() -> None:
    assert build_once_a_node(lambda: 3, key="any") == 3
