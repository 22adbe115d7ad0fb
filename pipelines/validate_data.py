"""Stage validate_data: check every annotation and image; what stops a training ends the stage."""

import sys
from pathlib import Path

from dfvt.data.manifest import DatasetManifest
from dfvt.data.validation import validate_dataset
from dfvt.reports.dataset_page import save_dataset_page
from dfvt.reports.labels import missing_font_warning
from dfvt.settings import Settings
from pipelines.stage import DATASET_MANIFEST, run_stage

REPORT = Path("data/validation.json")


def main(settings: Settings) -> None:
    manifest = DatasetManifest.load(DATASET_MANIFEST)
    report = validate_dataset(
        manifest, decode_images=settings.validation.decode_images, color_type=settings.validation.color_type
    )
    for warning in report.warnings:
        print(f"validate_data: {warning}", file=sys.stderr)
    if font_warning := missing_font_warning(manifest.classes):
        print(f"validate_data: {font_warning}", file=sys.stderr)
    save_dataset_page(report, f"data set {manifest.name}", REPORT.with_suffix(".html"))
    if report.problems:
        page, more = REPORT.with_suffix(".html"), len(report.problems) - 1
        others = f" ({more} more problem{'s' * (more > 1)} in {page})" if more else ""
        raise ValueError(report.problems[0] + others)
    REPORT.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage("validate_data", main)
