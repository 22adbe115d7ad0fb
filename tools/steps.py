"""The steps of the set-up: processes that are run one after the other, and what the user reads of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

SILENCE = 15.0  # seconds after which a step says that it goes on


class SetupError(Exception):
    """One sentence for the user; exit code 2: this machine lacks something, 1: a step failed."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def output_of(*command: str | Path) -> str:
    """Return what a query prints, or nothing when it cannot be asked."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def last_line(text: str) -> str:
    """Return what a failed process gives as its reason: its last line that has words."""
    return ([line.strip() for line in text.splitlines() if re.search(r"\w", line)] or ["no reason given"])[-1]


def seconds(time: float) -> str:
    return f"{time:.0f} s" if time <= 120 else f"{time / 60:.0f} min"


def units_done(log: Path | None) -> tuple[int, int] | None:
    """Return how many units of how many are compiled: ninja's last ``[3/18]`` in the log of a step."""
    text = log.read_text(encoding="utf-8", errors="replace") if log else ""
    counts = re.findall(r"^\[(\d+)/(\d+)\] ", text, flags=re.MULTILINE)
    return (int(counts[-1][0]), int(counts[-1][1])) if counts else None


def progress(units: tuple[int, int] | None, elapsed: float) -> str:
    """Say how long a step has taken, and how long it takes still if the units that are done tell that."""
    if units is None:
        return f"{seconds(elapsed)} so far"
    done, of = units
    still = f"about {seconds(elapsed * (of - done) / done)} still" if done < of else "linking"
    return f"{done} of {of} units, {seconds(elapsed)} so far, {still}"


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a process that is a group of its own, and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    child.wait()


def finish(step: str, child: subprocess.Popen[bytes], log: Path | None = None) -> int:
    """Wait for the process of a step, say how far it is, and return its exit code."""
    started = said = time.monotonic()
    shown = None
    while True:
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            now, units = time.monotonic(), units_done(log)
            if now - said >= SILENCE or units != shown:
                say(f"{step}: {progress(units, now - started)}")
                said, shown = now, units


def run(
    step: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None, log: Path | None = None
) -> None:
    """Run one step, and on the way out leave no process behind.

    Args:
        step: what is done, in the words of the messages.
        command: the process that does it.
        env: what its environment has beside that of this process.
        log: file that gets its output, which the user sees without one.

    Raises:
        SetupError: the process failed.
    """
    say(step)
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else None
        child = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = finish(step, child, log)
        except BaseException:
            stop(child)
            raise
    if code:
        where = f"{log} says why" if log else "see above"
        raise SetupError(f"{step} failed, {where}; run the same command again to carry on.", exit_code=1)


@contextmanager
def beside(step: str, command: Sequence[str | Path]) -> Iterator[None]:
    """Run a process while other steps run, and wait for it after them; it may fail."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
        finish(step, child)
    except BaseException:
        stop(child)
        raise
