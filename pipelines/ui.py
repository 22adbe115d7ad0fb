"""Run `make ui`: MLflow's server for the runs of this project."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from dfvt.settings import load_settings
from dfvt.tracking.server import serve


def main() -> int:
    parser = ArgumentParser(prog="make ui", description="Serve MLflow for the runs of this project.")
    parser.add_argument("--port", type=int, default=5000, help="on 127.0.0.1")
    options = parser.parse_args()
    try:
        return serve(options.port, load_settings().tracking.experiment)
    except (ValueError, FileNotFoundError) as error:
        print(f"ui: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
