"""Draws of data sets that go through the experiment, in several processes."""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

DRAWS_PER_SEED = 50  # the first ones of a seed are simple, and Hypothesis builds on what it has drawn


@dataclass(frozen=True)
class Result:
    """What became of a draw; `kind` is that of `Outcome`, or `failed` with the stage and its exception."""

    seed: int
    number: int
    kind: str
    seconds: float
    stage: str = ""
    reason: str = ""
    data: str = ""


def start_worker() -> None:
    """Keeps a process to one thread and to silence."""
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def attempt(data: object, seed: int, number: int) -> Result:
    """Lets a data set go through."""
    from tests.fuzz.data_sets import DataSet, as_json
    from tests.fuzz.failures import StageError, described
    from tests.fuzz.stages import go_through

    assert isinstance(data, DataSet)
    started = time.perf_counter()
    try:
        outcome = go_through(data, Path(tempfile.mkdtemp(prefix="fuzz-")))
    except StageError as failure:
        seconds = time.perf_counter() - started
        return Result(seed, number, "failed", seconds, failure.stage, failure.reason, as_json(data))
    except Exception as error:  # the fuzz itself is wrong: the other draws go on
        seconds = time.perf_counter() - started
        return Result(seed, number, "failed", seconds, "fuzz", described(error), as_json(data))
    return Result(seed, number, outcome.kind, time.perf_counter() - started, reason=outcome.sentence)


def draw(seed: int, number_of_draws: int) -> list[Result]:
    """The results of the first draws of a seed."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from tests.fuzz.data_sets import DataSet
    from tests.fuzz.strategies import data_sets

    results: list[Result] = []

    @seeded(seed)
    @settings(
        max_examples=number_of_draws,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data_sets())
    def run(data: DataSet) -> None:
        results.append(attempt(data, seed, len(results)))

    run()
    return results


def replay(path: Path) -> list[Result]:
    """The results of the descriptions in a file of failures."""
    from tests.fuzz.data_sets import from_json

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [attempt(from_json(one["data"]), one["seed"], one["number"]) for one in lines]


def results_of(seeds: list[int], num_draws: int, processes: int) -> Iterator[Result]:
    """Results as they come."""
    sizes = [min(DRAWS_PER_SEED, num_draws - DRAWS_PER_SEED * index) for index in range(len(seeds))]
    if processes == 1:
        start_worker()
        for seed, size in zip(seeds, sizes, strict=True):
            yield from draw(seed, size)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), start_worker) as pool:
        futures = [pool.submit(draw, seed, size) for seed, size in zip(seeds, sizes, strict=True)]
        for future in as_completed(futures):
            yield from future.result()
