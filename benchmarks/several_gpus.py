"""Whether trainings and evaluations are the same on several GPUs as on one, and how fast evaluations are.

Usage: python -m benchmarks.several_gpus COCO [--epochs 3] [--gpus 1,2,4] [--fast] [--cpu]

A training of `benchmarks.overfit` goes through on one GPU and, twice, on two; another one is stopped in its
middle on two and goes on on one, a third the other way; the global batch is the same. Their losses stand side
by side: what two equal trainings differ by is what the others may. Then the detector of the first is
evaluated on each number of GPUs, and its numbers compared. Losses are means of windows of four iterations;
of the window in which a training changed its GPUs only those after the change count.
Trainings share the machine, evaluations do not.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.arguments import VARIANTS, coco_folder, counts, whole, workers
from benchmarks.inference import of_images
from benchmarks.overfit import REPEATS, config_of, first_images
from benchmarks.processes import FailedProcessError, FreeGpus, beside, result_of

# For each training the numbers of GPUs of its halves; the first is looked at again by the evaluations.
TRAININGS = {"1": (1, 1), "2": (2, 2), "2 again": (2, 2), "2, then 1": (2, 1), "1, then 2": (1, 2)}
NUM_ROWS = 8
GLOBAL_BATCH = 8
WINDOW = 4  # iterations that a loss is the mean of
ANNOTATIONS = "annotations.json"


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("coco", type=coco_folder)
    parser.add_argument("--epochs", type=whole, default=3, help="of twenty passes each")
    parser.add_argument("--variant", default="tiny", choices=VARIANTS)
    parser.add_argument("--images", type=whole, default=64)
    parser.add_argument("--scale", type=int, nargs=2, default=(832, 640), metavar=("LONG", "SHORT"))
    parser.add_argument(
        "--gpus", type=counts, default="1,2,4", help="of evaluations; those that the machine lacks are named"
    )
    parser.add_argument("--workers", type=workers, default=8, help="loader processes a GPU")
    parser.add_argument(
        "--repeat", type=whole, default=16, help="of each image, for the speed of evaluations"
    )
    parser.add_argument("--fast", action="store_true", help="with all of configs/_base_/fast.py")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="of the config")
    parser.add_argument("--cpu", action="store_true", help="processes on the CPU, for a try")
    parser.add_argument("--one", type=json.loads, help="(for its own processes)")
    return parser.parse_args()


def train_half(device: Any, arguments: Namespace, folder: str, stop_after: int | None) -> None:
    """One process of a training, until an iteration or its end."""
    from mmcv.runner import get_dist_info

    from dfvt.engine.callbacks import Callback, StepRecord
    from dfvt.engine.console import quiet_libraries
    from dfvt.engine.curves import CurveFiles
    from dfvt.engine.hooks import TrainingStopped
    from dfvt.engine.train import train

    class Steps(Callback):
        last = 0

        def on_step(self, record: StepRecord) -> None:
            self.last = record.step

    quiet_libraries()
    rank, steps = get_dist_info()[0], Steps()
    arguments.batch = GLOBAL_BATCH // 2
    cfg = config_of(arguments, Path(folder, f"process{rank}"))
    cfg.merge_from_dict(
        {
            "data.workers_per_gpu": arguments.workers,
            "checkpoint_config.interval": 1,
            "log_config.interval": WINDOW,
        }
    )
    for split in ("train", "val", "test"):  # one file for all processes: a training that goes on asks for it
        cfg.data[split].get("dataset", cfg.data[split]).ann_file = str(Path(folder, ANNOTATIONS))
    with suppress(TrainingStopped):
        train(
            cfg,
            Path(folder),
            device=device,
            callbacks=[CurveFiles(Path(folder)), steps],
            stop_asked=lambda: stop_after is not None and steps.last >= stop_after,
            num_processes=2,
        )


def evaluate(device: Any, arguments: Namespace, folder: str) -> dict[str, float] | None:
    """One process of an evaluation, which sees all images once before it is measured."""
    import torch
    import torch.distributed as dist

    from dfvt.engine.console import quiet_libraries
    from dfvt.engine.evaluate import evaluate_model, predict
    from dfvt.engine.infer import load_detector

    quiet_libraries()
    arguments.batch = GLOBAL_BATCH
    cfg = config_of(arguments, Path(tempfile.mkdtemp()))
    model, dataset = load_detector(cfg, Path(folder, "checkpoint.pth"), device)
    evaluation = evaluate_model(model, dataset, device, num_workers=arguments.workers)
    repeated = of_images(dataset, None, arguments.repeat)
    if dist.is_initialized():
        dist.barrier()
    started = time.perf_counter()
    predict(model, repeated, device, num_workers=arguments.workers)
    seconds = time.perf_counter() - started
    if evaluation is None:
        return None
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"device": name, "images_per_second": len(repeated) / seconds, **evaluation.metrics}


def run_one(arguments: Namespace) -> None:
    """Half a training, or an evaluation, in processes of its own; prints what came of it as JSON."""
    import torch

    from dfvt.engine.launch import launch

    one = arguments.one
    names = ["cpu"] * one["gpus"] if arguments.cpu else [f"cuda:{index}" for index in range(one["gpus"])]
    devices = [torch.device(name) for name in names]
    if one["work"] == "train":
        launch(train_half, devices, arguments, one["folder"], one["stop_after"])
        result = None
    else:
        result = launch(evaluate, devices, arguments, one["folder"])
    print(json.dumps(result), flush=True)


def train_whole(arguments: Namespace, folder: Path, halves: tuple[int, int], free: FreeGpus) -> None:
    """A training on one number of GPUs, or on one until its middle and on another from there."""
    folder.mkdir()
    coco = arguments.coco / "annotations/instances_train2017.json"
    first_images(coco, arguments.images, folder / ANNOTATIONS)
    first, second = halves
    parts: list[tuple[int, int | None]] = [(second, None)]
    if first != second:
        half = arguments.epochs * REPEATS * arguments.images // GLOBAL_BATCH // 2
        parts.insert(0, (first, max(half // WINDOW, 1) * WINDOW))  # where a window of losses ends
    for number, stop_after in parts:
        with free.taken(number) as gpus:
            one = {"work": "train", "gpus": number, "folder": str(folder), "stop_after": stop_after}
            result_of("benchmarks.several_gpus", one, gpus)


def losses_of(folder: Path) -> dict[int, float]:
    """The training's loss after iterations, averages over four of them."""
    with (folder / "curve.csv").open(newline="", encoding="utf-8") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def main() -> None:
    arguments = parse()
    if arguments.one:
        return run_one(arguments)
    try:
        compare(arguments)
    except FailedProcessError as error:
        sys.exit(f"several_gpus: {error}")


def compare(arguments: Namespace) -> None:
    """Trainings and evaluations, and their tables.

    Raises:
        FailedProcessError: one of them failed.
    """
    import torch

    available = (os.cpu_count() or 1) if arguments.cpu else torch.cuda.device_count()
    if not available or min(arguments.gpus) > available:
        sys.exit(f"several_gpus: this machine has {available} GPUs; --cpu takes its processor, for a try")
    free = FreeGpus(available)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folders = {training: Path(name, f"training{number}") for number, training in enumerate(TRAININGS)}
        possible = [training for training, halves in TRAININGS.items() if max(halves) <= available]
        for training in TRAININGS.keys() - set(possible):
            print(f"{training}: not run, the machine has {available} GPU", file=sys.stderr)

        def run(training: str) -> None:
            train_whole(arguments, folders[training], TRAININGS[training], free)

        for training, _ in beside(len(possible), run, possible):
            print(f"{training}: trained", file=sys.stderr, flush=True)
        curves = {training: losses_of(folders[training]) for training in possible}
        steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
        print(f"losses of trainings with {GLOBAL_BATCH} images an iteration, by GPUs\n")
        print(f"| iterations | {' | '.join(curves)} |\n|{' ---: |' * (len(curves) + 1)}", flush=True)
        num_rows = min(NUM_ROWS, len(steps))
        for part in range(num_rows):
            window = steps[len(steps) * part // num_rows : len(steps) * (part + 1) // num_rows]
            means = [statistics.mean(curve[step] for step in window) for curve in curves.values()]
            first = max((step for step in steps if step < window[0]), default=0) + 1
            print(f"| {first}–{window[-1]} | {' | '.join(f'{mean:.3f}' for mean in means)} |", flush=True)
        print("\n| GPUs | img/s of an evaluation | times one | bbox_mAP | segm_mAP |\n|" + " ---: |" * 5)
        for number in arguments.gpus:
            if number > available:
                print(f"| {number} | not run: the machine has {available} | | | |")
                continue
            one = {"work": "evaluate", "gpus": number, "folder": str(folders["1"])}
            row = {"gpus": number, **result_of("benchmarks.several_gpus", one, range(number))}
            rows.append(row)
            speeds = [f"{row['images_per_second']:.1f}"]
            single = rows[0]["images_per_second"] if rows[0]["gpus"] == 1 else None
            speeds.append(f"{row['images_per_second'] / single:.2f}" if single else "")
            maps = [f"{row[f'{kind}_mAP']:.6f}" for kind in ("bbox", "segm")]
            print(f"| {' | '.join([str(number), *speeds, *maps])} |", flush=True)
    content = {"losses": curves, "evaluations": rows}
    Path(os.environ.get("OUT", "."), "several_gpus.json").write_text(
        json.dumps(content, indent=1), encoding="utf-8"
    )
    print(f"\n{rows[0]['device']}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
