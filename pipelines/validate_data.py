"""Stage validate_data: check every annotation and image; what stops a training ends the stage."""

import sys
from pathlib import Path

from dfvt.data.coco import DatasetManifest, validate_dataset
from dfvt.settings import Settings
from pipelines.stage import DATASET_MANIFEST, run_stage

REPORT = Path("data/validation.json")


def main(_: Settings) -> None:
    report = validate_dataset(DatasetManifest.load(DATASET_MANIFEST))
    for warning in report.warnings:
        print(f"validate_data: {warning}", file=sys.stderr)
    if report.problems:
        more = f" ({len(report.problems) - 1} more problems)" if len(report.problems) > 1 else ""
        raise ValueError(report.problems[0] + more)
    REPORT.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage("validate_data", main)
