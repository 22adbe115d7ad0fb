"""What the stage train@DETECTOR does after its training."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipelines import stage, train
from pipelines.train import OUTPUTS, keep_outputs

STATE = ("latest.pth", *OUTPUTS)


class Killed(BaseException):
    """The process ends at this line."""


@contextmanager
def killed_after(num_steps: int) -> Iterator[None]:
    """Ends the body before the line of that number in `pipelines.train` or `pipelines.stage`.

    Within `shutil.rmtree` the process can end too: one file is a step.
    """
    files, steps = {train.__file__, stage.__file__}, count()

    def step() -> None:
        if next(steps) == num_steps:
            raise Killed

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            step()
        return trace

    def rmtree(folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            step()
            remove(path) if path.is_dir() else path.unlink()
        folder.rmdir()

    remove, before = shutil.rmtree, sys.gettrace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def a_training(folder: Path) -> tuple[Path, Path]:
    """Make the state of a training that has ended, a state of other settings, and earlier results."""
    state, final = folder / ".dfvt/train/tiny-1234", folder / "runs/tiny"
    for place, names, content in (
        (state, STATE, "new"),
        (state.with_name("tiny-0000"), STATE, "of other settings"),
        (state.with_name("small-1234"), STATE, "of another detector"),
        (final, OUTPUTS, "old"),
    ):
        place.mkdir(parents=True)
        for name in names:
            (place / name).write_text(content)
    return state, final


@pytest.mark.parametrize("earlier", [True, False])
def test_a_stage_killed_while_it_keeps_its_results_goes_on_from_a_whole_state(
    tmp_path: Path, earlier: bool
) -> None:
    ended, number = False, 0
    while not ended:
        state, final = a_training(tmp_path / str(number))
        if not earlier:
            shutil.rmtree(final)
        try:
            with killed_after(number):
                keep_outputs(state, final)
            ended = True
        except Killed:
            if state.exists():
                assert contents(state) == dict.fromkeys(STATE, "new"), f"killed at step {number}"
                keep_outputs(state, final)  # what the next start does after a training of no steps
        assert contents(final) == dict.fromkeys(OUTPUTS, "new"), f"killed at step {number}"
        number += 1
    assert number > 30, "it was killed at each step"
    assert [path.name for path in state.parent.iterdir()] == ["small-1234"]
    assert not list(final.parent.glob(".*"))


def test_a_later_stage_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    state, final = a_training(tmp_path)
    shutil.copytree(state, state.with_name(".removed-tiny-1234"))
    keep_outputs(state, final)
    assert [path.name for path in state.parent.iterdir()] == ["small-1234"]


def test_results_are_kept_where_the_file_system_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    state, final = a_training(tmp_path)
    keep_outputs(state, final)
    assert contents(final) == dict.fromkeys(OUTPUTS, "new")
