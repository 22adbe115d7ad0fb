"""Tables in Markdown, and the files that they are made of. Needs neither pandas nor matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

UNDEFINED = "\N{EN DASH}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table; the columns after the first `text_columns` hold numbers, aligned to the right."""
    escaped = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    ruler = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ruler, *escaped))


def shown_map(value: float | None, digits: int = 3) -> str:
    """An mAP for people: a fraction of 0 to 1, or a dash where it is undefined (COCO's −1)."""
    return UNDEFINED if value is None or not value >= 0 else f"{value:.{digits}f}"


def require_output(path: Path, stage: str) -> Path:
    """Return `path`, an output of the DVC stage `stage`, or say which stage makes it (FileNotFoundError)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro {stage}`, which writes it")
    return path
