"""Progress bars of fetches and extractions."""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager
from typing import Never

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0  # where nobody watches


class Bars(AbstractContextManager["Bars"]):
    """A bar for each name, with rate and time to come; lines now and then where there is no terminal."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.bars: dict[str, tqdm[Never]] = {}
        self.lock = threading.Lock()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        with self.lock:
            if name not in self.bars:
                self.bars[name] = tqdm(
                    total=total,
                    desc=name,
                    unit=self.unit,
                    unit_scale=True,
                    position=len(self.bars),
                    file=sys.stderr,
                    mininterval=0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
                )
            self.bars[name].update(done - self.bars[name].n)

    def __exit__(self, *_: object) -> None:
        for bar in self.bars.values():
            bar.close()
