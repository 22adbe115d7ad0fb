"""The files of a sweep's results: its trials as CSV, and plots of what mattered."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib import pyplot
from optuna import Study, create_study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import create_trial
from optuna.visualization import matplotlib as plots

from dfvt.reports.drawing import optional_picture, warn_on_stderr
from dfvt.reports.sweep import Mode, Trial, assigned_keys, best_first, metric_of, took_over

MIN_TRIALS = 3  # of which plots say something
LOG_RATIO = 10.0  # values that lie so far apart are shown on a logarithmic axis


def write_results(trials: Sequence[Trial], metric: str, mode: Mode, folder: Path) -> list[Path]:
    """Write `results.csv`, and `parallel_coordinates.png` and `importances.png` where trials suffice.

    The plots are of finished trials. Both need two keys with several values: the parallel coordinates any
    two, the importances (fANOVA) two that all of the trials set. Returns the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "results.csv"]
    write_csv(best_first(trials, metric, mode), files[0])
    finished = [
        trial for trial in trials if trial.status == "finished" and metric_of(trial, metric) is not None
    ]
    distributions = distributions_of(finished)
    if len(finished) < MIN_TRIALS or not distributions:
        return files
    study = study_of(finished, distributions, metric, mode)
    common = [key for key in distributions if all(key in trial.assignment for trial in finished)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental
        figures = {
            "parallel_coordinates": lambda: plots.plot_parallel_coordinate(study, target_name=metric),
            "importances": lambda: plots.plot_param_importances(study, params=common, target_name=metric),
        }
        if len(distributions) < 2:  # one axis beside the metric's is no comparison
            del figures["parallel_coordinates"]
        if len(common) < 2 or len({trial.metrics[metric] for trial in finished}) == 1:
            del figures["importances"]
        for name, draw in figures.items():
            path = folder / f"{name}.png"
            with optional_picture(path, warn_on_stderr):
                draw()
                pyplot.savefig(path, dpi=150, bbox_inches="tight")
                files.append(path)
            pyplot.close()
    return files


def write_csv(trials: Sequence[Trial], file: Path) -> None:
    """One row a trial: what it set, how it went, every number of its last validation."""
    keys = assigned_keys(trials)
    names = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    with file.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        fixed = ["status", "epoch", "num_epochs", "startup_seconds", "seconds"]
        rows.writerow(["trial", *keys, *fixed, *names, "took_over", "mlflow_run_id"])
        for trial in trials:
            rows.writerow(
                [
                    trial.name,
                    *(trial.assignment.get(key, "") for key in keys),
                    *(trial.status, trial.epoch, trial.num_epochs),
                    *(round(trial.startup_seconds, 1), round(trial.seconds, 1)),
                    *(metric_of(trial, name) for name in names),
                    *(took_over(trial), trial.mlflow_run_id),
                ]
            )


def distributions_of(trials: Sequence[Trial]) -> dict[str, BaseDistribution]:
    """Of the keys that take several values: their range, or the values themselves."""
    distributions: dict[str, BaseDistribution] = {}
    for key in assigned_keys(trials):
        values = [trial.assignment[key] for trial in trials if key in trial.assignment]
        if len({repr(value) for value in values}) < 2:
            continue
        types = {type(value) for value in values}
        if types == {int}:
            distributions[key] = IntDistribution(min(values), max(values))
        elif types <= {int, float}:
            log = min(values) > 0 and max(values) / min(values) >= LOG_RATIO
            distributions[key] = FloatDistribution(min(values), max(values), log=log)
        else:
            distributions[key] = CategoricalDistribution(list(dict.fromkeys(map(str, values))))
    return distributions


def study_of(
    trials: Sequence[Trial], distributions: dict[str, BaseDistribution], metric: str, mode: Mode
) -> Study:
    """The trials as Optuna's, whoever chose them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it says of each study that it was created
    study = create_study(direction="maximize" if mode == "max" else "minimize")
    for trial in trials:
        own = {key: distributions[key] for key in trial.assignment if key in distributions}
        params: dict[str, Any] = {
            key: str(trial.assignment[key])
            if isinstance(kind, CategoricalDistribution)
            else trial.assignment[key]
            for key, kind in own.items()
        }
        study.add_trial(create_trial(params=params, distributions=own, value=trial.metrics[metric]))
    return study
