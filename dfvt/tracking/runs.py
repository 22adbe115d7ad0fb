"""Runs of a tracking store, found again by anything that leads to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from dfvt.tracking.addresses import database_of
from dfvt.tracking.mlflow import open_store

PAGE = 1000  # runs in one answer
SWEEP_RUN = "dfvt.sweep_run"  # a tag of the run of a whole sweep; `dfvt.sweep` is that of its trials
MIN_KEY = 4  # characters of a key that is to be the beginning of a hash


@dataclass(frozen=True)
class RunInfo:
    """One run: what it was started with, and its numbers' last values.

    `seconds` is the time from its start to its end, None while it has none.
    """

    run_id: str
    name: str
    status: str
    seconds: float | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def list_runs(uri: str, experiment: str) -> list[RunInfo]:
    """All runs of an experiment, the newest first, a thousand a request.

    Raises:
        ValueError: the store cannot be used, or has no such experiment.
    """
    database = database_of(uri)
    if database and not database.exists():
        raise ValueError(f"there are no runs yet: {database} does not exist")
    with open_store(uri) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = ", ".join(one.name for one in client.search_experiments()) or "none"
            raise ValueError(f"MLflow has no experiment {experiment!r}; it has: {names}")
        return [_info(run) for run in pages_of(client, found.experiment_id)]


def pages_of(client: MlflowClient, experiment_id: str, filter_string: str = "") -> Iterable[Run]:
    """The runs of an experiment that a filter of MLflow's takes, a thousand a request."""
    token = None
    while True:
        page = client.search_runs([experiment_id], filter_string, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def tagged_run(client: MlflowClient, tag: str, value: str) -> Run | None:
    """Return a run of any experiment that has a tag with this value, None without one."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`{tag}` = '{value}'", max_results=1) if experiments else []
    return runs[0] if runs else None


def _info(run: Run) -> RunInfo:
    info, data = run.info, run.data
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time else None
    return RunInfo(info.run_id, info.run_name, info.status, seconds, data.params, data.metrics, data.tags)


def matches(run: RunInfo, key: str) -> bool:
    """Whether a key leads to a run: its name, the beginning of its id, or a tag's value or its beginning."""
    if key in (run.name, run.run_id):
        return True
    values = [run.run_id, *(value for name, value in run.tags.items() if not name.startswith("mlflow."))]
    return key in values or (len(key) >= MIN_KEY and any(value.startswith(key) for value in values))


def choose_runs(runs: Sequence[RunInfo], keys: Sequence[str]) -> list[RunInfo]:
    """The runs that any of the keys leads to, each once, in the order of the keys.

    Raises:
        ValueError: a key leads to none.
    """
    chosen: dict[str, RunInfo] = {}
    for key in keys:
        found = [run for run in runs if matches(run, key)]
        if not found:
            raise ValueError(
                f"no run has {key!r} as its name or a tag, or an id that begins so: "
                "`dfvt runs find` lists what there is"
            )
        chosen |= {run.run_id: run for run in found}
    return list(chosen.values())


def fetch_artifact(uri: str, run_id: str, name: str, folder: Path) -> Path | None:
    """Fetches an artifact of a run into a folder; None when it has none of that name."""
    with open_store(uri) as client:
        if name not in {one.path for one in client.list_artifacts(run_id)}:
            return None
        return Path(client.download_artifacts(run_id, name, str(folder)))
