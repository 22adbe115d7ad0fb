"""A training's records on their way out of its worker process. Workers import this, so it imports little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord, TrainingStart

Event = tuple[str, tuple[Any, ...]]  # a method of Callback, its arguments


class ClusterCallback(Callback):
    """A callback that also hears of each worker: its node, its actor, and what it computes on."""

    def on_worker(self, rank: int, node_id: str, actor: ActorHandle, device: str) -> None: ...


def worker_event(rank: int, device: str) -> Event:
    """What a worker says first when it has started."""
    context = ray.get_runtime_context()
    return ClusterCallback.on_worker.__name__, (
        rank,
        context.get_node_id(),
        context.current_actor,
        device,
    )


class EventRelay(Callback):
    """Gives every call to `put` as (method name, arguments), for `replay` in another process."""

    def __init__(self, put: Callable[[Event], None]) -> None:
        self.put = put

    def on_start(self, start: TrainingStart) -> None:
        self.put(("on_start", (start,)))

    def on_step(self, record: StepRecord) -> None:
        self.put(("on_step", (record,)))

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.put(("on_evaluation", (record,)))

    def on_checkpoint(self, path: Path, step: int) -> None:
        self.put(("on_checkpoint", (path, step)))

    def on_warning(self, message: str) -> None:
        self.put(("on_warning", (message,)))

    def on_end(self, checkpoint: Path) -> None:
        self.put(("on_end", (checkpoint,)))


def is_last(event: Event) -> bool:
    """Whether a training ended with this call: results are on disk, no worker has a step left."""
    return event[0] == EventRelay.on_end.__name__


def replay(event: Event, callback: Callback) -> None:
    """Makes a call that a worker recorded."""
    method, arguments = event
    if method != ClusterCallback.on_worker.__name__ or isinstance(callback, ClusterCallback):
        getattr(callback, method)(*arguments)
