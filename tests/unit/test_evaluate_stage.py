"""The stages evaluate and report end well whatever classes are named, boxes are like and detectors have."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mmcv import Config

from dfvt.data.coco import describe_dataset
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.config_text import config_text
from dfvt.engine.curves import TRAIN_COLUMNS
from dfvt.engine.infer import build_bare_detector
from dfvt.reports import gallery
from dfvt.reports.curves import read_table
from dfvt.reports.errors import told_from_markers, write_table
from dfvt.settings import EvaluateSettings, Settings
from dfvt.tracking.mlflow import RunRecorder
from pipelines import evaluate, report
from pipelines.evaluate import class_metrics, metric_name

NAMES = (
    *("None", "NA", "null", "N/A", "", ".", "..", "nan"),
    *("fish ♂", "fish ♀", "A/B", "A_B", "a:b", "x" * 250, "x" * 251, "鱼", "$x_$"),
    *("(background)", "(missed)", "((missed))", "traffic light"),
)
SCORE = 0.04  # a detector that is not trained finds objects of about 1 / len(NAMES)
VARIANTS = ("tiny", "small", "base")


def test_names_that_mlflow_takes_stay_and_others_stay_distinct() -> None:
    names = {name: metric_name("bbox_AP", name) for name in NAMES}
    assert names["traffic light"] == "bbox_AP/traffic light"
    assert names["A_B"] == "bbox_AP/A_B"
    assert len(set(names.values())) == len(NAMES)
    assert max(map(len, names.values())) == 250
    assert names["fish ♂"].startswith("bbox_AP/fish _-")


@given(st.lists(st.text(max_size=300), unique=True, max_size=20))
def test_mlflow_takes_the_metric_of_any_class(names: list[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name  # what the store itself asks

    found = [metric_name("segm_AP", name) for name in names]
    assert len(set(found)) == len(names)
    for name in found:
        _validate_metric_name(name)
        assert len(name) <= 250


@given(st.lists(st.text(alphabet="()backgroundmissed", max_size=14) | st.sampled_from(NAMES), unique=True))
def test_classes_and_markers_of_confusions_are_told_apart(names: list[str]) -> None:
    written = {told_from_markers(name) for name in names}
    assert len(written) == len(names)
    assert not written & {"(background)", "(missed)"}
    assert told_from_markers("(back") == "(back"


@given(names=st.lists(st.text(max_size=12) | st.sampled_from(NAMES), unique=True, min_size=1, max_size=12))
def test_a_table_of_classes_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:

    path = tmp_path_factory.getbasetemp() / "per_class.csv"
    values = [0.5 if index % 2 else float("nan") for index in range(len(names))]
    write_table(pd.DataFrame({"class": names, "bbox_AP": values}), path)
    table = read_table(path, "evaluate@tiny", numbers=["bbox_AP"], text=["class"])
    assert table["class"].tolist() == names
    np.testing.assert_array_equal(table["bbox_AP"], values)


@pytest.fixture(scope="module")
def data(shapes: DatasetManifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in a subfolder of the folder of images, a box of negative width, classes with odd names."""
    root = tmp_path_factory.mktemp("odd")
    content = json.loads(shapes.val_annotations_path.read_text())
    (root / "an empty folder").mkdir()
    (root / "cam 1").mkdir()
    for image in content["images"]:
        shutil.copy(shapes.val_images_path / image["file_name"], root / "cam 1" / image["file_name"])
        image["file_name"] = f"cam 1/{image['file_name']}"
    x, y, width, height = content["annotations"][0]["bbox"]
    content["annotations"][0]["bbox"] = [x + width, y, -width, height]
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 1 + number % len(NAMES)
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def settings_of(**evaluation: Any) -> Settings:
    return Settings(profile="custom", evaluate=EvaluateSettings(score_threshold=SCORE, **evaluation))


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make the tables of a database; a copy has them too."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def project(
    data: Path, config: Config, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Config:
    """A project in which `tiny` has been trained; the test writes its config and its weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    places = {f"{split}_{kind}": path for split in ("train", "val") for kind, path in PLACES.items()}
    described = describe_dataset("custom", data, generated=False, **places)  # type: ignore[arg-type]
    described.save(Path("data/dataset/manifest.json"))
    shutil.copy(empty_store, "mlflow.db")
    recorder = RunRecorder.open(
        f"sqlite:///{tmp_path}/mlflow.db",
        "dfvt",
        artifact_root=Path("mlartifacts"),
        run_name="tiny",
        tags={},
        params={},
    )
    noted = {"mlflow_run_id": recorder.run_id, "tracking_uri": recorder.uri, "tags": {}}
    size = {"num_params": 5, "backbone_params": 3, "flops": 7, "input_shape": [64, 80]}
    Path("metrics").mkdir()
    Path("metrics/profile.json").write_text(json.dumps(dict.fromkeys(VARIANTS, size)))
    for variant in VARIANTS:
        Path("runs", variant).mkdir(parents=True)
        Path("runs", variant, "run.json").write_text(json.dumps(noted))
        row = dict.fromkeys(TRAIN_COLUMNS, 1.0)
        pd.DataFrame([row]).to_csv(f"runs/{variant}/curve.csv", index=False)
        Path("runs", variant, "val.csv").write_text("step,epoch,bbox_mAP,segm_mAP\n1,1,0.1,\n")
    # Models in MLflow are the subject of test_tracking; here it counts which image is their example.
    monkeypatch.setattr(evaluate, "keep_model", lambda *arguments: kept.append(arguments[-1]))
    kept.clear()
    cfg = copy.deepcopy(config)
    cfg.data.test.update(ann_file=str(data / "annotations.json"), img_prefix=str(data), classes=list(NAMES))
    for name in ("bbox_head", "mask_head"):
        cfg.model.roi_head[name].num_classes = len(NAMES)
    return cfg


PLACES = {"annotations": "annotations.json", "images": "."}
kept: list[Path] = []


def finish_training(cfg: Config) -> None:
    torch.manual_seed(0)
    detector: Any = build_bare_detector(cfg)
    detector.init_weights()
    torch.save({"state_dict": detector.state_dict()}, "runs/tiny/checkpoint.pth")
    Path("runs/tiny/config.py").write_text(config_text(cfg, formatted=False))


def evaluate_and_report(settings: Settings) -> str:
    """Run the two stages, with the evaluation of `tiny` for all three; returns the report."""
    evaluate.main(settings, "tiny")
    for variant in ("small", "base"):
        shutil.copytree("evaluations/tiny", f"evaluations/{variant}")
        shutil.copy("metrics/evaluate_tiny.json", f"metrics/evaluate_{variant}.json")
    report.main(settings)
    return Path("reports/results.md").read_text()


def names_below(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_odd_names_and_boxes_and_places_of_images_are_evaluated_and_reported(
    project: Config, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    finish_training(project)
    stale = Path("evaluations/.tiny.partial/gallery/99.png")  # of a run that was killed
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    text = evaluate_and_report(settings_of(num_gallery_images=2))

    err = capsys.readouterr().err
    assert "was not drawn" not in err
    assert err.count("no installed font has these characters of the class names: 鱼") in (0, 2)
    assert not [one for one in recwarn if "Glyph" in str(one.message)]
    assert kept == [Path(project.data.test.img_prefix).absolute() / "cam 1/000001000001.jpg"]
    pictures = {name for name in names_below("evaluations/tiny") if name.endswith(".png")}
    assert "gallery/99.png" not in pictures
    assert len(pictures) == 1 + 2 + 2 + 2, "the confusions and three galleries"
    assert {"bbox_AP/None", "segm_AP/NA", metric_name("bbox_AP", "")} <= metrics_of_run().keys()
    table = pd.read_csv("evaluations/tiny/per_class.csv", keep_default_na=False, dtype=str)
    assert table["class"].tolist() == list(NAMES)
    assert "-1" not in " ".join(table["bbox_AP"]), "what is undefined is empty"
    figures = names_below("reports/figures")
    assert figures == {f"{name}.png" for name in FIGURES} and all(f"figures/{one}" in text for one in figures)
    assert "Not comparable" in text


FIGURES = ("predictions", "learning_curves", "precision_recall", "per_class_ap", "errors")


def metrics_of_run() -> dict[str, float]:
    noted = json.loads(Path("runs/tiny/run.json").read_text())
    metrics: dict[str, float] = (
        MlflowClient(noted["tracking_uri"]).get_run(noted["mlflow_run_id"]).data.metrics
    )
    return metrics


def test_a_detector_without_masks_and_without_a_gallery_is_evaluated_and_reported(
    project: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    project.model.roi_head.mask_head = project.model.roi_head.mask_roi_extractor = None
    finish_training(project)
    text = evaluate_and_report(settings_of(num_gallery_images=0))
    assert "was not drawn" not in capsys.readouterr().err
    assert names_below("evaluations/tiny") == {
        "predictions.bbox.json",
        "gallery/predictions.json",
        *("per_class.csv", "precision_recall.csv", "errors.csv", "confusion.csv", "confusion.png"),
    }
    assert names_below("reports/figures") == {f"{name}.png" for name in FIGURES[1:]}
    assert "predictions.png" not in text
    assert "| DFvT-T | box | " in text and "| DFvT-T | mask | " not in text
    metrics = json.loads(Path("metrics/evaluate_tiny.json").read_text())
    assert metrics["data"]["name"] == "custom" and len(metrics["data"]["hash"]) == 12
    assert not [name for name in metrics if name.startswith("segm")]


def test_a_picture_that_cannot_be_drawn_is_a_warning_after_the_numbers(
    project: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        assert metrics_of_run()["bbox_mAP"] >= 0, "numbers come first"
        assert Path("metrics/evaluate_tiny.json").is_file()
        raise RuntimeError("the canvas\nis gone")

    finish_training(project)
    monkeypatch.setattr(gallery, "draw_instances", refuse)
    text = evaluate_and_report(settings_of(num_gallery_images=1))
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if "was not drawn" in line]
    assert len(warnings) == 3 + 1, "three galleries of one image, the report's overview"
    assert warnings[0].startswith("evaluate@tiny: the picture evaluations/.tiny.partial/gallery/")
    assert "was not drawn: the canvas is gone (RuntimeError in test_evaluate_stage.py, line " in warnings[0]
    assert "figures/errors.png" in text and "figures/predictions.png" not in text
    assert (cv2.imread("evaluations/tiny/confusion.png")) is not None


def test_an_undefined_ap_has_no_metric() -> None:
    evaluation: Any = SimpleNamespace(class_ap={"bbox": {"cat": 0.5, "dog": -1.0}})
    assert class_metrics(evaluation) == {"bbox_AP/cat": 0.5}
