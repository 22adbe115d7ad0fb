"""One process a GPU of this machine, or the processes that `torchrun` has started on any number of them."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from traceback import format_exc
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dfvt.engine.console import quiet_libraries


def launch(
    function: Callable[..., Any],
    devices: list[torch.device],
    *arguments: Any,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Any:
    """Calls `function(device, *arguments)` in one process a device; returns what the first one returns.

    One device needs no other process. Several get a process group (nccl on GPUs, gloo on the CPU). In a
    process that `torchrun` has started the group is that of its environment, and the GPU that of its rank.

    Args:
        function: importable by its name, as it is called in new processes.
        devices: where to compute, the first process on the first.
        stop_asked: when it is true in this process, the others get SIGTERM, once.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: raised by the function in any process, which ends the
            others; RuntimeError also when a process was killed.
    """
    if dist.is_torchelastic_launched():
        return _in_torchrun(function, devices, arguments)
    if len(devices) == 1:
        return function(devices[0], *arguments)
    context = mp.get_context("spawn")
    outbox = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{Path(folder, 'rendezvous')}"
        processes = mp.spawn(
            _work, (devices, rendezvous, outbox, function, arguments), nprocs=len(devices), join=False
        )
        told = False
        said: list[Any] = []
        try:
            while not processes.join(timeout=0.5):
                if not outbox.empty():  # a process does not end before a large result of its is taken
                    said.append(outbox.get())
                if stop_asked() and not told:
                    told = True
                    for pid in processes.pids():
                        with suppress(ProcessLookupError):  # it has ended already
                            os.kill(pid, signal.SIGTERM)
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
            while not outbox.empty():
                said.append(outbox.get())
            raise _reason(said, [process.exitcode for process in processes.processes]) or error from None
    return said[0] if said else outbox.get()


def _reason(said: list[Any], exit_codes: list[int | None]) -> Exception | None:
    """Why processes ended, None if it is not known; `said` is what they had to say.

    When one refuses, is killed or has a bug, the others complain that it left, and are ended by SIGTERM.
    """
    for error in said:
        if isinstance(error, ValueError | FileNotFoundError):
            return error
    for rank, code in enumerate(exit_codes):
        if code is not None and code < 0 and code != -signal.SIGTERM:
            return RuntimeError(
                f"process {rank} of {len(exit_codes)} was killed by {signal.Signals(-code).name}, the others "
                "stopped: see whether memory ran out; the same command goes on from the last state"
            )
    errors = [error for error in said if isinstance(error, Exception)]
    return min(errors, key=lambda error: isinstance(error, RuntimeError), default=None)  # a bug comes first


def _work(
    rank: int,
    devices: list[torch.device],
    rendezvous: str,
    outbox: SimpleQueue,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    quiet_libraries()
    try:
        result = _in_group(
            function, devices[rank], arguments, init_method=rendezvous, rank=rank, world_size=len(devices)
        )
    except (ValueError, FileNotFoundError) as error:
        outbox.put(error)
        sys.exit(2)
    except RuntimeError as error:
        outbox.put(RuntimeError(str(error)))  # torch's own may not survive the way
        raise
    except Exception:
        outbox.put(mp.ProcessRaisedException(format_exc(), rank, os.getpid()))
        raise
    if rank == 0:
        outbox.put(result)


def _in_torchrun(
    function: Callable[..., Any], devices: list[torch.device], arguments: tuple[Any, ...]
) -> Any:
    device = devices[0]
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return _in_group(function, device, arguments)


def _in_group(
    function: Callable[..., Any], device: torch.device, arguments: tuple[Any, ...], **group: Any
) -> Any:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **group)
    try:
        return function(device, *arguments)
    finally:
        dist.destroy_process_group()
