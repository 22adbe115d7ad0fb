"""What a stage does around its work."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from pipelines.stage import run_stage

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def untouched_process() -> Iterator[None]:
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ):
        yield
    signal.signal(signal.SIGTERM, on_sigterm)


def test_a_store_that_is_away_is_a_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate"])

    def work(settings: object) -> None:
        raise ConnectionError("the MLflow store http://host cannot be reached")

    with pytest.raises(SystemExit) as ended:
        run_stage("evaluate", work)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "evaluate: the MLflow store http://host cannot be reached\n"


def test_tools_report_nothing_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fetch_data"])
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    seen: list[str | None] = []
    run_stage("fetch_data", lambda settings: seen.append(os.environ.get("MLFLOW_DISABLE_TELEMETRY")))
    assert seen == ["true"]


def test_who_wants_to_report_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fetch_data"])
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    run_stage("fetch_data", lambda settings: None)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("no"), 2), (RuntimeError("no"), 1), (KeyboardInterrupt(), 130)]
)
def test_how_the_work_fails_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def work(settings: object) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["fetch_data"])
    with pytest.raises(SystemExit) as ended:
        run_stage("fetch_data", work)
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("fetch_data: ")


OPENMP = """
import importlib, os, pkgutil, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            print("torch", os.environ.get("GOMP_SPINCOUNT"), flush=True)

sys.meta_path.insert(0, Watch())
import pipelines
for module in pkgutil.iter_modules(pipelines.__path__):
    importlib.import_module(f"pipelines.{module.name}")
print("stages are imported", flush=True)
from dfvt.cli import main
main(["profile", "absent.py", "--cfg-options", "a=1"])
"""


def test_openmp_is_set_before_torch_is_imported() -> None:
    """torch loads OpenMP, which reads the variable once: a stage sets it before its work, a command first."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    result = subprocess.run(
        [sys.executable, "-c", OPENMP], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == ["stages are imported", "torch 10000"], result
    assert "config absent.py does not exist" in result.stderr


def test_the_work_of_a_stage_has_openmps_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fetch_data"])
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    seen: list[str | None] = []
    run_stage("fetch_data", lambda settings: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    assert seen == ["10000"]


@pytest.mark.parametrize(
    ("number", "place", "remedy"),
    [
        (errno.EACCES, "home/.cache/x", "set HOME to a folder that you can write to (it is {home})"),
        (errno.EROFS, "elsewhere/x", "give yourself access to it"),
        (errno.ENOSPC, "home/x", "free some space there"),
    ],
)
def test_a_file_that_the_system_refuses_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    number: int,
    place: str,
    remedy: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def work(settings: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / place))

    monkeypatch.setattr("sys.argv", ["fetch_data"])
    with pytest.raises(SystemExit) as ended:
        run_stage("fetch_data", work)
    assert ended.value.code == 2
    sentence = f"{tmp_path / place}: {os.strerror(number)}: {remedy.format(home=tmp_path / 'home')}"
    assert capsys.readouterr().err == f"fetch_data: {sentence}\n"


def test_ctrl_c_while_a_stage_imports_is_one_sentence(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    slow = "from pathlib import Path\nPath('importing').touch()\nimport time\ntime.sleep(60)\n"
    (tmp_path / "pipelines/slow.py").write_text(slow)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "slow", "tiny"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "importing").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "slow: stopped; the same command carries on\n")


def test_a_stage_that_is_started_by_name_gets_its_arguments() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pipelines", "evaluate", "huge"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "argument variant: invalid choice: 'huge'" in result.stderr
