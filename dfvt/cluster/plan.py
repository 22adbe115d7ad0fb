"""The plan of a sweep: its trials, what each trains with, and what they take. Starts nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dfvt.cluster.capacity import resources_of_this_machine, trials_at_once, workers_resources
from dfvt.cluster.checks import interval_of
from dfvt.cluster.records import require_same_spec
from dfvt.cluster.spec import DRAWN, TRAIN_KEYS, draw_trials, num_draws
from dfvt.cluster.trainable import Sweep
from dfvt.cluster.trial_config import config_of_trial, max_epochs


def plan_lines(sweep: Sweep) -> list[str]:
    """Return the trials that a sweep would run, what they train with and what they take, as lines of text.

    Raises:
        ValueError: another one of that name was begun.
    """
    spec = sweep.spec
    require_same_spec(spec, sweep.mirror)
    if spec.algorithm in DRAWN:
        trials = draw_trials(spec)
        lines = [
            f"{number:4}  " + "  ".join(f"{key}={value}" for key, value in trial.items())
            for number, trial in enumerate(trials, 1)
        ]
    else:
        trials = [{"variant": spec.variants[0]}] * spec.num_samples
        lines = [f"{spec.num_samples} trials that {spec.algorithm} will choose"]
    num_alike = num_draws(spec) - len(trials)
    if num_alike > 0:
        lines.append(f"{num_alike} of {num_draws(spec)} draws are like another one, and not repeated")
    lines += settings_lines(sweep)
    lines.append(capacity_line(sweep, len(trials)))
    longest = max_epochs(spec, sweep.configs)
    num_epochs = sum(int(str(trial.get("num_epochs") or longest)) for trial in trials)
    total = f"{len(trials)} trials, at most {num_epochs} epochs of {sweep.dataset.num_train_images} images"
    if spec.images_per_second is None:
        return [*lines, total, "images_per_second of one worker in the spec would tell how long they take"]
    hours = num_epochs * sweep.dataset.num_train_images / spec.images_per_second / 3600
    return [*lines, total, f"at most {hours:.1f} GPU-hours at {spec.images_per_second:g} images/s"]


def settings_lines(sweep: Sweep) -> Iterator[str]:
    """Yield a line for each variant: what its trials train with, and where each value is from."""
    from dfvt.engine.image_size import image_size_of

    spec = sweep.spec
    for variant in spec.variants:
        cfg = config_of_trial(spec, sweep.configs, {"variant": variant})
        defaults = sweep.defaults_of(variant)
        values = {
            "num_epochs": cfg.runner.max_epochs,
            "batch_size": cfg.data.samples_per_gpu,
            "lr": cfg.optimizer.get("lr"),
            "seed": spec.seed,
        }
        assert set(values) == set(TRAIN_KEYS)
        own_keys = {
            "num_epochs": "runner.max_epochs",
            "batch_size": "data.samples_per_gpu",
            "lr": "optimizer.lr",
        }
        told = []
        for name, value in values.items():
            option = own_keys.get(name, name)
            if name in spec.space or (option in spec.space and getattr(spec, name) is None):
                told.append(f"{name} of each trial")
            elif name in spec.model_fields_set or option in spec.cfg_options:
                told.append(f"{name} {value} (spec)")
            elif name == "seed" or getattr(defaults, name) is not None or option in defaults.cfg_options:
                told.append(f"{name} {value} (params.yaml)")
            else:
                told.append(f"{name} {value} (config)")
        if spec.image_size or defaults.image_size:
            size = "×".join(map(str, image_size_of(cfg)))
            told.append(f"image_size {size} ({'spec' if spec.image_size else 'params.yaml'})")
        options = {**defaults.cfg_options, **spec.cfg_options}
        told += [
            f"{key} {value} ({'spec' if key in spec.cfg_options else 'params.yaml'})"
            for key, value in options.items()
            if key not in spec.space
        ]
        yield f"{variant}: {', '.join(told)}; validated every {interval_of(cfg)} epochs and after the last"


def capacity_line(sweep: Sweep, num_trials: int) -> str:
    """Return a line that says what a trial takes, and how many run at once."""
    spec = sweep.spec
    if spec.autoscaling:
        return (
            f"a trial has {num_workers_text(sweep)}; {spec.max_concurrent_trials} at once, on nodes to come"
        )
    if os.environ.get("RAY_ADDRESS"):
        limit = f", at most {spec.max_concurrent_trials}" if spec.max_concurrent_trials else ""
        number = f"as many as the cluster at RAY_ADDRESS holds{limit}"
        return f"a trial has {num_workers_text(sweep)}; {number} at once"
    resources = resources_of_this_machine()
    here = f"this machine ({resources['CPU']:g} CPUs, {resources['GPU']:g} GPUs)"
    try:
        at_once = trials_at_once(spec, resources, [resources], "this machine")
    except ValueError as error:
        return f"{error}; a cluster at RAY_ADDRESS could have more"
    taken = workers_resources(spec, resources)
    each = " and ".join(f"{number:g} {name}{'s' * (number != 1)}" for name, number in taken.items() if number)
    return f"a trial has {num_workers_text(sweep)} with {each}; {min(at_once, num_trials)} at once on {here}"


def num_workers_text(sweep: Sweep) -> str:
    """Return how many workers a trial has, in words."""
    number = sweep.spec.num_workers
    return f"{number} worker{'s' * (number != 1)}"
