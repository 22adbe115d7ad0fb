"""Whether a data set is sound, and how much of what it has. Needs no matplotlib."""

from __future__ import annotations

from dfvt.data.validation import IntegrityReport

COUNTS = {
    "images": lambda split: split.num_images,
    "images without annotations": lambda split: split.num_images_without_objects,
    "annotations": lambda split: split.num_annotations,
    "crowd regions": lambda split: split.num_crowd,
    "small objects (area below 32²)": lambda split: split.object_sizes.small,
    "medium objects (below 96²)": lambda split: split.object_sizes.medium,
    "large objects": lambda split: split.object_sizes.large,
    "classes with objects": lambda split: sum(map(bool, split.num_objects.values())),
}


def count_rows(report: IntegrityReport) -> list[list[str]]:
    """What there is of each in each split."""
    return [[name, *(f"{count(one):,}" for one in report.splits.values())] for name, count in COUNTS.items()]


def verdict_of(report: IntegrityReport) -> str:
    """The result in a few words."""
    problems, warnings = len(report.problems), len(report.warnings)
    state = f"{problems} problem{'s' * (problems > 1)} to correct" if problems else "sound"
    return f"{state}, {warnings} warning{'s' * (warnings != 1)}"
