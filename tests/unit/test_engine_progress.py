"""A training shows how far it is: lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from dfvt.engine import progress
from dfvt.engine.callbacks import EvaluationRecord, StepRecord, TrainingStart
from dfvt.engine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step_record(step: int) -> StepRecord:
    return StepRecord(step, 40, 1 + step // 20, 1e-3, {"loss": 1.5}, 12.34, 0.01)


def run(listener: Progress, *, resumed_from: Path | None = None) -> None:
    listener.on_start(TrainingStart(20 if resumed_from else 0, 40, 0, 2, resumed_from))
    for step in (30, 40):
        listener.on_step(step_record(step))
        listener.on_evaluation(EvaluationRecord(step, 1, {"bbox_mAP": 0.25, "segm_mAP": 0.125}))
    listener.on_end(Path("checkpoint.pth"))


def test_a_log_gets_plain_lines_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    run(Progress("train@tiny"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert re.fullmatch(
        r"train@tiny: step 30/40, epoch 2, loss 1.500, lr 1.00e-03, 12.3 img/s, ETA 0:00:00", lines[0]
    )
    assert lines[1] == "train@tiny: epoch 1, bbox_mAP 0.250, segm_mAP 0.125"
    assert len(lines) == 4


def test_an_undefined_number_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("x").on_evaluation(EvaluationRecord(1, 1, {"bbox_mAP": -1.0, "segm_mAP": 0.125}))
    assert capsys.readouterr().err == "x: epoch 1, bbox_mAP –, segm_mAP 0.125\n"


def test_lines_are_seconds_apart_but_the_last_one_always_comes(capsys: pytest.CaptureFixture[str]) -> None:
    listener = Progress("x")
    listener.on_start(TrainingStart(0, 40, 0, 2))
    for step in (10, 20, 30, 40):
        listener.on_step(step_record(step))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["x: step 40/40"]


def test_a_resumed_training_says_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    run(Progress("x"), resumed_from=Path("latest.pth"))
    assert capsys.readouterr().err.splitlines()[0] == "x: continues after step 20 of 40"


def test_the_time_left_follows_the_speed_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 150.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    listener = Progress("x")
    listener.on_start(TrainingStart(20, 40, 0, 2, Path("latest.pth")))
    assert listener.remaining(step_record(30)).total_seconds() == 50


def test_a_terminal_gets_a_bar_with_loss_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(Progress("train@tiny"))
    text = terminal.getvalue()
    assert "train@tiny: 100%" in text and "40/40" in text and "loss=1.500" in text
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", text), "elapsed and left"
    assert "bbox_mAP 0.250" in text
