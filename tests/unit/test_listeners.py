"""Records leave the worker in order, and reach MLflow in few requests."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray

from dfvt.cluster.mlflow_curves import MlflowCurves, send_missing
from dfvt.cluster.relay import EventRelay, is_last, replay, worker_event
from dfvt.cluster.session import connect, require_answer
from dfvt.engine.callbacks import Callback, EvaluationRecord, StepRecord, TrainingStart
from dfvt.engine.curves import CurveFiles
from dfvt.tracking.mlflow import RefusedError

START = TrainingStart(step=0, max_steps=2, epoch=0, max_epochs=1)
STEP = StepRecord(
    step=1, max_steps=2, epoch=1, lr=0.1, losses={"loss": 2.0}, images_per_second=8.0, data_seconds=0.1,
    system={"cpu_utilization_percentage": 50.0},
)  # fmt: skip
EVALUATION = EvaluationRecord(step=2, epoch=1, metrics={"bbox_mAP": 0.5})


def tell(callback: Callback) -> None:
    callback.on_start(START)
    callback.on_step(STEP)
    callback.on_evaluation(EVALUATION)
    callback.on_warning("an image cannot be read")
    callback.on_checkpoint(Path("latest.pth"), 2)
    callback.on_end(Path("checkpoint.pth"))


def test_a_relayed_training_is_told_as_if_it_were_here() -> None:
    queue, here, there = Mock(), Mock(spec=Callback), Mock(spec=Callback)
    tell(here)
    tell(EventRelay(queue.put))
    for call in queue.put.call_args_list:
        replay(call.args[0], there)
    assert there.mock_calls == here.mock_calls
    assert [is_last(call.args[0]) for call in queue.put.call_args_list] == [False] * 5 + [True]
    methods = {name for name in vars(Callback) if name.startswith("on_")}
    assert {call[0] for call in there.mock_calls} == methods


def test_curves_are_sent_once_and_in_order() -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    recorder = Mock()
    recorder.log_curve.side_effect = lambda points: sent.extend(points)
    tell(MlflowCurves(recorder))
    assert [step for step, _ in sent] == [1, 2]
    assert sent[0][1] == {
        "train/loss": 2.0, "train/lr": 0.1, "train/images_per_second": 8.0, "train/data_seconds": 0.1,
        "system/cpu_utilization_percentage": 50.0,
    }  # fmt: skip
    assert sent[1][1] == {"val/bbox_mAP": 0.5, "best_bbox_mAP": 0.5}
    assert recorder.log_curve.call_count == 1


def test_an_undefined_number_has_no_point_and_an_empty_cell(tmp_path: Path) -> None:
    run, files = Run(), CurveFiles(tmp_path)
    curves = MlflowCurves(run)  # type: ignore[arg-type]
    for callback in (curves, files):
        callback.on_start(TrainingStart(0, 4, 0, 2, None))
        callback.on_evaluation(EvaluationRecord(2, 1, {"bbox_mAP": -1.0, "segm_mAP": -1.0}))
        callback.on_evaluation(EvaluationRecord(4, 2, {"bbox_mAP": 0.5, "segm_mAP": -1.0}))
    assert run.points == [("val/bbox_mAP", 4, 0.5), ("best_bbox_mAP", 4, 0.5)]
    text = (tmp_path / "val.csv").read_text().splitlines()
    assert text == ["step,epoch,bbox_mAP,segm_mAP", "2,1,,", "4,2,0.5,"]


@pytest.mark.parametrize("undefined", ["", "-1"], ids=["now", "earlier versions"])
def test_rows_without_a_number_give_no_point_when_curves_are_sent_again(
    tmp_path: Path, undefined: str
) -> None:
    rows = ["step,epoch,bbox_mAP,segm_mAP", f"2,1,{undefined},{undefined}", f"4,2,0.5,{undefined}"]
    (tmp_path / "val.csv").write_text("\n".join(rows) + "\n")
    run = Run()
    assert send_missing(run, tmp_path) == 1  # type: ignore[arg-type]
    assert run.points == [("val/bbox_mAP", 4, 0.5)]
    again = Run()
    curves = MlflowCurves(again, folder=tmp_path)  # type: ignore[arg-type]
    curves.on_start(TrainingStart(4, 6, 2, 3, Path("latest.pth")))
    curves.on_evaluation(EvaluationRecord(6, 3, {"bbox_mAP": 0.4}))
    assert again.steps("val/bbox_mAP") == [4, 6]
    assert ("best_bbox_mAP", 6, 0.5) in again.points


class Run:
    """A run of a tracking store that may lose an answer after it took the numbers."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.lose_answers = 0

    def log_curve(self, points: list[tuple[int, dict[str, float]]]) -> None:
        self.points += [(name, step, value) for step, numbers in points for name, value in numbers.items()]
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionError("the store cannot be reached")

    def last_step(self, name: str) -> int:
        return max((step for known, step, _ in self.points if known == name), default=-1)

    def steps(self, name: str) -> list[int]:
        return [step for known, step, _ in self.points if known == name]


def step_at(step: int) -> StepRecord:
    return replace(STEP, step=step, max_steps=9, losses={"loss": float(step)})


def test_an_answer_that_is_lost_doubles_no_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfvt.cluster.mlflow_curves.SECONDS_BETWEEN_REQUESTS", -1.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    run = Run()
    curves = MlflowCurves(run)  # type: ignore[arg-type]
    curves.on_start(START)
    for step in range(1, 10):
        run.lose_answers = int(step in (2, 3, 7))
        curves.on_step(step_at(step))
    curves.on_evaluation(replace(EVALUATION, step=9))
    curves.on_end(Path("checkpoint.pth"))
    assert run.steps("train/loss") == list(range(1, 10))
    assert run.steps("val/bbox_mAP") == [9]


@pytest.mark.parametrize("sent", [0, 3, 5, 7])
def test_a_killed_training_that_goes_on_has_each_point_once(tmp_path: Path, sent: int) -> None:
    """Its state is that of step 5, its run has more or less than that."""
    run, files = Run(), CurveFiles(tmp_path)
    files.on_start(START)
    for step in range(1, 8):
        files.on_step(step_at(step))
        if step in (3, 6):
            files.on_evaluation(
                EvaluationRecord(step, 1, {"bbox_mAP": step / 10, "segm_mAP": 0.5 - step / 100})
            )
    for step in range(1, sent + 1):
        run.log_curve([(step, {"train/loss": float(step)})])
        if step in (3, 6):
            run.log_curve([(step, {"val/bbox_mAP": step / 10})])
    curves = MlflowCurves(run, folder=tmp_path)  # type: ignore[arg-type]
    start = replace(START, step=5, resumed_from=tmp_path / "latest.pth")
    for listener in (curves, CurveFiles(tmp_path)):
        listener.on_start(start)
    for step in range(6, 10):
        curves.on_step(step_at(step))
        if step in (6, 9):
            curves.on_evaluation(EvaluationRecord(step, 1, {"bbox_mAP": 0.1, "segm_mAP": 0.1}))
    curves.on_end(Path("checkpoint.pth"))
    assert run.steps("train/loss") == list(range(1, 10))
    assert run.steps("val/bbox_mAP") == [3, 6, 9]
    assert [value for name, step, value in run.points if name == "best_bbox_mAP" and step == 9] == [0.3]
    assert [value for name, step, value in run.points if name == "best_segm_mAP" and step == 9] == [0.47]


def test_a_training_that_was_killed_before_its_first_state_has_each_point_once(tmp_path: Path) -> None:
    run = Run()
    for step in range(1, 5):
        run.log_curve([(step, {"train/loss": float(step)})])
    curves = MlflowCurves(run, folder=tmp_path)  # type: ignore[arg-type]
    curves.on_start(START)
    for step in range(1, 10):
        curves.on_step(step_at(step))
    curves.on_end(Path("checkpoint.pth"))
    assert run.steps("train/loss") == list(range(1, 10))


def test_numbers_of_an_outage_are_sent_after_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    sent: list[int] = []
    recorder = Mock()
    recorder.last_step.return_value = -1
    outage = [ConnectionError("the store cannot be reached")] * 3

    def log_curve(points: list[tuple[int, dict[str, float]]]) -> None:
        if outage:
            raise outage.pop()
        sent.extend(step for step, _ in points)

    recorder.log_curve.side_effect = log_curve
    tell(MlflowCurves(recorder))
    assert sent == [1, 2]
    assert capsys.readouterr().err.count("kept, and sent later") == 3
    assert len(pauses) == 2, "it does not ask without a pause"


def test_an_outage_without_end_fails_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfvt.cluster.mlflow_curves.PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("dfvt.cluster.mlflow_curves.SECONDS_BETWEEN_REQUESTS", 0.01)
    recorder = Mock()
    recorder.last_step.return_value = -1
    recorder.log_curve.side_effect = ConnectionError("the store cannot be reached")
    with pytest.raises(RuntimeError, match="the MLflow store takes no numbers"):
        tell(MlflowCurves(recorder))


def test_nodes_and_devices_of_the_workers_are_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Mock()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    recorder, plain = Mock(), Mock(spec=Callback)
    curves = MlflowCurves(recorder)
    for rank, node, device in ((1, "b", "H100"), (0, "a", "H100")):
        context.get_node_id.return_value = node
        replay(worker_event(rank, device), curves)
        replay(worker_event(rank, device), plain)
    assert recorder.set_tags.call_args.args == ({"ray.nodes": "a b", "env.devices": "2 x H100"},)
    assert not plain.mock_calls


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "ray://:0", "host:port"])
def test_what_is_no_address_is_one_sentence(address: str) -> None:
    with pytest.raises(ValueError, match="RAY_ADDRESS") as caught:
        require_answer(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["local", "127.0.0.1:6379"])
@pytest.mark.parametrize(
    ("executable", "runtime_env"),
    [("/plain/python", None), ("/a folder/python", {"py_executable": "'/a folder/python'"})],
)
def test_workers_start_from_a_path_with_spaces(
    address: str, executable: str, runtime_env: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a given cluster, too: it hands the path to a shell, and a training would wait for ever."""
    init = Mock()
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "get_runtime_context", Mock())
    monkeypatch.setattr(sys, "executable", executable)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"):
        monkeypatch.setenv(name, "0")
    connect(address)
    assert init.call_args.kwargs["address"] == address
    assert init.call_args.kwargs.get("runtime_env") == runtime_env


def test_a_store_that_refuses_ends_no_training_and_is_said_after_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", pytest.fail)
    recorder = Mock()
    recorder.last_step.return_value = -1
    recorder.log_curve.side_effect = recorder.set_tags.side_effect = RefusedError("the run is deleted.")
    curves = MlflowCurves(recorder)
    curves.on_start(replace(START, not_read_back=("a",)))
    curves.on_step(STEP)
    curves.on_evaluation(EVALUATION)
    assert "the run is deleted: its numbers are kept" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=r"the run is deleted\. The training has ended"):
        curves.on_end(Path("checkpoint.pth"))


def test_a_training_that_other_code_goes_on_with_has_a_tag() -> None:
    recorder = Mock()
    MlflowCurves(recorder).on_start(
        replace(START, changed_versions=("code a, now b", "torch 2.11, now 2.13"))
    )
    recorder.set_tags.assert_called_once_with(
        {"dfvt.changed_versions": "code a, now b; torch 2.11, now 2.13"}
    )
