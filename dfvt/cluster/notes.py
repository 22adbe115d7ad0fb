"""Which MLflow run something was filed in, noted beside its results: it goes on in the same run later."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dfvt.data.files import write_whole
from dfvt.tracking.addresses import address_of_note, noted_address
from dfvt.tracking.deferred import attach
from dfvt.tracking.mlflow import RunNotFoundError, RunRecorder
from dfvt.tracking.store import Store


def note_run(
    note: Path, recorder: RunRecorder, store: Store, project: Path, **more: Mapping[str, Any]
) -> None:
    """Write the run and its store, and what else belongs to it, into the file `note`, whole.

    The address holds no credentials, and is relative to `project` if the store lies in it.
    """
    content = {
        "mlflow_run_id": recorder.run_id,
        "tracking_uri": noted_address(recorder.uri, project),
        **more,
    }
    if store.meant_for:
        content["meant_for"] = store.meant_for
    write_whole(note, json.dumps(content, indent=2) + "\n")


def read_note(note: Path) -> dict[str, Any] | None:
    """Return what a note says, None without one.

    Raises:
        ValueError: the file is no note.
    """
    if not note.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(note.read_bytes())
        content["mlflow_run_id"], content["tracking_uri"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{note} does not name an MLflow run: remove it, or the folder it is in") from error
    return content


def continue_noted_run(
    note: Path, uri: str, project: Path, warn: Callable[[str], None]
) -> RunRecorder | None:
    """Open the run of the file `note` again; return None without one in this store, which may have lost it.

    Raises:
        ValueError: the store cannot be used.
    """
    noted = read_note(note)
    if noted is None or address_of_note(noted["tracking_uri"], project) != uri:
        return None
    try:
        recorder = attach(uri, noted["mlflow_run_id"])
    except RunNotFoundError as error:
        warn(f"{error}; starting another run")
        return None
    recorder.reopen()
    return recorder
