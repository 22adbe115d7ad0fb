"""A trial of a sweep: one training, one MLflow run, one record on disk, each exactly once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from pydantic import JsonValue
from ray import tune
from ray.tune.result import DONE

from dfvt.cluster.mlflow_curves import MlflowCurves
from dfvt.cluster.spaces import EPOCH, TRIAL
from dfvt.cluster.spec import DRAWN, TRAIN_KEYS, Assignment, SweepSpec, active_part, draw_trials
from dfvt.cluster.train import TrainingJob, run_training
from dfvt.engine.callbacks import Callback, EvaluationRecord, TrainingStart
from dfvt.tracking.lineage import config_hash
from dfvt.tracking.mlflow import RunRecorder

RECORD = "trial.json"
FINAL_FILE = "checkpoint.pth"
Result = dict[str, Any]
Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Sweep:
    """What every trial of a sweep needs to know.

    Attributes:
        spec: what was asked for.
        folder: of the sweep's state and results, on a file system that every node sees.
        configs: for each variant the whole mmdet config as text.
        lineage: tags of every run; those of a trial come beside them.
        tracking_uri, experiment: where the runs are filed.
        num_train_images: of the data set.
    """

    spec: SweepSpec
    folder: Path
    configs: Mapping[str, str]
    lineage: Mapping[str, str]
    tracking_uri: str
    experiment: str
    num_train_images: int

    def trial_folder(self, trial_id: str, assignment: Assignment) -> Path:
        """Of a trial of Tune's, given with all that it was assigned.

        Trials that are drawn have a number of their own, whatever Tune calls them: should Tune's state be
        lost with its process, they are found again.
        """
        name = trial_id
        if self.spec.algorithm in DRAWN:
            name = f"{draw_trials(self.spec).index(dict(assignment)) + 1:04}"
        return self.folder / "trials" / name


@dataclass(frozen=True)
class TrialRecord:
    """What became of a trial, as its folder keeps it; `stopped` means early, by the scheduler or budget."""

    name: str
    assignment: dict[str, JsonValue]
    mlflow_run_id: str
    status: Status = "running"
    epoch: int = 0
    num_epochs: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> TrialRecord | None:
        """The record in a trial's folder, if there is one."""
        file = folder / RECORD
        return cls(**json.loads(file.read_text())) if file.is_file() else None

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{RECORD}.partial"
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        partial.replace(folder / RECORD)


class TrialReports(Callback):
    """Hands on each validation, once the trial's folder has it."""

    def __init__(
        self, record: TrialRecord, folder: Path, metric: str, hand_on: Callable[[Result], None]
    ) -> None:
        self.record, self.folder, self.metric, self.hand_on = record, folder, metric, hand_on
        self.started = time.monotonic() - record.seconds

    def on_start(self, start: TrainingStart) -> None:
        self.record = replace(self.record, num_epochs=start.max_epochs)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.record = replace(
            self.record,
            epoch=record.epoch,
            metrics=record.metrics,
            seconds=time.monotonic() - self.started,
        )
        self.record.save(self.folder)
        self.hand_on(self.result())

    def result(self) -> Result:
        """The last validation as Ray Tune wants it.

        Raises:
            ValueError: it has no such number as the sweep is about.
        """
        metrics = self.record.metrics
        if self.metric not in metrics:
            raise ValueError(
                f"metric {self.metric} is none of the trial's validations: "
                + (
                    f"they have {', '.join(metrics)}"
                    if metrics
                    else "there was none, see evaluation.interval"
                )
            )
        return {**metrics, EPOCH: self.record.epoch}


class TrialTraining(tune.Trainable):
    """A trial as Ray Tune steps it, a validation a step; stopped early, it frees its workers first.

    Started again after a failure, it goes on in the same folder and MLflow run.
    """

    def setup(self, config: dict[str, Any], sweep: Sweep) -> None:  # type: ignore[override]  # with_parameters
        self.results: SimpleQueue[Result | BaseException] = SimpleQueue()
        self.stop_asked = threading.Event()
        self.thread = threading.Thread(target=self.train_in_thread, args=(config[TRIAL], sweep), daemon=True)
        self.thread.start()

    def train_in_thread(self, drawn: Assignment, sweep: Sweep) -> None:
        try:
            result = run_trial(sweep, self.trial_id, drawn, self.results.put, self.stop_asked)
            self.results.put({**result, DONE: True})
        except BaseException as error:  # raised in step
            self.results.put(error)

    def step(self) -> Result:
        """Waits for the next validation, or for the end."""
        result = self.results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def cleanup(self) -> None:
        self.stop_asked.set()
        self.thread.join()


def run_trial(
    sweep: Sweep,
    trial_id: str,
    drawn: Assignment,
    hand_on: Callable[[Result], None],
    stop: threading.Event,
) -> Result:
    """Trains until the end, or until `stop`; returns the last validation.

    Raises:
        ValueError, RuntimeError: the training failed.
    """
    folder = sweep.trial_folder(trial_id, drawn)
    assignment = active_part(sweep.spec.space, drawn)
    job, params = job_of(sweep, assignment, folder, trial_id)
    record = TrialRecord.load(folder)
    if record is None:
        recorder = RunRecorder.open(
            sweep.tracking_uri,
            sweep.experiment,
            artifact_root=Path("mlartifacts"),
            run_name=f"{sweep.spec.name} {folder.name}",
            tags=job.lineage,
            params=params,
        )
        record = TrialRecord(folder.name, assignment, recorder.run_id)
        record.save(folder)
    else:
        recorder = RunRecorder.attach(sweep.tracking_uri, record.mlflow_run_id)
        if record.status == "failed":  # tried once more: it may yet be stopped, or finish
            record = replace(record, status="running")
            record.save(folder)
    reports = TrialReports(record, folder, sweep.spec.metric, hand_on)
    if record.status != "finished":  # else its process was killed between its end and Tune's note of it
        run_training(job, [MlflowCurves(recorder), reports], stop)
        if (folder / FINAL_FILE).is_file():
            replace(reports.record, status="finished").save(folder)
            recorder.finish()
    return reports.result()


def job_of(
    sweep: Sweep, assignment: Mapping[str, JsonValue], folder: Path, trial_id: str
) -> tuple[TrainingJob, dict[str, object]]:
    """The training of a trial, and the parameters that its MLflow run shows."""
    from mmcv import Config

    from dfvt.engine.config import override_config
    from dfvt.engine.options import merge_options

    spec, variant = sweep.spec, str(assignment["variant"])
    own = {key: getattr(spec, key) for key in TRAIN_KEYS} | {
        key: value for key, value in assignment.items() if key in TRAIN_KEYS
    }
    cfg = Config.fromstring(sweep.configs[variant], ".py")
    searched = {key: value for key, value in assignment.items() if key not in TRAIN_KEYS and key != "variant"}
    merge_options(cfg, {**spec.cfg_options, **searched})
    override_config(cfg, lr=own["lr"], num_epochs=own["num_epochs"], batch_size=own["batch_size"])
    text = cfg.pretty_text
    lineage = {
        **sweep.lineage,
        "dfvt.variant": variant,
        "dfvt.sweep": spec.name,
        "config.hash": config_hash(text),
        "ray.trial_id": trial_id,
    }
    job = TrainingJob(
        config=text,
        work_dir=folder,
        seed=own["seed"],
        num_workers=spec.num_workers,
        use_gpu=spec.use_gpu,
        lineage=lineage,
        cpus_per_worker=spec.cpus_per_worker,
        max_seconds=spec.trial_seconds,
    )
    params = {
        "variant": variant,
        "seed": own["seed"],
        "lr": cfg.optimizer.lr,
        "num_epochs": cfg.runner.max_epochs,
        "batch_size": cfg.data.samples_per_gpu,
        "num_workers": spec.num_workers,
        **spec.cfg_options,
        **searched,
    }
    return job, params
