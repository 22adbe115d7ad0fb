"""A trial of a sweep: one training, one MLflow run, one record on disk, each exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue
from ray.tune.result import DONE

from dfvt.cluster.mlflow_curves import MlflowCurves
from dfvt.cluster.origins import keep_origin
from dfvt.cluster.population import TAKEN_OVER
from dfvt.cluster.records import RECORD, TrialRecord, fetch_record, put_record
from dfvt.cluster.spaces import EPOCH
from dfvt.cluster.spec import Assignment, active_part
from dfvt.cluster.train import run_training
from dfvt.cluster.trainable import Result, Sweep
from dfvt.cluster.training_job import TrainingJob
from dfvt.cluster.trial_config import config_of_trial, searched_part, settings_of_trial
from dfvt.data.files import write_whole
from dfvt.data.storage import Mirror
from dfvt.engine.callbacks import Callback, EvaluationRecord, TrainingStart
from dfvt.tracking.lineage import config_hash
from dfvt.tracking.mlflow import RefusedError, RunRecorder

FINAL_FILE = "checkpoint.pth"
LOG, CONFIG, CURVES = "log.txt", "config.py", "*.csv"


class TrialReports(Callback):
    """Hands on each validation, once the trial's folder has it; keeps there what else is to be said."""

    def __init__(
        self, record: TrialRecord, trial: Mirror, metric: str, hand_on: Callable[[Result], None]
    ) -> None:
        self.record, self.trial, self.metric, self.hand_on = record, trial, metric, hand_on
        self.began = time.monotonic()
        self.started = self.began - record.seconds

    def on_start(self, start: TrainingStart) -> None:
        startup_seconds = time.monotonic() - self.began
        self.record = replace(self.record, num_epochs=start.max_epochs, startup_seconds=startup_seconds)
        self.save()
        if start.resumed_from:
            self.on_warning(f"continues after step {start.step} of {start.max_steps}")
        if start.note:
            self.on_warning(start.note)

    def save(self) -> None:
        """Keeps the record, and what the scheduler decided of the trial in the meantime."""
        kept = fetch_record(self.trial)
        if kept and kept.status == "stopped":
            self.record = replace(self.record, status="stopped")
        put_record(self.record, self.trial)

    def on_warning(self, message: str) -> None:
        with (self.trial.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  {message}\n")
        self.trial.put(LOG)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.record = replace(
            self.record,
            epoch=record.epoch,
            metrics=record.metrics,
            seconds=time.monotonic() - self.started,
        )
        self.save()
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
    from dfvt.engine.plain import config_json, load_plain_config

    trial = sweep.trial(trial_id, drawn)
    trial.fetch(RECORD, LOG, CURVES)
    folder = trial.folder
    assignment = active_part(sweep.spec.space, drawn)
    job, params = job_of(sweep, assignment, trial, trial_id)
    record = TrialRecord.load(folder)
    if sweep.segment:
        done = record.epoch if record else 0
        taken_over = folder / TAKEN_OVER if record and record.taken_over else None
        until = (done // sweep.segment + 1) * sweep.segment
        job = replace(job, until_epoch=until, take_over=taken_over)
    if record is None or not record.mlflow_run_id:  # the latter: it failed before it had one
        recorder = RunRecorder.open(
            sweep.tracking_uri,
            sweep.experiment,
            artifact_root=sweep.artifact_root,
            run_name=f"{sweep.spec.name} {folder.name}",
            tags=job.lineage,
            params=params,
            parent_run_id=sweep.parent_run_id,
        )
        try:
            record = TrialRecord(folder.name, assignment, recorder.run_id)
            put_record(record, trial)
        except BaseException:
            recorder.abandon("FAILED")  # nothing leads to that run: the next attempt opens another one
            raise
        if sweep.origin:
            with suppress(ConnectionError, RefusedError):  # the training is worth more
                keep_origin(recorder, sweep.origin, sweep.dataset)
    else:
        recorder = RunRecorder.attach(sweep.tracking_uri, record.mlflow_run_id)
        if record.status != "finished":
            with suppress(ConnectionError, RefusedError):  # the training is worth more
                recorder.reopen()
        recorder.set_tags(
            {
                f"dfvt.taken_over.{number}": f"{change.name} after epoch {change.epoch}"
                for number, change in enumerate(record.taken_over, 1)
            }
        )
        if record.status == "failed":  # tried once more: it may yet be stopped, or finish
            record = replace(record, status="running", failure="")
            put_record(record, trial)
    write_whole(folder / CONFIG, job.config)
    data = config_json(load_plain_config(folder / CONFIG))
    trial.put(CONFIG)
    reports = TrialReports(record, trial, sweep.spec.metric, hand_on)
    if record.status != "finished":  # else its process was killed between its end and Tune's note of it
        if sweep.segment:
            curves = MlflowCurves(recorder, settings_of(reports.record))
        else:
            curves = MlflowCurves(recorder, folder=folder)
        with ThreadPoolExecutor(1) as beside:  # the workers take seconds to start meanwhile
            size = beside.submit(size_of, folder / CONFIG)
            run_training(job, [curves, reports], stop)
        keep_size(recorder, size, folder / CONFIG, data, reports.on_warning)
        if trial.has(FINAL_FILE):
            reports.result()  # a trial without the number that it is compared by is not finished
            reports.record = replace(reports.record, status="finished", failure="")
            put_record(reports.record, trial)
            trial.remove(TAKEN_OVER)
            recorder.finish()
        elif job.until_epoch and not stop.is_set() and reports.record.epoch < job.until_epoch:
            raise RuntimeError(f"the training's records after epoch {reports.record.epoch} were lost")
    done = reports.record.status == "finished" or not (sweep.segment or stop.is_set())
    return {**reports.result(), DONE: done}


def keep_size(
    recorder: RunRecorder,
    size: Future[dict[str, float]],
    config: Path,
    data: str,
    warn: Callable[[str], None],
) -> None:
    """File a detector's size and config in its run; `warn` is told if the size could not be found out.

    The training is worth more than its description: nothing here ends a trial.
    """
    with suppress(ConnectionError, RefusedError):
        try:
            recorder.log_metrics(size.result())
        except (ConnectionError, RefusedError):
            raise
        except Exception as error:
            warn(f"the run has no num_params and flops, they cannot be counted: {error}")
        recorder.log_artifact(config)
        recorder.log_text(data, "config.json")


def size_of(config: Path) -> dict[str, float]:
    """A detector's parameters and FLOPs as its run shows them."""
    from dfvt.engine.config import input_shape_of
    from dfvt.engine.custom_modules import import_custom_modules
    from dfvt.engine.infer import build_bare_detector
    from dfvt.engine.plain import load_plain_config
    from dfvt.models.complexity import measure_complexity

    cfg = load_plain_config(config)
    import_custom_modules(cfg)
    size = measure_complexity(build_bare_detector(cfg), input_shape_of(cfg))
    return {"num_params": size.num_params, "flops": size.flops}


def settings_of(record: TrialRecord) -> dict[str, float]:
    """The numbers that a trial trains with at present."""
    return {
        key: float(value)
        for key, value in record.assignment.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def job_of(
    sweep: Sweep, assignment: Mapping[str, JsonValue], trial: Mirror, trial_id: str
) -> tuple[TrainingJob, dict[str, object]]:
    """The training of a trial, and the parameters that its MLflow run shows."""
    from dfvt.engine.config_text import config_text
    from dfvt.engine.image_size import image_size_of

    spec, variant = sweep.spec, str(assignment["variant"])
    own, searched = settings_of_trial(spec, assignment), searched_part(assignment)
    cfg = config_of_trial(spec, sweep.configs, assignment)
    expected = {
        "optimizer.lr": own["lr"],
        "runner.max_epochs": own["num_epochs"],
        "data.samples_per_gpu": own["batch_size"],
        **searched,
    }
    text = config_text(cfg)
    lineage = {
        **sweep.lineage,
        "dfvt.variant": variant,
        "dfvt.sweep": spec.name,
        "dfvt.trial": trial.folder.name,
        "config.hash": config_hash(text),
        "ray.trial_id": trial_id,
    }
    job = TrainingJob(
        config=text,
        work_dir=trial.folder,
        remote=trial.remote,
        weights=sweep.weights,
        seed=own["seed"],
        num_workers=spec.num_workers,
        min_workers=spec.min_workers,
        use_gpu=spec.use_gpu,
        lineage=lineage,
        cpus_per_worker=spec.cpus_per_worker,
        dataset=sweep.dataset,
        data_source=spec.data_source,
        autoscaling=spec.autoscaling,
        resources_per_worker=spec.resources_per_worker,
        expected={key: value for key, value in expected.items() if value is not None},
        max_seconds=spec.trial_seconds,
    )
    params = {
        "variant": variant,
        "seed": own["seed"],
        "lr": cfg.optimizer.lr,
        "num_epochs": cfg.runner.max_epochs,
        "batch_size": cfg.data.samples_per_gpu,
        "image_size": list(image_size_of(cfg)),
        "num_workers": spec.num_workers,
        **sweep.defaults_of(variant).cfg_options,
        **spec.cfg_options,
        **searched,
    }
    return job, params
