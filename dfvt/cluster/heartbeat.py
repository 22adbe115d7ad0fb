"""Who runs what is kept in a storage: while one does, a file there changes every few seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from dfvt.data.storage import StorageFolder

HEARTBEAT = "running.json"
SECONDS_BETWEEN_BEATS = 5.0
SILENCE_SECONDS = 20.0  # a machine that was quiet for so long runs nothing any more


@contextmanager
def heartbeat(remote: StorageFolder) -> Iterator[None]:
    """Beats in a storage while the body runs, which is interrupted (SIGINT) should another one's beat appear.

    Raises:
        ValueError: another one's beats go on.
    """
    await_silence(remote)
    name, ended = uuid.uuid4().hex, threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(SECONDS_BETWEEN_BEATS):
            number += 1
            try:
                if beat_of(remote).get("name", name) != name:
                    print(f"another process runs {remote} too: this one ends", file=sys.stderr, flush=True)
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                write_beat(remote, name, number)
            except Exception as error:  # the storage is away for a moment, or was emptied
                # without this thread another machine would take the sweep for ended, and run it too
                print(error, file=sys.stderr, flush=True)

    write_beat(remote, name, 0)
    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        try:
            if beat_of(remote).get("name") == name:
                remote.remove(HEARTBEAT)
        except ValueError as error:  # the next one waits for silence
            print(error, file=sys.stderr, flush=True)


def write_beat(remote: StorageFolder, name: str, number: int) -> None:
    """Writes the beat of that number."""
    content = {"name": name, "host": socket.gethostname(), "pid": os.getpid(), "number": number}
    remote.write(HEARTBEAT, json.dumps(content).encode())


def beat_of(remote: StorageFolder) -> dict[str, str | int]:
    """The last beat, empty without one."""
    content: dict[str, str | int] = json.loads(remote.read(HEARTBEAT) or b"{}")
    return content


def await_silence(remote: StorageFolder) -> None:
    """Returns once it is known that nobody beats: at once where the last one to do so ended by itself.

    Clocks of two machines are not compared: a beat is old when it has not changed while this looked on.

    Raises:
        ValueError: somebody does.
    """
    last = beat_of(remote)
    if not last:
        return
    print(f"waits whether {last['host']}, which ran {remote}, still does", file=sys.stderr, flush=True)
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        if beat_of(remote) != last:
            raise ValueError(
                f"the sweep in {remote} is running already, on {last['host']}: see dfvt sweep status {remote}"
            )


def beats(remote: StorageFolder) -> bool:
    """Whether somebody seems to, by the age of the last beat: clocks that differ by a minute deceive it."""
    info = remote.info(HEARTBEAT)
    return info is not None and time.time() - info.mtime_ns / 1e9 < SILENCE_SECONDS
