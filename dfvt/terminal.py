"""What this program prints, on terminals and pipes of any encoding."""

from __future__ import annotations

import io
import sys


def escape_unencodable() -> None:
    """Write characters that a terminal or pipe cannot encode as escapes, such as `\\u2013`.

    Without it a print ends the command with a UnicodeEncodeError: of a name that is not UTF-8 everywhere, and
    of any `–` or `×` where `LC_ALL=C` or `PYTHONIOENCODING=ascii` are set, as some schedulers and containers
    do. Every entry point calls it before it prints.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
