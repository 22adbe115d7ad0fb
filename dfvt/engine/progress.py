"""Progress of a training: a bar with ETA and loss on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord, TrainingStart

SECONDS_BETWEEN_LINES = 10.0
UNDEFINED = "\N{EN DASH}"  # COCO's −1


class Progress(Callback):
    """Shows a training on standard error; `name` begins each line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm | None = None
        self.started = self.last_line = time.monotonic()
        self.first_step = 0

    def on_start(self, start: TrainingStart) -> None:
        self.started, self.first_step = time.monotonic(), start.step
        if start.resumed_from:
            note = f" ({start.note})" if start.note else ""
            self.say(f"{self.name}: continues after step {start.step} of {start.max_steps}{note}")
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=start.max_steps, initial=start.step, desc=self.name, unit="step", leave=True
            )

    def on_step(self, record: StepRecord) -> None:
        last = record.step == record.max_steps
        if self.bar:
            self.bar.set_postfix(loss=f"{record.losses['loss']:.3f}", epoch=record.epoch, refresh=False)
            self.bar.update(record.step - self.bar.n)
            if last:
                self.bar.close()
        elif last or time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.say(
                f"{self.name}: step {record.step}/{record.max_steps}, epoch {record.epoch}, "
                f"loss {record.losses['loss']:.3f}, lr {record.lr:.2e}, "
                f"{record.images_per_second:.1f} img/s, ETA {self.remaining(record)}"
            )

    def remaining(self, record: StepRecord) -> timedelta:
        """Time to the last step at the mean speed so far, validation included."""
        seconds_per_step = (time.monotonic() - self.started) / max(record.step - self.first_step, 1)
        return timedelta(seconds=round(seconds_per_step * (record.max_steps - record.step)))

    def on_evaluation(self, record: EvaluationRecord) -> None:
        scores = ", ".join(
            f"{name} {record.metrics[name]:.3f}" if record.metrics[name] >= 0 else f"{name} {UNDEFINED}"
            for name in ("bbox_mAP", "segm_mAP")
            if name in record.metrics
        )
        self.say(f"{self.name}: epoch {record.epoch}, {scores}")

    def on_warning(self, message: str) -> None:
        self.say(f"{self.name}: {message}")

    def on_end(self, checkpoint: Path) -> None:
        if self.bar:
            self.bar.close()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line, file=sys.stderr)
