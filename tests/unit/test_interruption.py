"""Trials are asked to stop once, and waited for."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from dfvt.cluster import interruption
from dfvt.cluster.interruption import TrialsAtWork, may_begin, stop_trials, stopping_gently
from dfvt.cluster.sweep import sigterm_as_ctrl_c


def test_trials_that_train_are_counted_and_none_begins_after_the_stop() -> None:
    async def story() -> None:
        trials = TrialsAtWork()
        waiting = asyncio.create_task(trials.wait_for_stop())
        assert await trials.begin("a") and await trials.begin("b")
        await trials.end("b")
        assert await trials.count() == 1
        assert not waiting.done()
        await trials.stop()
        await asyncio.wait_for(waiting, 5)
        assert not await trials.begin("c")
        assert await trials.count() == 1
        await trials.end("a")
        await trials.end("a")
        assert await trials.count() == 0

    asyncio.run(story())


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The actor in this process: what is asked of it is done at once."""
    state = TrialsAtWork()

    def remotely(name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *given: asyncio.run(getattr(state, name)(*given)))

    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    names = ("begin", "end", "stop", "count")
    return SimpleNamespace(**{name: remotely(name) for name in names})


def test_the_main_thread_hears_of_it_when_no_trial_trains(actor: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    actor.begin.remote("a")
    with pytest.raises(KeyboardInterrupt), stopping_gently(actor):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.5)  # nothing happens as long as one trains
        actor.end.remote("a")
        threading.Event().wait(20)
        pytest.fail("nothing came")
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_waited_for_is_said_at_once(actor: Any, capfd: pytest.CaptureFixture[str]) -> None:
    actor.begin.remote("a")
    with pytest.raises(KeyboardInterrupt), stopping_gently(actor, "search"):
        signal.raise_signal(signal.SIGINT)
        said = capfd.readouterr().err  # the trial is still at work
        actor.end.remote("a")
        threading.Event().wait(20)
    assert said.startswith("sweep search: stops; the trials write their states first")
    assert said.count("\n") == 1


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_interrupts_a_sweep_while_mlflow_is_told(ctrl_c: Any) -> None:
    began, ended = threading.Event(), threading.Event()

    def slow_server() -> None:
        began.set()
        ended.wait(20)

    before, interrupt = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c(slow_server):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert began.wait(5), "it is told at once, and not waited for"
    ended.set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_trial_that_does_not_end_is_not_waited_for(actor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", 0.3)
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append(number))
    actor.begin.remote("a")
    over = threading.Event()
    stop_trials(actor, over)
    assert sent == [signal.SIGUSR1]
    assert not actor.begin.remote("b")
    over.set()
    stop_trials(actor, over)
    assert sent == [signal.SIGUSR1], "nobody listens any more"


def test_a_trial_begins_although_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(answer: object, timeout: float | None = None) -> None:
        raise RayActorError

    monkeypatch.setattr(ray, "get", lost)
    nobody: Any = SimpleNamespace(begin=SimpleNamespace(remote=lambda trial_id: None))
    assert may_begin(nobody, "a")


def test_a_second_interruption_does_not_wait(actor: Any) -> None:
    actor.begin.remote("a")
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stopping_gently(actor):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert time.monotonic() - started < 5
    actor.end.remote("a")
    (waiting,) = [one for one in threading.enumerate() if one.name.endswith("(stop_trials)")]
    waiting.join(10)
    assert not waiting.is_alive()
