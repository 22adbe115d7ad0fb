"""Detectors as MLflow models: kept with their run, registered, the best one of a data set named champion."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
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


def register_model(
    recorder: RunRecorder, name: str, *, tags: Mapping[str, str], metrics: Mapping[str, float], metric: str
) -> ModelVersion:
    """Makes a run's model a version of a registered model, and its champion if it beats the present one.

    Args:
        recorder: the run; `log_model` was called.
        name: names one data set, so that its versions can be compared.
        tags: of the version.
        metrics: become tags too.
        metric: what is compared.
    """
    with open_store(recorder.uri) as client:
        create_registered_model(client, name)
        version = client.create_model_version(
            name,
            f"runs:/{recorder.run_id}/{MODEL}",
            run_id=recorder.run_id,
            tags={**tags, **{key: f"{value:.6f}" for key, value in metrics.items()}},
        )
        present = champion_of(client, name)
        if present is None or metrics[metric] > float(present.tags.get(metric, "-inf")):
            client.set_registered_model_alias(name, CHAMPION, version.version)
        return client.get_model_version(name, version.version)


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
