"""How `make repro` ends."""

from __future__ import annotations

import pytest

from pipelines.repro import exit_code


@pytest.mark.parametrize(("status", "code"), [("2", 2), ("130", 130), ("-2", 130), ("-15", 143), ("-9", 137)])
def test_a_failed_stage_gives_its_exit_code(status: str, code: int) -> None:
    # /bin/sh, unlike bash, is itself ended by the signal of Ctrl-C; then the status is negative.
    assert exit_code(f"failed to run: python -m pipelines.train tiny, exited with {status}") == code


def test_a_stage_that_did_not_start_gives_1() -> None:
    assert exit_code("failed to run: python -m pipelines.train tiny") == 1
