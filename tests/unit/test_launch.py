"""A function runs in one process a device; what one refuses, the caller hears in the same words."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.constants import default_pg_timeout

from dfvt.engine.infer import choose_devices
from dfvt.engine.launch import launch

pytestmark = pytest.mark.usefixtures("forked_processes")
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
start_interpreters = mp.spawn  # type: ignore[attr-defined]


def sum_of_ranks(device: torch.device, start: int) -> tuple[int, int]:
    total = torch.tensor(start + dist.get_rank(), device=device)
    dist.all_reduce(total)
    return int(total), dist.get_rank()


def refuse_in_the_second(device: torch.device) -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second process says no")
    dist.barrier()


def stumble_in_the_first(device: torch.device) -> None:
    if dist.get_rank() == 0:
        raise KeyError("a bug")
    dist.barrier()  # fails when the first process has left


def has_group(device: torch.device) -> bool:
    return dist.is_initialized()


def test_one_device_needs_no_other_process() -> None:
    assert launch(has_group, [CPU]) is False


def test_processes_work_together_and_the_first_ones_result_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mp, "spawn", start_interpreters)  # as it is outside of the tests
    assert launch(sum_of_ranks, [CPU, CPU], 10) == (21, 0)


def large_result(device: torch.device) -> bytes:
    return bytes(10_000_000)


def test_a_result_larger_than_a_pipe_comes_back() -> None:
    assert len(launch(large_result, [CPU, CPU])) == 10_000_000


def test_a_refusal_in_any_process_ends_all_and_is_raised_here() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"^the second process says no$"):
        launch(refuse_in_the_second, [CPU, CPU])
    assert time.monotonic() - started < default_pg_timeout.total_seconds() / 2, (
        "nobody waits for the process that refused"
    )


def test_a_bug_is_shown_where_it_is_and_not_what_others_say_about_its_process() -> None:
    with pytest.raises(mp.ProcessRaisedException, match=r"in stumble_in_the_first[\s\S]*a bug"):
        launch(stumble_in_the_first, [CPU, CPU])


def test_torchrun_has_its_processes_already() -> None:
    program = (
        "import sys, torch; from test_launch import sum_of_ranks; from dfvt.engine.launch import launch; "
        "sys.stdout.write(f'{launch(sum_of_ranks, [torch.device(\"cpu\")], 1)[0]}\\n')"  # in one piece
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [*torchrun, "--no-python", sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "3"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts GPUs that are not there")
def test_gpus_that_are_not_there_are_one_sentence() -> None:
    assert choose_devices(0) == choose_devices(None) == [CPU]
    for number in (1, 2, -1):
        with pytest.raises(ValueError, match=f"--gpus {number} cannot be: torch sees 0 GPU"):
            choose_devices(number)
