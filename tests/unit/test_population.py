"""What trials take over from each other, and what a population based search may change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmcv import Config

from dfvt.cluster.checks import require_search
from dfvt.cluster.population import TAKEN_OVER, hand_over, take_over
from dfvt.cluster.records import TakeOver, TrialRecord
from dfvt.cluster.spaces import TRIAL, inside, scheduler_of, segment_of
from dfvt.cluster.spec import SweepSpec, load_spec
from dfvt.data.storage import Mirror
from dfvt.reports.sweep import results_table

SPEC = """
name: population
scheduler: pbt
num_samples: 4
space:
  lr: {loguniform: [1.0e-5, 1.0e-3]}
  model.backbone.drop_path_rate: {choice: [0.0, 0.1, 0.2]}
"""


def spec_of(tmp_path: Path, text: str = SPEC) -> SweepSpec:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return load_spec(path)


def trial(folder: Path, *, epoch: int, **files: bytes) -> Path:
    """A trial's folder with a record and states."""
    folder.mkdir()
    metrics = {"bbox_mAP": 0.5 if folder.name == "donor" else 0.1}
    TrialRecord(folder.name, {"lr": 1e-4}, "run", epoch=epoch, metrics=metrics).save(folder)
    for name, content in files.items():
        (folder / f"{name}.pth").write_bytes(content)
    return folder


def checkpoint_of(folder: Path) -> Path:
    checkpoint = folder.with_name(f"{folder.name}-checkpoint")
    checkpoint.mkdir()
    hand_over(Mirror(folder), checkpoint)
    return checkpoint


def test_a_trial_goes_on_from_anothers_state_with_values_of_its_own(tmp_path: Path) -> None:
    donor = checkpoint_of(trial(tmp_path / "donor", epoch=4, latest=b"state", best=b"best"))
    folder = trial(tmp_path / "own", epoch=3, latest=b"own", best=b"own")
    (folder / "latest-1.pth").write_bytes(b"older")
    take_over(Mirror(folder), donor, {"lr": 2e-4})
    assert sorted(path.name for path in folder.glob("*.pth")) == ["best.pth", TAKEN_OVER]
    assert [(folder / name).read_bytes() for name in (TAKEN_OVER, "best.pth")] == [b"state", b"best"]
    record = TrialRecord.load(folder)
    assert record and (record.name, record.epoch, record.assignment) == ("own", 4, {"lr": 2e-4})
    assert record.taken_over == (TakeOver("donor", 4, {"lr": 2e-4}),)
    assert record.metrics == {"bbox_mAP": 0.5}, "the numbers of the state that it has now"
    table = results_table([record], "bbox_mAP", "max").splitlines()
    assert table[0] == "| trial | lr | took over | status | epochs | bbox_mAP |"
    assert table[2] == "| own | 0.0002 | donor after 4 | running | 4/0 | 0.500 |"


def test_started_again_it_keeps_what_it_has_made_of_it(tmp_path: Path) -> None:
    donor = checkpoint_of(trial(tmp_path / "donor", epoch=4, latest=b"state"))
    folder = trial(tmp_path / "own", epoch=3, latest=b"own")
    take_over(Mirror(folder), donor, {"lr": 2e-4})
    (folder / "latest.pth").write_bytes(b"further")
    take_over(Mirror(folder), donor, {"lr": 2e-4})
    assert (folder / "latest.pth").read_bytes() == b"further"
    take_over(Mirror(folder), donor, {"lr": 3e-4})  # the scheduler chose other values
    assert not (folder / "latest.pth").exists()


def test_its_own_state_is_not_taken_over(tmp_path: Path) -> None:
    folder = trial(tmp_path / "own", epoch=3, latest=b"own")
    checkpoint = checkpoint_of(folder)
    (folder / "latest.pth").write_bytes(b"further")
    take_over(Mirror(folder), checkpoint, {"lr": 1e-4})
    assert (folder / "latest.pth").read_bytes() == b"further"
    assert json.loads((folder / "trial.json").read_text())["taken_over"] == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("num_samples: 4", "num_samples: 4\nalgorithm: optuna", "searches itself: write algorithm: random"),
        ("num_samples: 4", "", "at least two trials that differ: raise num_samples"),
        ("num_samples: 4", "num_samples: 4\nvariants: [tiny, small]", "a single variant"),
        ("lr:", "batch_size: {choice: [2, 4]}\n  lr:", "space.batch_size cannot change in the middle"),
        ("lr:", "optimizer.type: {choice: [AdamW, SGD]}\n  lr:", "space.optimizer.type cannot change"),
        ("{choice: [0.0, 0.1, 0.2]}", "{choice: [0.0], when: {lr: 1}}", "has conditions"),
        ("scheduler: pbt", "scheduler: pb2", "takes ranges alone"),
        ("scheduler: pbt", "algorithm: bohb", "write algorithm: bohb and scheduler: bohb"),
    ],
)
def test_what_such_a_search_cannot_do_is_one_sentence(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        spec_of(tmp_path, SPEC.replace(old, new))


def test_changed_values_stay_in_the_space(tmp_path: Path) -> None:
    space = spec_of(tmp_path).space
    config = {TRIAL: {"variant": "tiny", "lr": 1.2e-3, "model.backbone.drop_path_rate": 0.1}}
    assert inside(space, config)[TRIAL] == {**config[TRIAL], "lr": 1e-3}
    assert config[TRIAL]["lr"] == 1.2e-3


def test_trials_that_are_compared_must_be_validated_before(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    require_search(spec, Config({"evaluation": {"interval": 2}}), 12)
    with pytest.raises(ValueError, match=r"every 2 epochs, but they are validated every 3: set cfg_opt"):
        require_search(spec, Config({"evaluation": {"interval": 3}}), 12)


def test_a_population_that_is_never_compared_is_refused(tmp_path: Path) -> None:
    options = "scheduler_options: {perturbation_interval: 4}\n"
    for text, num_epochs in ((SPEC, 1), (SPEC + options, 4)):
        with pytest.raises(ValueError, match=f"of which a trial has {num_epochs}, so that none takes"):
            require_search(spec_of(tmp_path, text), Config({"evaluation": {"interval": 1}}), num_epochs)


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_the_population_is_compared_after_the_same_epochs(tmp_path: Path, name: str) -> None:
    text = SPEC.replace("{choice: [0.0, 0.1, 0.2]}", "{uniform: [0.0, 0.2]}").replace("pbt", name)
    spec = spec_of(tmp_path, text)
    assert (segment_of(spec, 12), segment_of(spec, 3)) == (2, 1)
    assert scheduler_of(spec, 12)
    options = "scheduler_options: {perturbation_interval: 0.5}\n"
    with pytest.raises(ValueError, match="a whole number of epochs"):
        segment_of(spec_of(tmp_path, text + options), 12)
    with pytest.raises(ValueError, match="has no option time_attr"):
        scheduler_of(spec_of(tmp_path, text + "scheduler_options: {time_attr: seconds}\n"), 12)
    assert segment_of(spec_of(tmp_path, SPEC.replace("pbt", "asha")), 12) is None
