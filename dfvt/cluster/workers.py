"""The workers of a training, and what is heard of them: the same for one actor and for Ray Train's group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from dfvt.cluster.relay import ClusterCallback, Event


@dataclass(frozen=True)
class Scaling:
    """How many workers a training has, and what each takes: `CPU`, `GPU`, and what nodes declare."""

    num_workers: int
    resources_per_worker: Mapping[str, float]

    @property
    def use_gpu(self) -> bool:
        """Whether each has a GPU."""
        return bool(self.resources_per_worker.get("GPU"))


class WorkerFailedError(Exception):
    """A worker failed with `failure`, which may be an error of Ray's around the worker's own."""

    def __init__(self, rank: int, failure: BaseException) -> None:
        super().__init__(f"worker {rank}: {failure}")
        self.rank, self.failure = rank, failure


class Workers(ClusterCallback):
    """The workers of a training, started in processes of their own on the connected Ray."""

    @abstractmethod
    def train(self) -> None:
        """Train, and return when all workers have ended; for a thread that has nothing else to do.

        Raises:
            WorkerFailedError: what the first worker that failed did not survive.
        """

    @abstractmethod
    def receive(self, seconds: float) -> list[Event]:
        """Return the events that came since the last call, or none after so many seconds. Raises RayError."""

    @abstractmethod
    def ask_to_stop(self) -> None:
        """Ask the workers to finish their step, write the state and end. Raises RayError."""

    @abstractmethod
    def kill(self) -> None:
        """End their processes; their places are free soon after."""

    @abstractmethod
    def release(self) -> None:
        """Free the places of workers that have ended, and of whose events none is left."""
