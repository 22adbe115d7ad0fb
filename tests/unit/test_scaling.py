"""What `benchmarks.scaling` leaves, and goes on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import scaling
from benchmarks.scaling_model import read


def result(gpus: int, speed: float, *, gradients: bool = True) -> dict[str, Any]:
    common = {"variant": "small", "batch": 4, "gradient_bytes": 1e8}
    common |= {"device": "CPU", "torch": torch.__version__}
    more = {"data_share": 0.0, "first_window_after_seconds": 9.0, "windows": 3}
    sizes = {"gpu_gib": None, "host_gib": None, "loading_gib": None}
    return {**common, **more, **sizes, "gpus": gpus, "images_per_second": speed, "gradients": gradients}


def key(row: dict[str, Any]) -> tuple[str, int, bool]:
    return row["variant"], row["gpus"], row["gradients"]


def test_rows_that_are_left_are_added_to(tmp_path: Path) -> None:
    path = tmp_path / "scaling.json"
    rows = [result(1, 100.0), result(4, 360.0), result(4, 400.0, gradients=False)]
    scaling.write({key(row): row for row in rows}, path)
    measured = scaling.earlier(path)
    measured["small", 2, True] = result(2, 190.0)
    scaling.write(measured, path)
    shares = {
        (row["gpus"], row["gradients"]): (row.get("efficiency"), row.get("gradients_share"))
        for row in json.loads(path.read_text())
    }
    assert list(shares) == [(1, True), (2, True), (4, True), (4, False)]
    assert shares[2, True] == (pytest.approx(0.95), None)
    assert shares[4, True] == (pytest.approx(0.9), pytest.approx(0.1))
    assert read(path, "small")[0].gpus == 4


@pytest.mark.parametrize("content", ["{}x", "[1]", '[{"variant": "small"}]'])
def test_what_is_no_result_is_not_added_to(tmp_path: Path, content: str) -> None:
    (tmp_path / "scaling.json").write_text(content)
    with pytest.raises(ValueError, match="move it away"):
        scaling.earlier(tmp_path / "scaling.json")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a call with two processors and a data set."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").touch()
    (tmp_path / "train2017").mkdir()
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    words = ["scaling", str(tmp_path), "--cpu"]
    monkeypatch.setattr(sys, "argv", words)
    return words


def test_an_earlier_result_is_not_lost(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "scaling.json").write_text("[]")
    with pytest.raises(SystemExit, match="is there: move it away, or --add"):
        scaling.main()
    assert (tmp_path / "scaling.json").read_text() == "[]"


@pytest.mark.parametrize(("name", "other"), [("device", "GPU"), ("torch", "1.7"), ("batch", 2)])
def test_rows_of_another_machine_are_not_added_to(
    asked: list[str], tmp_path: Path, name: str, other: object
) -> None:
    scaling.write({("small", 1, True): {**result(1, 100.0), name: other}}, tmp_path / "scaling.json")
    asked += ["--gpus", "2", "--add"]
    with pytest.raises(SystemExit, match=f"has rows of {name} {other}, here it is"):
        scaling.main()


def test_more_gpus_than_there_are_is_said_before_anything_runs(asked: list[str]) -> None:
    asked += ["--gpus", "5"]
    with pytest.raises(SystemExit, match="the machine has 2 processors, fewer than"):
        scaling.main()


def test_a_call_adds_its_rows_and_says_what_was_not_run(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling.write({("small", 1, True): result(1, 100.0)}, tmp_path / "scaling.json")
    monkeypatch.setattr(scaling, "measure", lambda arguments, one, gpus: result(one["gpus"], 150.0))
    asked += ["--gpus", "2,5", "--variants", "small", "--without-exchange", "--add"]
    with pytest.raises(SystemExit) as ended:
        scaling.main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "| small | 2 | 150.0 | 75.0 | 75.0% |" in printed
    assert "| small | 5 | not run: the machine has 2 processors |" in printed
    assert [row["gpus"] for row in json.loads((tmp_path / "scaling.json").read_text())] == [1, 2]
