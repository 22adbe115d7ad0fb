"""A Ray that does not start is a sentence."""

from __future__ import annotations

import pytest
import ray

from dfvt.cluster.session import connect


def test_a_ray_that_does_not_start_in_time_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception(reason)

    monkeypatch.setattr(ray, "init", init)
    reason = "The current node timed out during startup. This could happen because some of the raylet failed"
    with pytest.raises(RuntimeError, match="Ray did not start in time") as caught:
        connect("local")
    assert "\n" not in str(caught.value)
    reason = "something else"
    with pytest.raises(Exception, match="something else") as other:
        connect("local")
    assert not isinstance(other.value, RuntimeError)
