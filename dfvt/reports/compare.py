"""Runs beside each other and beside the published results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dfvt.reports.published import PUBLISHED
from dfvt.reports.tables import markdown_table
from dfvt.tracking.runs import RunInfo

COMPARABLE = "coco2017"  # the profile whose numbers may stand beside the published ones
STOPPED = "dfvt.stopped_after_epoch"
SETTING = ("dfvt.variant", "dfvt.profile", "data.hash", "config.hash", STOPPED)  # alike in runs of one row
METRICS = {"bbox_mAP": "box mAP", "segm_mAP": "mask mAP"}
NONE = "\N{EN DASH}"
MAX_TOLERANCE = 0.1  # of the gate, in mAP; who writes more means percent points
# Values that a parameter also has where it is not set. They say nothing, as a run without the parameter.
SILENT_VALUES = {"cfg_options": "{}", "use_gpu": "auto"}


@dataclass(frozen=True)
class Mean:
    """The mean of some values and, of two or more, their standard deviation (of a sample)."""

    value: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed; `differing` are the parameters that rows differ in."""

    runs: tuple[RunInfo, ...]
    differing: Mapping[str, str]

    @property
    def first(self) -> RunInfo:
        return self.runs[0]

    @property
    def variant(self) -> str:
        return self.first.tags.get("dfvt.variant", "")

    @property
    def name(self) -> str:
        return self.first.name if len(self.runs) == 1 else f"{self.first.name} … ({len(self.runs)} runs)"

    def mean(self, number: Callable[[RunInfo], float | None]) -> Mean | None:
        """The mean of a number over those of the runs that have it."""
        found = [number(run) for run in self.runs]
        return Mean.of([value for value in found if value is not None and math.isfinite(value)])

    def metric(self, name: str) -> Mean | None:
        return self.mean(lambda run: metric_of(run, name))

    def above_published(self, name: str) -> float | None:
        """The mAP minus the published one; None where that is none to compare with."""
        mean, published = self.metric(name), PUBLISHED.get(self.variant)
        if mean is None or published is None or self.first.tags.get("dfvt.profile") != COMPARABLE:
            return None
        return mean.value - (published.bbox_map if name == "bbox_mAP" else published.segm_map)


def metric_of(run: RunInfo, name: str) -> float | None:
    """A number of a run: that of its evaluation, or of its last validation; COCO's −1 is none."""
    value = run.metrics.get(name, run.metrics.get(f"val/{name}"))
    return None if value is None or value < 0 else value


def worker_hours(run: RunInfo) -> float | None:
    """Hours of all its workers together."""
    return None if run.seconds is None else run.seconds / 3600 * int(run.params.get("num_workers", 1))


def data_set_of(run: RunInfo) -> str:
    """The data set that a run's numbers are of: the profile, and the first characters of the data's hash."""
    data_hash = run.tags.get("data.hash", "")
    return f"{run.tags.get('dfvt.profile', '')} {data_hash[:8]}".strip() or "not noted"


def by_data_set(runs: Sequence[RunInfo]) -> dict[str, list[RunInfo]]:
    """The runs of each data set. Numbers of different data sets must not be ranked in one list."""
    groups: dict[str, list[RunInfo]] = {}
    for run in runs:
        groups.setdefault(data_set_of(run), []).append(run)
    return groups


def param_of(run: RunInfo, key: str) -> str:
    """A parameter of a run, empty without it, or with a value that says nothing."""
    value = run.params.get(key, "")
    return "" if value == SILENT_VALUES.get(key) else value


def rows_of(runs: Sequence[RunInfo], *, each: bool = False, metric: str = "bbox_mAP") -> list[Row]:
    """The runs as rows, the best first; those that were stopped early come last, and apart.

    Args:
        runs: runs on one data set.
        each: a row for each run, instead of one for those that differ in their seed alone.
        metric: what best means.
    """
    keys = dict.fromkeys(key for run in runs for key in run.params)
    differing = [key for key in keys if len({param_of(run, key) for run in runs}) > 1]
    groups: dict[Any, list[RunInfo]] = {}
    for run in runs:
        params = tuple((key, param_of(run, key)) for key in keys if key != "seed")
        tags = tuple(run.tags.get(name, "") for name in SETTING)
        groups.setdefault(run.run_id if each else (params, tags), []).append(run)
    rows = [
        Row(
            tuple(group),
            {key: group[0].params.get(key, "") for key in differing if len(group) == 1 or key != "seed"},
        )
        for group in groups.values()
    ]

    def place(row: Row) -> tuple[bool, float]:
        mean = row.metric(metric)
        return STOPPED in row.first.tags, -mean.value if mean else math.inf

    return sorted(rows, key=place)


def require_tolerance(tolerance: float) -> None:
    """Refuse a gate that is no difference of mAP. Earlier versions took percent points there, 0.5 by default.

    Raises:
        ValueError: it is negative, no number, or so large that percent points are meant.
    """
    if 0 <= tolerance < MAX_TOLERANCE:
        return
    hint = f"; for {tolerance:g} percent points write {tolerance / 100:g}" if tolerance > 0 else ""
    raise ValueError(
        f"--gate {tolerance:g} must be at least 0 and less than {MAX_TOLERANCE:g}: it is a difference of "
        f"mAP, which is a fraction of 0 to 1{hint}"
    )


def missed(rows: Sequence[Row], tolerance: float) -> list[str]:
    """Sentences about rows whose mAP is more than `tolerance` below the published one.

    Args:
        rows: any.
        tolerance: a difference of mAP, which is a fraction of 0 to 1: 0.005 is half a percent point.

    Raises:
        ValueError: no row may be compared with the published numbers, or as `require_tolerance`.
    """
    require_tolerance(tolerance)
    if all(row.above_published(name) is None for row in rows for name in METRICS):
        raise ValueError(
            f"none of the runs can be held against the published results: those are of profile {COMPARABLE}"
        )
    found = []
    for row in rows:
        for name, title in METRICS.items():
            above = row.above_published(name)
            if above is not None and above < -tolerance:
                found.append(f"{row.name}: {title} is {-above:.3f} below the published one")
    return found


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, for people; columns that would be empty are left out."""
    keys = list(dict.fromkeys(key for row in rows for key in row.differing))
    columns: dict[str, Callable[[Row], str]] = {"run": lambda row: row.name, "detector": _detector}
    columns |= {key: partial(_differing, key=key) for key in keys if key != "variant"}
    columns["status"] = _status
    for name, title in METRICS.items():
        columns[title] = partial(_map, name=name)
        columns[f"{title} − published"] = partial(_above_published, name=name)
    columns["params"] = lambda row: _shown(row.metric("num_params"), 1e-6, 1, "M")
    columns["FLOPs"] = lambda row: _shown(row.metric("flops"), 1e-9, 2, "G")
    columns["img/s"] = lambda row: _shown(row.metric("train/images_per_second"), 1, 1)
    columns["ms/img"] = lambda row: _shown(row.metric("ms_per_image"), 1, 1)
    columns["worker-hours"] = lambda row: _shown(row.mean(worker_hours), 1, 2)
    cells = {title: [value(row) for row in rows] for title, value in columns.items()}
    kept = [title for title, values in cells.items() if title == "run" or any(v != NONE for v in values)]
    return kept, [list(row) for row in zip(*(cells[title] for title in kept), strict=True)]


def _detector(row: Row) -> str:
    published = PUBLISHED.get(row.variant)
    return published.name if published else NONE


def _differing(row: Row, key: str) -> str:
    value = row.differing.get(key, "")
    try:
        return f"{float(value):.4g}" if "." in value or "e" in value else value
    except ValueError:  # no number
        return value


def _map(row: Row, name: str) -> str:
    return _shown(row.metric(name), 1, 3)


def _above_published(row: Row, name: str) -> str:
    difference = row.above_published(name)
    return NONE if difference is None else f"{difference:+.3f}"


def _status(row: Row) -> str:
    stopped = row.first.tags.get(STOPPED)
    statuses = {run.status.lower() for run in row.runs}
    return f"stopped at epoch {stopped}" if stopped else ", ".join(sorted(statuses))


def _shown(mean: Mean | None, factor: float, digits: int, unit: str = "") -> str:
    if mean is None:
        return NONE
    text = f"{factor * mean.value:.{digits}f}{unit}"
    return text if not mean.deviation else f"{text} ± {factor * mean.deviation:.{digits}f}{unit}"


def markdown(rows_by_data: Mapping[str, Sequence[Row]]) -> str:
    """A Markdown table for each data set, below a line that names it."""
    tables = []
    for data_set, rows in rows_by_data.items():
        header, cells = table_of(rows)
        tables.append(f"Data set {data_set}:\n\n{markdown_table(header, cells, text_columns=2)}")
    return "\n\n".join(tables)


def config_differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Dotted keys whose values are not the same in all configs, with the value in each."""
    flat = {name: dict(flattened(config)) for name, config in configs.items()}
    keys = dict.fromkeys(key for one in flat.values() for key in one)
    return {
        key: {name: one.get(key, NONE) for name, one in flat.items()}
        for key in keys
        if len({one.get(key, NONE) for one in flat.values()}) > 1
    }


def flattened(value: Any, key: str = "") -> list[tuple[str, str]]:
    """The leaves of nested mappings and lists of mappings with their dotted keys."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        entries = list(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
        entries = list(enumerate(value))
    if not entries:
        return [(key, str(value))]
    return [leaf for name, one in entries for leaf in flattened(one, f"{key}.{name}".lstrip("."))]
