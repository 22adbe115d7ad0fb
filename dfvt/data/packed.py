"""Annotations that the loader processes share instead of copying."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np


class PackedList(Sequence[Any]):
    """A read-only list of plain values, kept as pickles in one array.

    A forked process that reads ordinary objects counts references in them, and so copies the memory that
    they lie in. Of this list it reads bytes alone: a million annotations are in memory once, whatever the
    number of loader processes.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        packed = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self.ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative ones count from the end, others may be out of range
        return pickle.loads(self.bytes[self.ends[index] : self.ends[index + 1]].data)
