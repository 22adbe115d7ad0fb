"""A sweep's trials as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


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
    def metrics(self) -> dict[str, float]: ...


def results_table(trials: Sequence[Trial], metric: str, mode: str) -> str:
    """A Markdown table, best trial first; those that were stopped early come after all that were not.

    An early number belongs to a learning rate that had not fallen yet: it is no smaller result, but none.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial.assignment))
    sign = -1.0 if mode == "max" else 1.0

    def place(trial: Trial) -> tuple[bool, bool, float]:
        value = trial.metrics.get(metric)
        return trial.status != "finished", value is None, 0.0 if value is None else sign * value

    rows = [
        [
            trial.name,
            *(str(trial.assignment.get(key, "")) for key in keys),
            trial.status,
            f"{trial.epoch}/{trial.num_epochs}",
            f"{trial.metrics[metric]:.4f}" if metric in trial.metrics else "",
        ]
        for trial in sorted(trials, key=place)
    ]
    header = ["trial", *keys, "status", "epochs", metric]
    lines = [header, ["---"] * (len(header) - 1) + ["---:"], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
