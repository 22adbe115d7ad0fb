"""What a stage does around its work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from unittest import mock

import pytest

from pipelines.stage import run_stage


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
