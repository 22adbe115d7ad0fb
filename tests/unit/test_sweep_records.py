"""What a sweep keeps on disk: one process at a time, and no late word against a scheduler's decision."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from dfvt.cluster.records import SPEC_FILE, TrialRecord, note_spec, one_at_a_time, require_same_spec
from dfvt.cluster.spec import SweepSpec
from dfvt.cluster.trials import TrialReports
from dfvt.data.storage import Mirror
from dfvt.engine.callbacks import EvaluationRecord, TrainingStart

SPEC = SweepSpec.model_validate({"name": "a", "num_samples": 2})
START = TrainingStart(step=0, max_steps=20, epoch=0, max_epochs=2)
EVALUATION = EvaluationRecord(step=10, epoch=1, metrics={"bbox_mAP": 0.25})


def run_alone(folder: Path) -> str:
    """What becomes of a second process."""
    try:
        with one_at_a_time(Mirror(folder)):
            return "ran"
    except ValueError as error:
        return str(error)


@pytest.mark.usefixtures("preloaded_forkserver")
def test_a_second_process_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps/a"
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as other:
        with one_at_a_time(Mirror(folder)):
            assert "is running already" in other.submit(run_alone, folder).result()
        assert other.submit(run_alone, folder).result() == "ran"
    assert not folder.exists(), "nothing was begun"


def test_a_sweep_of_another_spec_is_refused(tmp_path: Path) -> None:
    require_same_spec(SPEC, Mirror(tmp_path))
    note_spec(SPEC, Mirror(tmp_path))
    require_same_spec(SPEC, Mirror(tmp_path))
    with pytest.raises(ValueError, match=r"begun with another spec \(num_samples\)"):
        require_same_spec(SPEC.model_copy(update={"num_samples": 3}), Mirror(tmp_path))


def test_a_sweep_goes_on_that_was_begun_before_a_key_was_known(tmp_path: Path) -> None:
    note_spec(SPEC, Mirror(tmp_path))
    content = json.loads((tmp_path / SPEC_FILE).read_text())
    del content["storage"]
    (tmp_path / SPEC_FILE).write_text(json.dumps(content))
    require_same_spec(SPEC, Mirror(tmp_path))
    with pytest.raises(ValueError, match=r"another spec \(storage\)"):
        require_same_spec(SPEC.model_copy(update={"storage": "s3://a/b"}), Mirror(tmp_path))


@pytest.fixture
def reports(tmp_path: Path) -> TrialReports:
    handed_on: Callable[[dict[str, Any]], None] = list[dict[str, Any]]().append
    return TrialReports(
        TrialRecord("0001", {"variant": "tiny"}, "run"), Mirror(tmp_path), "bbox_mAP", handed_on
    )


def test_a_trial_shows_its_epochs_from_the_start(reports: TrialReports, tmp_path: Path) -> None:
    reports.on_start(START)
    record = TrialRecord.load(tmp_path)
    assert record and (record.epoch, record.num_epochs, record.status) == (0, 2, "running")


def test_a_late_validation_leaves_a_stopped_trial_stopped(reports: TrialReports, tmp_path: Path) -> None:
    reports.on_start(START)
    replace(reports.record, status="stopped").save(tmp_path)
    reports.on_evaluation(EVALUATION)
    record = TrialRecord.load(tmp_path)
    assert record and (record.status, record.metrics) == ("stopped", {"bbox_mAP": 0.25})
