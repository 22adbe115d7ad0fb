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
