"""Work that every node of the connected cluster does once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dfvt.data.storage import StorageFolder

ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class Node:
    """A node that is alive, and the GPUs that Ray counts there."""

    name: str
    num_gpus: int


@dataclass(frozen=True)
class Unanswered:
    """Why a node gave no answer."""

    reason: str


def on_each_node(work: Callable[[Node, Any], Any], argument: Any) -> dict[Node, Any]:
    """The answers of `work(node, argument)` from a task on each node, which takes no CPU; or `Unanswered`."""
    task: Any = ray.remote(num_cpus=0, max_retries=0)(work)
    pending = {}
    for entry in ray.nodes():
        if entry["Alive"]:
            name = f"{entry['NodeManagerHostname']} {entry['NodeID'][:6]}"
            node = Node(name, int(entry["Resources"].get("GPU", 0)))
            strategy = NodeAffinitySchedulingStrategy(entry["NodeID"], soft=False)
            pending[node] = task.options(scheduling_strategy=strategy).remote(node, argument)
    ready, _ = ray.wait(list(pending.values()), num_returns=len(pending), timeout=ANSWER_SECONDS)
    return {
        node: answer_of(answer) if answer in ready else Unanswered(f"{ANSWER_SECONDS:.0f} s passed")
        for node, answer in pending.items()
    }


def answer_of(reference: Any) -> Any:
    """What a node answered, or why it did not."""
    try:
        return ray.get(reference)
    except RayError as error:
        return Unanswered(str(error).strip().splitlines()[-1])


def require_shared(folder: Path, purpose: str, remedy: str) -> None:
    """Checks that all nodes see the same folder, by a file that this process puts there for a moment.

    Args:
        folder: is made if need be.
        purpose, remedy: what is there, and what helps where it is not: for the sentence.

    Raises:
        ValueError: a node does not see it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".seen-{uuid.uuid4().hex}"
    probe.touch()
    try:
        answers = on_each_node(sees, probe)
    finally:
        probe.unlink()
    blind = [node.name for node, answer in answers.items() if answer is not True]
    if blind:
        raise ValueError(f"the node {blind[0]} does not see {folder}, where {purpose}: {remedy}")


def require_reached(remote: StorageFolder) -> None:
    """Checks that all nodes reach a storage, by a file that this process puts there for a moment.

    Raises:
        ValueError: this machine or a node does not.
    """
    probe = f"seen-{uuid.uuid4().hex}"
    remote.write(probe, b"")
    try:
        answers = on_each_node(reads, (remote, probe))
    finally:
        remote.remove(probe)
    for node, answer in answers.items():
        reason = answer.reason if isinstance(answer, Unanswered) else answer
        if reason is not None:
            raise ValueError(
                f"the node {node.name} does not reach the sweep's storage {remote} ({reason}): "
                "give it an address that all nodes reach, and them the right to"
            )


def reads(_: Node, place: tuple[StorageFolder, str]) -> str | None:
    """Why a file in a storage is not seen, None if it is."""
    remote, probe = place
    try:
        return None if remote.info(probe) else "it sees another one"
    except ValueError as error:
        return str(error)


def sees(_: Node, file: Path) -> bool:
    """Whether a file is there."""
    return file.is_file()
