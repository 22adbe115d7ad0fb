"""A spec in Ray Tune's terms: space, searcher, scheduler."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from dfvt.cluster.spec import DRAWN, POPULATION, RANGES, Domain, SweepSpec, draw_trials

TRIAL = "trial"  # the key of Tune's config that holds what a trial sets
EPOCH = "epoch"  # what a trial reports its age in
SCHEDULERS = {
    "asha": "asynchyperband",
    "hyperband": "hyperband",
    "median": "median_stopping_rule",
    "bohb": "hb_bohb",
    "pbt": "pbt",
    "pb2": "pb2",
}
BRACKETED = ("asha", "hyperband", "bohb")
# What the spec itself says, or no spec can
GIVEN = {"time_attr", "metric", "mode", "hyperparam_mutations", "hyperparam_bounds", "custom_explore_fn"}
NUM_SEGMENTS = 5  # of a training whose values a scheduler changes, unless the spec says perturbation_interval
SEED_ARGUMENTS = {"optuna": "seed", "hyperopt": "random_state_seed", "bohb": "seed"}


def param_space_of(spec: SweepSpec) -> dict[str, Any]:
    """Tune's `param_space`: the trials themselves where all are known before, otherwise domains."""
    if spec.algorithm in DRAWN:
        return {TRIAL: tune.grid_search(draw_trials(spec))}
    domains = {key: tune_domain(domain) for key, domain in spec.space.items()}
    return {TRIAL: {"variant": tune.choice(list(spec.variants)), **domains}}


def tune_domain(domain: Domain) -> Any:
    """Ray Tune's domain of the same values."""
    if domain.kind == "choice":
        return tune.choice(list(domain.values))
    return getattr(tune, domain.kind)(*domain.values)


def searcher_of(spec: SweepSpec) -> Searcher | None:
    """The searcher that chooses the trials; None where they are drawn.

    Raises:
        ValueError: its library is not installed.
    """
    if spec.algorithm in DRAWN:
        return None
    if spec.algorithm == "optuna":
        import optuna  # a trial's process, which needs none of it, would start a tenth of a second later

        optuna.logging.set_verbosity(optuna.logging.WARNING)
    options: dict[str, Any] = {}
    if spec.algorithm in SEED_ARGUMENTS:
        options[SEED_ARGUMENTS[spec.algorithm]] = spec.seed
    try:
        if spec.algorithm == "nevergrad":  # Tune has no default for it
            options["optimizer"] = importlib.import_module("nevergrad").optimizers.NGOpt
        return tune.search.create_searcher(spec.algorithm, metric=spec.metric, mode=spec.mode, **options)
    except (ImportError, AssertionError) as error:
        raise ValueError(
            f"algorithm {spec.algorithm} needs a library that is not installed: "
            f"uv pip install --python .venv/bin/python -e '.[{spec.algorithm}]'"
        ) from error


def segment_of(spec: SweepSpec, num_epochs: int) -> int | None:
    """After how many epochs a trial waits to be compared with all others; None where it never does.

    Raises:
        ValueError: perturbation_interval is no whole number above 0.
    """
    if spec.scheduler not in POPULATION:
        return None
    interval = spec.scheduler_options.get("perturbation_interval", max(num_epochs // NUM_SEGMENTS, 1))
    if not isinstance(interval, int) or interval < 1:
        raise ValueError(
            f"scheduler_options.perturbation_interval is {interval!r}: it must be a whole number of epochs"
        )
    return interval


def changes_of(spec: SweepSpec) -> dict[str, Any]:
    """What a scheduler that changes trials may choose from, and how it stays inside the space."""
    if spec.scheduler == "pb2":
        return {
            "hyperparam_bounds": {TRIAL: {key: list(domain.values) for key, domain in spec.space.items()}}
        }
    domains = {
        key: tune_domain(domain) if domain.kind in RANGES else list(domain.values)
        for key, domain in spec.space.items()
    }
    return {"hyperparam_mutations": {TRIAL: domains}, "custom_explore_fn": partial(inside, spec.space)}


def inside(space: Mapping[str, Domain], config: dict[str, Any]) -> dict[str, Any]:
    """Tune's config with values that a factor drove out of their range put back to its end."""
    trial = dict(config[TRIAL])
    for key, domain in space.items():
        if domain.kind in RANGES:
            low, high = domain.values
            trial[key] = min(max(trial[key], low), high - 1 if domain.kind == "randint" else high)  # type: ignore[operator]  # checked: numbers
    return {**config, TRIAL: trial}


def scheduler_of(spec: SweepSpec, num_epochs: int) -> TrialScheduler | None:
    """The scheduler that stops trials early; its time is epochs, up to `num_epochs`.

    Raises:
        ValueError: scheduler_options holds what the scheduler does not take.
    """
    if spec.scheduler == "none":
        if spec.scheduler_options:
            raise ValueError("scheduler_options are given, but scheduler is none")
        return None
    name = SCHEDULERS[spec.scheduler]
    options: dict[str, Any] = {"time_attr": EPOCH}
    if spec.scheduler in BRACKETED:
        options["max_t"] = num_epochs + 1  # who reaches the last epoch ends by itself, with a checkpoint
    if spec.scheduler in POPULATION:
        # all of the population are compared after the same number of epochs
        options |= {"perturbation_interval": segment_of(spec, num_epochs), "synch": True, "log_config": False}
        options |= changes_of(spec)
    known = set(inspect.signature(type(tune.create_scheduler(name, **options))).parameters) - GIVEN
    unknown = [option for option in spec.scheduler_options if option not in known]
    if unknown:  # Tune would leave them out and say nothing
        raise ValueError(
            f"scheduler {spec.scheduler} has no option {unknown[0]}: it takes {', '.join(sorted(known))}"
        )
    return tune.create_scheduler(name, **{**options, **spec.scheduler_options})
