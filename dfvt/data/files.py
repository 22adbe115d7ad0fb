"""Text files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears, or is replaced, when it is complete; its folder is made if need be.

    Bytes of file names that are no text are written as escapes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


def require_folder(path: Path) -> None:
    """Check that a folder is there and can be written to, or can be made; makes nothing.

    Raises:
        ValueError: something else is there, or its owner or mode forbids to write.
    """
    existing = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise ValueError(f"{existing} is not a folder: choose another place for {path}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"nothing can be written to the folder {existing}: choose another place for {path}")
