"""A spec in Ray Tune's terms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfvt.cluster.spaces import TRIAL, param_space_of, scheduler_of, searcher_of
from dfvt.cluster.spec import SweepSpec, draw_trials, load_spec, num_trials_of

SWEEPS = sorted((Path(__file__).parents[2] / "configs/sweeps").glob("*.yaml"))


def spec_of(**values: Any) -> SweepSpec:
    return SweepSpec.model_validate({"name": "a", "space": {"lr": {"loguniform": [1e-5, 1e-3]}}, **values})


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_that_come_with_the_project_can_be_built(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem.replace("_", "-")
    assert num_trials_of(spec) >= 9
    assert TRIAL in param_space_of(spec)
    searcher_of(spec)
    scheduler_of(spec, num_epochs=12)


def test_drawn_trials_are_what_tune_runs() -> None:
    spec = spec_of(num_samples=4)
    assert param_space_of(spec)[TRIAL] == {"grid_search": draw_trials(spec)}
    assert searcher_of(spec) is None
    assert num_trials_of(spec) == 4


def test_a_searchers_domains_are_tunes() -> None:
    space = param_space_of(spec_of(algorithm="optuna", variants=["tiny", "base"]))[TRIAL]
    assert space["variant"].categories == ["tiny", "base"]
    assert (space["lr"].lower, space["lr"].upper) == (1e-5, 1e-3)


def test_a_scheduler_lets_the_last_epoch_end() -> None:
    scheduler: Any = scheduler_of(spec_of(scheduler="asha"), num_epochs=12)
    assert scheduler._max_t == 13


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"scheduler": "asha", "scheduler_options": {"graceperiod": 1}},
            "scheduler asha has no option graceperiod: it takes brackets",
        ),
        ({"scheduler_options": {"grace_period": 1}}, "scheduler_options are given, but scheduler is none"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        scheduler_of(spec_of(**values), num_epochs=12)


def test_a_searcher_that_is_not_installed_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="algorithm nevergrad needs a library that is not installed"):
        searcher_of(spec_of(algorithm="nevergrad"))


def test_a_trials_process_starts_without_what_only_the_driver_or_a_training_needs() -> None:
    heavy = "torch", "mmcv", "mlflow", "optuna"
    program = f"import sys, dfvt.cluster.trainable; print(sorted({set(heavy)}.intersection(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
