"""A spec in Ray Tune's terms: space, searcher, scheduler."""

from __future__ import annotations

import inspect
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from dfvt.cluster.spec import DRAWN, Domain, SweepSpec, draw_trials

TRIAL = "trial"  # the key of Tune's config that holds what a trial sets
EPOCH = "epoch"  # what a trial reports its age in
SCHEDULERS = {"asha": "asynchyperband", "hyperband": "hyperband", "median": "median_stopping_rule"}
SEED_ARGUMENTS = {"optuna": "seed", "hyperopt": "random_state_seed"}


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
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = {SEED_ARGUMENTS[spec.algorithm]: spec.seed} if spec.algorithm in SEED_ARGUMENTS else {}
    try:
        return tune.search.create_searcher(spec.algorithm, metric=spec.metric, mode=spec.mode, **seed)
    except (ImportError, AssertionError) as error:
        raise ValueError(
            f"algorithm {spec.algorithm} needs a library that is not installed: {str(error).splitlines()[0]}"
        ) from error


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
    if spec.scheduler in ("asha", "hyperband"):
        options["max_t"] = num_epochs + 1  # who reaches the last epoch ends by itself, with a checkpoint
    known = inspect.signature(type(tune.create_scheduler(name, **options))).parameters
    unknown = [option for option in spec.scheduler_options if option not in known]
    if unknown:  # Tune would leave them out and say nothing
        raise ValueError(
            f"scheduler {spec.scheduler} has no option {unknown[0]}: it takes {', '.join(sorted(known))}"
        )
    return tune.create_scheduler(name, **{**options, **spec.scheduler_options})
