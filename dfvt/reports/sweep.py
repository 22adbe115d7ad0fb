"""A sweep's trials as a table. Needs neither Optuna nor matplotlib."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Literal, Protocol

from dfvt.reports.tables import markdown_table, shown_map

Mode = Literal["max", "min"]


class TakeOver(Protocol):
    """Whose state a trial went on from, and from where."""

    @property
    def name(self) -> str: ...
    @property
    def epoch(self) -> int: ...


class Trial(Protocol):
    """What the table needs of a trial."""

    @property
    def name(self) -> str: ...
    @property
    def assignment(self) -> dict[str, Any]: ...
    @property
    def status(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def num_epochs(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def startup_seconds(self) -> float: ...
    @property
    def metrics(self) -> dict[str, float]: ...
    @property
    def mlflow_run_id(self) -> str: ...
    @property
    def taken_over(self) -> Sequence[TakeOver]: ...
    @property
    def failure(self) -> str: ...


def assigned_keys(trials: Sequence[Trial]) -> list[str]:
    """The keys that any of the trials sets."""
    return list(dict.fromkeys(key for trial in trials for key in trial.assignment))


def best_first(trials: Sequence[Trial], metric: str, mode: Mode) -> list[Trial]:
    """Best trial first; those that were stopped early come after all that were not.

    An early number belongs to a learning rate that had not fallen yet: it is no smaller result, but none.
    """
    sign = -1.0 if mode == "max" else 1.0

    def place(trial: Trial) -> tuple[bool, bool, float]:
        value = metric_of(trial, metric)
        return trial.status != "finished", value is None, 0.0 if value is None else sign * value

    return sorted(trials, key=place)


def metric_of(trial: Trial, name: str) -> float | None:
    """Return a number of a trial's last validation; None without one, and for COCO's −1, an undefined mAP."""
    value = trial.metrics.get(name)
    return None if value is None or value < 0 else value


def status_line(trials: Sequence[Trial], num_trials: int) -> str:
    """How many trials are finished, running, and so on."""
    counts = Counter(trial.status for trial in trials)
    counts["waiting"] = num_trials - len(trials)
    return f"{num_trials} trials: " + ", ".join(
        f"{counts[status]} {status}"
        for status in ("finished", "stopped", "failed", "running", "interrupted", "waiting")
        if counts[status]
    )


def results_table(trials: Sequence[Trial], metric: str, mode: Mode) -> str:
    """A Markdown table, in the order of `best_first`."""
    keys = assigned_keys(trials)
    any_taken_over = any(trial.taken_over for trial in trials)
    rows = [
        [
            trial.name,
            *(shown(trial.assignment.get(key, "")) for key in keys),
            *([took_over(trial)] if any_taken_over else []),
            trial.status,
            f"{trial.epoch}/{trial.num_epochs}",
            shown_map(metric_of(trial, metric)),
        ]
        for trial in best_first(trials, metric, mode)
    ]
    header = ["trial", *keys, *(["took over"] if any_taken_over else []), "status", "epochs", metric]
    return markdown_table(header, rows, text_columns=len(header) - 1)


def seeds_table(trials: Sequence[Trial], metric: str, mode: Mode) -> str:
    """Return a Markdown table with a row for all finished trials that differ in their seed alone.

    The best trial is often a lucky seed: the mean over seeds says more, and `dfvt compare` says the same. The
    best row comes first. The text is empty if no two trials differ in their seed alone.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.status == "finished" and trial.metrics.get(metric, -1.0) >= 0:  # COCO's −1 is undefined
            setting = sorted((key, repr(value)) for key, value in trial.assignment.items() if key != "seed")
            groups.setdefault(repr(setting), []).append(trial)
    if all(len(group) < 2 for group in groups.values()):
        return ""
    keys = [key for key in assigned_keys(trials) if key != "seed"]
    sign = -1.0 if mode == "max" else 1.0
    rows: list[tuple[float, list[str]]] = []
    for group in groups.values():
        values = [trial.metrics[metric] for trial in group]
        mean = statistics.fmean(values)
        text = f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
        setting_cells = [shown(group[0].assignment.get(key, "")) for key in keys]
        rows.append((sign * mean, [*setting_cells, str(len(group)), text]))
    header = [*keys, "seeds", f"{metric}, mean ± std"]
    ordered = [cells for _, cells in sorted(rows, key=itemgetter(0))]
    lines = [header, ["---"] * len(keys) + ["---:"] * 2, *ordered]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def results_text(trials: Sequence[Trial], metric: str, mode: Mode) -> str:
    """Return the table of the trials, and below it that of the means over seeds if there are several."""
    tables = [results_table(trials, metric, mode), seeds_table(trials, metric, mode)]
    return "\n\n".join(filter(None, tables))


def failure_lines(trials: Sequence[Trial]) -> list[str]:
    """Return a line for each trial that failed and whose reason is known."""
    return [f"trial {trial.name} failed: {trial.failure}" for trial in trials if trial.failure]


def shown(value: Any) -> str:
    """A value as a cell: numbers with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def took_over(trial: Trial) -> str:
    """Whose states a trial went on from, and after how many epochs."""
    return ", ".join(f"{change.name} after {change.epoch}" for change in trial.taken_over)
