"""What a stage may end in, and what it must not end in."""

from __future__ import annotations

import io
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

NOT_DRAWN = "was not drawn"


class StageError(Exception):
    """What a stage did with a data set that it must not do; `stage` names it."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason = stage, reason


class RefusedError(Exception):
    """A stage ended with a sentence."""


@contextmanager
def stage(name: str, *, refusals: bool = False, one_line: bool = True) -> Iterator[None]:
    """Names the stage in what goes wrong.

    With `refusals` it may end in a sentence, as `RefusedError`. That is `one_line` unless a name has several.
    """
    errors = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(errors):
            yield
        require_pictures(name, errors.getvalue())
    except StageError:
        raise
    except (ValueError, FileNotFoundError) as error:
        if (
            not refusals
            or isinstance(error, UnicodeError)
            or type(error) not in (ValueError, FileNotFoundError)
        ):
            raise StageError(name, described(error)) from error
        if not str(error) or (one_line and "\n" in str(error)):
            raise StageError(name, f"its sentence is {str(error)!r}") from error
        raise RefusedError(str(error)) from error
    except (Exception, SystemExit) as error:
        if refusals and isinstance(error, OSError) and error.filename is not None:
            raise RefusedError(f"{error.filename}: {error.strerror}") from error
        raise StageError(name, described(error)) from error


def require_pictures(name: str, printed: str) -> None:
    """A stage goes on without a picture that it cannot draw, and says so: here that is a failure."""
    for line in printed.splitlines():
        if NOT_DRAWN in line:
            raise StageError(name, line)


def described(error: BaseException) -> str:
    """An exception, and the last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/dfvt/" in frame.filename or "/pipelines/" in frame.filename]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    text = str(error).strip().replace("\n", " ")
    return f"{type(error).__name__} at {place}: {text[:300]}"
