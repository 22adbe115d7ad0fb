"""What the trials of a sweep train with, what is refused before they start, and what the plan says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mmcv import Config
from ruamel.yaml import YAML

from dfvt.cluster import capacity
from dfvt.cluster.plan import plan_lines
from dfvt.cluster.preparation import prepare_sweep
from dfvt.cluster.records import DATASET_MANIFEST, SPEC_FILE, note_spec, require_same_spec
from dfvt.cluster.spec import draw_trials
from dfvt.cluster.trainable import Sweep
from dfvt.cluster.trial_config import config_of_trial, max_epochs
from dfvt.cluster.trials import job_of
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.config_text import config_text, read_config_text

ROOT = Path(__file__).parents[2]
TRAIN = {
    "num_epochs": 6,
    "batch_size": 3,
    "lr": 0.5,
    "seed": 7,
    "cfg_options": {"log_config.interval": 9, "evaluation.interval": 2},
    "variants": {"tiny": {"lr": 0.25}, "small": {"num_epochs": 8}},
}
SPEC: dict[str, Any] = {"name": "two", "algorithm": "grid", "space": {"batch_size": {"grid": [1, 2]}}}


@pytest.fixture
def project(tmp_path: Path, shapes: DatasetManifest) -> Path:
    """A project with configs and a data set, and nothing else."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / DATASET_MANIFEST).parent.mkdir(parents=True)
    (tmp_path / DATASET_MANIFEST).write_text(shapes.model_dump_json())
    return tmp_path


def prepared(
    project: Path, train: dict[str, Any] | None = None, said: list[str] | None = None, **spec: Any
) -> Sweep:
    yaml = YAML(typ="safe")
    yaml.dump({"profile": "mini", "train": TRAIN if train is None else train}, project / "params.yaml")
    yaml.dump({**SPEC, **spec}, project / "sweep.yaml")
    return prepare_sweep(project / "sweep.yaml", project, say=[].append if said is None else said.append)


def test_a_trial_trains_with_its_own_values_then_the_specs_then_those_of_params(project: Path) -> None:
    sweep = prepared(
        project, variants=["tiny", "small"], num_epochs=4, cfg_options={"log_config.interval": 8}
    )
    small, tiny = (
        config_of_trial(sweep.spec, sweep.configs, {"variant": variant, "batch_size": 2})
        for variant in ("small", "tiny")
    )
    for cfg in (small, tiny):
        assert cfg.data.samples_per_gpu == 2, "the trial's own"
        assert cfg.runner.max_epochs == 4, "the spec's"
        assert cfg.log_config.interval == 8, "the spec's"
        assert cfg.evaluation.interval == 2, "that of params.yaml"
    assert (small.optimizer.lr, tiny.optimizer.lr) == (0.5, 0.25), "a detector's own come before the others'"
    assert sweep.spec.seed == 7
    job, params = job_of(sweep, draw_trials(sweep.spec)[0], sweep.mirror / "trials/0001", "id")
    assert job.seed == 7
    assert (params["lr"], params["num_epochs"], params["batch_size"], params["seed"]) == (0.25, 4, 1, 7)
    assert (params["log_config.interval"], params["evaluation.interval"]) == (8, 2)


def test_a_key_of_the_config_in_the_spec_comes_before_its_short_name_in_params(project: Path) -> None:
    sweep = prepared(project, cfg_options={"runner.max_epochs": 9, "optimizer.lr": 0.125})
    cfg = config_of_trial(sweep.spec, sweep.configs, {"variant": "tiny"})
    assert (cfg.runner.max_epochs, cfg.optimizer.lr) == (9, 0.125)
    assert max_epochs(sweep.spec, sweep.configs) == 9
    sweep = prepared(project, space={"runner.max_epochs": {"grid": [3, 11]}})
    assert max_epochs(sweep.spec, sweep.configs) == 11


def test_a_seed_in_the_spec_is_the_sweeps(project: Path) -> None:
    assert prepared(project, seed=0).spec.seed == 0
    assert prepared(project, train={}).spec.seed == 0


def test_a_sweep_that_was_begun_keeps_to_its_values(project: Path) -> None:
    sweep, said = prepared(project), list[str]()
    note_spec(sweep.spec, sweep.mirror, sweep.defaults)
    changed = {**TRAIN, "num_epochs": 12, "seed": 8, "cfg_options": {"evaluation.interval": 3}}
    again = prepared(project, changed, said)
    require_same_spec(again.spec, again.mirror)
    assert again.configs == sweep.configs and again.spec == sweep.spec
    assert said[0].endswith(
        "although params.yaml has others now: train.num_epochs, train.cfg_options.evaluation.interval, "
        "train.cfg_options.log_config.interval, train.seed"
    )
    said.clear()
    prepared(project, said=said)
    assert "params.yaml" not in said[0]


def test_a_sweep_that_was_begun_before_params_counted_goes_on_without_them(project: Path) -> None:
    before = prepared(project, train={})
    note_spec(before.spec, before.mirror, before.defaults)
    content = json.loads((before.mirror.folder / SPEC_FILE).read_text())
    del content["defaults"]
    (before.mirror.folder / SPEC_FILE).write_text(json.dumps(content))
    said = list[str]()
    again = prepared(project, said=said)
    require_same_spec(again.spec, again.mirror)
    assert again.configs == before.configs and again.spec.seed == 0
    assert "train.num_epochs, train.batch_size" not in said[0], "the space has batch_size"
    assert "train.num_epochs, train.lr" in said[0]


def test_a_wrong_key_in_params_is_told_as_one_of_params(project: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^params\.yaml: train\.cfg_options: the config has no key model\.x"
    ):
        prepared(project, train={"cfg_options": {"model.x": 1}})


BOXES = {"model.roi_head.mask_head": None, "model.roi_head.mask_roi_extractor": None}


@pytest.mark.parametrize(
    ("train", "spec", "sentence"),
    [
        (
            {},
            {"cfg_options": {"evaluation.interval": 0}},
            "evaluation.interval is 0, so that no trial is val",
        ),
        (
            {"cfg_options": {"evaluation.interval": 0}},
            {},
            "evaluation.interval is 0, so that no trial is val",
        ),
        ({}, {"space": {"evaluation.interval": {"grid": [1, 0]}}}, "evaluation.interval is 0, so that"),
        ({}, {"cfg_options": {"evaluation.interval": -1}}, "evaluation.interval -1 must be a whole number"),
        ({}, {"metric": "segm_mAP", "cfg_options": BOXES}, "metric segm_mAP is about masks, which the detec"),
        ({}, {"metric": "bbox_mAP_l"}, "metric bbox_mAP_l is about objects of 9216 pixels and more, of"),
        ({}, {"scheduler": "asha", "num_epochs": 3}, "a trial of 3 epochs is validated at its end alone"),
        ({"num_epochs": 3}, {"scheduler": "median"}, "a trial of 3 epochs is validated at its end alone"),
    ],
)
def test_what_would_compare_nothing_is_refused_before_a_trial_starts(
    project: Path, train: dict[str, Any], spec: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=r"sweep\.yaml: ") as caught:
        prepared(project, train, **spec)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_search_that_was_begun_goes_on_although_it_stops_no_trial(project: Path) -> None:
    sweep = prepared(project, scheduler="asha", num_epochs=4)
    note_spec(sweep.spec, sweep.mirror, {})
    assert prepared(project, {}, scheduler="asha", num_epochs=4).spec.scheduler == "asha"
    # whose config has it validated after 3 epochs
    sweep.mirror.folder.joinpath(SPEC_FILE).unlink()
    with pytest.raises(ValueError, match="at its end alone"):
        prepared(project, {}, scheduler="asha", num_epochs=3)


def test_the_plan_says_what_counts_and_how_many_run_at_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("dfvt.cluster.plan.resources_of_this_machine", lambda: {"CPU": 8.0, "GPU": 0.0})
    sweep = prepared(
        project,
        num_epochs=4,
        cpus_per_worker=2,
        num_workers=2,
        image_size=[96, 64],
        images_per_second=0.5,
        cfg_options={"log_config.interval": 8},
    )
    assert plan_lines(sweep) == [
        "   1  variant=tiny  batch_size=1",
        "   2  variant=tiny  batch_size=2",
        "tiny: num_epochs 4 (spec), batch_size of each trial, lr 0.25 (params.yaml), seed 7 (params.yaml), "
        "image_size 96×64 (spec), evaluation.interval 2 (params.yaml), log_config.interval 8 (spec); "
        "validated every 2 epochs and after the last",
        "a trial has 2 workers with 2 CPUs; 2 at once on this machine (8 CPUs, 0 GPUs)",
        "2 trials, at most 8 epochs of 8 images",
        "at most 0.0 GPU-hours at 0.5 images/s",
    ]
    monkeypatch.setattr("dfvt.cluster.plan.resources_of_this_machine", lambda: {"CPU": 2.0, "GPU": 0.0})
    assert plan_lines(sweep)[3].startswith("a trial needs 4 CPUs (num_workers 2), but this machine has 2")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert plan_lines(sweep)[3].endswith("as many as the cluster at RAY_ADDRESS holds at once")


def test_a_config_without_layout_reads_back_equal(config: Config) -> None:
    for path in ("configs/DFvT/maskrcnn_DFvT_base_1x_coco.py", "configs/fast/maskrcnn_DFvT_tiny_1x_coco.py"):
        published = Config.fromfile(ROOT / path)
        assert read_config_text(config_text(published, formatted=False))._cfg_dict == published._cfg_dict
    config.note = {"it's": ("{{ fileDirname }}", -math.inf, None), "nested": [(1,), [], {}, "\\ \n \" '"]}
    again = read_config_text(config_text(config, formatted=False))
    assert again._cfg_dict == config._cfg_dict
    assert type(again.note["it's"]) is tuple and type(again.note.nested[0]) is tuple


def test_this_machine_has_processors() -> None:
    assert capacity.resources_of_this_machine()["CPU"] >= 1
