"""Pictures that a stage can do without."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Warn = Callable[[str], None]
logger = logging.getLogger(__name__)


@contextmanager
def optional_picture(path: Path, warn: Warn) -> Iterator[None]:
    """Turn an error that prevents a picture into a warning.

    A stage has measured its numbers when it draws. They must not be lost because of a picture.

    Args:
        path: the picture that the body draws.
        warn: is called with a sentence that names the picture, the reason, and where the error was raised.
    """
    try:
        yield
    except Exception as error:
        path.unlink(missing_ok=True)
        warn(f"the picture {path} was not drawn: {reason_of(error)}")
        logger.debug("%s was not drawn", path, exc_info=True)


def warn_on_stderr(sentence: str) -> None:
    """Print a warning of a command."""
    print(f"dfvt: {sentence}", file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """Return an error in one line, with the place where it was raised, as it may be a bug."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split()) or "no reason given"
    return f"{reason} ({type(error).__name__} in {Path(place.filename).name}, line {place.lineno})"
