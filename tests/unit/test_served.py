"""A detector as an MLflow model finds what `dfvt test` finds, in whatever form the images come."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import requests
import torch
from mlflow import MlflowClient
from mmcv import Config
from PIL import Image

import dfvt
from dfvt.cli import main
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.config_text import config_text
from dfvt.engine.evaluate import predict
from dfvt.engine.infer import build_bare_detector, load_detector
from dfvt.engine.served import ServedDetector, _load_pyfunc
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.models import log_model, register_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def detector(config: Config, tmp_path: Path) -> Path:
    """The folder of a detector with random weights."""
    folder = tmp_path / "detector"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save({"state_dict": build_bare_detector(config).state_dict()}, folder / "checkpoint.pth")
    (folder / "config.py").write_text(config_text(config, formatted=False))
    return folder


@pytest.fixture
def expected(config: Config, detector: Path) -> dict[Path, dict[str, Any]]:
    """What an evaluation finds on each validation image."""
    model, dataset = load_detector(config, detector / "checkpoint.pth", torch.device("cpu"))
    results = predict(model, dataset, torch.device("cpu"))
    assert results is not None
    found = {}
    for info, (boxes, masks) in zip(dataset.data_infos, results, strict=True):
        rows = np.concatenate(boxes)
        order = np.argsort(-rows[:, 4], kind="stable")
        names = [dataset.CLASSES[label] for label, one in enumerate(boxes) for _ in one]
        counts = [mask["counts"].decode() for one in masks for mask in one]
        found[Path(dataset.img_prefix, info["filename"])] = {
            "boxes": rows[order, :4].tolist(),
            "scores": rows[order, 4].tolist(),
            "labels": [names[index] for index in order],
            "masks": [{"size": [64, 80], "counts": counts[index]} for index in order],
        }
    return found


def assert_found(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer["error"] is None
    assert (answer["height"], answer["width"]) == (64, 80)
    exact = {key: value for key, value in expected.items() if key not in ("boxes", "scores")}
    assert {key: answer[key] for key in exact} == exact
    # another process may share its sums among other numbers of threads
    for key in ("boxes", "scores"):
        np.testing.assert_allclose(answer[key], expected[key], rtol=1e-5, atol=1e-5)


def test_paths_bytes_base64_and_pixels(detector: Path, expected: dict[Path, dict[str, Any]]) -> None:
    served = ServedDetector(detector, read_paths=True)
    path, found = next(iter(expected.items()))
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    pixels = np.asarray(Image.open(path))
    for image in (path, str(path), content, text, f"data:image/jpeg;base64,{text}", pixels, pixels.tolist()):
        (answer,) = served.predict([image])
        assert_found(answer, found)
        json.dumps(answer)
    for given in (
        str(path),
        content,
        np.array([pixels]),
        pd.DataFrame({"image": [content]}),
        pd.Series([text]),
    ):
        (answer,) = served.predict(given if not isinstance(given, pd.Series) else given.to_frame())
        assert_found(answer, found)
    (sure,) = served.predict([path], {"score": found["scores"][3]})
    assert len(sure["scores"]) == len(sure["masks"]) == 4


def too_large() -> bytes:
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, format="png")
    return file.getvalue()


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else [0]


BROKEN = [
    (b"", "it is empty"),
    (b"no image", "it is no image that can be read"),
    ("no such file.jpg", "it is not base64"),
    ("\N{EURO SIGN}", "it is not base64"),
    ("a\0b", "it is not base64"),
    ("", "it is empty"),
    ("x" * 10_000, "it is"),
    (too_large(), "it has 12000×12000 pixels, more than 100,000,000"),
    (7, "int is no image"),
    (None, "NoneType is no image"),
    ({"image": 1}, "dict is no image"),
    (np.zeros((2, 2), np.float64), "an array of float64 is no image"),
    (Path("absent.jpg"), "absent.jpg does not exist"),
    ([], r"an array of the shape (0,) is no image"),
    ([[]], r"an array of the shape (1, 0, 1) is no image"),
    ([1, 2, 3], "an array of the shape (3,) is no image"),
    ([[[[0, 0]]]], "an array of the shape (1, 1, 1, 2) is no image"),
    ([[0, 300]], "its pixels are not whole numbers from 0 to 255: 300 is one of them"),
    ([[0, -1]], "its pixels are not whole numbers from 0 to 255: -1 is one of them"),
    ([[0, 0.5]], "its pixels are not whole numbers from 0 to 255: 0.5 is one of them"),
    ([[0, float("nan")]], "its pixels are not whole numbers from 0 to 255: nan is one of them"),
    ([[0, float("inf")]], "its pixels are not whole numbers from 0 to 255: inf is one of them"),
    ([[0, 2**80]], "its pixels are not"),
    ([[-1, 2**63]], "its pixels are not"),
    ([[0, None]], "its pixels are not numbers"),
    ([[0, "1"]], "its pixels are not numbers"),
    ([[True, False]], "its pixels are not numbers"),
    ([[0, {}]], "its pixels are not numbers"),
    ([[0, 1], [2]], "its pixels are not rows of one length"),
    (nested(100), "its pixels are not"),
    ([[0, 0, 0]] * 80, "its shape (80, 3) is that of one row of pixels: send pixels as dataframe_split"),
    (np.zeros((9_000, 1), np.uint8), "the config's test pipeline cannot take an image of 1×9000 pixels"),
]


def test_what_is_no_image_is_a_sentence_beside_the_others(
    detector: Path, expected: dict[Path, dict[str, Any]]
) -> None:
    path, found = next(iter(expected.items()))
    answers = ServedDetector(detector).predict([*(image for image, _ in BROKEN), path])
    assert len(answers) == len(BROKEN) + 1
    for answer, (image, sentence) in zip(answers, BROKEN, strict=False):
        assert sentence in answer["error"], repr(image)[:80]
        assert answer["boxes"] is None and "\n" not in answer["error"]
    assert_found(answers[-1], found)


def test_whole_floats_are_pixels_and_base64_may_have_lines(
    detector: Path, expected: dict[Path, dict[str, Any]]
) -> None:
    path, found = next(iter(expected.items()))
    floats = np.asarray(Image.open(path)).astype(float).tolist()
    for image in (floats, base64.encodebytes(path.read_bytes()).decode()):
        (answer,) = ServedDetector(detector).predict([image])
        assert_found(answer, found)


def test_an_array_of_one_image_is_not_taken_for_its_rows(
    detector: Path, expected: dict[Path, dict[str, Any]]
) -> None:
    path, found = next(iter(expected.items()))
    pixels = np.asarray(Image.open(path))
    (answer,) = ServedDetector(detector).predict(pixels)
    assert_found(answer, found)
    (grey,) = ServedDetector(detector).predict(pixels[..., 0])
    assert (grey["height"], grey["width"]) == (64, 80)
    assert ServedDetector(detector).predict(pd.DataFrame()) == []
    for nothing in (None, 7, {"image": 1}):
        with pytest.raises(ValueError, match="cannot hold images"):
            ServedDetector(detector).predict(nothing)


def test_a_text_says_nothing_about_the_files_of_a_server(
    detector: Path, expected: dict[Path, dict[str, Any]], tmp_path: Path
) -> None:
    image, found = next(iter(expected.items()))
    (tmp_path / "secret.txt").write_text("secret")
    texts = [str(tmp_path / name) for name in ("absent.txt", "secret.txt")] + [str(image), str(tmp_path)]
    answers = ServedDetector(detector).predict(texts)
    assert len({answer["error"] for answer in answers}) == 1 and answers[0]["error"]
    assert all("secret" not in answer["error"] for answer in answers)
    (answer,) = _load_pyfunc(str(detector), {"read_paths": True}).predict([str(image)])
    assert_found(answer, found)
    (answer,) = _load_pyfunc(str(detector)).predict([image])
    assert_found(answer, found)  # no request can contain a pathlib.Path
    with pytest.raises(ValueError, match="use true or false"):
        _load_pyfunc(str(detector), {"read_paths": "no"})


def test_a_device_without_memory_is_the_error_of_one_image(
    detector: Path, expected: dict[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = next(iter(expected.items()))
    served = ServedDetector(detector)
    errors = iter([torch.OutOfMemoryError("CUDA out of memory"), None])
    predictor = served.predictor

    def predict_on(images: Any) -> Any:
        error = next(errors)
        if error:
            raise error
        return predictor(images)

    monkeypatch.setattr(served, "predictor", predict_on)
    predict_on.classes = predictor.classes  # type: ignore[attr-defined]
    predict_on.read = predictor.read  # type: ignore[attr-defined]
    first, second = served.predict([path, path])
    assert first["error"] == "there is no memory left for it"
    assert_found(second, found)


class Recorder(BaseHTTPRequestHandler):
    """Keeps what is sent to it."""

    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_command_of_the_readme_sends_a_large_photo(tmp_path: Path) -> None:
    (command,) = re.findall(
        r"^\{ printf .*\n +curl .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M
    )
    photo = np.random.default_rng(0).bytes(400_000)  # in one argument, 96 kB is the most
    (tmp_path / "photo.jpg").write_bytes(photo)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    with server, ThreadPoolExecutor(1) as thread:
        serving = thread.submit(server.serve_forever, 0.05)
        address = f"127.0.0.1:{server.server_port}"
        script = command.replace("127.0.0.1:5001", address)
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=False)
        server.shutdown()
        serving.result()
    assert done.returncode == 0, done.stderr
    (text,) = json.loads(Recorder.bodies.pop())["inputs"]
    assert base64.b64decode(text, validate=True) == photo


@pytest.fixture
def logged(detector: Path, tmp_path: Path, shapes: DatasetManifest) -> tuple[str, str]:
    """A store, and a run in it that has the detector as a model."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return uri, log_run(uri, detector, shapes, tmp_path)


def log_run(uri: str, detector: Path, shapes: DatasetManifest, folder: Path) -> str:
    recorder = RunRecorder.open(
        uri, "dfvt", artifact_root=folder / "artifacts", run_name="run", tags={}, params={}
    )
    log_model(
        recorder,
        loader_module="dfvt.engine.served",
        files=[detector / "config.py", detector / "checkpoint.pth"],
        code=Path(dfvt.__file__).parent,
        requirements=ROOT / "requirements.txt",
        example=next(shapes.val_images_path.iterdir()),
    )
    return recorder.run_id


def register(uri: str, run_id: str, bbox: float) -> Any:
    return register_model(
        RunRecorder.attach(uri, run_id),
        "dfvt-mini-abc",
        tags={"git.commit": "beef"},
        metrics={"bbox_mAP": bbox},
        metric="bbox_mAP",
    )


def test_a_model_that_is_registered_loads(
    logged: tuple[str, str],
    expected: dict[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, run_id = logged
    assert register(uri, run_id, 0.3).aliases == ["champion"]
    assert register(uri, run_id, 0.4).version in (1, "1"), "a run that is evaluated again has one version"
    champion = MlflowClient(uri).get_model_version_by_alias("dfvt-mini-abc", "champion")
    assert champion.run_id == run_id
    assert champion.tags["git.commit"] == "beef" and float(champion.tags["bbox_mAP"]) == 0.4

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model("models:/dfvt-mini-abc@champion")
    assert model.metadata.signature is not None
    path, found = next(iter(expected.items()))
    assert "it is not base64" in model.predict([str(path)])[0]["error"]
    assert_found(model.predict([path])[0], found)
    model = mlflow.pyfunc.load_model("models:/dfvt-mini-abc@champion", model_config={"read_paths": True})
    for images in ([str(path)], [path.read_bytes()], pd.Series([np.asarray(Image.open(path))])):
        (answer,) = model.predict(images)
        assert_found(answer, found)
    monkeypatch.setenv(
        "MLFLOW_PYFUNC_INFERENCE_CONFIG", '{"read_paths": true}'
    )  # of a server, as in the README
    assert_found(mlflow.pyfunc.load_model("models:/dfvt-mini-abc/1").predict([str(path)])[0], found)
    requirements = mlflow.pyfunc.get_model_dependencies("models:/dfvt-mini-abc@champion")
    assert "mmdet==2.28.2" in Path(requirements).read_text()


def test_a_config_of_a_model_is_not_executed(
    logged: tuple[str, str],
    detector: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, _ = logged
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with (detector / "config.py").open("a") as file:
        file.write(f"\nopen({str(tmp_path / 'executed')!r}, 'w').close()\n")
    run_id = log_run(uri, detector, shapes, tmp_path)
    image = str(next(shapes.val_images_path.iterdir()))
    assert main(["predict", f"runs:/{run_id}", image, "--out", str(tmp_path / "found"), "--gpus", "0"]) == 2
    assert "holds more than plain values and is not executed" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is not executed"):
        ServedDetector(detector)
    assert not (tmp_path / "executed").exists()


def test_predict_takes_a_model_by_its_address(
    logged: tuple[str, str],
    expected: dict[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, run_id = logged
    register(uri, run_id, 0.3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    path, found = next(iter(expected.items()))
    options = ["--out", str(tmp_path / "found"), "--gpus", "0", "--no-pictures", "--score", "0"]
    for address in ("models:/dfvt-mini-abc@champion", "models:/dfvt-mini-abc/1", f"runs:/{run_id}"):
        assert main(["predict", address, str(path), *options]) == 0
        content = json.loads((tmp_path / "found/predictions.json").read_text())
        assert [one["score"] for one in content["annotations"]] == pytest.approx(found["scores"], abs=1e-4)
    capsys.readouterr()
    for address, sentence in (
        ("models:/dfvt-mini-abc", "write models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN"),
        ("models:/dfvt-mini-abc@best", "alias best not found"),
        ("models:/nobody/1", "Model Version (name=nobody, version=1) not found"),
        ("runs:/abc", "Run with id=abc not found"),
    ):
        assert main(["predict", address, str(path), *options]) == 2
        assert sentence in capsys.readouterr().err
    bare = RunRecorder.open(uri, "dfvt", artifact_root=tmp_path, run_name="bare", tags={}, params={})
    assert main(["predict", f"runs:/{bare.run_id}", str(path), *options]) == 2
    assert "has no model, see the stage evaluate" in capsys.readouterr().err


@pytest.fixture
def server(logged: tuple[str, str]) -> Iterator[str]:
    """The address of `mlflow models serve`."""
    uri, run_id = logged
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"runs:/{run_id}/model"]
    process = subprocess.Popen(
        [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
        env={
            **os.environ,
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), os.environ["PATH"]]
            ),  # it calls uvicorn
            "MLFLOW_TRACKING_URI": uri,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None
            try:
                if requests.get(f"{address}/ping", timeout=5).ok:
                    break
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.e2e
def test_it_is_served_over_http_and_bad_input_does_not_end_it(
    server: str, expected: dict[Path, dict[str, Any]]
) -> None:
    def ask(body: Any) -> requests.Response:
        return requests.post(f"{server}/invocations", json=body)

    texts = {path: base64.b64encode(path.read_bytes()).decode() for path in expected}
    answer = ask({"inputs": list(texts.values())})
    assert answer.ok, answer.text
    for found, one in zip(expected.values(), answer.json()["predictions"], strict=True):
        assert_found(one, found)
    split = {"columns": ["image"], "data": [[text] for text in texts.values()]}
    table = ask({"dataframe_split": split, "params": {"score": 1.0}})
    assert [one["boxes"] for one in table.json()["predictions"]] == [[]] * len(texts)

    path, found = next(iter(expected.items()))
    (refused,) = ask({"inputs": [str(path)]}).json()["predictions"]
    assert "it is not base64" in refused["error"]
    pixels = np.asarray(Image.open(path)).tolist()
    table = ask({"dataframe_split": {"columns": ["image"], "data": [[pixels], [[[300]]]]}}).json()[
        "predictions"
    ]
    assert_found(table[0], found)
    assert "300 is one of them" in table[1]["error"]
    (row,) = ask({"inputs": [pixels]}).json()["predictions"]  # MLflow hands over the first row alone
    assert "its shape (80, 3) is that of one row of pixels" in row["error"]
    broken = [base64.b64encode(image).decode() for image, _ in BROKEN if isinstance(image, bytes) and image]
    for one in ask({"inputs": [*broken, "§"]}).json()["predictions"]:
        assert one["error"] and "\n" not in one["error"]
    for body in ({}, {"inputs": None}, {"nonsense": [1]}, {"dataframe_split": {"columns": [], "data": []}}):
        assert ask(body).status_code >= 400, body
    assert_found(ask({"inputs": [texts[path]]}).json()["predictions"][0], found)
