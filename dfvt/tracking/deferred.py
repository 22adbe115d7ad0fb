"""The store for runs that begin or go on, and the run that a note names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dfvt.tracking.addresses import (
    address_of_note,
    database_of,
    own_store,
    tracking_uri,
    without_password,
)
from dfvt.tracking.mlflow import RunNotFoundError, RunRecorder, open_store
from dfvt.tracking.reachable import require_reachable
from dfvt.tracking.runs import tagged_run
from dfvt.tracking.store import NOTED_RUN, SENT_AS, Store

Note = Mapping[str, Any]  # what `dfvt.cluster.notes.note_run` noted of a run


def choose_store(project: Path, *, required: bool, noted: Note | None, warn: Callable[[str], None]) -> Store:
    """Return the store for runs that begin or go on.

    Args:
        project: with its own store, `mlflow.db`.
        required: whether a server that does not answer is an error; else the project's own store is taken.
        noted: the note of a run that goes on: if it was filed in the own store because its server did not
            answer, it stays there until it is sent.
        warn: is told why the own store is taken.

    Raises:
        ValueError: the store cannot be used.
    """
    if noted and noted.get("meant_for"):
        return Store(own_store(project), noted["meant_for"])
    uri = tracking_uri(project)
    if required or database_of(uri):
        require_reachable(uri)
        return Store(uri)
    try:
        require_reachable(uri)
    except ValueError as error:
        reason = str(error).partition(";")[0]
        warn(f"{reason}: its runs go into mlflow.db, `dfvt runs sync` sends them when it is back")
        return Store(own_store(project), uri)
    return Store(uri)


def attach_noted(noted: Note, project: Path) -> RunRecorder:
    """Return the run that a note names, where it is by now.

    Raises:
        RunNotFoundError: neither the noted store nor the store of today has it.
        ValueError: the store of today cannot be used.
    """
    today, run_id = tracking_uri(project), noted["mlflow_run_id"]
    uri = address_of_note(noted["tracking_uri"], project) if noted.get("tracking_uri") else today
    # Earlier versions noted absolute paths, which may have meant the project's own store.
    own = own_stores(project)
    missing: RunNotFoundError | None = None
    for place in dict.fromkeys([*own, uri] if noted.get("meant_for") else [uri, *own]):
        try:
            recorder = attach(place, run_id)
        except RunNotFoundError as error:
            missing = missing or error
            continue
        except ValueError as error:
            if place == today:
                raise
            # The run was made elsewhere, with a store that cannot be reached from here.
            missing = missing or RunNotFoundError(str(error))
            continue
        if noted.get("meant_for") and (sent_as := recorder.tag(SENT_AS)):
            return RunRecorder.attach(today, sent_as)
        return recorder
    filed_again = find_filed_again(project, run_id)
    if filed_again is None:
        assert missing is not None
        raise missing
    return filed_again


def own_stores(project: Path) -> list[str]:
    """Return the address of the project's own store, none if the project's path can be in no such address."""
    try:
        return [own_store(project)]
    except ValueError:
        return []


def attach(uri: str, run_id: str) -> RunRecorder:
    """Attach to a run; a store that does not exist has none, and is not made.

    Raises:
        RunNotFoundError: the store has no such run.
        ValueError: it cannot be used.
    """
    database = database_of(uri)
    if database and not database.exists():
        raise RunNotFoundError(
            f"the MLflow run {run_id} is not in {without_password(uri)}, which does not exist"
        )
    return RunRecorder.attach(uri, run_id)


def find_filed_again(project: Path, run_id: str) -> RunRecorder | None:
    """Return the run that `file_again` filed for a noted run, None without one.

    It is in the store of today, or waits in the project's own store to be sent there.

    Raises:
        ValueError: the project's own store cannot be used.
    """
    own = own_stores(project)
    for uri in dict.fromkeys([tracking_uri(project), *own]):
        database = database_of(uri)
        if database and not database.exists():
            continue
        try:
            with open_store(uri) as client:
                run = tagged_run(client, NOTED_RUN, run_id)
        except ValueError:
            if uri in own:
                raise
            continue  # whether a server must answer is a question for `choose_store`
        if run and SENT_AS not in run.data.tags:
            return RunRecorder(client, uri, run.info.run_id)
    return None


def file_again(
    noted: Note,
    store: Store,
    experiment: str,
    *,
    run_name: str,
    artifact_root: Path,
) -> RunRecorder:
    """File a run in the place of a noted run that its store lacks, with the note's tags and parameters.

    That happens in a clone. The training has ended, so the run has too.

    Raises:
        ValueError: the store cannot be used.
    """
    recorder = RunRecorder.open(
        store.uri,
        experiment,
        artifact_root=artifact_root,
        run_name=run_name,
        tags={**noted.get("tags", {}), **store.tags, NOTED_RUN: noted["mlflow_run_id"]},
        params=noted.get("params", {}),
    )
    recorder.finish()
    return recorder
