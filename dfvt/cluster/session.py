"""A Ray to work on: the one at `RAY_ADDRESS`, or a local one that ends with the work.

What only looks at addresses and folders does not import Ray.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Of a socket's path: the system's limit on Linux and macOS, and what Ray and Python's multiprocessing add.
MAX_SOCKET_PATH = 107 if sys.platform.startswith("linux") else 103
RAY_SOCKET = "/session_2026-12-31_23-59-59_123456_1234567/sockets/plasma_store"
LOADER_SOCKET = "/pymp-12345678/listener-12345678"
SHORT_FOLDERS = ("/tmp", "/var/tmp")
OBJECT_STORE_BYTES = 256 * 2**20  # trainings pass no data through Ray
CONNECT_SECONDS = 5.0
LEAST_STARTING = 16  # processes that a Ray of our own may start at once


@contextmanager
def ray_session() -> Iterator[Callable[[], str]]:
    """Uses the cluster at `RAY_ADDRESS`, or starts a local Ray that ends with the body.

    Ray takes seconds to start, in which the body can import what it needs: yields a function that awaits Ray
    and returns the job's id, to be called in the main thread. It raises ValueError when the cluster refuses.

    Raises:
        ValueError: nobody answers at `RAY_ADDRESS`.
    """
    import ray  # in the main thread, which imports other libraries while Ray starts

    address = os.environ.get("RAY_ADDRESS") or "local"
    require_answer(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # The thread lives as long as the session: the processes that it started would end with it.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray") as executor:
        job_id = executor.submit(connect, address)

        def connected() -> str:
            job_id.result()
            # Ray's own handler ends the process on the spot, and its workers with it only later.
            signal.signal(signal.SIGTERM, on_sigterm)
            return job_id.result()

        try:
            yield connected
        finally:
            wait([job_id])
            ray.shutdown()


def connect(address: str) -> str:
    """Connects this process to Ray, `local` starts one; returns the job's id.

    Raises:
        ValueError: the cluster does not answer, or the paths of temporary files are too long.
        RuntimeError: a Ray of its own did not start in time.
    """
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone unasked
    if address == "local":
        # This machine will not be taken away with a warning: one process less to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray warns of four processes per processor on the terminal. On a small machine a few trials have so
        # many (queues, controllers) that wait and take no processor.
        num_starting = max(os.cpu_count() or 1, LEAST_STARTING)
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(num_starting))
        # Ray lowers the priority of its workers, so that every other program would go before the training.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        if folder := ray_folder():
            options["_temp_dir"] = str(folder)
    if shlex.quote(sys.executable) != sys.executable:
        # Ray starts some workers through a shell, and does not quote a path with spaces: they never come
        # up. The nodes of a cluster share the project's folder, and the environment in it.
        options["runtime_env"] = {"py_executable": shlex.quote(sys.executable)}
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        raise ValueError(unreachable(address, str(error).splitlines()[0])) from error
    except Exception as error:  # Ray has no class for it
        if "timed out during startup" not in str(error):
            raise
        raise RuntimeError(
            "Ray did not start in time, which happens where the processors are busy or memory is short: "
            "the same command tries again"
        ) from error
    return ray.get_runtime_context().get_job_id()


def ray_folder() -> Path | None:
    """Return the folder for the sockets and logs of a local Ray, None for Ray's own choice.

    Ray puts them below `RAY_TMPDIR` or `TMPDIR`. Slurm sets `TMPDIR` to paths that are too long for sockets.

    Raises:
        ValueError: the path is too long, and there is no short folder that can be used instead.
    """
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    loaders = tempfile.gettempdir()  # sockets of a training's loader processes
    if too_long(loaders, LOADER_SOCKET):
        raise ValueError(
            f"the path of the folder for temporary files is too long for sockets ({loaders}): "
            f"set TMPDIR to a folder whose path has at most {MAX_SOCKET_PATH - len(LOADER_SOCKET)} bytes"
        )
    if not too_long(f"{chosen}/ray", RAY_SOCKET):
        return None
    for folder in SHORT_FOLDERS:
        place = Path(folder, f"ray-{os.getuid()}")
        with suppress(OSError):
            place.mkdir(mode=0o700, exist_ok=True)
            if place.stat().st_uid == os.getuid() and os.access(place, os.W_OK):
                return place
    raise ValueError(
        f"the path of the folder for temporary files is too long for Ray's sockets ({chosen}), and none of "
        f"{', '.join(SHORT_FOLDERS)} can be written to: set RAY_TMPDIR to a folder whose path has at most "
        f"{MAX_SOCKET_PATH - len(RAY_SOCKET) - len('/ray')} bytes"
    )


def too_long(folder: str, socket_name: str) -> bool:
    """Whether a socket in a folder has a path that the system refuses."""
    return len(os.fsencode(folder + socket_name)) > MAX_SOCKET_PATH


def require_answer(address: str) -> None:
    """Checks within seconds that somebody listens at a Ray address; Ray itself would try for a minute."""
    if address in ("local", "auto"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ValueError(
            f"RAY_ADDRESS {address!r} is not an address: write HOST:PORT, ray://HOST:PORT or auto"
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(unreachable(address, str(error))) from error


def unreachable(address: str, reason: str) -> str:
    """The sentence for a cluster that does not answer."""
    return (
        f"no Ray cluster answers at RAY_ADDRESS {address!r} ({reason}): "
        "start it, correct the address, or unset it"
    )


def num_workers_that_fit(
    resources_per_worker: Mapping[str, float], nodes: Iterable[Mapping[str, float]] | None = None
) -> int:
    """Return how many workers the nodes hold when nothing else runs; each worker is on one node.

    Args:
        resources_per_worker: what a worker takes; names with 0 do not count.
        nodes: the resources of each node, by default those of the connected cluster.
    """
    wanted = {name: number for name, number in resources_per_worker.items() if number}
    if nodes is None:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) // number) for name, number in wanted.items()) for node in nodes)
