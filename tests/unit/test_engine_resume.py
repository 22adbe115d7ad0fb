"""A training that was cut off ends as if it had not been, and no file is ever half."""

from __future__ import annotations

import copy
import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv import Config

from dfvt.engine.callbacks import Callback, StepRecord, TrainingStart
from dfvt.engine.config_text import config_text
from dfvt.engine.curves import CurveFiles
from dfvt.engine.hooks import TrainingStopped
from dfvt.engine.resume import differences
from dfvt.engine.states import write_atomically
from dfvt.engine.train import TrainResult, train
from dfvt.engine.versions import present_versions
from dfvt.models.checkpoints import read_checkpoint

KILLED_TRAINING = """
import os, signal, sys
from pathlib import Path

import torch
from dfvt.engine.callbacks import Callback
from dfvt.engine.config import load_config
from dfvt.engine.config_text import config_text
from dfvt.engine.config_text import config_text
from dfvt.engine.curves import CurveFiles
from dfvt.engine.train import train

class Kill(Callback):
    def on_step(self, record):
        if record.step == 10:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
work_dir = Path(sys.argv[2])
train(load_config(sys.argv[1]), work_dir, seed=4, callbacks=[CurveFiles(work_dir), Kill()])
"""


class Starts(Callback):
    """Keeps how trainings begin, and counts the records after that."""

    def __init__(self) -> None:
        self.starts: list[TrainingStart] = []
        self.num_steps = 0

    def on_start(self, start: TrainingStart) -> None:
        self.starts.append(start)

    def on_step(self, record: StepRecord) -> None:
        self.num_steps += 1


def three_epochs(config: Config) -> Config:
    """Four iterations each; the rate falls in the third epoch, and its warm-up ends in the second."""
    config = copy.deepcopy(config)
    schedule = {"policy": "step", "step": [2], "warmup": "linear", "warmup_iters": 6, "warmup_ratio": 0.1}
    config.merge_from_dict({"runner.max_epochs": 3, "lr_config": {"_delete_": True, **schedule}})
    return config


@pytest.fixture
def config(config: Config) -> Config:
    return three_epochs(config)


@pytest.fixture(scope="module")
def uninterrupted(session_config: Config, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """What the training ends with when nothing cuts it off."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return train(three_epochs(session_config), folder, seed=4, callbacks=[CurveFiles(folder)])


def changed(config: Config, **options: object) -> Config:
    """The config with other values."""
    config = copy.deepcopy(config)
    config.merge_from_dict(options)
    return config


def test_a_training_takes_over_the_state_of_one_with_other_settings(config: Config, tmp_path: Path) -> None:
    calls = iter(range(100))
    with pytest.raises(TrainingStopped):
        train(config, tmp_path / "donor", seed=4, stop_asked=lambda: next(calls) == 8)
    other = changed(config, **{"optimizer.lr": config.optimizer.lr * 3, "optimizer.weight_decay": 0.25})
    starts = Starts()
    folder = tmp_path / "other"
    donor = tmp_path / "donor/latest.pth"
    expected = {"optimizer.lr": other.optimizer.lr, "optimizer.weight_decay": 0.25}
    result = train(
        other,
        folder,
        seed=4,
        take_over=donor,
        callbacks=[starts, CurveFiles(folder)],
        expected=expected,
    )
    assert [start.step for start in starts.starts] == [8]
    before, after = read_checkpoint(donor), read_checkpoint(folder / "latest.pth")
    assert after["optimizer"]["param_groups"][0]["weight_decay"] == 0.25
    assert after["optimizer"]["state"][0]["step"] == before["optimizer"]["state"][0]["step"] + 4, "moments"
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    assert float(rows[-1]["lr"]) == pytest.approx(other.optimizer.lr * 0.1)  # its own schedule
    # from here on the state is its own: it is not taken over again
    again = train(other, folder, seed=4, take_over=donor, callbacks=[starts])
    assert starts.starts[-1].step == result.step == again.step == 12


def test_a_state_of_another_model_is_not_taken_over(config: Config, tmp_path: Path) -> None:
    calls = iter(range(100))
    with pytest.raises(TrainingStopped):
        train(config, tmp_path / "donor", stop_asked=lambda: next(calls) == 1)
    donor = tmp_path / "donor/latest.pth"
    wide = changed(config, **{"model.backbone.mlp_ratio": 1.5})
    with pytest.raises(ValueError, match="is the state of another model"):
        train(wide, tmp_path / "other", take_over=donor)
    grouped = changed(config, **{"optimizer.paramwise_cfg": {"custom_keys": {"neck": {"lr_mult": 0.1}}}})
    with pytest.raises(ValueError, match="another optimiser"):
        train(grouped, tmp_path / "other", take_over=donor)
    torch.save({"state_dict": {}, "meta": {}}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not the state of a training"):
        train(config, tmp_path / "other", take_over=tmp_path / "weights.pth")


def assert_same_outcome(one: TrainResult, other: TrainResult) -> None:
    assert (one.step, one.metrics) == (other.step, other.metrics)
    first, second = (read_checkpoint(result.checkpoint)["state_dict"] for result in (one, other))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_training_whose_process_is_killed_goes_on_exactly(
    config: Config, uninterrupted: TrainResult, tmp_path: Path
) -> None:
    (tmp_path / "config.py").write_text(config_text(config, formatted=False))
    work_dir = tmp_path / "work"
    process = subprocess.run(
        [sys.executable, "-c", KILLED_TRAINING, str(tmp_path / "config.py"), str(work_dir)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert len((work_dir / "curve.csv").read_text().splitlines()) == 1 + 5, "it was in the third epoch"

    starts = Starts()
    result = train(config, work_dir, seed=4, callbacks=[CurveFiles(work_dir), starts])
    assert starts.starts == [TrainingStart(8, 12, 2, 3, work_dir / "latest.pth")]
    assert_same_outcome(result, uninterrupted)
    for name in ("curve.csv", "val.csv"):
        resumed, straight = (
            [{**row, "images_per_second": None} for row in csv.DictReader((folder / name).open())]
            for folder in (work_dir, uninterrupted.checkpoint.parent)
        )
        assert resumed == straight


def test_the_rate_follows_the_schedule(uninterrupted: TrainResult) -> None:
    rows = csv.DictReader((uninterrupted.checkpoint.parent / "curve.csv").open())
    warmed = [1 - (1 - step / 6) * 0.9 for step in (1, 3, 5)]  # of the iteration that a record ends with
    expected = [*warmed, 1.0, 0.1, 0.1]
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-3 * share for share in expected], rel=1e-4)


def test_a_training_can_be_made_longer(config: Config, uninterrupted: TrainResult, tmp_path: Path) -> None:
    config.runner.max_epochs = 2
    train(config, tmp_path, seed=4)
    config.runner.max_epochs = 3
    starts = Starts()
    result = train(config, tmp_path, seed=4, callbacks=[starts])
    assert starts.starts[0].step == 8
    assert_same_outcome(result, uninterrupted)
    config.lr_config = {"policy": "CosineAnnealing", "min_lr": 0.0}
    config.runner.max_epochs = 1
    train(config, tmp_path / "cosine", seed=4)
    config.runner.max_epochs = 2
    with pytest.raises(ValueError, match="belongs to a training with another runner"):
        train(config, tmp_path / "cosine", seed=4)


def test_a_finished_training_is_not_run_again(
    config: Config, uninterrupted: TrainResult, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(uninterrupted.checkpoint.parent, folder)
    (folder / "checkpoint.pth").unlink()  # killed just before it was written
    starts = Starts()
    result = train(config, folder, seed=4, callbacks=[starts])
    assert (starts.starts[0].step, starts.num_steps) == (12, 0)
    assert_same_outcome(result, uninterrupted)


def test_the_state_of_another_training_is_refused(
    config: Config, uninterrupted: TrainResult, tmp_path: Path
) -> None:
    state = tmp_path / "latest.pth"
    state.symlink_to(uninterrupted.checkpoint.parent / "latest.pth")
    config.optimizer.lr = 0.1
    sentence = (
        r"latest\.pth belongs to a training with another optimizer\.lr \(.*, now 0\.1\), seed \(4, now 5\): "
    )
    sentence += r"remove .*latest\*\.pth to start anew"
    with pytest.raises(ValueError, match=sentence):
        train(config, tmp_path, seed=5)


def test_of_many_differences_the_first_ones_are_told() -> None:
    before = {"model": repr({"a": 1, "b": [1, {"c": 2}], "d": "x" * 90}), "runner": "{'e': 1}", "seed": "1"}
    now = {
        "model": repr({"a": 2, "b": [1, {"c": 3}], "d": "y" * 90}),
        "runner": "{'e': 1}",
        "ema": "{'f': 3}",
    }
    assert differences(before, before) == []
    assert differences(before, now) == [
        *("model.a (1, now 2)", "model.b.1.c (2, now 3)", "model.d", "seed (1, now None)"),
        "ema.f (None, now 3)",
    ]


def test_what_does_not_change_the_weights_may_change_between_resumes(
    config: Config, uninterrupted: TrainResult, tmp_path: Path
) -> None:
    (tmp_path / "latest.pth").symlink_to(uninterrupted.checkpoint.parent / "latest.pth")
    shutil.copytree(config.data.train.img_prefix, tmp_path / "moved")
    config.data.train.img_prefix = str(tmp_path / "moved")
    config.merge_from_dict({"data.workers_per_gpu": 1, "log_config.interval": 5})
    assert_same_outcome(train(config, tmp_path, seed=4), uninterrupted)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated"])
def test_a_damaged_state_is_one_sentence(config: Config, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latest.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"latest\.pth is .*(damaged|not a)") as error:
        train(config, tmp_path, seed=4)
    assert "\n" not in str(error.value)


def test_a_checkpoint_in_the_place_of_a_state_is_one_sentence(
    config: Config, uninterrupted: TrainResult, tmp_path: Path
) -> None:
    (tmp_path / "latest.pth").symlink_to(uninterrupted.checkpoint)
    with pytest.raises(ValueError, match="is not the state of a training"):
        train(config, tmp_path, seed=4)


class Unpicklable:
    """Breaks `torch.save` off after it has begun to write."""

    def __reduce__(self) -> str:
        raise KeyboardInterrupt


def test_saving_that_is_broken_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    write_atomically({"weight": torch.ones(3)}, path)
    with pytest.raises(KeyboardInterrupt):
        write_atomically({"weight": torch.zeros(3), "other": Unpicklable()}, path)
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_save_left_is_neither_read_nor_kept(config: Config, tmp_path: Path) -> None:
    (tmp_path / ".latest.pth.partial").write_bytes(b"half")
    starts = Starts()
    config.runner.max_epochs = 1
    config.evaluation.interval = 0
    train(config, tmp_path, callbacks=[starts])
    assert starts.starts[0].resumed_from is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth", "latest.pth"]


def test_a_row_that_a_killed_training_left_half_is_dropped(tmp_path: Path) -> None:
    files = CurveFiles(tmp_path)
    files.train_path.write_text("step,epoch,loss\n10,1,0.5\n1")
    files.on_start(TrainingStart(10, 20, 1, 2, tmp_path / "latest.pth"))
    assert [row["step"] for row in csv.DictReader(files.train_path.open())] == ["10"]


class Warnings(Callback):
    """Keeps what a training warns of, and its start."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_warning(self, message: str) -> None:
        self.messages.append(message)

    def on_start(self, start: TrainingStart) -> None:
        self.start = start


def longer(uninterrupted: TrainResult, folder: Path, meta: dict[str, object]) -> Path:
    """The state of a finished training, as another version would have written it."""
    content = read_checkpoint(uninterrupted.checkpoint.with_name("latest.pth"))
    content["meta"] = {**content["meta"], **meta}
    folder.mkdir()
    write_atomically(content, folder / "latest.pth")
    return folder


def test_a_state_of_other_code_or_libraries_goes_on_with_a_warning(
    config: Config, uninterrupted: TrainResult, tmp_path: Path
) -> None:
    earlier = {**present_versions(), "code": "0123456789ab", "torch": "2.11.0"}
    folder = longer(uninterrupted, tmp_path / "work", {"versions": [earlier]})
    warnings = Warnings()
    result = train(config, folder, seed=4, callbacks=[warnings])
    (sentence,) = warnings.messages
    assert "latest.pth was written by other code or libraries" in sentence
    assert f"torch 2.11.0, now {torch.__version__}" in sentence
    assert warnings.start.changed_versions[0].startswith("code 0123456789ab, now ")
    assert read_checkpoint(result.checkpoint)["meta"]["versions"] == [earlier, present_versions()]


def test_a_state_that_names_no_versions_is_read(
    config: Config, uninterrupted: TrainResult, tmp_path: Path
) -> None:
    """Earlier versions of dfvt wrote such states."""
    folder = longer(uninterrupted, tmp_path / "work", {})
    content = read_checkpoint(folder / "latest.pth")
    del content["meta"]["versions"]
    write_atomically(content, folder / "latest.pth")
    warnings = Warnings()
    assert train(config, folder, seed=4, callbacks=[warnings]).step == uninterrupted.step
    (sentence,) = warnings.messages
    assert "the state does not say which code wrote it" in sentence


def test_the_same_code_goes_on_without_a_word(
    config: Config, uninterrupted: TrainResult, tmp_path: Path
) -> None:
    folder, warnings = longer(uninterrupted, tmp_path / "work", {}), Warnings()
    train(config, folder, seed=4, callbacks=[warnings])
    assert warnings.messages == []
    assert warnings.start.changed_versions == ()
