"""Detectors as MLflow models: kept with their run, registered, the best one of a data set named champion."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

from dfvt.tracking.mlflow import RunRecorder, open_store

MODEL = "model"  # the folder of a run's artifacts
DATA = "data/detector"  # where MLflow puts a folder of that name in a model
CHAMPION = "champion"
UNFIT = re.compile(r"[/:@%?#'\"`\\\x00-\x1f\x7f]+")  # of an experiment, in the name of a model
MAX_EXPERIMENT = 180  # characters; a model's whole name may have 256
MAX_ROUNDS = 10  # of evaluations that end at once
ADDRESS = re.compile(
    r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))|runs:/(?P<run>\w+)(/model)?"
)
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(AnyType())]),
    outputs=Schema([ColSpec(AnyType())]),
    params=ParamSchema([ParamSpec("score", DataType.double, 0.0)]),
)

MODEL_CONFIG = {"read_paths": False}  # what may be chosen when a model is loaded, and the defaults


def log_model(
    recorder: RunRecorder,
    *,
    loader_module: str,
    files: Sequence[Path],
    code: Path,
    requirements: Path,
    example: Path,
) -> str:
    """Keeps a detector with its run as a python function; returns its address.

    Args:
        recorder: the run.
        loader_module: has `_load_pyfunc`, which gets the folder of the files.
        files: what it needs.
        code: the package that it is in.
        requirements: the pinned versions of what that needs.
        example: an image.
    """
    with TemporaryDirectory() as folder:
        data = Path(folder, Path(DATA).name)
        data.mkdir()
        for file in files:
            shutil.copy(file, data / file.name)
        mlflow.pyfunc.save_model(
            str(Path(folder, MODEL)),
            loader_module=loader_module,
            data_path=str(data),
            code_paths=[str(code)],
            model_config=MODEL_CONFIG,
            signature=SIGNATURE,
            input_example=[example.read_bytes()],
            pip_requirements=str(requirements),
        )
        recorder.log_artifacts(Path(folder, MODEL), MODEL)
    return f"runs:/{recorder.run_id}/{MODEL}"


def model_name(experiment: str, dataset: str, data_hash: str) -> str:
    """Return the name of the registered model for the detectors of an experiment on a data set.

    It is `EXPERIMENT-DATASET-HASH`, with the first eight digits of the data's hash. MLflow takes no `/` and
    `:` in such a name, its addresses have no place for `@`, quotes and `%`: each becomes `-`, and `-` at the
    ends is left out, so that `/Shared/team/shelves` is `Shared-team-shelves`. Of a long experiment's name the
    beginning is taken, and a hash of the whole.
    """
    fit = experiment
    if UNFIT.search(experiment):
        fit = UNFIT.sub("-", experiment).strip("-. ") or "experiment"
    if len(fit) > MAX_EXPERIMENT:
        fit = f"{fit[:MAX_EXPERIMENT]}-{sha256(experiment.encode()).hexdigest()[:8]}"
    return f"{fit}-{dataset}-{data_hash[:8]}"


def register_model(
    recorder: RunRecorder, name: str, *, tags: Mapping[str, str], metrics: Mapping[str, float], metric: str
) -> ModelVersion:
    """Make a run's model a version of a registered model, and the best version the champion.

    A run has one version: registered again, the version gets the tags and metrics of now.

    Args:
        recorder: the run; `log_model` was called.
        name: names one data set, so that its versions can be compared, see `model_name`.
        tags: of the version.
        metrics: become tags too.
        metric: what is compared; of versions that are equally good the first one is the best.

    Raises:
        ValueError: the store refuses.
    """
    values = {**tags, **{key: f"{value:.6f}" for key, value in metrics.items()}}
    with open_store(recorder.uri) as client:
        create_registered_model(client, name)
        version = version_of(client, name, recorder.run_id)
        if version is None:
            client.create_model_version(
                name, f"runs:/{recorder.run_id}/{MODEL}", run_id=recorder.run_id, tags=values
            )
            version = version_of(client, name, recorder.run_id)
            assert version is not None
        for key, value in values.items():
            if version.tags.get(key) != value:
                client.set_model_version_tag(name, version.version, key, value)
        crown_champion(client, name, metric)
        return client.get_model_version(name, version.version)


def version_of(client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    """Return the version that a run has, None without one.

    If two processes registered the run at once, it is the first one for both.
    """
    own = [version for version in versions_of(client, name) if version.run_id == run_id]
    return own[0] if own else None


def versions_of(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Return all versions of a registered model, the first one first."""
    versions: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        versions += page
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: int(version.version))


def crown_champion(client: MlflowClient, name: str, metric: str) -> None:
    """Give the alias `champion` to the version with the highest metric.

    All versions are compared, and compared again after the alias was given: if several evaluations end at
    once, whichever is the last to give the alias sees all versions.
    """
    for _ in range(MAX_ROUNDS):
        numbers = {
            version.version: number
            for version in versions_of(client, name)
            if (number := number_of(version, metric)) is not None
        }
        if not numbers:
            return
        best = max(numbers, key=lambda version: (numbers[version], -int(version)))
        present = champion_of(client, name)
        if present is not None and present.version == best:
            return
        client.set_registered_model_alias(name, CHAMPION, best)


def number_of(version: ModelVersion, metric: str) -> float | None:
    """Return a metric of a version, None where it has none."""
    try:
        number = float(version.tags.get(metric, "nan"))
    except ValueError:  # somebody else's tag
        return None
    return number if math.isfinite(number) else None


def fetch_model(uri: str, address: str, folder: Path) -> Path:
    """Fetches the files that `log_model` was given with a model into a folder; returns where they are.

    Args:
        uri: of the store.
        address: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN`.
        folder: takes them.

    Raises:
        ValueError: the address is none of those, or the store has no such model.
    """
    found = ADDRESS.fullmatch(address)
    if not found:
        raise ValueError(f"{address}: write models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN")
    with open_store(uri) as client:
        if found["alias"]:
            run_id = client.get_model_version_by_alias(found["name"], found["alias"]).run_id
        elif found["version"]:
            run_id = client.get_model_version(found["name"], found["version"]).run_id
        else:
            run_id = found["run"]
        assert run_id, "register_model names a run"
        if MODEL not in {artifact.path for artifact in client.list_artifacts(run_id)}:
            raise ValueError(f"{address}: the run {run_id} has no model, see the stage evaluate")
        return Path(client.download_artifacts(run_id, f"{MODEL}/{DATA}", str(folder)))


def create_registered_model(client: MlflowClient, name: str) -> None:
    """Creates a registered model unless it is there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def champion_of(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version with the alias, None where nobody has it."""
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
