"""How the trials of a sweep go and end: said, and kept on disk and in MLflow."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result import DONE

from dfvt.cluster.abandoned import ENDS, STOPPED_AFTER
from dfvt.cluster.records import Status, TrialRecord, fetch_record, put_record
from dfvt.cluster.spaces import EPOCH, TRIAL
from dfvt.cluster.spec import active_part, num_trials_of
from dfvt.cluster.trainable import Sweep
from dfvt.data.storage import Mirror
from dfvt.tracking.mlflow import RunRecorder

SECONDS_BETWEEN_LOOKS = 2.0  # at the records of trials whose training has not begun
SILENT_SECONDS = 45.0  # after which a sweep says that it is at work
NUM_NAMED = 4  # of the trials at work


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
    """Say how trials go, and give those that do not end by themselves their end, on disk and in MLflow."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.num_trials = num_trials_of(sweep.spec)

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Begin to listen: a sweep that goes on has this object from a file of its former process."""
        # trials whose training has not begun, and the start-up seconds of the time before
        self.starting: dict[str, tuple[Mirror, float]] = {}
        self.looked = self.last_line = time.monotonic()

    def print(self, line: str) -> None:
        print(f"sweep {self.sweep.spec.name}: {line}", file=sys.stderr, flush=True)
        self.last_line = time.monotonic()

    def mirror_of(self, trial: Trial) -> Mirror:
        return self.sweep.trial(trial.trial_id, trial.config[TRIAL])

    def say(self, trial: Trial, what: str) -> None:
        self.print(f"trial {self.mirror_of(trial).folder.name} of {self.num_trials} {what}")

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assignment = active_part(self.sweep.spec.space, trial.config[TRIAL])
        values = ", ".join(
            f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in assignment.items()
        )
        mirror = self.mirror_of(trial)
        record = fetch_record(mirror)
        self.starting[mirror.folder.name] = mirror, record.startup_seconds if record else 0.0
        if record is None:
            self.say(trial, f"starts: {values}")
        elif self.sweep.segment and record.assignment != assignment:
            self.say(trial, f"takes over the state of a better one, with {values}")
        else:
            self.say(trial, f"goes on: {values}")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Say which trainings have begun since the last look, and after a silence what the trials do."""
        now, remote = time.monotonic(), self.sweep.mirror.remote
        if now - self.looked < (SILENT_SECONDS if remote else SECONDS_BETWEEN_LOOKS):
            return
        self.looked = now
        for name, (mirror, before) in list(self.starting.items()):
            record = fetch_record(mirror)
            if record and record.startup_seconds not in (0.0, before):
                del self.starting[name]
                self.print(
                    f"trial {name} of {self.num_trials} trains, {record.num_epochs} epochs in all; "
                    f"its processes took {record.startup_seconds:.0f} s to start"
                )
        at_work = [self.mirror_of(trial) for trial in trials if trial.status == Trial.RUNNING]
        if at_work and now - self.last_line > SILENT_SECONDS:
            self.print(self.state_of(at_work))

    def state_of(self, at_work: Sequence[Mirror]) -> str:
        """Return how far trials are, in words."""
        parts = []
        for mirror in at_work[:NUM_NAMED]:
            name, record = mirror.folder.name, fetch_record(mirror)
            if record is None or name in self.starting:
                parts.append(f"{name} starts")
            elif record.epoch == 0:
                parts.append(f"{name} trains {record.num_epochs} epochs, none is validated yet")
            else:
                parts.append(f"{name} trains, validated after epoch {record.epoch} of {record.num_epochs}")
        more = f" and {len(at_work) - NUM_NAMED} more" if len(at_work) > NUM_NAMED else ""
        return f"trials at work: {', '.join(parts)}{more}"

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        metric = self.sweep.spec.metric
        self.starting.pop(self.mirror_of(trial).folder.name, None)
        if metric in result and not result[DONE]:  # its end repeats the last validation
            self.say(trial, f"epoch {result[EPOCH]}: {metric} {result[metric]:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.conclude(trial, "stopped")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Say why an attempt failed that is followed by another one."""
        failures, allowed = trial.num_failures, self.sweep.spec.max_failures
        self.say(trial, f"failed: {failure_of(trial)}; it is started again ({failures} of {allowed} times)")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        failure = failure_of(trial)
        self.say(trial, f"failed: {failure}")
        self.conclude(trial, "failed", failure)

    def conclude(self, trial: Trial, status: Status, failure: str = "") -> None:
        mirror = self.mirror_of(trial)
        self.starting.pop(mirror.folder.name, None)
        if fetch_record(mirror) is None and status == "failed":  # before it could have a run
            assignment = active_part(self.sweep.spec.space, trial.config[TRIAL])
            put_record(
                TrialRecord(mirror.folder.name, dict(assignment), "", "failed", failure=failure), mirror
            )
        conclude(self.sweep, mirror, status, failure)


def failure_of(trial: Trial) -> str:
    """Return why the last attempt of a trial failed, in one sentence."""
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
    return last_failure(text)


def last_failure(text: str) -> str:
    """Return the sentence of the last failure in a file of Ray Tune's, which has a traceback for each.

    The sentence is the last line of the traceback, without the name of an error of ours. If a process was
    lost there is no traceback: then Ray's first line says it.
    """
    lines = [line for line in re.split(r"^Failure # .*$", text, flags=re.MULTILINE)[-1].splitlines() if line]
    if not lines:
        return "Ray gives no reason"
    if not any(line.startswith("Traceback") for line in lines) and "Error" not in lines[0].split(":")[0]:
        return lines[0].strip()
    ours = r"^(ValueError|RuntimeError|FileNotFoundError|ConnectionError): (?=.)"
    return re.sub(ours, "", lines[-1].strip())


def conclude(sweep: Sweep, trial: Mirror, status: Status, failure: str = "") -> None:
    """End the record and run of a trial that was ended before it could.

    The sweep goes on if MLflow does not take it: `dfvt runs sync` ends the run later, as the record says.
    """
    record = fetch_record(trial)
    if record is None or record.status != "running":
        return
    put_record(replace(record, status=status, failure=failure), trial)
    try:
        recorder = RunRecorder.attach(sweep.tracking_uri, record.mlflow_run_id)
        recorder.set_tags({STOPPED_AFTER: str(record.epoch)})
        recorder.finish(ENDS[status])
    except (ConnectionError, ValueError) as error:
        print(
            f"sweep {sweep.spec.name}: {str(error).rstrip('.')}: the run of trial {record.name} is not ended "
            "there, `dfvt runs sync` ends it",
            file=sys.stderr,
            flush=True,
        )
