"""How long a detector takes for an image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise


class Pace:
    """Measures the time between calls, one for each image; hands the calls on."""

    def __init__(self, then: Callable[[int, int], object] = lambda done, total: None) -> None:
        self.times: list[float] = []
        self.then = then

    def __call__(self, done: int, total: int) -> None:
        self.times.append(time.perf_counter())
        self.then(done, total)

    @property
    def ms_per_image(self) -> float | None:
        """Milliseconds, the median; None before two images."""
        steps = [later - earlier for earlier, later in pairwise(self.times)]
        return 1000 * statistics.median(steps) if steps else None
