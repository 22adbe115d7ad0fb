"""Measure `make repro`: time of each stage, peak memory of all its processes, the mAPs reached.

Usage: .venv/bin/python benchmarks/repro.py [OUT.md]. Every stage runs, whether or not anything changed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parents[1]
VARIANTS = ("tiny", "small", "base")
MEMORY_EVERY_SECONDS = 3.0  # the kernel walks all pages for it, which slows the trainings that are measured


def memory_of(root: psutil.Process) -> int:
    """Bytes that a process and its descendants hold, memory that they share counted once (PSS)."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks/repro.md"
    log = ROOT / ".dfvt/benchmark.log"
    log.parent.mkdir(exist_ok=True)
    started, peak = time.monotonic(), 0
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "pipelines.repro", "--force"]
        child = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, memory_of(process))
            try:
                child.wait(MEMORY_EVERY_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    seconds = time.monotonic() - started
    if child.returncode:
        sys.exit(f"make repro failed, see {log}")
    stages = re.findall(r"^(\S+): done in ([\d.]+) s$", log.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    lines = [
        "# `make repro`, profile mini",
        "",
        f"Taken on {datetime.now(UTC):%Y-%m-%d} with `python benchmarks/repro.py`, after set-up, on "
        f"{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}, "
        f"Python {platform.python_version()}, torch {torch.__version__}. "
        "Absolute times on shared machines vary.",
        "",
        "| stage | seconds |",
        "| --- | ---: |",
        *(f"| `{name}` | {value} |" for name, value in stages),
        f"| all, with DVC's own work | {seconds:.0f} |",
        "",
        f"Peak memory of all processes together: {peak / 2**30:.2f} GiB.",
        "",
        "| detector | bbox_mAP | segm_mAP |",
        "| --- | ---: | ---: |",
    ]
    for variant in VARIANTS:
        metrics = json.loads((ROOT / f"metrics/evaluate_{variant}.json").read_text(encoding="utf-8"))
        lines.append(f"| {variant} | {metrics['bbox_mAP']:.3f} | {metrics['segm_mAP']:.3f} |")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
