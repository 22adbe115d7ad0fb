"""A callback that logs learning curves into an MLflow run."""

from __future__ import annotations

import csv
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ray.actor import ActorHandle

from dfvt.cluster.relay import ClusterCallback
from dfvt.engine.callbacks import EvaluationRecord, StepRecord, TrainingStart
from dfvt.engine.curves import LOSS_COLUMNS, TRAIN_FILE, VAL_FILE, is_kept, is_undefined
from dfvt.tracking.mlflow import RefusedError, RunRecorder

SECONDS_BETWEEN_REQUESTS = 10.0
Point = tuple[int, dict[str, float]]  # a step, and the values that metrics have there
PATIENCE_SECONDS = 3600.0  # at the end of a training, with a server that does not answer


class MlflowCurves(ClusterCallback):
    """Logs learning curves and validation numbers into an MLflow run, several steps a request, each once.

    What a server that is down did not take is sent with the next request, at the end of the training at last.
    A training that goes on after a kill sends what its curve files have and the run has not, and nothing
    that the run has; so does a request after one whose fate is not known.

    Args:
        recorder: the run.
        settings: numbers that may be others each time that the training begins: they have a curve too.
        folder: where the training keeps its curve files, unless it may go on from another one's state.
    """

    def __init__(
        self, recorder: RunRecorder, settings: Mapping[str, float] | None = None, folder: Path | None = None
    ) -> None:
        self.recorder = recorder
        self.settings = settings or {}
        self.folder = folder
        self.in_doubt = False
        self.refusal: RefusedError | None = None
        self.resumed_at = 0
        self.known = {"train": -1, "val": -1}  # the last steps that the run has
        self.best: dict[str, float] = {}
        self.pending: list[Point] = []
        self.last_request = time.monotonic()
        self.nodes: dict[int, str] = {}
        self.devices: dict[int, str] = {}

    def on_start(self, start: TrainingStart) -> None:
        if self.folder:  # the run may have points of a training that was killed before its first state
            self.in_doubt = True
        if self.folder and start.resumed_from:
            self.resumed_at = start.step
            for _, numbers in read_val(self.folder, start.step):
                self.update_best(numbers)
        if self.settings:
            self.pending.append(
                (start.step, {f"settings/{name}": value for name, value in self.settings.items()})
            )
        if start.not_read_back:
            self.set_tags({"dfvt.not_read_back": " ".join(start.not_read_back)})
        if start.changed_versions:
            self.set_tags({"dfvt.changed_versions": "; ".join(start.changed_versions)})

    def on_worker(self, rank: int, node_id: str, actor: ActorHandle, device: str) -> None:
        self.nodes[rank], self.devices[rank] = node_id, device
        devices = Counter(self.devices.values())
        self.set_tags(
            {
                "ray.nodes": " ".join(self.nodes[rank] for rank in sorted(self.nodes)),
                "env.devices": ", ".join(f"{number} x {name}" for name, number in devices.items()),
            }
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, unless the server does not take them: the training is worth more."""
        with suppress(ConnectionError, RefusedError):
            self.recorder.set_tags(tags)

    def on_step(self, record: StepRecord) -> None:
        numbers = {f"train/{name}": value for name, value in record.losses.items()}
        numbers |= {
            "train/lr": record.lr,
            "train/images_per_second": record.images_per_second,
            "train/data_seconds": record.data_seconds,
        }
        numbers |= {f"system/{name}": value for name, value in record.system.items()}
        self.add(record.step, numbers)
        if time.monotonic() - self.last_request > SECONDS_BETWEEN_REQUESTS:
            self.flush()

    def on_evaluation(self, record: EvaluationRecord) -> None:
        # MLflow has no value for what is undefined (COCO's −1), so it gets no point.
        numbers = {f"val/{name}": value for name, value in record.metrics.items() if value >= 0}
        self.update_best(numbers)
        if numbers:
            self.add(record.step, numbers | self.best)
        self.flush()

    def update_best(self, numbers: Mapping[str, float]) -> None:
        """Keeps the best mAPs: MLflow's tables show the last value of a metric."""
        for name in ("bbox_mAP", "segm_mAP"):
            if f"val/{name}" in numbers:
                best = f"best_{name}"
                self.best[best] = max(self.best.get(best, -1.0), numbers[f"val/{name}"])

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Takes a point in that the run has not."""
        point = step, numbers
        if is_new(point, self.known):
            self.pending.append(point)

    def on_end(self, checkpoint: Path) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        self.flush()
        while self.pending and not self.refusal and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_REQUESTS)  # how long MLflow itself waits can be set to nothing
            self.flush()
        if self.refusal:
            raise RuntimeError(
                f"{self.refusal} The training has ended, and is not repeated when it is started again"
            )
        if self.pending:
            raise RuntimeError(
                f"the MLflow store takes no numbers for {PATIENCE_SECONDS / 60:.0f} minutes: start it, and "
                "then the training again, which has ended and is not repeated"
            )

    def flush(self) -> None:
        """Sends what is pending, or keeps it for the next time when the server does not take it."""
        self.refusal = None
        try:
            if self.in_doubt:
                self.leave_out_known()
            if self.pending:
                self.recorder.log_curve(self.pending)
            self.pending.clear()
        except (ConnectionError, RefusedError) as error:
            self.in_doubt = True
            self.refusal = error if isinstance(error, RefusedError) else None
            print(
                f"{str(error).rstrip('.')}: its numbers are kept, and sent later", file=sys.stderr, flush=True
            )
        self.last_request = time.monotonic()

    def leave_out_known(self) -> None:
        """Asks the run what it has, and adds what the curve files have beside that."""
        self.known = last_steps(self.recorder)
        lost = read_curves(self.folder, self.resumed_at) if self.folder and self.resumed_at else []
        self.pending = [point for point in [*lost, *self.pending] if is_new(point, self.known)]
        self.in_doubt, self.resumed_at = False, 0


def last_steps(recorder: RunRecorder) -> dict[str, int]:
    """The last steps of a run's training and validation curves. Raises ConnectionError without a server."""
    return {"train": recorder.last_step("train/loss"), "val": recorder.last_step("val/bbox_mAP")}


def is_new(point: Point, known: Mapping[str, int]) -> bool:
    """Whether a point comes after what its curve has."""
    step, numbers = point
    return step > known.get(next(iter(numbers)).split("/")[0], -1)


def read_curves(folder: Path, until: int) -> list[Point]:
    """The points of a training's curve files up to a step, in their order."""
    names = {name: f"train/{name}" for name in (*LOSS_COLUMNS, "lr", "images_per_second")}
    points = [*read_points(folder / TRAIN_FILE, names, until), *read_val(folder, until)]
    return sorted(points, key=lambda point: point[0])


def read_val(folder: Path, until: int) -> list[Point]:
    """The points of a training's `val.csv` up to a step."""
    return read_points(folder / VAL_FILE, {name: f"val/{name}" for name in ("bbox_mAP", "segm_mAP")}, until)


def read_points(path: Path, names: Mapping[str, str], until: int) -> list[Point]:
    """Read the points of a curve file up to a step; rows without a number give none.

    An mAP that is undefined has an empty cell, in files of earlier versions COCO's −1.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if is_kept(row, until)]
    points = [
        (
            int(row["step"]),
            {
                new: value
                for name, new in names.items()
                if row.get(name) and not is_undefined(name, value := float(row[name]))
            },
        )
        for row in rows
    ]
    return [point for point in points if point[1]]


def send_missing(recorder: RunRecorder, folder: Path) -> int:
    """Sends a run what the curve files in a training's folder have and it has not; returns how many points.

    Raises:
        ConnectionError: the server cannot be reached.
    """
    known = last_steps(recorder)
    points = [point for point in read_curves(folder, sys.maxsize) if is_new(point, known)]
    recorder.log_curve(points)
    return len(points)
