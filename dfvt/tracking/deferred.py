"""Runs whose store does not answer when they begin, and may do without it: the project's own takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dfvt.tracking.mlflow import (
    RunRecorder,
    database_of,
    own_store,
    require_reachable,
    tracking_uri,
    without_password,
)
from dfvt.tracking.store import SENT_AS, Store


def choose_store(
    project: Path, *, required: bool, noted: Mapping[str, str] | None, warn: Callable[[str], None]
) -> Store:
    """The store for runs that begin or go on.

    Args:
        project: with its own store, `mlflow.db`.
        required: whether a server that does not answer is an error; else the project's own store is taken.
        noted: what `dfvt.cluster.notes.note_run` noted of a run that goes on: if it was filed in the own
            store for that reason, it stays there until it is sent.
        warn: is told why the own store is taken.

    Raises:
        ValueError: the store cannot be used.
    """
    if noted and noted.get("meant_for"):
        return Store(noted["tracking_uri"], noted["meant_for"])
    uri = tracking_uri(project)
    if required or database_of(uri):
        require_reachable(uri)
        return Store(uri)
    try:
        require_reachable(uri)
    except ValueError as error:
        reason = str(error).partition(";")[0]
        warn(f"{reason}: its runs go into mlflow.db, `dfvt runs sync` sends them when it is back")
        return Store(own_store(project), without_password(uri))
    return Store(uri)


def attach_noted(noted: Mapping[str, str], project: Path) -> RunRecorder:
    """The run that a note names, where it is by now.

    Raises:
        ValueError: its store cannot be used, or has lost it.
    """
    uri = noted.get("tracking_uri") or tracking_uri(project)
    recorder = RunRecorder.attach(uri, noted["mlflow_run_id"])
    if noted.get("meant_for") and (sent_as := recorder.tag(SENT_AS)):
        return RunRecorder.attach(tracking_uri(project), sent_as)
    return recorder
