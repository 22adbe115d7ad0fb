"""What the MLflow run of a training costs it: the same training with and without one, in turns.

Usage: python -m benchmarks.tracking_overhead [--rounds 3] [--interval 50]

The mini DFvT-T trains on generated images under Ray, as a stage does, its run in an SQLite store on this
machine. The time of an iteration is the median over the records of a training, the cost that over the rounds.
Where the noise is larger than that, the last column says what is surely used: the CPU time of all calls
of the callback that logs, as a share of the training's time. `--interval 1` logs every iteration.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

from dfvt.cluster.mlflow_curves import MlflowCurves
from dfvt.cluster.session import ray_session
from dfvt.cluster.train import run_training
from dfvt.cluster.training_job import TrainingJob
from dfvt.data.coco import describe_dataset
from dfvt.data.shapes import generate_shapes
from dfvt.engine.callbacks import Callback, StepRecord
from dfvt.engine.config import load_config, use_dataset
from dfvt.engine.config_text import config_text
from dfvt.tracking.mlflow import RunRecorder

CONFIG = Path(__file__).parents[1] / "configs/mini/maskrcnn_DFvT_tiny_mini.py"
BATCH = 4


class Pace(Callback):
    """Notes the time of an iteration of each record, and all of them together."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        self.seconds.append(BATCH / record.images_per_second)


class Counted(MlflowCurves):
    """Counts the CPU time of its calls, which all come from one thread of this process."""

    cpu_seconds = 0.0

    def on_step(self, record: StepRecord) -> None:
        started = time.thread_time()
        super().on_step(record)
        self.cpu_seconds += time.thread_time() - started

    def on_end(self, checkpoint: Path) -> None:
        started = time.thread_time()
        super().on_end(checkpoint)
        self.cpu_seconds += time.thread_time() - started


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=int, default=50, help="iterations of a record")
    parser.add_argument("--images", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ray_session() as connected:
        connected()
        home = Path(folder)
        generate_shapes(home / "data", num_train=arguments.images, num_val=4, height=128, width=160)
        paths = {f"{split}_images": f"{split}2017" for split in ("train", "val")}
        paths |= {
            f"{split}_annotations": f"annotations/instances_{split}2017.json" for split in ("train", "val")
        }
        manifest = describe_dataset("mini", home / "data", generated=True, **paths)
        cfg = load_config(
            CONFIG,
            {
                "runner.max_epochs": 1,
                "evaluation.interval": 0,
                "data.samples_per_gpu": BATCH,
                "log_config.interval": arguments.interval,
            },
        )
        use_dataset(cfg, manifest)
        store = f"sqlite:///{home / 'mlflow.db'}"
        titles = ("round", "without, ms", "with a run, ms", "more", "records", "CPU of logging")
        print(f"| {' | '.join(titles)} |\n|" + " ---: |" * len(titles), flush=True)
        costs, shares = [], []
        for number in range(arguments.rounds):
            medians = {}
            sides = (False, True) if number % 2 == 0 else (True, False)
            for tracked in sides:
                pace, callbacks = Pace(), list[Callback]()
                callbacks.append(pace)
                if tracked:
                    recorder = RunRecorder.open(
                        store,
                        "overhead",
                        artifact_root=home / "artifacts",
                        run_name=str(number),
                        tags={},
                        params={},
                    )
                    callbacks.append(counted := Counted(recorder))
                job = TrainingJob(
                    config=config_text(cfg),
                    work_dir=home / f"{number}-{tracked}",
                    seed=0,
                    num_workers=1,
                    use_gpu=False,
                    lineage={},
                    cpus_per_worker=1,
                )
                run_training(job, callbacks)
                if tracked:
                    shares.append(counted.cpu_seconds / (sum(pace.seconds) * arguments.interval))
                medians[tracked] = statistics.median(pace.seconds)
                time.sleep(1)  # Ray Train puts its actors away
            costs.append(medians[True] / medians[False] - 1)
            print(
                f"| {number + 1} | {1000 * medians[False]:.1f} | {1000 * medians[True]:.1f} | "
                f"{costs[-1]:+.1%} | {len(pace.seconds)} | {shares[-1]:.2%} |",
                flush=True,
            )
        print(
            f"\nmedian: {statistics.median(costs):+.2%}, CPU of logging {statistics.median(shares):.2%}, "
            f"a record every {arguments.interval} iterations"
        )


if __name__ == "__main__":
    main()
