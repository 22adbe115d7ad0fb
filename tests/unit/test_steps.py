"""Steps of the set-up: what is said while one runs, and what remains of one that fails or is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import steps
from steps import SetupError, progress, run


def test_a_failed_step_is_a_sentence_and_stopping_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match=r"^counting failed, see above") as error:
        run("counting", [sys.executable, "-c", "raise SystemExit(3)"])
    assert error.value.exit_code == 1

    children: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    class Interrupted(popen):  # type: ignore[type-arg, misc, valid-type]
        def wait(self, timeout: float | None = None) -> int:
            if self not in children:
                children.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("sleeping", [sys.executable, "-c", "import time; time.sleep(600)"])
    assert children[0].returncode is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(children[0].pid, 0)


def test_what_a_step_with_a_log_prints_is_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "compile.log"
    with pytest.raises(SetupError, match=rf"^counting failed, {log} says why; run the same command again"):
        run("counting", [sys.executable, "-c", "print('a warning'); exit('an error')"], log=log)
    assert log.read_text() == "a warning\nan error\n" or log.read_text() == "an error\na warning\n"
    assert capfd.readouterr() == ("", "set-up: counting\n")


def test_each_unit_that_is_done_and_each_quarter_of_a_minute_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "compile.log"
    prints = iter(["", "[1/4] c++ a\n", "warning: [2/4]\n", "", "[2/4] c++ b\n[4/4] c++ d\n"])
    clock = iter([0.0, *range(10, 60, 10)])
    popen = subprocess.Popen

    class Slow(popen):  # type: ignore[type-arg, misc, valid-type]
        def wait(self, timeout: float | None = None) -> int:
            text = next(prints, None)
            if text is None:
                return super().wait()
            with log.open("a") as file:
                file.write(text)
            raise subprocess.TimeoutExpired("", timeout or 0)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    monkeypatch.setattr(steps.time, "monotonic", lambda: next(clock))
    run("compiling", [sys.executable, "-c", ""], log=log)
    assert capfd.readouterr().err.splitlines() == [
        "set-up: compiling",
        "set-up: compiling: 1 of 4 units, 20 s so far, about 60 s still",
        "set-up: compiling: 1 of 4 units, 40 s so far, about 120 s still",
        "set-up: compiling: 4 of 4 units, 50 s so far, linking",
    ]


def test_how_long_a_step_takes_is_told_in_fitting_units() -> None:
    assert progress(None, 75) == "75 s so far"
    assert progress((2, 18), 60) == "2 of 18 units, 60 s so far, about 8 min still"


def test_a_process_beside_other_steps_is_awaited_or_stopped_with_them(tmp_path: Path) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    wait = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
    command = [sys.executable, "-c", f"{wait}pathlib.Path(sys.argv[2]).touch()", started, ended]
    with steps.beside("waiting", command):
        assert not ended.exists()
        started.touch()
    assert ended.exists()

    (tmp_path / "again").mkdir()
    command[-2:] = [tmp_path / "again/started", tmp_path / "again/ended"]
    with pytest.raises(KeyboardInterrupt), steps.beside("waiting", command):
        raise KeyboardInterrupt
    assert not list((tmp_path / "again").iterdir())
