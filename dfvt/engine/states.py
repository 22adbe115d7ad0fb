"""Files of resumable states: never half, written while the training goes on, the last few kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfvt.models.checkpoints import read_checkpoint

STATE_FILE = "latest.pth"


def write_atomically(
    content: dict[str, Any], path: Path, before_rename: Callable[[], None] = lambda: None
) -> None:
    """Saves a checkpoint aside and renames it once on disk: `path` is the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def snapshot(value: Any) -> Any:
    """A copy in the CPU's memory, which the training does not change any more; tuples stay tuples."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = type(value)((key, snapshot(item)) for key, item in value.items())
        if hasattr(value, "_metadata"):  # of a state dict
            copied.__dict__["_metadata"] = value._metadata
        return copied
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value


def state_paths(folder: Path, keep: int) -> list[Path]:
    """Where the newest state and those before it are, in this order."""
    stem, suffix = STATE_FILE.split(".")
    return [folder / STATE_FILE, *(folder / f"{stem}-{age}.{suffix}" for age in range(1, keep))]


def read_newest(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest state in a folder that can be read, None if there is none; `warn` hears of a damaged one.

    Raises:
        ValueError: all are damaged.
    """
    stem, suffix = STATE_FILE.split(".")
    older = sorted(folder.glob(f"{stem}-[0-9]*.{suffix}"), key=lambda path: int(path.stem.split("-")[1]))
    damage: ValueError | None = None
    damaged: list[str] = []
    for path in [folder / STATE_FILE, *older]:
        if not path.is_file():
            continue
        try:
            content = read_checkpoint(path)
        except ValueError as error:
            damage = damage or error
            damaged.append(path.name)
            continue
        if damage:
            warn(f"{damage}; the training goes on from {path.name}")
        return path, content
    if damage:
        others = f", and so {'are' if damaged[2:] else 'is'} {', '.join(damaged[1:])}" if damaged[1:] else ""
        remedy = f"remove {'them' if others else 'it'} to start anew, or choose another work_dir"
        raise ValueError(f"{damage}{others}; {remedy}") from damage
    return None


class StateFiles:
    """The states of one training, the newest `keep` of them.

    A state is copied at once and written by a thread of its own; the next one waits for it.
    """

    def __init__(self, folder: Path, keep: int, on_written: Callable[[Path, int], None]) -> None:
        self.folder = folder
        self.keep = max(keep, 1)
        self.on_written = on_written
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: tuple[Future[Path], int] | None = None

    def write(self, content: dict[str, Any], step: int) -> None:
        """Takes the state after `step` iterations; the caller may go on changing its tensors.

        Raises:
            RuntimeError: the one before could not be written.
        """
        self.finish()
        self.pending = self.writer.submit(self._replace, snapshot(content)), step

    def _replace(self, content: dict[str, Any]) -> Path:
        newest, *older = state_paths(self.folder, self.keep)

        def make_room() -> None:
            for younger, path in reversed(list(zip([newest, *older], older, strict=False))):
                if younger.is_file():
                    younger.replace(path)

        write_atomically(content, newest, make_room)
        return newest

    def poll(self) -> None:
        """Reports a state that is on disk by now."""
        if self.pending and self.pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Waits for the state that is being written, and reports it.

        Raises:
            RuntimeError: it could not be written.
        """
        if not self.pending:
            return
        (future, step), self.pending = self.pending, None
        try:
            path = future.result()
        except OSError as error:
            raise RuntimeError(
                f"the training's state cannot be written to {self.folder}: {error.strerror or error}"
            ) from error
        self.on_written(path, step)

    def close(self) -> None:
        """Ends the thread, after what it is writing."""
        self.writer.shutdown()
