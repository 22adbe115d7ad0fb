"""Run a sweep: what `ray job submit` starts on a cluster. `dfvt sweep SPEC` does the same."""

from __future__ import annotations

import sys

from dfvt.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
