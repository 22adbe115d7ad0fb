"""How a trial ends: finished with its number or not at all, whatever of its description is missing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from dfvt.cluster import trials
from dfvt.cluster.records import TrialRecord, put_record
from dfvt.cluster.spec import SweepSpec
from dfvt.cluster.train import collect
from dfvt.cluster.trainable import Sweep, TrialTraining
from dfvt.cluster.trials import LOG, run_trial
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.callbacks import EvaluationRecord
from dfvt.tracking.store import Store
from tests.unit.test_sweep_records import START

SPEC = SweepSpec.model_validate({"name": "one", "num_epochs": 2})
CONFIG = """
model = dict(type='MaskRCNN')
scaled = dict(type='MultiScaleFlipAug', img_scale=(80, 64), transforms=[])
data = dict(samples_per_gpu=1, test=dict(pipeline=[scaled]))
optimizer = dict(lr=0.1)
runner = dict(max_epochs=1)
"""
DRAWN = {"variant": "tiny"}


@pytest.fixture
def sweep(tmp_path: Path, shapes: DatasetManifest) -> Sweep:
    return Sweep(SPEC, tmp_path, {"tiny": CONFIG}, {}, Store(""), "dfvt", tmp_path, shapes)


@pytest.fixture
def run(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrialRecord | None]:
    """Runs the trial with a training that is validated, or not, and a size that is counted, or not."""
    recorder: Any = SimpleNamespace(run_id="run", numbers={}, artifacts=[], ends=[])
    recorder.log_metrics = recorder.numbers.update
    recorder.log_artifact = recorder.artifacts.append
    recorder.finish = lambda status="FINISHED": recorder.ends.append(status)
    recorder.reopen = lambda: None
    recorder.set_tags = lambda tags: None
    recorder.log_text = lambda text, name: None
    monkeypatch.setattr(trials.RunRecorder, "open", lambda *_, **__: recorder)
    monkeypatch.setattr(trials.RunRecorder, "attach", lambda *_: recorder)

    def run(*, validated: bool = True, size: Callable[[Path], dict[str, float]]) -> TrialRecord | None:
        def training(job: Any, callbacks: list[Any], stop: threading.Event) -> None:
            *_, reports = callbacks
            reports.on_start(START)
            if validated:
                reports.on_evaluation(EvaluationRecord(4, 2, {"bbox_mAP": 0.5}))
            (job.work_dir / trials.FINAL_FILE).touch()

        monkeypatch.setattr(trials, "run_training", training)
        monkeypatch.setattr(trials, "size_of", size)
        try:
            run_trial(sweep, "id", DRAWN, lambda result: None, threading.Event())
        finally:
            run.recorder = recorder  # type: ignore[attr-defined]
        return TrialRecord.load(sweep.trial("id", DRAWN).folder)

    return run


def test_a_trial_is_finished_although_its_size_cannot_be_counted(run: Any, sweep: Sweep) -> None:
    def no_size(config: Path) -> dict[str, float]:
        raise ValueError("the config's test pipeline must have one MultiScaleFlipAug")

    record = run(size=no_size)
    assert record.status == "finished" and run.recorder.ends == ["FINISHED"]
    log = (sweep.trial("id", DRAWN).folder / LOG).read_text()
    assert "no num_params and flops, they cannot be counted: the config's test pipeline must" in log
    assert [path.name for path in run.recorder.artifacts] == ["config.py"]


def test_a_trial_without_a_validation_is_not_finished(run: Any, sweep: Sweep) -> None:
    with pytest.raises(ValueError, match=r"there was none, see evaluation\.interval"):
        run(validated=False, size=lambda config: {"num_params": 1.0})
    record = TrialRecord.load(sweep.trial("id", DRAWN).folder)
    assert record and record.status == "running", "so that it is told as failed"
    assert run.recorder.numbers == {"num_params": 1.0}


def test_a_trial_that_failed_before_it_had_a_run_gets_one(run: Any, sweep: Sweep) -> None:
    put_record(TrialRecord("0001", dict(DRAWN), "", "failed", failure="a fault"), sweep.trial("id", DRAWN))
    record = run(size=lambda config: {})
    assert (record.mlflow_run_id, record.status, record.failure) == ("run", "finished", "")


def test_an_error_before_a_trial_begins_reaches_the_step_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise TypeError("a fault")

    monkeypatch.setattr("dfvt.cluster.trainable.may_begin", fail)
    results: SimpleQueue[Any] = SimpleQueue()
    training: Any = SimpleNamespace(
        trial_id="id",
        interrupted=threading.Event(),
        trials_at_work=SimpleNamespace(end=SimpleNamespace(remote=lambda name: None)),
    )
    TrialTraining.train_in_thread(training, DRAWN, results, threading.Event())
    assert str(results.get(timeout=1)) == "a fault"


def test_an_error_of_the_thread_that_collects_records_reaches_the_training() -> None:
    def fail(seconds: float) -> None:
        raise TypeError("a record of another version")

    workers: Any = SimpleNamespace(receive=fail)
    failure: list[BaseException] = []
    collect(workers, threading.Thread(), SimpleQueue(), failure, threading.Event())
    assert [str(error) for error in failure] == ["a record of another version"]
