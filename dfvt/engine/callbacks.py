"""What a training tells those who listen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrainingStart:
    """Before the first iteration: where it starts, and where it will end."""

    step: int
    max_steps: int
    epoch: int
    max_epochs: int
    resumed_from: Path | None = None
    note: str | None = None  # what the number of processes changed
    not_read_back: tuple[str, ...] = ()  # keys whose values nothing of the training shows
    changed_versions: tuple[str, ...] = ()  # of code and libraries since the state that it goes on from


@dataclass(frozen=True)
class StepRecord:
    """Averages over the iterations since the last record; `step` counts finished ones, `epoch` from 1.

    `system` says what the first process's machine was doing, see `dfvt.engine.system.SystemMetrics`.
    """

    step: int
    max_steps: int
    epoch: int
    lr: float
    losses: dict[str, float]
    images_per_second: float
    data_seconds: float
    system: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationRecord:
    """COCO numbers of the validation images after `step` iterations."""

    step: int
    epoch: int
    metrics: dict[str, float]


class Callback:
    """A listener; every method may be left out. Called in the first process only."""

    def on_start(self, start: TrainingStart) -> None:
        """Training begins or resumes."""

    def on_step(self, record: StepRecord) -> None:
        """A logging interval ended."""

    def on_evaluation(self, record: EvaluationRecord) -> None:
        """The validation images were evaluated."""

    def on_checkpoint(self, path: Path, step: int) -> None:
        """A checkpoint is complete on disk."""

    def on_warning(self, message: str) -> None:
        """Something went wrong, and the training goes on."""

    def on_end(self, checkpoint: Path) -> None:
        """Training ended; `checkpoint` is the final one."""
