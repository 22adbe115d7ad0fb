"""A callback that logs learning curves into an MLflow run."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ray.actor import ActorHandle

from dfvt.cluster.relay import ClusterCallback
from dfvt.engine.callbacks import EvaluationRecord, StepRecord, TrainingStart
from dfvt.tracking.mlflow import RunRecorder

SECONDS_BETWEEN_REQUESTS = 10.0
PATIENCE_SECONDS = 3600.0  # at the end of a training, with a server that does not answer


class MlflowCurves(ClusterCallback):
    """Logs learning curves and validation numbers into an MLflow run, several steps a request.

    `settings` are numbers that may be others each time that the training begins: they have a curve too.
    What a server that is down did not take is sent with the next request, at the end of the training at last.
    """

    def __init__(self, recorder: RunRecorder, settings: Mapping[str, float] | None = None) -> None:
        self.recorder = recorder
        self.settings = settings or {}
        self.pending: list[tuple[int, dict[str, float]]] = []
        self.last_request = time.monotonic()
        self.nodes: dict[int, str] = {}

    def on_start(self, start: TrainingStart) -> None:
        if self.settings:
            self.pending.append(
                (start.step, {f"settings/{name}": value for name, value in self.settings.items()})
            )
        if start.not_read_back:
            self.set_tag("dfvt.not_read_back", " ".join(start.not_read_back))

    def on_worker(self, rank: int, node_id: str, actor: ActorHandle) -> None:
        self.nodes[rank] = node_id
        self.set_tag("ray.nodes", " ".join(self.nodes[rank] for rank in sorted(self.nodes)))

    def set_tag(self, name: str, value: str) -> None:
        """Sets a tag, unless the server cannot be reached: the training is worth more."""
        with suppress(ConnectionError):
            self.recorder.set_tags({name: value})

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
        deadline = time.monotonic() + PATIENCE_SECONDS
        self.flush()
        while self.pending and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_REQUESTS)  # how long MLflow itself waits can be set to nothing
            self.flush()
        if self.pending:
            raise RuntimeError(
                f"the MLflow store takes no numbers for {PATIENCE_SECONDS / 60:.0f} minutes: start it, and "
                "then the training again, which has ended and is not repeated"
            )

    def flush(self) -> None:
        """Sends what is pending, or keeps it for the next time when the server cannot be reached."""
        try:
            if self.pending:
                self.recorder.log_curve(self.pending)
            self.pending.clear()
        except ConnectionError as error:
            print(f"{error}: its numbers are kept, and sent later", file=sys.stderr, flush=True)
        self.last_request = time.monotonic()
