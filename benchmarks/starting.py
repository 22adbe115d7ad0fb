"""How long commands of `dfvt` take that do little: what they take goes to imports.

Usage: python -m benchmarks.starting [--beside CHECKOUT] [--rounds 5]

Each command runs in processes of its own on a small project that is made for it: four runs in an MLflow
store, a sweep of two trials, and a few generated images. With `--beside` another checkout's commands run too,
with the Python of its `.venv`, in turns with those of this one. The first run of each command is not counted:
it compiles bytecode and fills the caches of the file system. Numbers are medians over the rounds. Processor
time is that of all threads and child processes, in user and system mode.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.arguments import whole
from dfvt.cluster.records import RECORD, SWEEPS, TRIALS, note_spec
from dfvt.cluster.spec import SweepSpec
from dfvt.data.shapes import generate_shapes
from dfvt.data.storage import Mirror
from dfvt.tracking.mlflow import RunRecorder

ROOT = Path(__file__).parents[1]
CONFIG = "configs/DFvT/maskrcnn_DFvT_tiny_1x_coco.py"  # of the checkout that runs
COMMANDS = (
    "--help",
    "--version",
    "profile --help",
    "sweep status search",
    "data check shapes",
    "runs find",
    "compare",
    "doctor",
    f"profile {CONFIG}",
    f"profile {CONFIG} --cfg-options model.backbone.drop_path_rate=0.1",
)
FREE = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")


@dataclass(frozen=True)
class Times:
    """Seconds of one process, or medians of several."""

    processor: float
    wall: float

    @classmethod
    def median(cls, times: Sequence[Times]) -> Times:
        return cls(
            statistics.median(one.processor for one in times), statistics.median(one.wall for one in times)
        )


def make_project(folder: Path) -> None:
    """Fill a folder with what the commands look at."""
    generate_shapes(folder / "shapes", num_train=8, num_val=4, height=64, width=80)
    spec = SweepSpec.model_validate({"name": "search", "num_samples": 2})
    note_spec(spec, Mirror(folder / SWEEPS / "search"))
    for number in range(2):  # with the keys that earlier versions know too
        record = {"name": f"{number:04}", "assignment": {"variant": "tiny"}, "mlflow_run_id": f"run{number}"}
        trial = folder / SWEEPS / "search" / TRIALS / f"{number:04}"
        trial.mkdir(parents=True)
        (trial / RECORD).write_text(json.dumps({**record, "status": "finished"}), encoding="utf-8")
    for number in range(4):
        recorder = RunRecorder.open(
            f"sqlite:///{folder}/mlflow.db",
            "dfvt",
            artifact_root=folder / "mlartifacts",
            run_name=f"run {number}",
            tags={"dfvt.variant": "tiny", "dfvt.profile": "mini"},
            params={"seed": number, "lr": 1e-3 * (1 + number)},
        )
        recorder.log_curve((step, {"bbox_mAP": 0.01 * step}) for step in range(20))
        recorder.finish()


def measure(checkout: Path, command: str, project: Path) -> Times:
    """Run a command of a checkout in the project.

    Raises:
        SystemExit: the command fails.
    """
    python = checkout / ".venv/bin/python"
    words = [str(checkout / word) if word == CONFIG else word for word in command.split()]
    environment = {name: value for name, value in os.environ.items() if name not in FREE}
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            [python if python.exists() else sys.executable, "-m", "dfvt", *words],
            cwd=project,
            env={**environment, "PYTHONPATH": str(checkout)},
            stdout=said,
            stderr=said,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # it is known, so that Popen does not wait too
        if process.returncode:
            said.seek(0)
            sys.exit(f"dfvt {command} of {checkout} failed: {said.read().decode(errors='replace')}")
    return Times(usage.ru_utime + usage.ru_stime, wall)


def machine() -> str:
    """The processor, how many cores it has, and how busy they are."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return (
        f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the beginning"
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another one, such as an older one")
    parser.add_argument("--rounds", type=whole, default=5)
    options = parser.parse_args()
    sides = (
        {"after": ROOT} if options.beside is None else {"before": options.beside.absolute(), "after": ROOT}
    )
    header = [f"{what}, {side}" for what in ("processor, s", "wall, s") for side in sides]
    print(f"Taken on {datetime.now(UTC):%Y-%m-%d} on {machine()}; medians of {options.rounds}.\n")
    print(f"| command | {' | '.join(header)} |\n| --- |{' ---: |' * len(header)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_project(Path(folder))
        for command in COMMANDS:
            times: dict[str, list[Times]] = {side: [] for side in sides}
            for number in range(options.rounds + 1):
                for side in list(sides)[:: 1 if number % 2 else -1]:
                    times[side].append(measure(sides[side], command, Path(folder)))
            medians = [Times.median(of_side[1:]) for of_side in times.values()]
            cells = [f"{one.processor:.2f}" for one in medians] + [f"{one.wall:.2f}" for one in medians]
            print(f"| `dfvt {command.replace(CONFIG, 'CONFIG')}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
