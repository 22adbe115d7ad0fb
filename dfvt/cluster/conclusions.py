"""How the trials of a sweep go and end: said, and kept on disk and in MLflow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result import DONE

from dfvt.cluster.records import Status, fetch_record, put_record
from dfvt.cluster.spaces import EPOCH, TRIAL
from dfvt.cluster.spec import active_part, num_trials_of
from dfvt.cluster.trainable import Sweep
from dfvt.data.storage import Mirror
from dfvt.tracking.mlflow import RunRecorder


class Budget(tune.Stopper):
    """Stops all trials once they have used a number of hours of GPUs (of workers, where there are none)."""

    def __init__(self, hours: float, num_workers: int) -> None:
        self.hours, self.num_workers = hours, num_workers
        self.seconds: dict[str, float] = {}

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        self.seconds[trial_id] = result["time_total_s"]
        return self.stop_all()

    def stop_all(self) -> bool:
        return sum(self.seconds.values()) * self.num_workers > self.hours * 3600


class Conclusions(tune.Callback):
    """Says how trials go, and gives those that do not end by themselves their end, on disk and in MLflow."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.num_trials = num_trials_of(sweep.spec)

    def say(self, trial: Trial, what: str) -> None:
        name = self.sweep.trial(trial.trial_id, trial.config[TRIAL]).folder.name
        print(
            f"sweep {self.sweep.spec.name}: trial {name} of {self.num_trials} {what}",
            file=sys.stderr,
            flush=True,
        )

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assignment = active_part(self.sweep.spec.space, trial.config[TRIAL])
        values = ", ".join(
            f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in assignment.items()
        )
        record = fetch_record(self.sweep.trial(trial.trial_id, trial.config[TRIAL]))
        if record is None:
            self.say(trial, f"starts: {values}")
        elif self.sweep.segment and record.assignment != assignment:
            self.say(trial, f"takes over the state of a better one, with {values}")
        else:
            self.say(trial, f"goes on: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        metric = self.sweep.spec.metric
        if metric in result and not result[DONE]:  # its end repeats the last validation
            self.say(trial, f"epoch {result[EPOCH]}: {metric} {result[metric]:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.conclude(trial, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        reason = str(
            info.get("error")
            or (
                trial.error_file
                and Path(trial.error_file).read_text(encoding="utf-8", errors="replace").strip()
            )
        )
        self.say(trial, f"failed: {reason.splitlines()[-1]}")
        self.conclude(trial, "failed")

    def conclude(self, trial: Trial, status: Status) -> None:
        conclude(self.sweep, self.sweep.trial(trial.trial_id, trial.config[TRIAL]), status)


def conclude(sweep: Sweep, trial: Mirror, status: Status) -> None:
    """Ends the record and run of a trial that was ended before it could."""
    record = fetch_record(trial)
    if record is None or record.status != "running":
        return
    put_record(replace(record, status=status), trial)
    recorder = RunRecorder.attach(sweep.tracking_uri, record.mlflow_run_id)
    recorder.set_tags({"dfvt.stopped_after_epoch": str(record.epoch)})
    recorder.finish("FINISHED" if status == "stopped" else "FAILED")
