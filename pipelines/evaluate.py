"""Stage evaluate@VARIANT: COCO numbers, per-class AP, curves and pictures of a trained detector."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

import dfvt
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.console import quiet_libraries
from dfvt.settings import Settings
from pipelines.stage import DATASET_MANIFEST, replace_folder, run_variant_stage

if TYPE_CHECKING:
    from dfvt.engine.evaluate import CocoEvaluation
    from dfvt.tracking.mlflow import RunRecorder

EVALUATIONS = Path("evaluations")
METRICS = Path("metrics")
UNFIT = re.compile(r"[^\w. -]")  # of a class, in the name of a metric


def main(settings: Settings, variant: str) -> None:
    quiet_libraries()
    from dfvt.engine.config import load_config
    from dfvt.engine.evaluate import evaluate_model
    from dfvt.engine.infer import choose_device, load_detector
    from dfvt.engine.pace import Pace
    from dfvt.reports.error_plots import plot_confusion
    from dfvt.reports.errors import write_errors
    from dfvt.reports.gallery import draw_gallery
    from dfvt.tracking.deferred import attach_noted

    run = Path("runs", variant)
    manifest = DatasetManifest.load(DATASET_MANIFEST)
    recorder = attach_noted(json.loads((run / "run.json").read_text(encoding="utf-8")), Path.cwd())
    cfg = load_config(run / "config.py")
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

    folder = EVALUATIONS / f".{variant}.partial"
    write_evaluation(evaluation, folder)
    ordered = write_errors(manifest.val_annotations_path, folder, settings.evaluate.score_threshold)
    plot_confusion(folder / "confusion.csv", f"evaluate@{variant}", folder / "confusion.png")
    for name, image_ids in (("", None), ("best", ordered), ("worst", ordered[::-1])):
        draw_gallery(
            manifest.val_images_path,
            manifest.val_annotations_path,
            folder / "predictions.segm.json",
            folder / "gallery" / name,
            variant=variant,
            score_threshold=settings.evaluate.score_threshold,
            num_images=settings.evaluate.num_gallery_images,
            image_ids=image_ids,
        )
    replace_folder(folder, EVALUATIONS / variant)
    METRICS.mkdir(exist_ok=True)
    text = json.dumps({name: round(value, 6) for name, value in evaluation.metrics.items()}, indent=2)
    (METRICS / f"evaluate_{variant}.json").write_text(text + "\n", encoding="utf-8")

    size = json.loads((METRICS / "profile.json").read_text(encoding="utf-8"))[variant]
    recorder.log_metrics({**evaluation.metrics, "num_params": size["num_params"], "flops": size["flops"]})
    if pace.ms_per_image:
        recorder.log_metrics({"ms_per_image": pace.ms_per_image})
    recorder.log_metrics(class_metrics(evaluation))
    recorder.log_artifacts(EVALUATIONS / variant, "evaluation")
    keep_model(recorder, settings, variant, manifest, evaluation.metrics)


def class_metrics(evaluation: CocoEvaluation) -> dict[str, float]:
    """AP of each class that has one, under names that MLflow takes."""
    return {
        f"{iou_type}_AP/{UNFIT.sub('_', name)}": value
        for iou_type, of_class in evaluation.class_ap.items()
        for name, value in of_class.items()
        if value >= 0
    }


def keep_model(
    recorder: RunRecorder,
    settings: Settings,
    variant: str,
    manifest: DatasetManifest,
    metrics: dict[str, float],
) -> None:
    """Log the detector as an MLflow model, and register it among those of the same data set."""
    from dfvt.tracking.models import CHAMPION, log_model, register_model

    run = Path("runs", variant)
    log_model(
        recorder,
        loader_module="dfvt.engine.served",
        files=[run / "config.py", run / "checkpoint.pth"],
        code=Path(dfvt.__file__).parent,
        requirements=Path("requirements.txt"),
        example=next(manifest.val_images_path.iterdir()),
    )
    name = f"{settings.tracking.experiment}-{manifest.name}-{manifest.data_hash[:8]}"
    tags = json.loads((run / "run.json").read_text(encoding="utf-8"))["tags"]
    version = register_model(recorder, name, tags=tags, metrics=metrics, metric="bbox_mAP")
    champion = ", the champion" if CHAMPION in version.aliases else ""
    print(f"evaluate@{variant}: models:/{name}/{version.version}{champion}", file=sys.stderr)


def write_evaluation(evaluation: CocoEvaluation, folder: Path) -> None:
    """Write predictions, AP per class and precision over recall to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for iou_type, predictions in evaluation.predictions.items():
        (folder / f"predictions.{iou_type}.json").write_text(json.dumps(predictions), encoding="utf-8")
    per_class = pd.DataFrame({f"{iou_type}_AP": ap for iou_type, ap in evaluation.class_ap.items()})
    per_class.rename_axis("class").to_csv(folder / "per_class.csv", float_format="%.6f")
    curves = [
        pd.DataFrame({"iou_type": iou_type, "recall": curve.recall, "precision": curve.precision})
        for iou_type, curve in evaluation.precision.items()
    ]
    pd.concat(curves).to_csv(folder / "precision_recall.csv", index=False, float_format="%.6f")


if __name__ == "__main__":
    run_variant_stage("evaluate", main)
