"""How `make repro` ends: with real stages of a DVC project that is made for the test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipelines.repro import closing_line, exit_code

ROOT = Path(__file__).parents[2]
STAGES = """
stages:
  work:
    cmd: python stage.py pipelines.work
    params: [train.seed]
    deps: [stage.py]
    outs: [runs]
    metrics: [score.json: {cache: false}]
  after:
    cmd: python stage.py pipelines.after
    deps: [runs, stage.py]
    outs: [after.txt]
"""
# Saves its state for a moment after SIGTERM or SIGINT, as a training does. `fail` is a mistake in its input.
STAGE = """
import signal, sys, time
from pathlib import Path

def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(0.5)
    Path("saved").touch()
    sys.exit(128 + number)

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, save)
if Path("fail").exists():
    sys.exit(2)
Path("started").touch()
if Path("long").exists():
    time.sleep(60)
if sys.argv[1] == "pipelines.after":
    Path("after.txt").touch()
else:
    Path("runs").mkdir(exist_ok=True)
    Path("runs/checkpoint.pth").write_text("trained")
    Path("score.json").write_text("1")
"""


@dataclass(frozen=True)
class Experiment:
    """A DVC project whose stages take no time."""

    path: Path

    def start(
        self, *arguments: str, wrapper: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*wrapper, sys.executable, "-m", "pipelines.repro", *arguments],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.DEVNULL,
            stderr=(self.path.parent / "stderr").open("w"),  # a pipe would end with the stage, not with repro
            text=True,
            # A background job of a script ignores Ctrl-C and would hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            start_new_session=True,  # as a shell starts a job: Ctrl-C reaches the whole group
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        return process.wait(), self.stderr()

    def stderr(self) -> str:
        return (self.path.parent / "stderr").read_text()

    def wait_for(self, name: str, process: subprocess.Popen[str]) -> None:
        while not (self.path / name).exists():
            assert process.poll() is None, self.stderr()
            time.sleep(0.02)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "a project"
    for folder in (".dvc", "data/source"):
        (path / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".dvc/config", path / ".dvc/config")
    (path / "dvc.yaml").write_text(STAGES)
    (path / "stage.py").write_text(STAGE)
    (path / "params.yaml").write_text("profile: mini\ntrain: {seed: 0}\n")
    subprocess.run(["git", "init", "-q"], cwd=path, check=True)
    return Experiment(path)


def live_processes_of_group(group: int) -> list[list[str]]:
    commands = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                commands.append(process.cmdline())
    return commands


# bash becomes the stage; dash stays its parent, and is ended by the signal at once.
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
@pytest.mark.parametrize(
    ("number", "sends"),
    [
        (signal.SIGINT, "group"),
        (signal.SIGTERM, "group"),
        (signal.SIGTERM, "timeout"),
        (signal.SIGTERM, "repro"),
    ],
)
def test_a_stopped_repro_ends_after_its_stage(
    experiment: Experiment, shell: str, number: signal.Signals, sends: str
) -> None:
    if not Path(shell).exists():
        pytest.skip(f"{shell} is not installed")
    (experiment.path / "long").touch()
    # `timeout` sends the signal to its child, and then to the whole group.
    process = experiment.start("work", SHELL=shell, wrapper=["timeout", "60"] if sends == "timeout" else [])
    experiment.wait_for("started", process)
    if sends == "group":
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait() == 128 + number, experiment.stderr()
    assert "Traceback" not in experiment.stderr()
    assert (experiment.path / "saved").exists(), "the stage has written its state"
    assert live_processes_of_group(process.pid) == []


def test_a_stage_that_fails_leaves_the_former_results(experiment: Experiment) -> None:
    code, stderr = experiment.run()
    assert code == 0, stderr
    (experiment.path / "params.yaml").write_text("profile: mini\ntrain: {seed: 1}\n")
    (experiment.path / "fail").touch()
    code, stderr = experiment.run()
    assert code == 2, stderr
    assert (experiment.path / "runs/checkpoint.pth").read_text() == "trained"
    assert (experiment.path / "score.json").read_text() == "1"
    assert (experiment.path / "after.txt").exists()
    (experiment.path / "fail").unlink()
    (experiment.path / "started").unlink()
    code, stderr = experiment.run()
    assert code == 0, stderr
    assert (experiment.path / "started").exists(), "the stage with the new parameter runs"


def test_a_stage_that_is_stopped_leaves_the_former_results(experiment: Experiment) -> None:
    assert experiment.run("work")[0] == 0
    (experiment.path / "params.yaml").write_text("profile: mini\ntrain: {seed: 1}\n")
    (experiment.path / "started").unlink()
    (experiment.path / "long").touch()
    process = experiment.start()
    experiment.wait_for("started", process)
    assert not (experiment.path / "runs").exists(), "DVC removes it before the stage"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 143, experiment.stderr()
    assert (experiment.path / "runs/checkpoint.pth").read_text() == "trained"
    assert (experiment.path / "score.json").read_text() == "1"


def test_results_that_nobody_made_or_kept_are_not_missed(experiment: Experiment) -> None:
    assert experiment.run()[0] == 0
    shutil.rmtree(experiment.path / ".dvc/cache")
    shutil.rmtree(experiment.path / "runs")  # by the user: it does not come back
    (experiment.path / "fail").touch()
    code, stderr = experiment.run()
    assert code == 2, stderr
    assert "Traceback" not in stderr
    assert not (experiment.path / "runs").exists()


def test_a_project_that_another_command_works_in_is_a_sentence(experiment: Experiment) -> None:
    (experiment.path / ".dvc/tmp").mkdir()
    holder = {"pid": os.getpid(), "cmd": "dvc repro"}
    lock = {"write": {str(experiment.path / "runs"): holder}, "read": {}}
    (experiment.path / ".dvc/tmp/rwlock").write_text(json.dumps(lock))
    code, stderr = experiment.run()
    assert code == 1
    assert "another `make repro` or command of DVC works in this project" in stderr
    assert "rwlock" not in stderr


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (".git", "is not a git repository, which DVC needs: run `git init`"),
        (".dvc", "has no folder .dvc: run this command in the project's folder, or copy"),
    ],
)
def test_a_project_that_was_copied_in_part_is_a_sentence(
    experiment: Experiment, missing: str, sentence: str
) -> None:
    shutil.rmtree(experiment.path / missing)
    code, stderr = experiment.run()
    assert code == 2
    assert sentence in stderr and stderr.count("\n") == 1
    assert not (experiment.path / "started").exists()


@pytest.mark.parametrize(("status", "code"), [("2", 2), ("130", 130), ("-2", 130), ("-15", 143), ("-9", 137)])
def test_a_failed_stage_gives_its_exit_code(status: str, code: int) -> None:
    # /bin/sh, unlike bash, is itself ended by the signal of Ctrl-C; then the status is negative.
    assert exit_code(f"failed to run: python -m pipelines.train tiny, exited with {status}") == code


def test_a_report_of_other_results_is_not_named_as_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for targets in ([], ["report"], ["evaluate@tiny", "report"]):
        assert closing_line(targets, 3, 12.34).endswith(
            "ran 3 stages, 12.3 s; the report is reports/results.md"
        )
    assert closing_line(["evaluate@tiny"], 0, 1.0).endswith("changed, 1.0 s; `make repro` writes the report")
    Path("reports").mkdir()
    Path("reports/results.md").write_text("# Results of other data\n")
    line = closing_line(["evaluate@tiny"], 3, 1.0)
    assert "the report is" not in line
    assert "reports/results.md was not written again, it may be of other results" in line


def test_a_stage_that_did_not_start_gives_1() -> None:
    assert exit_code("failed to run: python -m pipelines.train tiny") == 1
