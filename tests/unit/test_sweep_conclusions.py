"""How the end of a sweep's trials is told: on the terminal, in records, as exit code, and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from dfvt.cli import main
from dfvt.cluster import conclusions, parents
from dfvt.cluster.abandoned import end_if_abandoned
from dfvt.cluster.conclusions import Conclusions, last_failure
from dfvt.cluster.records import RECORD, TrialRecord, all_failed, fetch_record, load_records, put_record
from dfvt.cluster.spaces import TRIAL
from dfvt.cluster.spec import SweepSpec
from dfvt.cluster.trainable import Sweep
from dfvt.data.manifest import DatasetManifest
from dfvt.tracking.store import Store

SPEC = SweepSpec.model_validate(
    {"name": "two", "algorithm": "grid", "space": {"lr": {"grid": [0.1, 0.2]}}, "max_failures": 2}
)
ASSIGNMENT = {"variant": "tiny", "lr": 0.1}
RECORDED = TrialRecord("0001", dict(ASSIGNMENT), "run", epoch=1, num_epochs=4, metrics={"bbox_mAP": 0.5})
TRACEBACK = """\
Failure # 1 (occurred at 2026-11-30_10-00-00)
\x1b[36mray::TrialTraining.train()\x1b[39m (pid=1, ip=127.0.0.1)
Traceback (most recent call last):
  File "trainable.py", line 1, in step
    raise result
ValueError: no such number
Failure # 2 (occurred at 2026-11-30_10-01-00)
\x1b[36mray::TrialTraining.train()\x1b[39m (pid=1, ip=127.0.0.1)
Traceback (most recent call last):
  File "trainable.py", line 1, in step
    raise result
RuntimeError: the training failed in worker 0: a loss was not finite
"""
LOST = """\
Failure # 1 (occurred at 2026-11-30_10-00-00)
The actor died unexpectedly before finishing this task.
\tclass_name: TrialTraining
\tactor_id: 0123
The actor died because its node has died. Node Id: 4567
"""


@pytest.fixture
def sweep(tmp_path: Path, shapes: DatasetManifest) -> Sweep:
    return Sweep(SPEC, tmp_path, {"tiny": ""}, {}, Store(""), "dfvt", tmp_path, shapes)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The run of a trial or sweep, which notes its end."""
    fake = SimpleNamespace(ends=[], run_id="run", log_metrics=lambda numbers: None)
    fake.set_tags = lambda tags: None
    fake.finish = lambda status="FINISHED": fake.ends.append(status)
    monkeypatch.setattr(conclusions.RunRecorder, "attach", lambda *_: fake)
    fake.abandon = fake.finish
    monkeypatch.setattr(parents, "open_parent", lambda sweep: fake)
    return fake


def tunes_trial(folder: Path, error: str = "", num_failures: int = 0) -> Any:
    file = folder / "error.txt"
    file.write_text(error)
    return SimpleNamespace(
        trial_id="1234", config={TRIAL: ASSIGNMENT}, error_file=str(file), num_failures=num_failures,
        status=Trial.RUNNING,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (TRACEBACK, "the training failed in worker 0: a loss was not finite"),
        (TRACEBACK[: TRACEBACK.index("Failure # 2")], "no such number"),
        (LOST, "The actor died unexpectedly before finishing this task."),
        ("", "Ray gives no reason"),
        (TRACEBACK.replace("RuntimeError: ", "KeyError: "), "KeyError: the training failed"),
    ],
)
def test_the_last_failure_is_one_sentence(text: str, sentence: str) -> None:
    assert last_failure(text).startswith(sentence)
    assert "\n" not in last_failure(text)


def test_why_an_attempt_failed_is_said_before_the_next_one(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = Conclusions(sweep)
    listener.setup()
    listener.on_trial_recover(0, [], tunes_trial(tmp_path, TRACEBACK, num_failures=2))
    assert capsys.readouterr().err == (
        "sweep two: trial 0001 of 2 failed: the training failed in worker 0: a loss was not finite; "
        "it is started again (2 of 2 times)\n"
    )


def test_a_record_keeps_why_its_trial_failed(sweep: Sweep, tmp_path: Path, recorder: Any) -> None:
    put_record(RECORDED, sweep.trial("", ASSIGNMENT))
    listener = Conclusions(sweep)
    listener.setup()
    listener.on_trial_error(0, [], tunes_trial(tmp_path, TRACEBACK))
    record = fetch_record(sweep.trial("", ASSIGNMENT))
    assert record and record.status == "failed"
    assert record.failure == "the training failed in worker 0: a loss was not finite"
    assert recorder.ends == ["FAILED"]


def test_a_trial_that_failed_before_it_had_a_run_is_not_taken_for_an_interrupted_one(
    sweep: Sweep, tmp_path: Path, recorder: Any
) -> None:
    listener = Conclusions(sweep)
    listener.setup()
    listener.on_trial_error(0, [], tunes_trial(tmp_path, TRACEBACK))
    (record,) = load_records(sweep.mirror)
    assert (record.status, record.mlflow_run_id) == ("failed", "")
    assert recorder.ends == []


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    RECORDED.save(tmp_path)
    content = json.loads((tmp_path / RECORD).read_text())
    del content["failure"]
    (tmp_path / RECORD).write_text(json.dumps(content))
    assert TrialRecord.load(tmp_path) == RECORDED


def test_a_training_that_begins_is_told_and_then_what_the_trials_do(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    listener, trial = Conclusions(sweep), tunes_trial(tmp_path)
    listener.setup()

    def said_after(number: float) -> str:
        seconds[0] += number
        listener.on_step_end(0, [trial])
        return capsys.readouterr().err

    listener.on_trial_start(0, [trial], trial)
    assert "starts: variant=tiny, lr=0.1" in capsys.readouterr().err
    assert said_after(10) == ""
    assert said_after(50) == "sweep two: trials at work: 0001 starts\n"
    begun = replace(RECORDED, epoch=0, startup_seconds=21.0)
    put_record(begun, sweep.trial("", ASSIGNMENT))
    assert "trial 0001 of 2 trains, 4 epochs in all; its processes took 21 s to start" in said_after(3)
    assert said_after(10) == ""
    assert said_after(50) == "sweep two: trials at work: 0001 trains 4 epochs, none is validated yet\n"
    put_record(replace(begun, epoch=2), sweep.trial("", ASSIGNMENT))
    assert "0001 trains, validated after epoch 2 of 4" in said_after(50)


def test_a_sweep_without_a_result_is_known() -> None:
    failed = replace(RECORDED, status="failed")
    finished = replace(RECORDED, status="finished")
    assert all_failed([failed, replace(finished, metrics={})], "bbox_mAP")
    assert all_failed([finished], "segm_mAP")
    assert not all_failed([], "bbox_mAP")
    assert not all_failed([failed, finished], "bbox_mAP")
    assert not all_failed([failed, replace(RECORDED, status="stopped")], "bbox_mAP")


@pytest.mark.parametrize(
    ("statuses", "exit_code", "run_status"),
    [(["failed", "failed"], 1, "FAILED"), (["failed", "finished"], 0, "FINISHED")],
)
def test_a_sweep_whose_trials_all_failed_has_failed(
    sweep: Sweep,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statuses: list[Any],
    exit_code: int,
    run_status: str,
) -> None:
    def run(sweep: Sweep) -> list[TrialRecord]:
        with parents.parent_run(sweep):
            for number, status in enumerate(statuses, 1):
                failure = "a loss was not finite" if status == "failed" else ""
                record = replace(RECORDED, name=f"{number:04}", status=status, failure=failure)
                put_record(record, sweep.mirror / "trials" / record.name)
        return load_records(sweep.mirror)

    prepare: Callable[..., Sweep] = lambda *_: sweep  # noqa: E731
    monkeypatch.setattr("dfvt.cluster.preparation.prepare_sweep", prepare)
    monkeypatch.setattr("dfvt.cluster.sweep.run_sweep", run)
    assert main(["sweep", "two.yaml"]) == exit_code
    output = capsys.readouterr()
    assert "| 0001 |" in output.out
    assert "trial 0001 failed: a loss was not finite" in output.err
    assert ("sweep two: all 2 trials failed" in output.err) == bool(exit_code)
    assert recorder.ends == [run_status]


def test_a_store_that_is_away_when_a_trial_is_stopped_does_not_end_the_sweep(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = replace(sweep, store=Store("http://127.0.0.1:9"))  # nobody listens there
    trial = sweep.mirror / "trials" / "0001"
    put_record(RECORDED, trial)
    conclusions.conclude(sweep, trial, "stopped")
    assert "the run of trial 0001 is not ended there, `dfvt runs sync` ends it" in capsys.readouterr().err
    ends: list[Any] = []
    run: Any = SimpleNamespace(status=lambda: "RUNNING", set_tags=ends.append, finish=ends.append)
    assert end_if_abandoned(trial.folder / RECORD, run) == "FINISHED"
    assert ends == [{"dfvt.stopped_after_epoch": "1"}, "FINISHED"]
