"""A sweep's spec: what it says, what it refuses, which trials it draws."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfvt.cluster.spaces import TRIAL, param_space_of, searcher_of
from dfvt.cluster.spec import Domain, SweepSpec, draw_trials, load_spec, num_draws
from dfvt.cluster.trainable import plain_values
from dfvt.cluster.trial_config import config_of_trial
from dfvt.engine.config import load_config
from dfvt.engine.config_text import config_text
from dfvt.engine.image_size import image_size_of

MINI = Path(__file__).parents[2] / "configs/mini/maskrcnn_DFvT_tiny_mini.py"
SPEC = """
name: lr-by-drop-path
variants: [tiny, small]
space:
  lr: {loguniform: [1.0e-5, 1.0e-3]}
  model.backbone.drop_path_rate: {grid: [0.0, 0.1]}
  optimizer.type: {choice: [AdamW, SGD]}
  optimizer.momentum: {uniform: [0.8, 0.99], when: {optimizer.type: SGD}}
num_samples: 3
"""


def spec_of(tmp_path: Path, text: str = SPEC) -> SweepSpec:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return load_spec(path)


def test_every_combination_of_grids_is_drawn_num_samples_times(tmp_path: Path) -> None:
    trials = draw_trials(spec_of(tmp_path))
    assert len(trials) == 2 * 2 * 3
    for trial in trials:
        lr = trial["lr"]
        assert isinstance(lr, float) and 1e-5 <= lr < 1e-3
        assert ("optimizer.momentum" in trial) == (trial["optimizer.type"] == "SGD")
    combinations = [(trial["variant"], trial["model.backbone.drop_path_rate"]) for trial in trials]
    assert all(combinations.count(combination) == 3 for combination in combinations)


def test_draws_that_are_alike_are_one_trial(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "name: few\nspace: {lr: {choice: [1.0e-4, 1.0e-3]}}\nnum_samples: 9\n")
    assert (num_draws(spec), len(draw_trials(spec))) == (9, 2)


def test_the_same_spec_draws_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert draw_trials(spec) == draw_trials(spec)
    assert draw_trials(spec) != draw_trials(spec.model_copy(update={"seed": 1}))


LIBRARIES = {
    "optuna": "optuna",
    "hyperopt": "hyperopt",
    "nevergrad": "nevergrad",
    "ax": "ax",
    "bohb": "hpbandster",
}


@pytest.mark.parametrize("algorithm", LIBRARIES)
def test_each_searcher_chooses_trials_of_the_space(tmp_path: Path, algorithm: str) -> None:
    text = SPEC.replace("grid: [0.0, 0.1]", "choice: [0.0, 0.1]") + f"algorithm: {algorithm}\n"
    spec = spec_of(tmp_path, text + ("scheduler: bohb\n" if algorithm == "bohb" else ""))
    if find_spec(LIBRARIES[algorithm]) is None:
        with pytest.raises(ValueError, match=rf"not installed: uv pip install .*\[{algorithm}\]"):
            searcher_of(spec)
        return
    searcher = searcher_of(spec)
    assert searcher and searcher.set_search_properties(spec.metric, spec.mode, param_space_of(spec))
    for number in range(3):
        trial = plain_values(searcher.suggest(f"trial-{number}")[TRIAL])
        assert 1e-5 <= float(str(trial["lr"])) <= 1e-3
        assert trial["variant"] in ("tiny", "small")
        assert trial["model.backbone.drop_path_rate"] in (0.0, 0.1)
        assert {type(value) for value in trial.values()} <= {str, float}
        searcher.on_trial_complete(f"trial-{number}", {spec.metric: 0.1 * number, "training_iteration": 1})


def test_trials_that_differ_in_what_does_not_count_are_one(tmp_path: Path) -> None:
    text = """
name: conditional
algorithm: grid
space:
  optimizer.type: {grid: [AdamW, SGD]}
  optimizer.momentum: {grid: [0.9, 0.95], when: {optimizer.type: [SGD]}}
"""
    assert draw_trials(spec_of(tmp_path, text)) == [
        {"variant": "tiny", "optimizer.type": "AdamW"},
        {"variant": "tiny", "optimizer.type": "SGD", "optimizer.momentum": 0.9},
        {"variant": "tiny", "optimizer.type": "SGD", "optimizer.momentum": 0.95},
    ]


@settings(max_examples=50)
@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.1, 1e4), seed=st.integers(0, 2**32 - 1))
def test_draws_lie_in_their_range(low: float, factor: float, seed: int) -> None:
    for kind in ("uniform", "loguniform"):
        spec = SweepSpec.model_validate(
            {"name": "a", "seed": seed, "num_samples": 4, "space": {"lr": {kind: [low, low * factor]}}}
        )
        for trial in draw_trials(spec):
            value = trial["lr"]
            assert isinstance(value, float) and math.isfinite(value)
            assert low * (1 - 1e-9) <= value <= low * factor * (1 + 1e-9)


def test_whole_numbers_end_before_the_upper_end() -> None:
    domain = Domain("randint", (2, 4), {})
    spec = SweepSpec.model_validate({"name": "a", "num_samples": 64, "space": {"lr": {"randint": [2, 4]}}})
    assert spec.space["lr"] == domain
    assert {trial["lr"] for trial in draw_trials(spec)} == {2, 3}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("algoritm: grid", "algoritm is an unknown key (did you mean algorithm?)"),
        ("algorithm: magic", 'algorithm is "magic", but must be one of grid, random, optuna'),
        ("scheduler: asap", 'scheduler is "asap", but must be one of none, asha'),
        ("learning_rate: 0.1", "learning_rate is an unknown key (did you mean lr?)"),
        ("max_epochs: 3", "max_epochs is an unknown key (did you mean num_epochs?)"),
        ("bs: 3", "bs is an unknown key (did you mean batch_size?)"),
        (
            "space: {learning_rate: {choice: [0.1]}}",
            "space.learning_rate is an unknown key (did you mean lr?)",
        ),
        ("space: {lrr: {choice: [0.1]}}", "space.lrr is an unknown key (did you mean lr?)"),
        ("space: {num_epoch: {choice: [3]}}", "space.num_epoch is an unknown key (did you mean num_epochs?)"),
        ("variants: [huge]", "variants is"),
        ("variants: []", "variants is [], but must be a list of tiny, small, base"),
        ("space: {lr: [1, 2]}", "space.lr is [1, 2], but must be one of {choice: […]}"),
        ("space: {lr: {loguniform: [0, 1]}}", "space.lr is {'loguniform': [0, 1]}, whose"),
        ("space: {lr: {uniform: [2, 1]}}", "space.lr is {'uniform': [2, 1]}, whose"),
        ("space: {lr: {randint: [0.5, 2]}}", "space.lr is {'randint': [0.5, 2]}, but must be"),
        ("space: {lr: {choice: []}}", "space.lr is {'choice': []}, whose"),
        ("space: {lr: {choice: [1], grid: [2]}}", "space.lr is"),
        ("algorithm: grid", "algorithm grid takes grid domains alone, but space.lr is loguniform"),
        ("algorithm: optuna", "space.model.backbone.drop_path_rate cannot be a grid: write choice"),
        ("scheduler: sha", 'scheduler is "sha", but must be one of none, asha, hyperband, median'),
        ("min_workers: 2", "min_workers 2 is more than num_workers 1"),
        ("autoscaling: true", "autoscaling needs use_gpu true or false, and max_concurrent_trials"),
        ("autoscaling: true\nmin_workers: 1", "min_workers is for clusters that do not grow"),
        ("autoscaling: maybe", 'autoscaling is "maybe", but must be true where'),
        ("resources_per_worker: {h100: 0}", "resources_per_worker is 0, but must be a mapping of"),
        ("space: {seed: {uniform: [0, 9]}}", "space.seed must hold whole numbers: write randint"),
        (
            "space: {image_size: {choice: [[320, 256], [256, 320]]}}",
            "space.image_size must hold pairs",
        ),
        ("space: {image_size: {uniform: [64, 320]}}", "space.image_size must hold pairs of pixels"),
        ("image_size: [256, 320]", "image_size is [256, 320], whose shorter side is the first, but must be"),
        ("space: {num_epochs: {choice: [0]}}", "space.num_epochs must hold whole numbers"),
        ("space: {lr: {choice: [1], when: {seed: 0}}}", "space.lr depends on seed, which is no other key"),
        (
            "space: {lr: {choice: [1], when: {seed: 2}}, seed: {choice: [0, 1]}}",
            "space.lr counts at seed: 2, which is not among its values 0, 1",
        ),
        ("num_samples: 0", "num_samples is 0, but must be a whole number of at least 1"),
        ("name: a/b", 'name is "a/b", but must be a name of letters'),
        ("budget_gpu_hours: -1", "budget_gpu_hours is -1, but must be the most GPU-hours"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, change: str, sentence: str) -> None:
    key = change.partition(":")[0]
    kept: list[str] = []
    dropping = False
    for line in SPEC.splitlines():
        if not line.startswith(" "):
            dropping = line.startswith(f"{key}:")
        if not dropping:
            kept.append(line)
    with pytest.raises(ValueError) as error:
        spec_of(tmp_path, "\n".join([*kept, change]))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        ("{loguniform: [1.0e-3, 1.0e-5]}", "whose lower end is not below the upper one"),
        ("{loguniform: [0, 1]}", "whose lower end is not above 0"),
        ("{choice: []}", "whose list is empty"),
    ],
)
def test_what_is_wrong_with_a_domain_is_said(tmp_path: Path, domain: str, reason: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"name: a\nspace: {{lr: {domain}}}\n")
    with pytest.raises(ValueError, match=f"space.lr is .*, {reason}, but must be one of"):
        load_spec(path)


def test_a_trial_has_images_of_its_size(tmp_path: Path) -> None:
    text = "name: a\nspace: {image_size: {grid: [[320, 256], [200, 128]]}, lr: {choice: [0.1]}}\n"
    spec = spec_of(tmp_path, f"{text}cfg_options: {{runner.max_epochs: 3}}\nimage_size: [640, 480]\n")
    assert spec.image_size == (640, 480)
    configs = {"tiny": config_text(load_config(MINI))}
    for trial, size in zip(draw_trials(spec), ((320, 256), (200, 128)), strict=True):
        cfg = config_of_trial(spec, configs, trial)
        assert image_size_of(cfg) == size and cfg.runner.max_epochs == 3
        assert cfg.data.train.pipeline[2].img_scale == size
    assert image_size_of(config_of_trial(spec, configs, {"variant": "tiny"})) == (160, 128)
