"""Run a stage, or `repro`, as `python -m pipelines NAME`.

So Ctrl-C is one sentence also while the stage imports its modules.
"""

from __future__ import annotations

import runpy
import sys


def main() -> None:
    if len(sys.argv) < 2:
        print("usage: python -m pipelines STAGE [VARIANT]", file=sys.stderr)
        sys.exit(2)
    _, name, *arguments = sys.argv
    sys.argv = [f"pipelines.{name}", *arguments]
    try:
        runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command carries on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
