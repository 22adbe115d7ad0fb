"""Which MLflow run something was filed in, noted beside its results: it goes on in the same run later."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from dfvt.data.files import write_whole
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.store import Store


def note_run(note: Path, recorder: RunRecorder, store: Store, **more: Mapping[str, str]) -> None:
    """Writes the run and its store, and what else belongs to it, into the file `note`, whole."""
    content = {"mlflow_run_id": recorder.run_id, "tracking_uri": recorder.uri, **more}
    if store.meant_for:
        content["meant_for"] = store.meant_for
    write_whole(note, json.dumps(content, indent=2) + "\n")


def read_note(note: Path) -> dict[str, str] | None:
    """What a note says, None without one."""
    content: dict[str, str] | None = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    return content


def continue_noted_run(note: Path, uri: str, warn: Callable[[str], None]) -> RunRecorder | None:
    """The run of the file `note`, opened again; None without one in this store, which may have lost it."""
    noted = read_note(note)
    if noted is None or noted["tracking_uri"] != uri:
        return None
    try:
        recorder = RunRecorder.attach(uri, noted["mlflow_run_id"])
    except ValueError as error:
        warn(f"{error}; starting another run")
        return None
    recorder.reopen()
    return recorder
