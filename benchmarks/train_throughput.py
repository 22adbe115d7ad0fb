"""Images a second of whole trainings on real images: mmdet's own heads and pipeline beside the fast ones.

Usage: python -m benchmarks.train_throughput COCO [--variants tiny small base] [--batches 4 8] [--sides …]

`COCO` holds `annotations/instances_train2017.json` and `train2017/`; its images are repeated. Everything of a
training is included: loading, transfer, forward, backward, optimiser, logging. Each side is a process of its
own. Of the windows of ten iterations the first half is warm-up; the number is the median of the others.

Sides are `SIDES` below: `stock` is mmdet's path with a few canvases, and unless said it is compared with
`graphs`, which is `configs/_base_/fast.py`; without a GPU with `grouped`, the same without CUDA graphs. A try
on a CPU: `--shrink 8 --variants tiny --batches 1 --seconds 120 --workers 1`. "Waits for data" is the share of
the time in which no batch had come, "steady after" when, from the start of the process, a window was first
within a tenth of the final speed. What was measured is also written to train_throughput.json, in OUT.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.arguments import VARIANTS, coco_folder, positive, whole, workers
from benchmarks.processes import FailedProcessError, result_of

CONFIGS = Path(__file__).parents[1] / "configs"
WINDOW = 10
# The recipe crops landscapes to portraits: a batch may have both. The six cost 25 % more pixels than none.
SIX = [(800, 1088), (800, 1344), (1088, 800), (1344, 800), (1088, 1088), (1344, 1344)]
TEN = [
    *((608, 800), (608, 1088), (800, 800), (800, 1088), (800, 1344)),
    *((800, 608), (1088, 608), (1088, 800), (1344, 800), (1344, 1344)),
]
# Both sides get few shapes: without them the stock path would wait for cuDNN at nearly every batch.
COMMON: dict[str, Any] = {"canvases": SIX}
HEADS = {**COMMON, "fast_heads": True}
BYTES = {**HEADS, "normalize_on_device": True}
LAST = {**BYTES, "channels_last": True}
GROUPED = {**LAST, "canvases": TEN, "group_by_canvas": True}
SIDES: dict[str, dict[str, Any]] = {
    "stock": COMMON,
    "heads": HEADS,
    "bytes": BYTES,
    "channels_last": LAST,
    "grouped": GROUPED,
    "graphs": {**GROUPED, "cuda_graphs": True},
    "compiled": {**GROUPED, "cuda_graphs": True, "compile_backbone": {"dynamic": True}},
}


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("coco", type=coco_folder)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--batches", nargs="+", type=whole, default=[4])
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, help="stock and graphs (CPU: grouped) unless said"
    )
    parser.add_argument("--seconds", type=positive, default=90.0, help="of each training, its start included")
    parser.add_argument("--workers", type=workers, default=14, help="loader processes")
    parser.add_argument("--options", type=json.loads, default={}, help="of every config, as JSON")
    parser.add_argument(
        "--shrink", type=whole, default=1, help="divides the images' sides, for a try on a CPU"
    )
    parser.add_argument("--profile", action="store_true", help="kernels, waits and busy time of a window too")
    parser.add_argument("--loader", action="store_true", help="the fast side's loader alone, nothing else")
    parser.add_argument("--one", type=json.loads, help="(for its own processes)")
    return parser.parse_args()


def divide(value: Any, by: int) -> Any:
    """The sizes of a pipeline's steps, divided."""
    if isinstance(value, dict):
        sizes = ("img_scale", "crop_size")
        return {key: _sizes(one, by) if key in sizes else divide(one, by) for key, one in value.items()}
    return [divide(one, by) for one in value] if isinstance(value, list) else value


def _sizes(value: Any, by: int) -> Any:
    return type(value)(_sizes(one, by) for one in value) if isinstance(value, list | tuple) else value // by


def config_of(coco: Path, variant: str, batch: int, options: dict[str, Any], shrink: int = 1) -> Any:
    """The published recipe on the images of `coco`, repeated, without validations and checkpoints.

    `options` hold the canvases, whose sides and those of the recipe are divided by `shrink`.
    """
    from dfvt.engine.config import load_config

    cfg = load_config(CONFIGS / f"DFvT/maskrcnn_DFvT_{variant}_1x_coco.py")
    data = cfg.data.train
    data.update(
        ann_file=str(coco / "annotations/instances_train2017.json"),
        img_prefix=str(coco / "train2017"),
        pipeline=divide(data.pipeline, shrink),
    )
    cfg.data.val.update(ann_file=data.ann_file, img_prefix=data.img_prefix)  # never evaluated
    cfg.data.train = {"type": "RepeatDataset", "times": 1000, "dataset": data}
    cfg.merge_from_dict(
        {
            "data.samples_per_gpu": batch,
            "evaluation.interval": 0,
            "checkpoint_config.interval": 0,
            "log_config.interval": WINDOW,
            "optimizer.lr": 1e-5,  # from random weights: nothing is to be learned here
            **options,
        }
    )
    cfg.canvases = [[-(-side // (32 * shrink)) * 32 for side in canvas] for canvas in cfg.canvases]
    return cfg


def run_one(arguments: Namespace) -> None:
    """Trains one side, and prints what it measured as JSON."""
    started = time.perf_counter()
    import torch

    from dfvt.engine.callbacks import Callback, StepRecord
    from dfvt.engine.console import quiet_libraries
    from dfvt.engine.hooks import TrainingStopped
    from dfvt.engine.infer import choose_device
    from dfvt.engine.train import train

    class Windows(Callback):
        """Notes each window, and profiles one in the middle if asked to."""

        def __init__(self) -> None:
            self.noted: list[tuple[float, StepRecord]] = []
            self.profiler: Any = None
            self.profiled: dict[str, Any] = {}

        def on_step(self, record: StepRecord) -> None:
            now = time.perf_counter() - started
            if self.profiler is not None:
                torch.cuda.synchronize()
                self.profiler.stop()
                seconds = now - self.noted[-1][0]
                self.profiled, self.profiler = summary(self.profiler, seconds), None
            else:
                self.noted.append((now, record))
            half = arguments.seconds / 2
            if arguments.profile and torch.cuda.is_available() and not self.profiled and now > half:
                self.profiler = torch.profiler.profile()
                self.profiler.start()
                self.noted.append((time.perf_counter() - started, record))

    side = arguments.one
    quiet_libraries()
    device = choose_device("auto")
    cfg = config_of(
        arguments.coco,
        side["variant"],
        side["batch"],
        {"data.workers_per_gpu": arguments.workers, **SIDES[side["side"]], **arguments.options},
        arguments.shrink,
    )
    windows = Windows()
    with tempfile.TemporaryDirectory() as folder, suppress(TrainingStopped):
        train(
            cfg,
            Path(folder),
            device=device,
            callbacks=[windows],
            stop_asked=lambda: time.perf_counter() - started > arguments.seconds,
        )
    if len(windows.noted) < 2:
        raise SystemExit(
            f"{len(windows.noted)} of at least 2 windows of {WINDOW} iterations in {arguments.seconds:.0f} s:"
            " raise --seconds"
        )
    counted = windows.noted[len(windows.noted) // 2 :]
    speed = statistics.median(record.images_per_second for _, record in counted)
    cuda = device.type == "cuda"
    result = {
        **side,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "images_per_second": speed,
        "windows": len(counted),
        "data_share": statistics.median(
            record.data_seconds * record.images_per_second / side["batch"] for _, record in counted
        ),
        "steady_after_seconds": next(
            (at for at, record in windows.noted if record.images_per_second > 0.9 * speed), None
        ),
        "gpu_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
        "loss": counted[-1][1].losses["loss"],
        **windows.profiled,
    }
    print(json.dumps(result), flush=True)


def run_loader(arguments: Namespace) -> None:
    """Takes batches for the time of a training, and prints how many images came a second."""
    import torch

    from dfvt.data.forecast import canvas_forecast
    from dfvt.data.loading import EpochBatchSampler, build_train_loader
    from dfvt.engine.console import quiet_libraries
    from dfvt.engine.datasets import build_coco_dataset
    from dfvt.engine.images import canvases_of, images_of

    quiet_libraries()
    batch = arguments.batches[0]
    options = {**SIDES["graphs"], **arguments.options}
    cfg = config_of(arguments.coco, arguments.variants[0], batch, options, arguments.shrink)
    data, _ = images_of(cfg)
    dataset, canvases = build_coco_dataset(data, test_mode=False), canvases_of(cfg)
    forecast = canvas_forecast(dataset, canvases)
    loader = build_train_loader(
        dataset,
        EpochBatchSampler(dataset.flag, batch, seed=0, canvases_of=forecast),
        arguments.workers,
        pin_memory=torch.cuda.is_available(),
        canvases=canvases,
        pack_masks=True,
    )
    windows: list[float] = []
    started = before = time.perf_counter()
    for number, _ in enumerate(loader, 1):
        if number % WINDOW == 0:
            now = time.perf_counter()
            windows.append(WINDOW * batch / (now - before))
            before = now
            if now - started > arguments.seconds:
                break
    half = windows[len(windows) // 2 :]
    print(f"loader alone: {statistics.median(half):.0f} img/s with {arguments.workers} processes", flush=True)


def summary(profiler: Any, seconds: float) -> dict[str, Any]:
    """Of a profiled window: kernels and waits an iteration, the share of time that the GPU was busy, and
    milliseconds, calls and names of the kernels that took the longest."""
    events = profiler.events()
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    totals: dict[str, list[float]] = {}
    for event in kernels:
        total = totals.setdefault(event.name[:120], [0.0, 0.0])
        total[0] += event.device_time_total * 1e-3 / WINDOW
        total[1] += 1 / WINDOW
    return {
        "slowest_kernels": sorted(([*total, name] for name, total in totals.items()), reverse=True)[:40],
        "launches_a_step": sum("Launch" in event.name and event.name[:2] == "cu" for event in events)
        / WINDOW,
        "kernels_a_step": len(kernels) / WINDOW,
        "waits_a_step": sum(event.name in waits for event in events) / WINDOW,
        "gpu_busy": sum(event.device_time_total for event in kernels) * 1e-6 / seconds,
    }


def main() -> None:
    arguments = parse()
    if arguments.one:
        run_one(arguments)
        return
    if arguments.loader:
        run_loader(arguments)
        return
    import torch

    sides = arguments.sides or ["stock", "graphs" if torch.cuda.is_available() else "grouped"]
    failed = False
    columns = ("variant", "batch", "side", "img/s", "x stock", "waits for data", "steady after", "GPU GiB")
    extra = ("kernels a step", "launches a step", "waits a step", "GPU busy") if arguments.profile else ()
    print(f"| {' | '.join((*columns, *extra))} |\n|{' --- |' * len(columns + extra)}", flush=True)
    results: list[dict[str, Any]] = []
    for variant in arguments.variants:
        for batch in arguments.batches:
            stock = None
            for side in sides:
                one = {"variant": variant, "batch": batch, "side": side}
                try:
                    result = result_of("benchmarks.train_throughput", one)
                except FailedProcessError as error:
                    failed = True
                    why = str(error).splitlines()[-1]
                    rest = " |" * (len(columns + extra) - 4)
                    print(f"| {variant} | {batch} | {side} | failed: {why} |{rest}", flush=True)
                    if why != str(error):
                        print(error, file=sys.stderr, flush=True)
                    continue
                results.append(result)
                stock = result["images_per_second"] if side == "stock" else stock
                cells = [
                    *(variant, str(batch), side, f"{result['images_per_second']:.1f}"),
                    f"{result['images_per_second'] / stock:.2f}" if stock else "",
                    f"{result['data_share']:.0%}",
                    f"{result['steady_after_seconds']:.0f} s",
                    f"{result['gpu_gib']:.1f}" if result["gpu_gib"] else "",
                ]
                if "gpu_busy" in result:
                    cells += [f"{result[f'{what}_a_step']:.0f}" for what in ("kernels", "launches", "waits")]
                    cells += [f"{result['gpu_busy']:.0%}"]
                print(f"| {' | '.join(cells)} |", flush=True)
    if results:
        print(f"\n{results[0]['device']}, torch {results[0]['torch']}, {arguments.workers} loader processes")
        Path(os.environ.get("OUT", "."), "train_throughput.json").write_text(
            json.dumps(results, indent=1), encoding="utf-8"
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
