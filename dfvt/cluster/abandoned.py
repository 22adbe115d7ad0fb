"""Runs that MLflow still shows as running although nobody works on them any more. Needs no Ray."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from filelock import Timeout

from dfvt.cluster.records import RECORD, lock_of
from dfvt.tracking.mlflow import RunRecorder, Status

# What became of a trial, as MLflow calls it.
ENDS: dict[str, Status] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
STOPPED_AFTER = "dfvt.stopped_after_epoch"  # a tag of the runs of trials that did not come to their end
CHECKPOINT = "checkpoint.pth"  # a training that has it has ended


def is_at_work(folder: Path) -> bool:
    """Tell whether a process works in the folder of a training or of a sweep: it holds the folder's lock."""
    lock = lock_of(folder, 0.0)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock:
            return False
    except Timeout:
        return True


def end_if_abandoned(note: Path, recorder: RunRecorder) -> Status | None:
    """End the run of a note if its process was killed before it could.

    Args:
        note: `run.json` of a training or of a sweep, or `trial.json` of a trial.
        recorder: the run.

    Returns:
        How the run ended; None if it had ended before, or still goes on.

    Raises:
        ConnectionError, ValueError: MLflow does not take it.
    """
    folder = note.absolute().parent
    status: Status = "FINISHED" if (folder / CHECKPOINT).is_file() else "KILLED"
    tags: dict[str, str] = {}
    if note.name == RECORD:
        record = json.loads(note.read_bytes())
        status = ENDS.get(record.get("status"), "KILLED")
        if record.get("status") in ("stopped", "failed"):
            tags[STOPPED_AFTER] = str(record.get("epoch", 0))
        folder = folder.parents[1]  # the sweep's
    if recorder.status() != "RUNNING" or is_at_work(folder):
        return None
    if tags:
        recorder.set_tags(tags)
    recorder.finish(status)
    return status


def end_runs(uri: str, run_ids: list[str]) -> None:
    """Tell MLflow, as fast as it can, that runs are stopped, whatever it answers.

    `ray job stop` kills a sweep three seconds after its SIGTERM. What MLflow did not take by then the next
    start corrects, or `dfvt runs sync`.
    """

    def end(run_id: str) -> None:
        with suppress(ConnectionError, ValueError):
            recorder = RunRecorder.attach(uri, run_id)
            if recorder.status() == "RUNNING":
                recorder.finish("KILLED")

    if run_ids:
        with ThreadPoolExecutor(len(run_ids)) as pool:
            list(pool.map(end, run_ids))
