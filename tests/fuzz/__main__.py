"""Draw data sets, let each go through the experiment, and print what fails.

`python -m tests.fuzz --draws 2000 --processes 16` draws 2,000. Draw n of seed s is the same on every
machine that has the same version of Hypothesis. Each failure becomes a line of JSON in a file, with the whole
description of its data set; `--replay FILE` runs the failures of a file again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

# Processes that are spawned cannot import what a __main__.py defines.
from tests.fuzz.draws import DRAWS_PER_SEED, Result, replay, results_of


def table(results: list[Result]) -> str:
    """Failures by stage and exception, with the first draw of each."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.kind == "failed":
            place = result.reason.partition(": ")[0]
            groups[result.stage, place if " at " in place else result.reason[:60]].append(result)
    lines = []
    for (stage, place), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = min(group, key=lambda result: len(result.data))
        lines.append(f"{len(group):5} {stage:20} {place}")
        lines.append(f"      draw {first.number} of seed {first.seed}: {first.reason[:200]}")
    return "\n".join(lines)


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures.jsonl"), help="file to write")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run the failures of a file again")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.perf_counter()
    seeds = list(range(options.seed, options.seed + -(-options.draws // DRAWS_PER_SEED)))
    results: list[Result] = []
    source = replay(options.replay) if options.replay else results_of(seeds, options.draws, options.processes)
    with options.failures.open("w") as file:
        for result in source:
            results.append(result)
            if result.kind == "failed":
                file.write(json.dumps(asdict(result)) + "\n")
                file.flush()
                print(
                    f"draw {result.number} of seed {result.seed}: {result.stage}: {result.reason[:160]}",
                    flush=True,
                )
    elapsed = time.perf_counter() - started
    kinds = Counter(result.kind for result in results)
    print(table(results))
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    print(f"{len(results)} draws in {elapsed:.0f} s ({len(results) / elapsed:.2f} a second): {counts}")
    return 1 if kinds["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
