"""An interrupted sweep waits until its trials have written their states; Ray Tune alone would kill them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PATIENCE_SECONDS = 25.0  # of the half minute that machines which are taken away usually grant
ANSWER_SECONDS = 5.0
STOPPING = (
    "sweep {}: stops; the trials write their states first, which takes up to {:.0f} s "
    "(Ctrl-C once more does not wait)\n"
)


class TrialsAtWork:
    """Which trials train, and whether they are to stop; an actor that trials and driver ask."""

    def __init__(self) -> None:
        self.at_work: set[str] = set()
        self.stop_asked = asyncio.Event()

    async def begin(self, trial_id: str) -> bool:
        """Notes that a trial trains; False says that it is not to begin."""
        if self.stop_asked.is_set():
            return False
        self.at_work.add(trial_id)
        return True

    async def end(self, trial_id: str) -> None:
        """Notes that a trial trains no more."""
        self.at_work.discard(trial_id)

    async def stop(self) -> None:
        """Asks all trials to stop."""
        self.stop_asked.set()

    async def wait_for_stop(self) -> None:
        """Returns when they are asked to."""
        await self.stop_asked.wait()

    async def count(self) -> int:
        """How many trials train."""
        return len(self.at_work)


def start_trials_at_work() -> ActorHandle:
    """The actor, on the driver's node: the loss of another one is the loss of its trials alone.

    It goes with the last reference to it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(TrialsAtWork)
    return actor.options(scheduling_strategy=here).remote()


def may_begin(trials: ActorHandle, trial_id: str) -> bool:
    """Tells the actor that a trial trains from now on; false if it is not to: the sweep was interrupted."""
    try:
        return bool(ray.get(trials.begin.remote(trial_id)))
    except RayError:  # it cannot be asked, so that no interruption will wait for this one
        return True


@contextmanager
def stopping_gently(trials: ActorHandle, name: str = "") -> Iterator[None]:
    """With SIGINT in the body the trials first write their states, then Ray Tune ends (it takes SIGUSR1 too).

    A second SIGINT does not wait. The body is Ray Tune with `TUNE_DISABLE_SIGINT_HANDLER`. What is waited for
    is said at once, of the sweep `name`.
    """

    over = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # A handler may interrupt a print: the descriptor itself takes the line at any time.
        os.write(2, STOPPING.format(name, PATIENCE_SECONDS).encode())
        threading.Thread(target=stop_trials, args=(trials, over), daemon=True).start()

    before = {
        # Tune puts its own in this place as soon as it listens
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, signal.default_int_handler),
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
    }
    try:
        yield
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_trials(trials: ActorHandle, over: threading.Event) -> None:
    """Asks the trials to stop, waits for them, and lets the main thread know unless it is over by then."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with suppress(RayError):  # the cluster is gone, and its trials too
        ray.get(trials.stop.remote(), timeout=ANSWER_SECONDS)
        while time.monotonic() < deadline and ray.get(trials.count.remote(), timeout=ANSWER_SECONDS):
            time.sleep(0.2)
    if not over.is_set():
        os.kill(os.getpid(), signal.SIGUSR1)
