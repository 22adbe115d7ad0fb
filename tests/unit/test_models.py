"""Registered models: their names, one version a run, and the best one as champion whoever comes last."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_model_name

from dfvt.tracking import models
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.models import ADDRESS, model_name, register_model

NAME = "dfvt-mini-abc"


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("dfvt", "dfvt-mini-1a2b3c4d"),
        ("my shelves.v2", "my shelves.v2-mini-1a2b3c4d"),
        ("team/shelves", "team-shelves-mini-1a2b3c4d"),
        ("/Users/me@example.org/shelves: new", "Users-me-example.org-shelves- new-mini-1a2b3c4d"),
        ("//", "experiment-mini-1a2b3c4d"),
    ],
)
def test_the_name_of_a_model_comes_from_its_experiment(experiment: str, expected: str) -> None:
    assert model_name(experiment, "mini", "1a2b3c4d5e6f") == expected


@given(experiment=st.text(min_size=1, max_size=500))
def test_any_experiment_gives_a_name_that_mlflow_takes(experiment: str) -> None:
    name = model_name(experiment, "coco2017", "1a2b3c4d5e6f")
    _validate_model_name(name)
    assert len(name) <= 256 and "'" not in name
    address = ADDRESS.fullmatch(f"models:/{name}@champion")
    assert address and address["name"] == name


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> str:
    database = tmp_path_factory.mktemp("models") / "mlflow.db"
    shutil.copy(empty_database, database)
    return f"sqlite:///{database}"


def open_run(uri: str) -> RunRecorder:
    folder = Path(uri.removeprefix("sqlite:///")).parent
    return RunRecorder.open(uri, "dfvt", artifact_root=folder, run_name="run", tags={}, params={})


def register(recorder: RunRecorder, name: str, bbox: float) -> list[str]:
    metrics = {"bbox_mAP": bbox}
    version = register_model(recorder, name, tags={"a": "b"}, metrics=metrics, metric="bbox_mAP")
    return list(version.aliases)


def test_a_run_that_is_evaluated_again_keeps_its_version(uri: str) -> None:
    first, second = open_run(uri), open_run(uri)
    assert register(first, "again", 0.3) == ["champion"]
    assert register(second, "again", 0.2) == []
    assert register(second, "again", 0.4) == ["champion"]
    assert register(second, "again", 0.1) == [], "the first one is the best again"
    client = MlflowClient(uri)
    found = {version.run_id: version.tags["bbox_mAP"] for version in models.versions_of(client, "again")}
    assert found == {first.run_id: "0.300000", second.run_id: "0.100000"}
    assert len(models.versions_of(client, "again")) == 2
    assert client.get_model_version_by_alias("again", "champion").run_id == first.run_id


def test_of_two_evaluations_at_once_the_better_one_is_the_champion(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse, better = open_run(uri), open_run(uri)
    look_up = models.champion_of
    looked: list[str] = []

    def champion_of(client: MlflowClient, name: str) -> object:
        """The other evaluation ends between this one's look and what it does then."""
        present = look_up(client, name)
        looked.append(name)
        if len(looked) == 1:
            assert register(better, name, 0.4) == ["champion"]
        return present

    monkeypatch.setattr(models, "champion_of", champion_of)
    assert register(worse, "race", 0.3) == []
    assert MlflowClient(uri).get_model_version_by_alias("race", "champion").run_id == better.run_id
