"""Learning curves as CSV files beside the resumable state."""

from __future__ import annotations

import csv
from pathlib import Path

from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord, TrainingStart

LOSS_COLUMNS = ("loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask", "acc")
TRAIN_COLUMNS = ("step", "epoch", *LOSS_COLUMNS, "lr", "images_per_second")
VAL_COLUMNS = ("step", "epoch", "bbox_mAP", "segm_mAP")
TRAIN_FILE = "curve.csv"
VAL_FILE = "val.csv"


class CurveFiles(Callback):
    """Writes `curve.csv` and `val.csv`; a resumed training drops the rows that it will write again."""

    def __init__(self, folder: Path) -> None:
        self.train_path = folder / TRAIN_FILE
        self.val_path = folder / VAL_FILE

    def on_start(self, start: TrainingStart) -> None:
        for path, columns in ((self.train_path, TRAIN_COLUMNS), (self.val_path, VAL_COLUMNS)):
            rows: list[dict[str, str]] = []
            if start.step and path.is_file():
                with path.open(newline="", encoding="utf-8") as file:
                    rows = [row for row in csv.DictReader(file) if is_kept(row, start.step)]
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)

    def on_step(self, record: StepRecord) -> None:
        numbers = {**record.losses, "lr": record.lr, "images_per_second": record.images_per_second}
        self.append(self.train_path, TRAIN_COLUMNS, record.step, record.epoch, numbers)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.append(self.val_path, VAL_COLUMNS, record.step, record.epoch, record.metrics)

    @staticmethod
    def append(
        path: Path, columns: tuple[str, ...], step: int, epoch: int, numbers: dict[str, float]
    ) -> None:
        with path.open("a", newline="", encoding="utf-8") as file:
            texts = {name: f"{value:.6g}" for name, value in numbers.items() if not is_undefined(name, value)}
            row = {"step": step, "epoch": epoch, **texts}
            csv.DictWriter(file, columns, extrasaction="ignore").writerow(row)


def is_undefined(name: str, value: float) -> bool:
    """Whether a number is the −1 with which COCO marks an mAP that is undefined; its cell stays empty."""
    return "mAP" in name and value < 0


def is_kept(row: dict[str, str | None], step: int) -> bool:
    """Whether a row is whole (the last one of a killed training may not be) and not after `step`."""
    return None not in row.values() and int(row["step"] or 0) <= step
