"""The whole experiment on one data set, in this process: the functions of the stages, without Ray."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

from ruamel.yaml import YAML

from tests.fuzz.absent import provide_absent_libraries
from tests.fuzz.commands import VARIANT, browse, check, predict
from tests.fuzz.data_sets import DataSet, as_json, write
from tests.fuzz.failures import RefusedError, StageError, stage
from tests.fuzz.stand_ins import Recorder, complexity, save_time, stand_in_for_mlflow, train_here

CONFIGS = Path("configs/fuzz")
DETECTOR = CONFIGS / f"maskrcnn_DFvT_{VARIANT}_fuzz.py"
IMG_SCALE = (64, 48)
SMALLER = {
    "model.backbone.depths": (1, 1, 1, 1),
    "model.neck.out_channels": 8,
    "model.rpn_head.in_channels": 8,
    "model.rpn_head.feat_channels": 8,
    "model.roi_head.bbox_roi_extractor.out_channels": 8,
    "model.roi_head.bbox_head.in_channels": 8,
    "model.roi_head.mask_roi_extractor.out_channels": 8,
    "model.roi_head.mask_head.in_channels": 8,
    "model.roi_head.mask_head.conv_out_channels": 8,
    "runner.max_epochs": 1,
}


@dataclass(frozen=True)
class Outcome:
    """What became of a data set: `sound`, `refused` with the first sentence, or `unwritable` on this disk."""

    kind: str
    sentence: str = ""


@cache
def detector_config() -> str:
    """The text of a config of the smallest detector, to be read as a project's own."""
    from dfvt.engine.config import load_config
    from dfvt.engine.config_text import config_text
    from tests.unit.conftest import DEBUG_OPTIONS, MINI

    cfg = load_config(MINI, {**DEBUG_OPTIONS, **SMALLER})
    for split in ("train", "val", "test"):
        for step in cfg.data[split].pipeline:
            if "img_scale" in step:
                step.img_scale = IMG_SCALE
    cfg.train_pipeline, cfg.test_pipeline, cfg.img_scale = [], [], IMG_SCALE
    return config_text(cfg, formatted=False)


def make_project(data: DataSet, folder: Path) -> Path:
    """A project's folder with the data set, its settings and a small detector's config.

    Raises:
        OSError, ValueError: the file system does not take one of the names, or Pillow one of the images.
    """
    provide_absent_libraries()
    project = folder / data.project
    (project / CONFIGS).mkdir(parents=True)
    (project / DETECTOR).write_text(detector_config(), encoding="utf-8")
    (project / "requirements.txt").write_text("torch\n")
    write(data, project)
    root = project / data.root if data.absolute else Path(data.root)
    params: dict[str, Any] = {
        "profile": "custom",
        "configs": str(CONFIGS),
        "data": {
            "root": str(root),
            "train_annotations": data.train.annotations,
            "train_images": data.train.folder,
            "val_annotations": data.val.annotations,
            "val_images": data.val.folder,
        },
        "train": {"num_epochs": 1, "batch_size": 2, "use_gpu": False},
        **data.settings,
    }
    with (project / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)
    return project


def go_through(data: DataSet, folder: Path, *, stand_ins: bool = True) -> Outcome:
    """Runs check, training, evaluation, report, browse and prediction of a data set in `folder`.

    With `stand_ins` a recorder takes the place of MLflow's store.

    Raises:
        StageError: a data set that was called sound did not go through, or another one ended in something
            else than a sentence.
    """
    try:
        project = make_project(data, folder)
    except (OSError, ValueError):  # ValueError: Pillow writes no image of that size in that format
        shutil.rmtree(folder, ignore_errors=True)
        return Outcome("unwritable")
    try:
        with chdir(project):
            return run_stages(data, project, stand_ins=stand_ins)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_stages(data: DataSet, project: Path, *, stand_ins: bool) -> Outcome:
    """As `go_through`, in a project that is the current folder."""
    from dfvt.settings import load_settings
    from pipelines import fetch_data, validate_data

    one_line = "\\n" not in as_json(data)
    try:
        with stage("settings", refusals=True, one_line=one_line):
            settings = load_settings()
        with stage("fetch_data", refusals=True, one_line=one_line):
            fetch_data.main(settings)
    except RefusedError as refused:
        browse(data, project, is_sound=False)
        return Outcome("refused", str(refused))
    has_problems = check(data, project)
    try:
        with stage("validate_data", refusals=True, one_line=one_line):
            validate_data.main(settings)
    except RefusedError as refused:
        browse(data, project, is_sound=False)
        return Outcome("refused", str(refused))
    if has_problems:
        raise StageError("data check", "it finds problems, and the stage validate_data finds none")
    all_figures = crc32(as_json(data).encode()) % 4 == 0
    train_and_report(settings, stand_ins=stand_ins, all_figures=all_figures)
    browse(data, project, is_sound=True)
    predict(data, project)
    return Outcome("sound")


def train_and_report(settings: Any, *, stand_ins: bool, all_figures: bool) -> None:
    """The stages from profile to report, in the current folder."""
    from pipelines import evaluate, profile, report, train

    recorder = Recorder()
    with ExitStack() as patches:
        for module in (profile, report):
            patches.enter_context(patch.object(module, "VARIANTS", (VARIANT,)))
        patches.enter_context(patch("dfvt.models.complexity.measure_complexity", complexity))
        patches.enter_context(patch("dfvt.cluster.train.start_workers"))
        patches.enter_context(patch("dfvt.cluster.train.run_training", train_here))
        if stand_ins:
            stand_in_for_mlflow(patches, recorder)
        save_time(patches, all_figures=all_figures)
        with stage("profile"):
            profile.main(settings)
        with stage("train"):
            train.keep_outputs(train.train_variant(settings, VARIANT, lambda: "01"), train.RUNS / VARIANT)
        with stage("evaluate"):
            evaluate.main(settings, VARIANT)
        with stage("report"):
            report.main(settings)
    require_evaluation(recorder, settings, stand_ins=stand_ins)


def require_evaluation(recorder: Recorder, settings: Any, *, stand_ins: bool) -> None:
    """Asserts that what the stages wrote is whole: nothing merged, nothing lost."""
    import pandas as pd

    from dfvt.data.manifest import DatasetManifest

    manifest = DatasetManifest.load(Path("data/dataset/manifest.json"))
    folder = Path("evaluations", VARIANT)
    with stage("evaluate, its files"):
        table = pd.read_csv(folder / "per_class.csv", keep_default_na=False, dtype={"class": str})
        assert list(table["class"]) == list(manifest.classes), (list(table["class"]), manifest.classes)
        logged = recorder.metrics if stand_ins else stored_metrics()
        for iou_type in ("bbox", "segm"):
            column = pd.to_numeric(table[f"{iou_type}_AP"])
            named = [name for name in logged if name.startswith(f"{iou_type}_AP/")]
            assert len(named) == (column >= 0).sum(), f"{named} for the classes {list(table['class'])}"
        images = json.loads(manifest.val_annotations_path.read_bytes())["images"]
        drawn = list((folder / "gallery").glob("*.png"))
        wanted = min(settings.evaluate.num_gallery_images, len(images))
        assert len(drawn) == wanted, f"{len(drawn)} of {wanted} pictures in the gallery"


def stored_metrics() -> dict[str, float]:
    """The metrics of the training's run in the project's own store."""
    from mlflow import MlflowClient

    note = json.loads(Path("runs", VARIANT, "run.json").read_bytes())
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    return dict(client.get_run(note["mlflow_run_id"]).data.metrics)


def main() -> None:
    """Reads a description from standard input and lets it go through, with the whole traceback."""
    from tempfile import TemporaryDirectory

    from tests.fuzz.data_sets import from_json

    with TemporaryDirectory() as folder:
        print(go_through(from_json(sys.stdin.read()), Path(folder) / "fuzz"))


if __name__ == "__main__":
    main()
