"""Stage report: figures and reports/results.md, our detectors beside the published ones."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from dfvt.data.manifest import DatasetManifest
from dfvt.reports.curves import plot_learning_curves, plot_per_class_ap, plot_precision_recall
from dfvt.reports.drawing import optional_picture
from dfvt.reports.error_plots import plot_errors
from dfvt.reports.gallery import (
    SHOWN_FILE,
    Instances,
    draw_overview,
    load_ground_truth,
    read_instances,
    spread_images,
)
from dfvt.reports.labels import missing_font_warning
from dfvt.reports.results import write_results
from dfvt.settings import VARIANTS, Settings
from pipelines.stage import DATASET_MANIFEST, run_stage

FIGURES = Path("reports/figures")
RUNS = Path("runs")
EVALUATIONS = Path("evaluations")


def main(settings: Settings) -> None:
    manifest = DatasetManifest.load(DATASET_MANIFEST)
    if warning := missing_font_warning(manifest.classes):
        warn(warning)
    if FIGURES.exists():
        shutil.rmtree(FIGURES)  # a figure of an earlier run must not stand in for one that cannot be drawn
    FIGURES.mkdir(parents=True)
    for name, draw in figures_of(settings, manifest).items():
        with optional_picture(FIGURES / name, warn):
            draw(FIGURES / name)
    write_results(
        Path(), title=settings.report.title, profile=settings.profile, dataset=manifest, variants=VARIANTS
    )


def figures_of(settings: Settings, manifest: DatasetManifest) -> dict[str, Callable[[Path], None]]:
    """Return what draws each figure."""
    figures: dict[str, Callable[[Path], None]] = {
        "learning_curves.png": lambda path: plot_learning_curves(RUNS, VARIANTS, path),
        "precision_recall.png": lambda path: plot_precision_recall(EVALUATIONS, VARIANTS, path),
        "per_class_ap.png": lambda path: plot_per_class_ap(EVALUATIONS, VARIANTS, path),
        "errors.png": lambda path: plot_errors(EVALUATIONS, VARIANTS, path),
    }
    if settings.evaluate.num_gallery_images:
        figures["predictions.png"] = lambda path: draw_predictions(settings, manifest, path)
    return figures


def draw_predictions(settings: Settings, manifest: DatasetManifest, path: Path) -> None:
    """Draw what each detector finds on some validation images."""
    truth = load_ground_truth(manifest.val_annotations_path)
    found: dict[str, Instances] = {
        variant: read_instances(
            predictions_of(EVALUATIONS / variant), truth, variant, settings.evaluate.score_threshold
        )
        for variant in VARIANTS
    }
    image_ids = spread_images(truth, settings.evaluate.num_gallery_images)
    draw_overview(manifest.val_images_path, truth, found, path, image_ids=image_ids)


def predictions_of(evaluation: Path) -> Path:
    """Return the file with the predictions of the gallery; earlier versions left only the file with all."""
    names = (SHOWN_FILE, "predictions.segm.json", "predictions.bbox.json")
    return next(
        (evaluation / name for name in names if (evaluation / name).is_file()), evaluation / names[-1]
    )


def warn(sentence: str) -> None:
    print(f"report: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_stage("report", main)
