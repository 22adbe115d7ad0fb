"""Signals that ask a process to stop, as a flag that its training looks at."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """True once a signal has asked to stop, `received` the first one. A second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.interrupts = False

    def __call__(self) -> bool:
        return self.received is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        interrupts = number == signal.SIGINT and self.interrupts
        self.interrupts = self.interrupts or number == signal.SIGINT
        self.received = self.received or number
        if interrupts:
            signal.default_int_handler(number, frame)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turns SIGTERM (a spot machine's notice) and SIGINT (Ctrl-C) into a flag while the body runs.

    Called in the main thread, as Python's signals want it.
    """
    flag = StopFlag()
    before = {number: signal.signal(number, flag.receive) for number in STOP_SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
