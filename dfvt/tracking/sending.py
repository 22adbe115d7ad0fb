"""Runs that were filed in the project's own store for want of another: sent where they belong."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from dfvt.tracking.mlflow import (
    RunRecorder,
    batches_of,
    database_of,
    find_experiment,
    open_store,
    own_store,
    tracking_uri,
)
from dfvt.tracking.models import number_of, register_model
from dfvt.tracking.runs import pages_of
from dfvt.tracking.store import MEANT_FOR, SENT_AS, SENT_FROM

METRIC = "bbox_mAP"  # by which models are compared


def send_deferred(project: Path, artifact_root: Path) -> tuple[list[str], int]:
    """Sends the ended runs that belong elsewhere to the store of today.

    Returns their names, and how many wait because they go on.

    Each is there once, whatever interrupts this: what was half sent is removed and sent again.

    Raises:
        ValueError: the store cannot be used.
    """
    here, there = own_store(project), tracking_uri(project)
    database = database_of(here)
    if here == there or database is None or not database.exists():
        return [], 0
    sent = []
    with open_store(here) as source:
        waiting = [
            (experiment.name, run)
            for experiment in source.search_experiments()
            for run in pages_of(source, experiment.experiment_id, f"tags.`{MEANT_FOR}` != ''")
            if SENT_AS not in run.data.tags
        ]
        ended = [pair for pair in waiting if pair[1].info.status != "RUNNING"]
        num_going_on = len(waiting) - len(ended)
        if not ended:
            return [], num_going_on
        location = None if not database_of(there) else artifact_root.absolute().as_uri()
        with open_store(there) as target:
            ended.sort(key=lambda pair: pair[1].info.start_time)  # a sweep before its trials
            for name, run in ended:
                send_run(source, run, target, there, find_experiment(target, name, location))
                sent.append(run.info.run_name)
    return sent, num_going_on


def send_run(source: MlflowClient, run: Run, target: MlflowClient, uri: str, experiment_id: str) -> None:
    """Makes a run in another store what it is here, with its curves, files and registered models."""
    run_id = run.info.run_id
    for half in target.search_runs([experiment_id], f"tags.`{SENT_FROM}` = '{run_id}'"):
        for version in target.search_model_versions(f"run_id = '{half.info.run_id}'"):
            target.delete_model_version(version.name, version.version)
        target.delete_run(half.info.run_id)
    tags = {name: value for name, value in run.data.tags.items() if name != MEANT_FOR} | {SENT_FROM: run_id}
    if parent := tags.get(MLFLOW_PARENT_RUN_ID):
        tags[MLFLOW_PARENT_RUN_ID] = source.get_run(parent).data.tags.get(SENT_AS, parent)
    sent = target.create_run(experiment_id, run.info.start_time, tags, run.info.run_name)
    recorder = RunRecorder(target, uri, sent.info.run_id)
    recorder.log_params(run.data.params)
    for batch in batches_of(histories(source, run)):
        target.log_batch(recorder.run_id, metrics=batch, synchronous=True)
    if run.inputs and run.inputs.dataset_inputs:
        target.log_inputs(recorder.run_id, run.inputs.dataset_inputs)
    if source.list_artifacts(run_id):
        with TemporaryDirectory() as folder:
            recorder.log_artifacts(Path(source.download_artifacts(run_id, "", folder)))
    target.set_terminated(recorder.run_id, run.info.status, run.info.end_time)
    for version in source.search_model_versions(f"run_id='{run_id}'"):
        number = number_of(version, METRIC)
        metrics = {} if number is None else {METRIC: number}
        register_model(recorder, version.name, tags=version.tags, metrics=metrics, metric=METRIC)
    source.set_tag(run_id, SENT_AS, recorder.run_id)


def histories(source: MlflowClient, run: Run) -> Iterable[list[Metric]]:
    """All points of a run's metrics, a metric at a time."""
    for name in run.data.metrics:
        yield source.get_metric_history(run.info.run_id, name)
