"""What a stage does around its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
main(["--version"])
"""


def test_openmp_is_set_before_torch_is_imported() -> None:
    """torch loads OpenMP, which reads the variable once: a stage sets it before its work, a command first."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    result = subprocess.run(
        [sys.executable, "-c", OPENMP], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines()[:2] == ["stages are imported", "torch 10000"], result


def test_the_work_of_a_stage_has_openmps_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fetch_data"])
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    seen: list[str | None] = []
    run_stage("fetch_data", lambda settings: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    assert seen == ["10000"]
