"""Stage report: figures and reports/results.md, our detectors beside the published ones."""

from pathlib import Path

from dfvt.data.manifest import DatasetManifest
from dfvt.reports.curves import plot_learning_curves, plot_per_class_ap, plot_precision_recall
from dfvt.reports.error_plots import plot_errors
from dfvt.reports.gallery import draw_overview
from dfvt.reports.results import write_results
from dfvt.settings import VARIANTS, Settings
from pipelines.stage import DATASET_MANIFEST, run_stage

FIGURES = Path("reports/figures")
RUNS = Path("runs")
EVALUATIONS = Path("evaluations")


def main(settings: Settings) -> None:
    manifest = DatasetManifest.load(DATASET_MANIFEST)
    plot_learning_curves(RUNS, VARIANTS, FIGURES / "learning_curves.png")
    plot_precision_recall(EVALUATIONS, VARIANTS, FIGURES / "precision_recall.png")
    plot_per_class_ap(EVALUATIONS, VARIANTS, FIGURES / "per_class_ap.png")
    plot_errors(EVALUATIONS, VARIANTS, FIGURES / "errors.png")
    draw_overview(
        manifest.val_images_path,
        manifest.val_annotations_path,
        {variant: EVALUATIONS / variant / "predictions.segm.json" for variant in VARIANTS},
        FIGURES / "predictions.png",
        score_threshold=settings.evaluate.score_threshold,
        num_images=settings.evaluate.num_gallery_images,
    )
    write_results(
        Path(), title=settings.report.title, profile=settings.profile, dataset=manifest, variants=VARIANTS
    )


if __name__ == "__main__":
    run_stage("report", main)
