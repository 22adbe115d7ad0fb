"""Runs in an MLflow tracking store: the only module that talks to MLflow."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Self

import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from dfvt.tracking.addresses import SQLITE as SQLITE
from dfvt.tracking.addresses import database_of as database_of
from dfvt.tracking.addresses import own_store as own_store
from dfvt.tracking.addresses import tracking_uri as tracking_uri
from dfvt.tracking.addresses import without_password as without_password
from dfvt.tracking.artifacts import artifacts_of, relocate_artifacts
from dfvt.tracking.reachable import INVALID_HOST, SIGN_IN, host_remedy
from dfvt.tracking.reachable import require_reachable as require_reachable
from dfvt.tracking.store import SENT_AS

# What MLflow takes in one request and in one value.
_MAX_METRICS, _MAX_PARAMS, _MAX_PARAM_LENGTH, _MAX_DIGEST_LENGTH = 1000, 100, 6000, 36
_SECONDS_TO_ABANDON = 10.0
Status = Literal["FINISHED", "FAILED", "KILLED"]


class RunNotFoundError(ValueError):
    """A store has no run of an id, or the run is deleted."""


class RefusedError(ValueError):
    """A store answers, and does not do what it is asked for."""


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

        A new experiment keeps its artifacts in the folder `artifact_root`, unless the store is a project's
        own, which has a folder for them, or a server decides that.
        Raises ValueError when the store cannot be used or the experiment is deleted.
        """
        artifact_location = None
        if not uri.startswith(("http", "databricks")):
            database = database_of(uri)
            own = database and artifacts_of(database)
            artifact_location = (own or artifact_root.absolute()).as_uri()
        with open_store(uri) as client:
            experiment_id = find_experiment(client, experiment, artifact_location)
            parent = {MLFLOW_PARENT_RUN_ID: parent_run_id} if parent_run_id else {}
            run = client.create_run(experiment_id, run_name=run_name, tags={**tags, **parent})
            recorder = cls(client, uri, run.info.run_id)
            try:
                recorder.log_params(params)
            except BaseException:
                recorder.abandon("FAILED")
                raise
        return recorder

    @classmethod
    def attach(cls, uri: str, run_id: str) -> Self:
        """Continue a run that exists; its status stays as it is, see `reopen`.

        Raises RunNotFoundError if the store has no such run or the run is deleted, another ValueError when
        the store cannot be used.
        """
        with open_store(uri) as client:
            try:
                run = client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise RunNotFoundError(_sentence(error, uri)) from error
        if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise RunNotFoundError(
                f"the MLflow run {run_id} in {without_password(uri)} is deleted; restore it with "
                f"`mlflow runs restore --run-id {run_id}` or train again."
            )
        return cls(client, uri, run_id)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; a value too long for MLflow is cut, and whole in the artifact params/<name>.txt.

        Raises as `log_curve` does.
        """
        values = {name: str(value) for name, value in params.items()}
        entities = [Param(name, value[:_MAX_PARAM_LENGTH]) for name, value in values.items()]
        for start in range(0, len(entities), _MAX_PARAMS):
            with self._connected():
                batch = entities[start : start + _MAX_PARAMS]
                self._client.log_batch(self.run_id, params=batch, synchronous=True)
        for name, value in values.items():
            if len(value) > _MAX_PARAM_LENGTH:
                self.log_text(value, f"params/{name}.txt")

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the values that metrics have at one step; NaN stays NaN."""
        self.log_curve([(step, metrics)])

    def log_curve(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log many (step, metrics) points in as few requests as MLflow allows.

        Raises ConnectionError when the server cannot be reached, or is out of order, after MLflow's own
        patience of about two minutes (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`), and RefusedError when it answers,
        but refuses.
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

    def status(self) -> str:
        """Return RUNNING, or how the run ended. Raises as `log_curve` does."""
        with self._connected():
            status: str = self._client.get_run(self.run_id).info.status
            return status

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, over earlier values. Raises ConnectionError as `log_curve` does."""
        entities = [RunTag(name, value) for name, value in tags.items()]
        with self._connected():
            self._client.log_batch(self.run_id, tags=entities, synchronous=True)

    def log_text(self, text: str, file: str) -> None:
        """Keep a text with the run, as `file` of its artifacts. Raises as `log_curve` does."""
        with self._connected():
            self._client.log_text(self.run_id, text, file)

    def log_bytes(self, content: bytes, file: str) -> None:
        """Keep bytes with the run, as `file` of its artifacts. Raises as `log_curve` does."""
        with TemporaryDirectory() as folder:
            path = Path(folder, Path(file).name)
            path.write_bytes(content)
            self.log_artifact(path, str(Path(file).parent))

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
        """Keep a copy of all files in the folder `files` with the run. Raises as `log_curve` does."""
        with self._connected():
            self._client.log_artifacts(self.run_id, str(files), folder)

    def reopen(self) -> None:
        """Say of a run that had ended that it goes on. Raises ConnectionError as `log_curve` does.

        What was sent of it to another store is not all of it any more: it will be sent again.
        """
        if self.tag(SENT_AS):
            with self._connected():
                self._client.delete_tag(self.run_id, SENT_AS)
        with self._connected():
            self._client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run. Raises as `log_curve` does."""
        with self._connected():
            self._client.set_terminated(self.run_id, status)

    def abandon(self, status: Status) -> None:
        """End the run because of an error that is on its way, which a failure of MLflow's must not replace.

        It waits some seconds at most. What the store did not take is said on the terminal.
        """
        outcome: list[BaseException | None] = []

        def end() -> None:
            try:
                self.finish(status)
                outcome.append(None)
            except BaseException as error:  # said below
                outcome.append(error)

        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(_SECONDS_TO_ABANDON)
        if outcome == [None]:
            return
        reason = (
            str(outcome[0]) if outcome else f"the MLflow store {without_password(self.uri)} does not answer"
        )
        print(
            f"{reason.rstrip('.')}: the run {self.run_id} is not ended there, `dfvt runs sync` ends it",
            file=sys.stderr,
            flush=True,
        )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn errors of MLflow's into a ConnectionError of one sentence, or into RefusedError."""
        try:
            yield
        except requests.RequestException as error:  # of a request for artifacts
            raise ConnectionError(_unreachable(self.uri)) from error
        except MlflowException as error:
            # MLflow raises while it handles the error of requests. Any other error in the context is one that
            # the caller handles, and says nothing about the store.
            if isinstance(error.__cause__ or error.__context__, requests.RequestException):
                raise ConnectionError(_unreachable(self.uri)) from error
            if error.get_http_status_code() in (429, 500, 502, 503, 504):
                raise ConnectionError(_sentence(error, self.uri, "does not work at present")) from error
            raise RefusedError(_sentence(error, self.uri)) from error


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
            relocate_artifacts(database)
        yield MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise ValueError(_sentence(error, uri)) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _unreachable(uri: str) -> str:
    return f"the MLflow store {without_password(uri)} cannot be reached"


def _sentence(error: MlflowException, uri: str, what: str = "refuses") -> str:
    """Return an error of MLflow's as one sentence, without credentials and without pages of HTML."""
    reason = without_password(str(error).partition("\n")[0]).rstrip(".")
    if INVALID_HOST in reason:
        reason = f"it does not know the host name of this address; {host_remedy(uri)}"
    elif "Response body: '" in reason:
        reason = reason.partition(" Response body: '")[0].rstrip(".")
        reason = f"{reason}; its answer is not MLflow's, look at what answers at this address"
    elif error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        reason = f"{error.error_code.lower().replace('_', ' ')}: {SIGN_IN}"
    return f"the MLflow store {without_password(uri)} {what}: {reason}."


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
