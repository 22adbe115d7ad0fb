"""A callback that logs learning curves into an MLflow run."""

from __future__ import annotations

import time
from pathlib import Path

from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord
from dfvt.tracking.mlflow import RunRecorder

SECONDS_BETWEEN_REQUESTS = 10.0


class MlflowCurves(Callback):
    """Logs learning curves and validation numbers into an MLflow run, several steps a request."""

    def __init__(self, recorder: RunRecorder) -> None:
        self.recorder = recorder
        self.pending: list[tuple[int, dict[str, float]]] = []
        self.last_request = time.monotonic()

    def on_step(self, record: StepRecord) -> None:
        numbers = {f"train/{name}": value for name, value in record.losses.items()}
        numbers |= {
            "train/lr": record.lr,
            "train/images_per_second": record.images_per_second,
            "train/data_seconds": record.data_seconds,
        }
        self.pending.append((record.step, numbers))
        if time.monotonic() - self.last_request > SECONDS_BETWEEN_REQUESTS:
            self.flush()

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.pending.append((record.step, {f"val/{name}": value for name, value in record.metrics.items()}))
        self.flush()

    def on_end(self, checkpoint: Path) -> None:
        self.flush()

    def flush(self) -> None:
        """Sends what is pending."""
        if self.pending:
            self.recorder.log_curve(self.pending)
        self.pending.clear()
        self.last_request = time.monotonic()
