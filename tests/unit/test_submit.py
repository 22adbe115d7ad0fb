"""A job is submitted again while a cluster starts, and not otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from dfvt.cluster import submit
from dfvt.cluster.submit import submit_when_ready


class Client:
    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)

    def submit_job(self, **job: Any) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


STARTING = RuntimeError(
    "Request failed with status code 500: No available agent to submit job, please try again"
)


def test_a_job_is_given_the_store_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    assert submit.handed_on() == {"MLFLOW_TRACKING_URI": "http://host:5000"}
    said = capsys.readouterr().err
    assert "secret" not in said and "MLFLOW_TRACKING_PASSWORD" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert submit.handed_on() == {"MLFLOW_TRACKING_URI": "http://host:5000"}
    assert not capsys.readouterr().err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert submit.handed_on() == {}


def test_a_cluster_that_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert submit_when_ready(Client(STARTING, STARTING, "id"), entrypoint="true") == "id"  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "seconds"), [(RuntimeError("full"), 60.0), (STARTING, -1.0)])
def test_others_that_refuse_are_not(
    error: Exception, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "READY_SECONDS", seconds)
    with pytest.raises(RuntimeError, match=str(error)[:10]):
        submit_when_ready(Client(error), entrypoint="true")  # type: ignore[arg-type]
