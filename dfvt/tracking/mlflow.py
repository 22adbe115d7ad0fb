"""Runs in an MLflow tracking store: the only module that talks to MLflow."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from dfvt.tracking.store import SENT_AS

SQLITE = "sqlite:///"
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SECONDS_TO_ANSWER = 5.0
# What MLflow takes in one request and in one value.
_MAX_METRICS, _MAX_PARAMS, _MAX_PARAM_LENGTH, _MAX_DIGEST_LENGTH = 1000, 100, 6000, 36


def tracking_uri(project: Path) -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in `project`; SQLite paths made absolute, so that workers agree.

    Raises ValueError for a `project` whose path cannot be part of an SQLite address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        file = uri.removeprefix(SQLITE)
        return f"{SQLITE}{Path(file).absolute()}" if uri.startswith(SQLITE) and file else uri
    return own_store(project)


def own_store(project: Path) -> str:
    """The address of the project's `mlflow.db`. Raises as `tracking_uri` does."""
    database = project.absolute() / "mlflow.db"
    if unusable := {"%", "?"}.intersection(str(database)):
        raise ValueError(
            f"{project.absolute()}: an SQLite address cannot hold {' or '.join(sorted(unusable))}; "
            "rename the folder or set MLFLOW_TRACKING_URI."
        )
    return f"{SQLITE}{database}"


def database_of(uri: str) -> Path | None:
    """The file of an SQLite address, None for a server's."""
    return Path(uri.partition("?")[0].removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def require_reachable(uri: str) -> None:
    """Check within five seconds that a tracking store can be used; MLflow itself would retry for minutes.

    Raises ValueError for an unknown kind of address, a server that accepts no connection, an SQLite file
    that is no database or cannot be written.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme == "sqlite":
        problem = _database_problem(uri)
    elif scheme in _DEFAULT_PORTS:
        problem = _server_problem(uri, scheme)
    elif scheme == "databricks":
        problem = None  # addressed through Databricks' own settings, which MLflow reads
    else:
        problem = "is none of http, https, sqlite, postgresql, mysql, mssql and databricks"
    if problem:
        raise ValueError(
            f"the MLflow store {without_password(uri)} {problem}; correct MLFLOW_TRACKING_URI, "
            "or unset it to use mlflow.db in the project."
        )


class RunRecorder:
    """One run in a tracking store; any process that knows `uri` and `run_id` can attach to it."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str) -> None:
        self._client = client
        self.uri = uri
        self.run_id = run_id

    @classmethod
    def open(
        cls,
        uri: str,
        experiment: str,
        *,
        artifact_root: Path,
        run_name: str,
        tags: Mapping[str, str],
        params: Mapping[str, object],
        parent_run_id: str | None = None,
    ) -> Self:
        """Start a run in `experiment`, which is created if need be; with a parent it is shown below that.

        A new experiment keeps its artifacts in the folder `artifact_root`, unless a server decides that.
        Raises ValueError when the store cannot be used or the experiment is deleted.
        """
        artifact_location = None
        if not uri.startswith(("http", "databricks")):
            artifact_location = artifact_root.absolute().as_uri()
        with open_store(uri) as client:
            experiment_id = find_experiment(client, experiment, artifact_location)
            parent = {MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}
            run = client.create_run(experiment_id, run_name=run_name, tags={**tags, **parent})
            recorder = cls(client, uri, run.info.run_id)
            try:
                recorder.log_params(params)
            except BaseException:
                recorder.finish("FAILED")
                raise
        return recorder

    @classmethod
    def attach(cls, uri: str, run_id: str) -> Self:
        """Continue a run that exists; its status stays as it is, see `reopen`.

        Raises ValueError when the store cannot be used, has no such run, or the run is deleted.
        """
        with open_store(uri) as client:
            run = client.get_run(run_id)
        if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise ValueError(
                f"the MLflow run {run_id} in {without_password(uri)} is deleted; restore it with "
                f"`mlflow runs restore --run-id {run_id}` or train again."
            )
        return cls(client, uri, run_id)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; a value too long for MLflow is cut, and whole in the artifact params/<name>.txt."""
        values = {name: str(value) for name, value in params.items()}
        entities = [Param(name, value[:_MAX_PARAM_LENGTH]) for name, value in values.items()]
        for start in range(0, len(entities), _MAX_PARAMS):
            batch = entities[start : start + _MAX_PARAMS]
            self._client.log_batch(self.run_id, params=batch, synchronous=True)
        for name, value in values.items():
            if len(value) > _MAX_PARAM_LENGTH:
                self._client.log_text(self.run_id, value, f"params/{name}.txt")

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the values that metrics have at one step; NaN stays NaN."""
        self.log_curve([(step, metrics)])

    def log_curve(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log many (step, metrics) points in as few requests as MLflow allows.

        Raises ConnectionError when the server cannot be reached, or is out of order, after MLflow's own
        patience of about two minutes (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`).
        """
        now = time.time_ns() // 1_000_000
        entities = (
            [Metric(name, float(value), now, step) for name, value in metrics.items()]
            for step, metrics in points
        )
        for batch in batches_of(entities):
            with self._connected():
                self._client.log_batch(self.run_id, metrics=batch, synchronous=True)

    def last_step(self, name: str) -> int:
        """The last step at which a metric has a value, −1 without. Raises ConnectionError as `log_curve`."""
        with self._connected():
            return max((one.step for one in self._client.get_metric_history(self.run_id, name)), default=-1)

    def tag(self, name: str) -> str | None:
        """The value of a tag, None without. Raises ConnectionError as `log_curve`."""
        with self._connected():
            value: str | None = self._client.get_run(self.run_id).data.tags.get(name)
            return value

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, over earlier values. Raises ConnectionError as `log_curve` does."""
        entities = [RunTag(name, value) for name, value in tags.items()]
        with self._connected():
            self._client.log_batch(self.run_id, tags=entities, synchronous=True)

    def log_text(self, text: str, file: str) -> None:
        """Keep a text with the run, as `file` of its artifacts. Raises as `log_curve` does."""
        with self._connected():
            self._client.log_text(self.run_id, text, file)

    def log_dataset(self, name: str, data_hash: str, source: Path, *, profile: str, schema: str) -> None:
        """Note the data set that the run trains on. Raises as `log_curve` does.

        `profile` and `schema` are JSON; MLflow keeps the first 36 characters of the hash.
        """
        dataset = Dataset(name, data_hash[:_MAX_DIGEST_LENGTH], "local", str(source), schema, profile)
        context = [InputTag(MLFLOW_DATASET_CONTEXT, "training")]
        with self._connected():
            self._client.log_inputs(self.run_id, [DatasetInput(dataset, context)])

    def log_artifact(self, file: Path, folder: str | None = None) -> None:
        """Keep a copy of a file with the run, in `folder` of its artifacts. Raises as `log_curve` does."""
        with self._connected():
            self._client.log_artifact(self.run_id, str(file), folder)

    def log_artifacts(self, files: Path, folder: str | None = None) -> None:
        """Keep a copy of all files in the folder `files` with the run, in `folder` of its artifacts."""
        self._client.log_artifacts(self.run_id, str(files), folder)

    def reopen(self) -> None:
        """Say of a run that had ended that it goes on. Raises ConnectionError as `log_curve` does.

        What was sent of it to another store is not all of it any more: it will be sent again.
        """
        if self.tag(SENT_AS):
            self._client.delete_tag(self.run_id, SENT_AS)
        with self._connected():
            self._client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """End the run. Raises ConnectionError as `log_curve` does."""
        with self._connected():
            self._client.set_terminated(self.run_id, status)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            if isinstance(error.__context__, OSError):  # what requests raises when nobody answers
                store = without_password(self.uri)
                raise ConnectionError(f"the MLflow store {store} cannot be reached") from error
            raise


def batches_of(groups: Iterable[list[Metric]]) -> Iterator[list[Metric]]:
    """Metrics in as few requests as MLflow allows; a group that fits one is in one: all or nothing."""
    batch: list[Metric] = []
    for group in groups:
        if len(batch) + len(group) > _MAX_METRICS:
            if batch:
                yield batch
            batch = []
            while len(group) > _MAX_METRICS:
                yield group[:_MAX_METRICS]
                group = group[_MAX_METRICS:]
        batch = batch + group
    if batch:
        yield batch


@contextmanager
def open_store(uri: str) -> Iterator[MlflowClient]:
    """A client of the store; what MLflow refuses inside becomes a ValueError of one sentence."""
    require_reachable(uri)
    # Making the tables of a new database is announced on the terminal otherwise.
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        if database := database_of(uri):
            _create_database(database)
        yield MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        if error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            reason = (
                f"{error.error_code.lower().replace('_', ' ')}: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        raise ValueError(f"the MLflow store {without_password(uri)} refuses: {reason}.") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _create_database(database: Path) -> None:
    """Make the tables aside: MLflow's migrations break when interrupted, or run by two processes at once."""
    if database.exists():
        return
    with TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as folder:
        aside = Path(folder) / database.name
        MlflowClient(tracking_uri=f"{SQLITE}{aside}")
        with suppress(FileExistsError):  # another process was faster: its database counts
            database.hardlink_to(aside)


def find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """The id of an experiment, which is created if need be. Raises ValueError when it is deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process meanwhile
                raise
            experiment = client.get_experiment_by_name(name)
            assert experiment is not None
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise ValueError(
            f"the MLflow experiment {name} is deleted; restore it with `mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}` or change tracking.experiment in params.yaml."
        )
    return experiment.experiment_id


def _database_problem(uri: str) -> str | None:
    file = uri.partition("?")[0].removeprefix(SQLITE)
    if not uri.startswith(SQLITE) or file in ("", ":memory:"):
        return "names no file"
    database = Path(file).absolute()
    if not database.parent.is_dir():
        return f"is in the folder {database.parent}, which does not exist"
    if not os.access(database if database.exists() else database.parent, os.W_OK):
        return "cannot be written"
    if database.exists():
        try:
            connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_SECONDS_TO_ANSWER)
            with closing(connection):
                connection.execute("PRAGMA schema_version")
        except sqlite3.Error as error:
            return f"cannot be read ({error})"
    return None


def _server_problem(uri: str, scheme: str) -> str | None:
    try:
        server = urlsplit(uri)
        host, port = server.hostname, server.port or _DEFAULT_PORTS[scheme]
        proxy = getproxies().get(scheme)
        if proxy and host and scheme in ("http", "https") and not proxy_bypass(host):
            server = urlsplit(proxy if "//" in proxy else f"//{proxy}")
            host, port = server.hostname, server.port or 80
    except ValueError as error:
        return f"is no valid address ({error})"
    if not host:
        return "names no host"

    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER).close()
            outcome.append(None)
        except (OSError, UnicodeError) as error:
            outcome.append(f"cannot be reached at {host}:{port} ({error})")

    # In a thread of its own, because no timeout reaches the look-up of a name.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_ANSWER)
    return outcome[0] if outcome else f"does not answer at {host}:{port} within {_SECONDS_TO_ANSWER:.0f} s"


def without_password(uri: str) -> str:
    """An address that may be shown."""
    return re.sub(r"//[^/@]*@", "//***@", uri)
