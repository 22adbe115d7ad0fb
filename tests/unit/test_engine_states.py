"""States of a training: the last few and the best are kept, and a damaged one costs no more than itself."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv import Config

from dfvt.engine import states
from dfvt.engine.callbacks import Callback, EvaluationRecord, TrainingStart
from dfvt.engine.states import StateFiles, read_newest, snapshot, write_atomically
from dfvt.engine.train import TrainResult, train
from dfvt.models.checkpoints import read_checkpoint


class Story(Callback):
    """Keeps warnings, starts and validations."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.starts: list[TrainingStart] = []
        self.evaluations: list[EvaluationRecord] = []

    def on_warning(self, message: str) -> None:
        self.warnings.append(message)

    def on_start(self, start: TrainingStart) -> None:
        self.starts.append(start)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.evaluations.append(record)


def quiet(_: str) -> None:
    raise AssertionError("nothing is to be said")


def step_of(path: Path) -> int:
    return int(read_checkpoint(path)["meta"]["iter"])


@pytest.fixture(scope="module")
def finished(session_config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Story]:
    """Four epochs of four iterations with three states kept."""
    cfg = copy.deepcopy(session_config)
    cfg.merge_from_dict({"runner.max_epochs": 4, "checkpoint_config.max_keep_ckpts": 3})
    story = Story()
    return train(cfg, tmp_path_factory.mktemp("states"), seed=3, callbacks=[story]), story


def test_the_last_few_states_are_kept_the_newest_first(finished: tuple[TrainResult, Story]) -> None:
    folder = finished[0].checkpoint.parent
    names = ("latest.pth", "latest-1.pth", "latest-2.pth")
    assert [step_of(folder / name) for name in names] == [16, 12, 8]
    assert not (folder / "latest-3.pth").exists()
    assert not list(folder.glob(".*.partial"))


def test_the_best_weights_are_those_of_the_best_validation(finished: tuple[TrainResult, Story]) -> None:
    result, story = finished
    best = max(story.evaluations, key=lambda record: record.metrics["bbox_mAP"])
    path = result.checkpoint.parent / "best.pth"
    assert step_of(path) == best.step
    same = next(
        state
        for state in map(read_checkpoint, result.checkpoint.parent.glob("latest*.pth"))
        if state["meta"]["iter"] == best.step
    )
    assert all(torch.equal(same["state_dict"][k], v) for k, v in read_checkpoint(path)["state_dict"].items())


@pytest.mark.parametrize("damage", ["truncated", "emptied", "other bytes"])
def test_a_training_goes_on_from_the_state_before_a_damaged_one(
    finished: tuple[TrainResult, Story], session_config: Config, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(finished[0].checkpoint.parent, folder)
    newest = folder / "latest.pth"
    content = newest.read_bytes()
    newest.write_bytes(
        {"truncated": content[: len(content) // 2], "emptied": b"", "other bytes": b"PK" + content[9:]}[
            damage
        ]
    )
    cfg = copy.deepcopy(session_config)
    cfg.merge_from_dict({"runner.max_epochs": 4, "checkpoint_config.max_keep_ckpts": 3})
    story = Story()
    result = train(cfg, folder, seed=3, callbacks=[story])
    (warning,) = story.warnings
    assert "latest.pth is" in warning
    assert warning.endswith("the training goes on from latest-1.pth")
    assert (story.starts[0].step, story.starts[0].resumed_from) == (12, folder / "latest-1.pth")
    ours, theirs = (read_checkpoint(r.checkpoint)["state_dict"] for r in (result, finished[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_folder_without_states_has_none(tmp_path: Path) -> None:
    assert read_newest(tmp_path / "absent", quiet) is None
    (tmp_path / ".latest.pth.partial").write_bytes(b"half")
    assert read_newest(tmp_path, quiet) is None


def test_when_every_state_is_damaged_that_is_an_error(tmp_path: Path) -> None:
    for name in ("latest.pth", "latest-1.pth"):
        (tmp_path / name).write_bytes(b"PK damaged")
    sentence = r"latest\.pth is .*, and so is latest-1\.pth; remove them to start anew"
    with pytest.raises(ValueError, match=sentence):
        read_newest(tmp_path, quiet)


def test_writing_does_not_hold_up_the_caller_and_takes_the_values_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    sync = os.fsync

    def slow_sync(descriptor: int) -> None:
        assert release.wait(30)
        sync(descriptor)

    monkeypatch.setattr(states.os, "fsync", slow_sync)
    reported: list[tuple[Path, int]] = []
    files = StateFiles(tmp_path, 2, lambda path, step: reported.append((path, step)))
    weight = torch.ones(3)
    files.write({"weight": weight, "step": 1}, 1)
    weight.zero_()
    files.poll()
    assert not reported, "it is not on disk yet, and nobody waited for it"
    release.set()
    files.finish()
    files.close()
    assert reported == [(tmp_path / "latest.pth", 1)]
    assert torch.equal(read_checkpoint(tmp_path / "latest.pth")["weight"], torch.ones(3))


def test_a_full_disk_is_one_sentence_and_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = StateFiles(tmp_path, 2, lambda *_: None)
    files.write({"step": 1}, 1)
    files.finish()

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(states.os, "fsync", no_space)
    files.write({"step": 2}, 2)
    with pytest.raises(RuntimeError, match=rf"cannot be written to {tmp_path}: No space left on device$"):
        files.finish()
    files.close()
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pth"]
    assert read_checkpoint(tmp_path / "latest.pth")["step"] == 1


class KilledBetweenRenames(BaseException):
    """Stands for the end of the process."""


def test_a_kill_between_the_renames_loses_no_state(tmp_path: Path) -> None:
    write_atomically({"step": 1}, tmp_path / "latest.pth")

    def die() -> None:
        (tmp_path / "latest.pth").replace(tmp_path / "latest-1.pth")
        raise KilledBetweenRenames

    with pytest.raises(KilledBetweenRenames):
        write_atomically({"step": 2}, tmp_path / "latest.pth", die)
    found = read_newest(tmp_path, quiet)
    assert found is not None
    assert (found[0].name, found[1]["step"]) == ("latest-1.pth", 1)


def test_a_snapshot_shares_nothing_and_keeps_the_kinds() -> None:
    value: dict[str, Any] = {"a": [torch.ones(2)], "b": (1, torch.zeros(1)), "c": {"d": None}}
    copied = snapshot(value)
    value["a"][0].zero_()
    value["b"][1].fill_(5)
    assert torch.equal(copied["a"][0], torch.ones(2))
    assert isinstance(copied["b"], tuple)
    assert torch.equal(copied["b"][1], torch.zeros(1))
    module = torch.nn.BatchNorm2d(2)
    assert snapshot(module.state_dict())._metadata == module.state_dict()._metadata
