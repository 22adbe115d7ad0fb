"""How long a detector takes for an image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise


class Pace:
    """Measures the time between calls, one for some images each; hands the calls on."""

    def __init__(self, then: Callable[[int, int], object] = lambda done, total: None) -> None:
        self.calls: list[tuple[int, float]] = []
        self.then = then

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, time.perf_counter()))
        self.then(done, total)

    @property
    def ms_per_image(self) -> float | None:
        """Milliseconds, the median over the images; None before two calls."""
        steps = [
            (later - earlier) / (done - before)
            for (before, earlier), (done, later) in pairwise(self.calls)
            for _ in range(done - before)
        ]
        return 1000 * statistics.median(steps) if steps else None
