"""Bad input: one clear sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dfvt.data.shapes import generate_shapes
from tests.conftest import Project

pytestmark = pytest.mark.e2e
TRAIN_JSON = Path("annotations/instances_train2017.json")


def unused_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def unknown_key(project: Project) -> str:
    project.set_params(train__learning_rate=0.1)
    return "train.learning_rate is an unknown key"


def wrong_type(project: Project) -> str:
    project.set_params(train__num_workers="many")
    return 'train.num_workers is "many", but must be a whole number'


def unknown_profile(project: Project) -> str:
    project.set_params(profile="maxi")
    return 'profile is "maxi", but must be one of mini, custom, coco2017'


def unknown_variant(project: Project) -> str:
    project.set_params(train__variants__huge={"lr": 1e-4})
    return "train.variants.huge is an unknown key"


def missing_root(project: Project) -> str:
    project.set_params(profile="custom", data__root="/nonexistent/data")
    return "data.root /nonexistent/data is not a directory"


def own_data(project: Project) -> Path:
    root = project.path / "data/own"
    generate_shapes(root, num_train=4, num_val=2, height=64, width=64)
    project.set_params(profile="custom", data__root="data/own", weights__pretrained=False)
    return root


def no_coco_layout(project: Project) -> str:
    root = own_data(project)
    (root / TRAIN_JSON).rename(root / "train.json")
    return "instances_train2017.json is missing: put COCO annotations there, or correct its path"


def truncated_annotations(project: Project) -> str:
    file = own_data(project) / TRAIN_JSON
    file.write_bytes(file.read_bytes()[:-200])
    return "instances_train2017.json is truncated or not JSON"


def missing_images(project: Project) -> str:
    root = own_data(project)
    next((root / "val2017").glob("*.jpg")).unlink()
    return "1 of 2 images named in data/own/annotations/instances_val2017.json are missing"


def broken_annotation(project: Project) -> str:
    file = own_data(project) / TRAIN_JSON
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 99
    file.write_text(json.dumps(content))
    return "annotations with a category id that is not listed (1, the first is"


def coco_is_not_there(project: Project) -> str:
    project.set_params(profile="coco2017", data__base_url="file:///nonexistent/mirror/")
    return "unpack COCO 2017 into a folder and set data.root to it"


@pytest.mark.parametrize(
    "mistake",
    [
        unknown_key,
        wrong_type,
        unknown_profile,
        unknown_variant,
        missing_root,
        no_coco_layout,
        truncated_annotations,
        missing_images,
        broken_annotation,
        coco_is_not_there,
    ],
)
def test_a_mistake_in_the_input_is_one_sentence(project: Project, mistake: Callable[[Project], str]) -> None:
    sentence = mistake(project)
    stage = {coco_is_not_there: "fetch_data", broken_annotation: "validate_data"}.get(mistake, "fetch_data")
    result = project.repro(stage)
    assert_refused(project, result.returncode, result.stderr, sentence)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RAY_ADDRESS": "127.0.0.1:{port}"}, "no Ray cluster answers at RAY_ADDRESS '127.0.0.1:{port}'"),
        ({"RAY_ADDRESS": "nonsense"}, "RAY_ADDRESS 'nonsense' is not an address"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:{port}"}, "cannot be reached at 127.0.0.1:{port}"),
        ({"MLFLOW_TRACKING_URI": "nonsense://x"}, "nonsense://x is none of http, https, sqlite"),
    ],
)
def test_an_address_where_nobody_answers_is_one_sentence(
    project: Project, environment: dict[str, str], sentence: str
) -> None:
    port = unused_port()
    result = project.repro(**{name: value.format(port=port) for name, value in environment.items()})
    assert_refused(project, result.returncode, result.stderr, sentence.format(port=port))


def assert_refused(project: Project, returncode: int, stderr: str, sentence: str) -> None:
    assert returncode == 2, stderr
    said = [line for line in stderr.splitlines() if sentence in line]
    assert len(said) == 1, stderr
    assert "Traceback" not in stderr
    assert said[0] == stderr.strip().splitlines()[-1]
    left = project.run("git", "status", "--porcelain", "--ignored", "runs", "metrics", "reports", "mlflow.db")
    assert left.stdout == ""
    partial = [str(file) for file in (project.path / "data").rglob("*partial*")]
    assert partial == []
