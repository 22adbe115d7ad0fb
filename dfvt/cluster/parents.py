"""The MLflow run of a whole sweep, below which those of its trials are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dfvt.cluster.notes import continue_noted_run, note_run
from dfvt.cluster.records import all_failed, load_records, text_of, was_interrupted
from dfvt.cluster.trainable import Sweep
from dfvt.tracking.addresses import without_password
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.runs import SWEEP_RUN

NOTE = "run.json"


def open_parent(sweep: Sweep) -> RunRecorder:
    """The run of a sweep: that which it began with, if the store still has it, else a new one."""
    spec, mirror = sweep.spec, sweep.mirror
    mirror.fetch(NOTE)
    note = mirror.folder / NOTE

    def warn(message: str) -> None:
        print(f"sweep {spec.name}: {message}", file=sys.stderr)

    if noted := continue_noted_run(note, sweep.tracking_uri, sweep.home, warn):
        return noted
    recorder = RunRecorder.open(
        sweep.tracking_uri,
        sweep.experiment,
        artifact_root=sweep.artifact_root,
        run_name=spec.name,
        tags={**sweep.lineage, SWEEP_RUN: spec.name},
        params={
            "algorithm": spec.algorithm,
            "scheduler": spec.scheduler,
            "variants": ", ".join(spec.variants),
            "searched": ", ".join(spec.space),
            "metric": spec.metric,
            "mode": spec.mode,
        },
    )
    try:
        note_run(note, recorder, sweep.store, sweep.home)
        mirror.put(NOTE)
        recorder.log_text(without_password(text_of(spec, sweep.defaults)), "spec.json")
    except BaseException:
        recorder.abandon("FAILED")
        raise
    return recorder


@contextmanager
def parent_run(sweep: Sweep) -> Iterator[str]:
    """The id of a sweep's run, which ends with the body: noting the trials' ends and the best of them."""
    recorder = open_parent(sweep)
    try:
        yield recorder.run_id
        records = load_records(sweep.mirror)
        interrupted = was_interrupted(sweep.spec, records)
    except BaseException as error:
        recorder.abandon("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    try:
        recorder.log_metrics(summary_of(sweep))
    except (ConnectionError, ValueError) as error:  # the trials' results are on disk
        print(f"sweep {sweep.spec.name}: {error}", file=sys.stderr, flush=True)
    if interrupted:
        recorder.abandon("KILLED")
    else:
        recorder.abandon("FAILED" if all_failed(records, sweep.spec.metric) else "FINISHED")


def summary_of(sweep: Sweep) -> dict[str, float]:
    """How many trials there are, how many are finished, and the best of their numbers."""
    metric, best = sweep.spec.metric, max if sweep.spec.mode == "max" else min
    records = load_records(sweep.mirror)
    numbers = {
        "num_trials": float(len(records)),
        "num_finished": float(sum(record.status == "finished" for record in records)),
    }
    values = [record.metrics[metric] for record in records if record.metrics.get(metric, -1) >= 0]
    return numbers | ({f"best_{metric}": best(values)} if values else {})
