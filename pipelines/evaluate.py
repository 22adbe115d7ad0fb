"""Stage evaluate@VARIANT: COCO numbers, per-class AP, curves and pictures of a trained detector."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

import dfvt
from dfvt.data.files import write_whole
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.console import quiet_libraries
from dfvt.settings import Settings
from pipelines.stage import DATASET_MANIFEST, replace_folder, run_variant_stage

if TYPE_CHECKING:
    from pycocotools.coco import COCO

    from dfvt.engine.evaluate import CocoEvaluation
    from dfvt.tracking.mlflow import RunRecorder

EVALUATIONS = Path("evaluations")
METRICS = Path("metrics")
UNFIT = re.compile(r"[^\w. -]")  # of a class, in the name of a metric
MAX_METRIC_NAME = 250  # characters that MLflow takes


def main(settings: Settings, variant: str) -> None:
    quiet_libraries()
    from dfvt.engine.custom_modules import import_custom_modules
    from dfvt.engine.evaluate import evaluate_model
    from dfvt.engine.infer import choose_device, load_detector
    from dfvt.engine.pace import Pace
    from dfvt.engine.plain import load_plain_config
    from dfvt.reports.errors import write_errors
    from dfvt.reports.gallery import load_ground_truth

    run = Path("runs", variant)
    manifest = DatasetManifest.load(DATASET_MANIFEST)
    recorder = recorder_of(settings, variant, run / "run.json")
    cfg = load_plain_config(run / "config.py")
    import_custom_modules(cfg)
    device = choose_device(settings.train.use_gpu)
    model, dataset = load_detector(cfg, run / "checkpoint.pth", device)
    with tqdm(
        total=len(dataset), desc=f"evaluate@{variant}", unit="img", disable=not sys.stderr.isatty()
    ) as bar:
        pace = Pace(lambda done, _: bar.update(done - bar.n))
        evaluation = evaluate_model(
            model,
            dataset,
            device,
            num_workers=cfg.data.workers_per_gpu,
            progress=pace,
        )
    assert evaluation is not None, "one process evaluates"

    # Numbers come first: they are kept and logged before anything is drawn.
    partial = EVALUATIONS / f".{variant}.partial"
    if partial.exists():
        shutil.rmtree(partial)  # a run that was killed may have left it with pictures of other images
    write_evaluation(evaluation, partial)
    write_metrics(evaluation, manifest, METRICS / f"evaluate_{variant}.json")
    log_numbers(recorder, evaluation, variant, pace.ms_per_image)
    truth = load_ground_truth(manifest.val_annotations_path)
    ordered = write_errors(truth, evaluation.predictions, partial, settings.evaluate.score_threshold)
    draw_pictures(settings, variant, manifest, truth, evaluation, ordered, partial)
    replace_folder(partial, EVALUATIONS / variant)
    log_evaluation(recorder, EVALUATIONS / variant)
    compared = {**defined(evaluation.metrics), "bbox_mAP": evaluation.metrics["bbox_mAP"]}
    keep_model(recorder, settings, variant, manifest, compared, example_of(manifest, truth))


def log_numbers(
    recorder: RunRecorder, evaluation: CocoEvaluation, variant: str, ms_per_image: float | None
) -> None:
    """Log what was measured into the run of the training. What is undefined has no metric."""
    size = json.loads((METRICS / "profile.json").read_text(encoding="utf-8"))[variant]
    recorder.log_metrics(
        {**defined(evaluation.metrics), "num_params": size["num_params"], "flops": size["flops"]}
    )
    if ms_per_image:
        recorder.log_metrics({"ms_per_image": ms_per_image})
    recorder.log_metrics(class_metrics(evaluation))


def defined(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics without those that COCO leaves undefined, which it marks by −1."""
    return {name: value for name, value in metrics.items() if value >= 0}


def recorder_of(settings: Settings, variant: str, note: Path) -> RunRecorder:
    """Return the training's run, or a new one in its place if the stores of this project do not have it.

    Raises:
        ValueError: the store cannot be used, or the note is none.
    """
    from dfvt.cluster.notes import read_note
    from dfvt.engine.plain import config_json, load_plain_config
    from dfvt.tracking.addresses import artifact_root
    from dfvt.tracking.deferred import attach_noted, choose_store, file_again
    from dfvt.tracking.mlflow import RunNotFoundError

    def warn(message: str) -> None:
        print(f"evaluate@{variant}: {message}", file=sys.stderr)

    project, noted = Path.cwd(), read_note(note)
    if noted is None:
        raise FileNotFoundError(f"{note} is missing: run `dvc repro train@{variant}`")
    try:
        return attach_noted(noted, project)
    except RunNotFoundError as error:
        warn(f"{str(error).rstrip('.')}; the evaluation is filed in a new run")
    store = choose_store(project, required=settings.tracking.required, noted=None, warn=warn)
    recorder = file_again(
        noted,
        store,
        settings.tracking.experiment,
        run_name=f"{variant} {settings.profile}",
        artifact_root=artifact_root(project),
    )
    config = note.with_name("config.py")
    recorder.log_artifact(config)
    recorder.log_text(config_json(load_plain_config(config)), "config.json")
    return recorder


def class_metrics(evaluation: CocoEvaluation) -> dict[str, float]:
    """Return the AP of each class that has one, under names that MLflow takes."""
    return {
        metric_name(f"{iou_type}_AP", class_name): value
        for iou_type, of_class in evaluation.class_ap.items()
        for class_name, value in defined(of_class).items()
    }


def metric_name(metric: str, class_name: str) -> str:
    """Return the name of a class's metric in MLflow, `METRIC/CLASS`.

    MLflow takes no other characters than letters, digits and some signs, no empty names, no `.` and `..`, and
    at most 250 characters. A class name that it would refuse is changed and gets a hash of the class name. So
    the metrics of different classes never become one, and a class has the same metric in all runs.
    """
    fit = UNFIT.sub("_", class_name)
    name = f"{metric}/{fit}"
    if fit == class_name and fit not in ("", ".", "..") and len(name) <= MAX_METRIC_NAME:
        return name
    ending = f"-{sha256(class_name.encode()).hexdigest()[:8]}"
    return f"{name[: MAX_METRIC_NAME - len(ending)]}{ending}"


def draw_pictures(
    settings: Settings,
    variant: str,
    manifest: DatasetManifest,
    truth: COCO,
    evaluation: CocoEvaluation,
    ordered: Sequence[int],
    folder: Path,
) -> None:
    """Draw the confusions and the galleries; a picture that cannot be drawn is a warning.

    Args:
        settings: how many images are drawn, and predictions from which score on.
        variant: the detector.
        manifest: of the data set.
        truth: the annotations of the validation images.
        evaluation: with the predictions.
        ordered: validation images, those first on which the detector did best.
        folder: of the evaluation, with its tables.
    """
    from dfvt.reports.drawing import optional_picture
    from dfvt.reports.error_plots import plot_confusion
    from dfvt.reports.gallery import (
        SHOWN_FILE,
        choose_instances,
        draw_gallery,
        spread_images,
        write_instances,
    )
    from dfvt.reports.labels import missing_font_warning
    from dfvt.reports.published import PUBLISHED

    def warn(sentence: str) -> None:
        print(f"evaluate@{variant}: {sentence}", file=sys.stderr, flush=True)

    if warning := missing_font_warning(manifest.classes):
        warn(warning)
    with optional_picture(folder / "confusion.png", warn):
        plot_confusion(folder / "confusion.csv", f"evaluate@{variant}", folder / "confusion.png")
    threshold, number = settings.evaluate.score_threshold, settings.evaluate.num_gallery_images
    records = evaluation.predictions.get("segm", evaluation.predictions["bbox"])
    galleries = {
        "": spread_images(truth, number),
        "best": ordered[:number],
        "worst": ordered[::-1][:number],
    }
    for name, image_ids in galleries.items():
        shown = choose_instances(records, image_ids, threshold)
        if not name:
            write_instances(shown, folder / SHOWN_FILE)
        draw_gallery(
            manifest.val_images_path,
            truth,
            shown,
            folder / "gallery" / name,
            title=f"{PUBLISHED[variant].name}, score ≥ {threshold:g}",
            image_ids=image_ids,
            warn=warn,
        )


def log_evaluation(recorder: RunRecorder, folder: Path) -> None:
    """Keep tables and pictures with the run, without the predictions.

    Predictions have hundreds of megabytes on COCO. DVC keeps them, and the run's model makes them again.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            recorder.log_artifacts(path, f"evaluation/{path.name}")
        elif not path.name.startswith("predictions."):
            recorder.log_artifact(path, "evaluation")


def example_of(manifest: DatasetManifest, truth: COCO) -> Path:
    """Return the first image of the annotations; the folder may hold other files, and folders."""
    return manifest.val_images_path / truth.imgs[min(truth.imgs)]["file_name"]


def keep_model(
    recorder: RunRecorder,
    settings: Settings,
    variant: str,
    manifest: DatasetManifest,
    metrics: dict[str, float],
    example: Path,
) -> None:
    """Log the detector as an MLflow model, and register it among those of the same data set."""
    from dfvt.tracking.models import CHAMPION, log_model, model_name, register_model

    run = Path("runs", variant)
    log_model(
        recorder,
        loader_module="dfvt.engine.served",
        files=[run / "config.py", run / "checkpoint.pth"],
        code=Path(dfvt.__file__).parent,
        requirements=Path("requirements.txt"),
        example=example,
    )
    name = model_name(settings.tracking.experiment, manifest.name, manifest.data_hash)
    tags = json.loads((run / "run.json").read_text(encoding="utf-8"))["tags"]
    version = register_model(recorder, name, tags=tags, metrics=metrics, metric="bbox_mAP")
    champion = ", the champion" if CHAMPION in version.aliases else ""
    print(f"evaluate@{variant}: models:/{name}/{version.version}{champion}", file=sys.stderr)


def write_metrics(evaluation: CocoEvaluation, manifest: DatasetManifest, path: Path) -> None:
    """Write the numbers and the data set that they are of, for `dvc metrics`. What is undefined is null."""
    numbers = {name: round(value, 6) if value >= 0 else None for name, value in evaluation.metrics.items()}
    content = {**numbers, "data": manifest.reference.model_dump()}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_evaluation(evaluation: CocoEvaluation, folder: Path) -> None:
    """Write predictions, AP per class and precision over recall to a folder. What is undefined is empty."""
    from dfvt.reports.errors import write_table

    folder.mkdir(parents=True, exist_ok=True)
    for iou_type, predictions in evaluation.predictions.items():
        (folder / f"predictions.{iou_type}.json").write_text(json.dumps(predictions), encoding="utf-8")
    names = next(iter(evaluation.class_ap.values()))
    per_class = pd.DataFrame({"class": list(names)})
    for iou_type, of_class in evaluation.class_ap.items():
        values = pd.Series([of_class[name] for name in names], dtype=float)
        per_class[f"{iou_type}_AP"] = values.where(values >= 0)
    write_table(per_class, folder / "per_class.csv")
    curves = [
        pd.DataFrame({"iou_type": iou_type, "recall": curve.recall, "precision": curve.precision})
        for iou_type, curve in evaluation.precision.items()
    ]
    write_table(pd.concat(curves), folder / "precision_recall.csv")


if __name__ == "__main__":
    run_variant_stage("evaluate", main)
