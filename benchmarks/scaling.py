"""How a training's speed grows with the number of GPUs of one host.

Usage: python -m benchmarks.scaling COCO [--gpus 1,2,4,8] [--variants tiny] [--batch 4] [--side …]

`COCO` is as for `benchmarks.train_throughput`, and so are the images, the recipe and the sides. Each row is a
training of its own, everything included, with as many processes as GPUs; the speed is the median of the
second half of its windows of ten iterations. The same training without the exchange of gradients says how
much of the time that takes, beyond what it hides behind the backward pass. With `--beside` trainings that
leave GPUs free share the machine, so that each GPU has the same share of the host in all of them. The table's
"host GiB a process" is of a training process with its loader processes, pages that they share divided among
them, "of them loading" the latter. What was measured is also in scaling.json, in the folder that the
environment's OUT names or the present one, as far as it has come; `--add` keeps what another call on the same
machine left there.

`--cpu` is a try, which says nothing of efficiency, as all processes share the cores:
`--cpu --gpus 1,2 --shrink 8 --workers 1 --batch 1 --seconds 150`.
"""

from __future__ import annotations

import itertools
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

from benchmarks.arguments import VARIANTS, coco_folder, counts, positive, whole, workers
from benchmarks.processes import FailedProcessError, FreeGpus, beside, result_of
from benchmarks.train_throughput import SIDES, config_of

COLUMNS = ("variant", "GPUs", "img/s", "a GPU", "efficiency", "gradients' share", "waits for data")
MORE = ("first window after", "GPU GiB", "host GiB a process", "of them loading")
# By variant, number of GPUs, and whether gradients are exchanged.
Measured = dict[tuple[str, int, bool], dict[str, Any]]


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("coco", type=coco_folder)
    parser.add_argument(
        "--gpus", type=counts, default="1,2,4,8", help="those that the machine lacks are named"
    )
    parser.add_argument("--variants", nargs="+", default=["tiny"], choices=VARIANTS)
    parser.add_argument(
        "--without-exchange",
        nargs="*",
        choices=VARIANTS,
        metavar="VARIANT",
        help="of these also trainings without it, which say what it takes; of all unless said, of none after "
        "the bare option",
    )
    parser.add_argument(
        "--beside", action="store_true", help="several trainings at once, on GPUs of their own"
    )
    parser.add_argument("--batch", type=whole, default=4, help="images a GPU")
    parser.add_argument("--side", choices=SIDES, help="graphs, on the CPU grouped, unless said")
    parser.add_argument("--seconds", type=positive, default=90.0, help="of each training, its start included")
    parser.add_argument("--workers", type=workers, default=14, help="loader processes a GPU")
    parser.add_argument("--options", type=json.loads, default={}, help="of every config, as JSON")
    parser.add_argument("--shrink", type=whole, default=1, help="divides the images' sides")
    parser.add_argument("--cpu", action="store_true", help="processes on the CPU")
    parser.add_argument("--add", action="store_true", help="to the scaling.json that is there")
    parser.add_argument("--one", type=json.loads, help="(for its own processes)")
    arguments = parser.parse_args()
    if arguments.side is None:
        arguments.side = "grouped" if arguments.cpu else "graphs"
    if arguments.without_exchange is None:
        arguments.without_exchange = arguments.variants
    return arguments


def work(device: Any, arguments: Namespace, folder: str, started: float) -> dict[str, Any]:
    """One process of a training; the first one returns what was measured."""
    import psutil
    import torch
    import torch.distributed as dist
    from mmcv.runner import get_dist_info

    from dfvt.engine.callbacks import Callback, StepRecord
    from dfvt.engine.console import quiet_libraries
    from dfvt.engine.gradients import GradientPlaces
    from dfvt.engine.hooks import TrainingStopped
    from dfvt.engine.infer import build_bare_detector
    from dfvt.engine.runner import DetectorRunner
    from dfvt.engine.train import train

    class Windows(Callback):
        def __init__(self) -> None:
            self.noted: list[tuple[float, StepRecord]] = []

        def on_step(self, record: StepRecord) -> None:
            self.noted.append((time.time() - started, record))

    quiet_libraries()
    one, windows = arguments.one, Windows()
    world_size = get_dist_info()[1]
    if not one["gradients"] and world_size > 1:
        DetectorRunner.gradient_sync = lambda self, *, last: self.model.no_sync()  # type: ignore[method-assign]
        GradientPlaces.average = lambda self: None  # type: ignore[method-assign]
    options = {"data.workers_per_gpu": arguments.workers, **SIDES[arguments.side], **arguments.options}
    cfg = config_of(arguments.coco, one["variant"], arguments.batch, options, arguments.shrink)
    memory: list[tuple[float, float]] = []

    def stop_asked() -> bool:
        over = time.time() - started > arguments.seconds
        if over and not memory:  # before the loader's processes end
            process = psutil.Process()
            parts = [one.memory_full_info().pss / 2**30 for one in (process, *process.children())]
            memory.append((sum(parts), sum(parts[1:])))
        return over

    with suppress(TrainingStopped):
        train(cfg, Path(folder), device=device, callbacks=[windows], stop_asked=stop_asked)
    gathered: list[Any] = [memory]
    if world_size > 1:
        gathered = [None] * world_size
        dist.all_gather_object(gathered, memory)
    if len(windows.noted) < 2:
        return {}  # of a process that notes nothing, or of a training that was too short
    counted = [record for _, record in windows.noted[len(windows.noted) // 2 :]]
    cuda = device.type == "cuda"
    noted = [values[0] for values in gathered if values]
    images = arguments.batch * world_size
    parameters = [one.numel() for one in build_bare_detector(cfg).parameters() if one.requires_grad]
    return {
        **one,
        "device": device_name(not cuda),
        "torch": torch.__version__,
        "images_per_second": statistics.median(record.images_per_second for record in counted),
        "batch": arguments.batch,
        "windows": len(counted),
        "gradient_bytes": 4 * sum(parameters),
        "data_share": statistics.median(
            record.data_seconds * record.images_per_second / images for record in counted
        ),
        "first_window_after_seconds": windows.noted[0][0],
        "gpu_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
        "host_gib": statistics.mean(all_of_it for all_of_it, _ in noted) if noted else None,
        "loading_gib": statistics.mean(loading for _, loading in noted) if noted else None,
    }


def device_name(cpu: bool) -> str:
    """The kind of GPU that this machine has."""
    import torch

    return "CPU" if cpu else torch.cuda.get_device_name()


def run_one(arguments: Namespace, started: float) -> None:
    """One training, in processes of its own; prints what it measured as JSON."""
    import torch

    from dfvt.engine.launch import launch

    number = arguments.one["gpus"]
    names = ["cpu"] * number if arguments.cpu else [f"cuda:{index}" for index in range(number)]
    with tempfile.TemporaryDirectory() as folder:
        result = launch(work, [torch.device(name) for name in names], arguments, folder, started)
    print(json.dumps(result), flush=True)


def measure(arguments: Namespace, one: dict[str, Any], gpus: list[int]) -> dict[str, Any] | None:
    """What a training in processes of its own on these GPUs printed; None if it failed, after saying why."""
    try:
        result = result_of("benchmarks.scaling", one, gpus)
        if not result:
            raise FailedProcessError(f"no two windows in {arguments.seconds:.0f} s")
    except FailedProcessError as error:
        print(f"{name_of(one)}: failed: {error}", file=sys.stderr, flush=True)
        return None
    speed, windows = result["images_per_second"], result["windows"]
    print(f"{name_of(one)}: {speed:.1f} img/s, of {windows} windows", file=sys.stderr, flush=True)
    return result


def name_of(one: dict[str, Any]) -> str:
    """A training, for the user."""
    exchange = "" if one["gradients"] else " without exchange"
    return f"{one['variant']} on {one['gpus']}{exchange}"


def row_of(measured: Measured, variant: str, count: int) -> dict[str, Any]:
    """What was measured, with what it is beside a training on one GPU and one that exchanges nothing."""
    result = measured[variant, count, True]
    single, alone = (
        measured.get(key, {}).get("images_per_second")
        for key in ((variant, 1, True), (variant, count, False))
    )
    speed = result["images_per_second"]
    return {
        **result,
        "efficiency": speed / (count * single) if single else None,
        # files of earlier versions have it, and not what it is made from
        "gradients_share": 1 - speed / alone if alone else result.get("gradients_share"),
    }


def file_of_results() -> Path:
    """Where what was measured is written."""
    return Path(os.environ.get("OUT", "."), "scaling.json")


def earlier(path: Path) -> Measured:
    """What another call left there; nothing if there was none.

    Raises:
        ValueError: it is not what this benchmark leaves.
    """
    if not path.exists():
        return {}
    try:
        return {
            (row["variant"], row["gpus"], row["gradients"]): row
            for row in json.loads(path.read_text(encoding="utf-8"))
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not what benchmarks.scaling leaves: move it away") from error


def write(measured: Measured, path: Path) -> None:
    """The rows that there are so far, so that a run that is cut off leaves them."""
    keys = sorted(measured, key=lambda key: (VARIANTS.index(key[0]), key[1], not key[2]))
    rows = [
        row_of(measured, variant, count) if gradients else measured[variant, count, gradients]
        for variant, count, gradients in keys
    ]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def cells_of(result: dict[str, Any]) -> list[str]:
    """A row of the table."""
    speed, count = result["images_per_second"], result["gpus"]
    shares = result["efficiency"], result["gradients_share"]
    return [
        *(result["variant"], str(count), f"{speed:.1f}", f"{speed / count:.1f}"),
        *("" if share is None else f"{share:.1%}" for share in shares),
        f"{result['data_share']:.0%}",
        f"{result['first_window_after_seconds']:.0f} s",
        f"{result['gpu_gib']:.1f}" if result["gpu_gib"] else "",
        *(f"{result[name]:.1f}" if result[name] else "" for name in ("host_gib", "loading_gib")),
    ]


def main() -> None:
    started = time.time()
    arguments = parse()
    if arguments.one:
        run_one(arguments, started)
        return
    import torch

    there = (os.cpu_count() or 1) if arguments.cpu else torch.cuda.device_count()
    if not there:
        sys.exit("scaling: this machine has no GPU; --cpu takes its processor, for a try")
    trainings = [
        {"variant": variant, "gpus": count, "gradients": gradients}
        for gradients in (True, False)
        for count in sorted(arguments.gpus, reverse=True)
        for variant in dict.fromkeys(arguments.variants if gradients else arguments.without_exchange)
        if count <= there and (gradients or count > 1)
    ]
    has = f"the machine has {there} {'processors' if arguments.cpu else 'GPUs'}"
    if not trainings:
        sys.exit(f"scaling: {has}, fewer than each number of --gpus")
    path = file_of_results()
    if path.exists() and not arguments.add:
        sys.exit(f"scaling: {path} is there: move it away, or --add to it")
    try:
        measured = earlier(path)
    except ValueError as error:
        sys.exit(f"scaling: {error}")
    free = FreeGpus(there)

    def run(one: dict[str, Any]) -> dict[str, Any] | None:
        with free.taken(one["gpus"]) as own:
            return measure(arguments, one, own)

    alike = {"batch": arguments.batch, "torch": torch.__version__, "device": device_name(arguments.cpu)}
    for row, (name, own) in itertools.product(measured.values(), alike.items()):
        if row.get(name) != own:
            sys.exit(f"scaling: {path} has rows of {name} {row.get(name)}, here it is {own}: move it away")
    failed = 0
    for one, result in beside(len(trainings) if arguments.beside else 1, run, trainings):
        if result is None:
            failed += 1
            continue
        measured[one["variant"], one["gpus"], one["gradients"]] = result
        write(measured, path)
    print(f"| {' | '.join((*COLUMNS, *MORE))} |\n|{' --- |' * len(COLUMNS + MORE)}", flush=True)
    for variant in arguments.variants:
        for count in arguments.gpus:
            if (variant, count, True) in measured:
                cells = cells_of(row_of(measured, variant, count))
            else:
                why = has if count > there else "it failed"
                cells = [variant, str(count), f"not run: {why}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    for result in list(measured.values())[:1]:
        print(f"\n{result['device']}, torch {result['torch']}, batch {arguments.batch} a GPU")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
