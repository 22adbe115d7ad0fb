"""How long a training takes to its first iteration, with Ray and without it: wall and processor time.

Usage: python -m benchmarks.first_iteration [--beside OLD_CHECKOUT] [--rounds 3]. It trains DFvT-T of profile
mini in copies of the checkouts, with the environment that runs it, and ends each training after its first
iteration. Both sides take turns. Each training is the first of its project: it makes MLflow's store. Prints a
table in Markdown.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.arguments import whole

ROOT = Path(__file__).parents[1]
PREPARATION = ("fetch_data", "fetch_weights", "validate_data", "profile")
CONFIG = "runs/configs/tiny.py"
TRAININGS = {  # what starts a training, and where its curve is
    "dfvt train": ("-m dfvt train runs/configs/tiny.py --gpus 0 --work-dir work_dir", "work_dir/curve.csv"),
    "stage train": ("-m pipelines train tiny", ".dfvt/train/tiny-*/curve.csv"),
}
LIMIT_SECONDS = 300.0
SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Start:
    """What passed until the first iteration of a training had ended."""

    seconds: float
    processor_seconds: float
    num_processes: int


def main() -> None:
    options = _parse()
    checkouts = {"now": ROOT} | ({"before": options.beside} if options.beside else {})
    starts: dict[tuple[str, str], list[Start]] = {}
    with tempfile.TemporaryDirectory() as folder:
        projects = {side: prepared_copy(path, Path(folder, side)) for side, path in checkouts.items()}
        for _ in range(options.rounds):
            for name in TRAININGS:
                for side, project in projects.items():
                    starts.setdefault((name, side), []).append(first_iteration(project, name))
    print(machine())
    print()
    print("| training | side | seconds, median (all) | processor seconds, median | processes |")
    print("| --- | --- | ---: | ---: | ---: |")
    for (name, side), measured in starts.items():
        seconds = [start.seconds for start in measured]
        print(
            f"| `{name}` | {side} | {statistics.median(seconds):.1f} "
            f"({', '.join(f'{value:.1f}' for value in seconds)}) | "
            f"{statistics.median(start.processor_seconds for start in measured):.1f} | "
            f"{max(start.num_processes for start in measured)} |"
        )


def _parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, metavar="OLD_CHECKOUT", help="another checkout of the project")
    parser.add_argument("--rounds", type=whole, default=3, help="trainings of each kind and side; default: 3")
    return parser.parse_args()


def prepared_copy(checkout: Path, folder: Path) -> Path:
    """Copy what git tracks in a checkout, and run the stages before the trainings there."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(checkout / name, folder / name)
    for stage in PREPARATION:
        subprocess.run(
            [sys.executable, "-m", "pipelines", stage], cwd=folder, env=environment(folder), check=True
        )
    with (folder / CONFIG).open("a", encoding="utf-8") as file:
        file.write("log_config = dict(interval=1)\n")  # the curve shows each iteration
    return folder


def environment(project: Path) -> dict[str, str]:
    """The environment in which a project's own code runs, on a Ray of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": str(project), "CUDA_VISIBLE_DEVICES": ""}


def first_iteration(project: Path, name: str) -> Start:
    """Start a training, and end it after its first iteration.

    Raises:
        RuntimeError: the training ended before, or took longer than `LIMIT_SECONDS`.
    """
    command, curve = TRAININGS[name]
    for left in ("work_dir", ".dfvt/train", "mlartifacts"):
        shutil.rmtree(project / left, ignore_errors=True)
    (project / "mlflow.db").unlink(missing_ok=True)
    used: dict[int, float] = {}
    log = project / "training.log"
    with log.open("w", encoding="utf-8") as file:
        started = time.monotonic()
        process = psutil.Popen(
            [sys.executable, *command.split()],
            cwd=project,
            env=environment(project),
            stdout=file,
            stderr=file,
        )
        try:
            while not any(
                len(path.read_text(encoding="utf-8").splitlines()) > 1 for path in project.glob(curve)
            ):
                if process.poll() is not None or time.monotonic() > started + LIMIT_SECONDS:
                    raise RuntimeError(
                        f"{name} did not come to its first iteration: {log.read_text(encoding='utf-8')}"
                    )
                note_processors(process, used)
                time.sleep(SECONDS_BETWEEN_LOOKS)
            seconds = time.monotonic() - started
            note_processors(process, used)
        finally:
            process.terminate()
            process.wait()
    return Start(seconds, sum(used.values()), len(used))


def note_processors(root: psutil.Process, used: dict[int, float]) -> None:
    """Note the processor seconds of a process and those below it; one that has ended keeps its last ones."""
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        used[process.pid] = times.user + times.system


def machine() -> str:
    """Name what was measured on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return (
        f"{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
