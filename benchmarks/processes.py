"""What benchmarks measure in: processes of their own, on GPUs of their own, with a result as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


USERS_ERRORS = ("ValueError: ", "FileNotFoundError: ")


class FailedProcessError(Exception):
    """Says what the process said: its error's sentence where that is for users, else all there is."""

    def __init__(self, said: str) -> None:
        last = said.strip().splitlines()[-1] if said.strip() else "it said nothing"
        mine = next((start for start in USERS_ERRORS if last.startswith(start)), None)
        super().__init__(last.removeprefix(mine) if mine else said.strip()[-3000:] or last)


class FreeGpus:
    """Which GPUs of the machine nobody has; who asks for some waits until that many are free."""

    def __init__(self, number: int) -> None:
        self._free = list(range(number))
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, number: int) -> Iterator[list[int]]:
        """So many GPUs, for as long as the context lasts."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._free) >= number)
            own = [self._free.pop(0) for _ in range(number)]
        try:
            yield own
        finally:
            with self._changed:
                self._free.extend(own)
                self._changed.notify_all()


def result_of(module: str, one: dict[str, Any], gpus: Iterable[int] | None = None) -> Any:
    """What `python -m module`, called as this process was, prints last when it gets `--one` too.

    It sees the given GPUs, all if none are given.

    Raises:
        FailedProcessError: its exit code is not 0.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if gpus is not None:
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = listed.split(",") if listed else None
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[gpu] if names else str(gpu) for gpu in gpus)
    command = [sys.executable, "-W", "ignore", "-m", module, *sys.argv[1:], "--one", json.dumps(one)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise FailedProcessError(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def beside(number: int, do: Callable[[Work], Result], works: Iterable[Work]) -> Iterator[tuple[Work, Result]]:
    """Does up to `number` works at once, and yields each with its result as it ends."""
    with ThreadPoolExecutor(max(number, 1)) as pool:
        running = {pool.submit(do, work): work for work in works}
        for future in as_completed(running):
            yield running[future], future.result()
