"""What a training on many hosts would reach, from what `benchmarks.scaling` measured on one.

Usage: python -m benchmarks.scaling_model SCALING_JSON [--links 200 400] [--gpus-a-host 8] [--plot PNG]
       [--large-batch BATCH IMAGES_PER_SECOND]

A step takes as long as its computation on one GPU, the exchange of gradients that is not hidden behind it,
and the wait for the slowest of all processes. The first is measured with one GPU, the other two are measured
with the GPUs of one host, and continued:

- Gradients (float32) are summed up inside each host, then between hosts, then spread inside each host again,
  as NCCL does. The hosts' part sends 2·(H−1)/H of them through each host's link; each of a step's `MESSAGES`
  takes 2·log2(H) hops. None of that is hidden: a graph's gradients come all at once, after its backward pass.
  With a backward pass in several graphs, only the last one's gradients would have to be waited for.
- Of N processes the slowest is as late as the greatest of N normal numbers. What the GPUs of one host lose
  beyond the exchange says how large those are.

What is known by measurement is printed beside what the model says of it, and then what would help.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

from benchmarks.arguments import VARIANTS, positive, whole

LINK_EFFICIENCY = 0.8  # of what a link's name says, in all-reduces of large messages
HOP_SECONDS = 10e-6  # of a small message between two hosts
MESSAGES = 3  # of a step: losses, gradients, whether anybody is to stop
BACKWARD_SHARE = 0.5  # of a step's computation, in which gradients of earlier graphs can travel
REMEDIES_FOR = 64  # GPUs
COUNTS = (16, 32, 64, 128, 256, 512)
OF_ONE_HOST = (1, 2, 4, 8)
COCO_IMAGES = 117_266  # of train2017, those that have objects


@dataclass(frozen=True)
class Measured:
    """Of one host.

    Attributes:
        batch: images a GPU.
        step_seconds: of an iteration on one GPU.
        exchange_seconds: of gradients on `gpus` GPUs, beyond what is hidden.
        gradient_bytes: that each GPU has to give.
        late_seconds: with `gpus` GPUs without exchange, beyond `step_seconds`.
        gpus: of the host, that were measured together.
        backward_graphs: in which the gradients come, one after the other.
    """

    batch: int
    step_seconds: float
    exchange_seconds: float
    gradient_bytes: float
    late_seconds: float
    gpus: int
    backward_graphs: int = 1


@dataclass(frozen=True)
class Prediction:
    """Of a step on `gpus` GPUs, seconds of each part and images a second of all."""

    gpus: int
    compute: float
    exchange: float
    wait: float
    images_per_second: float
    efficiency: float


def lateness(num_processes: int) -> float:
    """By how many standard deviations the slowest of so many is late (Blom's approximation)."""
    if num_processes < 2:
        return 0.0
    return NormalDist().inv_cdf((num_processes - 0.375) / (num_processes + 0.25))


def between_hosts(num_hosts: int, num_bytes: float, gigabits: float) -> float:
    """Seconds of an all-reduce between hosts with one link of so many Gb/s each."""
    if num_hosts < 2:
        return 0.0
    return through_link(num_hosts, num_bytes, gigabits) + MESSAGES * 2 * math.log2(num_hosts) * HOP_SECONDS


def through_link(num_hosts: int, num_bytes: float, gigabits: float) -> float:
    """Those of the seconds in which the bytes pass."""
    return 2 * (num_hosts - 1) / num_hosts * num_bytes / (gigabits * 1e9 / 8 * LINK_EFFICIENCY)


def predict(measured: Measured, num_gpus: int, gigabits: float, gpus_a_host: int) -> Prediction:
    """The parts of a step on `num_gpus` GPUs in hosts of `gpus_a_host`.

    What was late on the measured host is late on each; it grows as the lateness of the slowest does.
    """
    num_hosts = -(-num_gpus // gpus_a_host)
    inside = measured.exchange_seconds if num_gpus > 1 else 0.0
    last = 1 / measured.backward_graphs
    outside = between_hosts(num_hosts, measured.gradient_bytes, gigabits)
    passing = through_link(num_hosts, measured.gradient_bytes, gigabits)
    hidden = min(passing, BACKWARD_SHARE * measured.step_seconds) * (1 - last)
    outside -= hidden
    wait = 0.0
    if num_gpus > 1:
        wait = measured.late_seconds * lateness(num_gpus) / lateness(measured.gpus)
    seconds = measured.step_seconds + inside + outside + wait
    speed = num_gpus * measured.batch / seconds
    efficiency = measured.step_seconds / seconds
    return Prediction(num_gpus, measured.step_seconds, inside + outside, wait, speed, efficiency)


def read(path: Path, variant: str) -> tuple[Measured, list[dict[str, float]]]:
    """What was measured of a variant, and its rows.

    Raises:
        ValueError: there is no row of one GPU, or none of several with and without the exchange, or a row
            lacks what it should have.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError("it is not what benchmarks.scaling leaves")
    rows = [row for row in content if row.get("variant") == variant and row.get("gradients", True)]
    for row, key in itertools.product(rows, ("gpus", "batch", "images_per_second", "gradient_bytes")):
        if not isinstance(row.get(key), int | float) or row[key] <= 0:
            raise ValueError(f"{key} of {variant} is {row.get(key)!r}, and must be a number above 0")
    single = next((row for row in rows if row["gpus"] == 1), None)
    several = [row for row in rows if row["gpus"] > 1 and row.get("gradients_share") is not None]
    if single is None or not several:
        raise ValueError(
            f"it lacks {variant} on one GPU, or on several with and without the exchange of gradients: "
            f"run benchmarks.scaling with --gpus 1,2 or more and --variants {variant}"
        )
    most = max(several, key=lambda row: row["gpus"])
    batch = int(single["batch"])
    step, together = (row["gpus"] * batch / row["images_per_second"] for row in (single, most))
    exchange = max(together * most["gradients_share"], 0.0)
    measured = Measured(
        batch=batch,
        step_seconds=step,
        exchange_seconds=exchange,
        gradient_bytes=single["gradient_bytes"],
        late_seconds=max(together - exchange - step, 0.0),
        gpus=int(most["gpus"]),
    )
    return measured, rows


def remedies(measured: Measured, large_batch: tuple[int, float] | None = None) -> dict[str, Measured]:
    """What could be done where the exchange takes long, by name: the same host with it.

    Args:
        measured: how it is.
        large_batch: images a GPU, and the images a second that one GPU does with them.
    """
    changes: dict[str, dict[str, float]] = {
        "gradients in 16 bits": {"gradient_bytes": measured.gradient_bytes / 2},
        "a backward pass in four graphs": {"backward_graphs": 4},
    }
    if large_batch:
        batch, speed = large_batch
        changes[f"batch {batch} a GPU"] = {"batch": batch, "step_seconds": batch / speed}
    found = {"as it is": measured}
    for name, change in changes.items():
        found[name] = replace(measured, **change)  # type: ignore[arg-type]
    all_changes = {key: value for change in changes.values() for key, value in change.items()}
    return {**found, "all of them": replace(measured, **all_changes)}  # type: ignore[arg-type]


def plot(
    predictions: dict[str, Sequence[Prediction]], measured: Sequence[tuple[int, float]], path: Path
) -> None:
    """Efficiency by number of GPUs, a line for each kind of link, and what was measured of one host."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, line in predictions.items():
        axes.plot([one.gpus for one in line], [100 * one.efficiency for one in line], marker=".", label=label)
    axes.plot(*zip(*measured, strict=True), "kx", label="measured")
    axes.set_xscale("log", base=2)
    ticks = OF_ONE_HOST + COUNTS
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 105))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--variant", default="tiny", choices=VARIANTS)
    parser.add_argument("--links", nargs="+", type=positive, default=[200.0, 400.0], help="Gb/s of a host")
    parser.add_argument("--gpus-a-host", type=whole, default=8)
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--large-batch",
        nargs=2,
        type=positive,
        metavar=("BATCH", "IMAGES_PER_SECOND"),
        help="of one GPU, measured by benchmarks.train_throughput: what it would do to many",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    try:
        measured, rows = read(arguments.measured, arguments.variant)
    except (OSError, ValueError) as error:
        sys.exit(f"scaling_model: {arguments.measured} cannot be used: {error}")
    print("| GPUs of one host | img/s measured | the model's | efficiency |\n|" + " ---: |" * 4)
    speeds = {int(row["gpus"]): row["images_per_second"] for row in rows}
    for count in sorted({*speeds, *(count for count in OF_ONE_HOST if count <= arguments.gpus_a_host)}):
        one = predict(measured, count, 1.0, count)
        speed = f"{speeds[count]:.1f}" if count in speeds else ""
        print(f"| {count} | {speed} | {one.images_per_second:.1f} | {one.efficiency:.1%} |")
    print(
        "\n| GPUs | link, Gb/s | step, ms | computes | exchanges | waits | img/s | efficiency | batch | "
        "iterations an epoch |\n|" + " ---: |" * 10
    )
    lines: dict[str, list[Prediction]] = {}
    for gigabits in arguments.links:
        counts = [count for count in OF_ONE_HOST if count <= arguments.gpus_a_host]
        line = [predict(measured, count, gigabits, arguments.gpus_a_host) for count in (*counts, *COUNTS)]
        lines[f"{gigabits:.0f} Gb/s a host"] = line
        for one in line[len(counts) :]:
            parts = [f"{1e3 * part:.1f}" for part in (one.compute, one.exchange, one.wait)]
            step = one.compute + one.exchange + one.wait
            batch = one.gpus * measured.batch
            cells = [str(one.gpus), f"{gigabits:.0f}", f"{1e3 * step:.1f}", *parts]
            cells += [f"{one.images_per_second:.0f}", f"{one.efficiency:.0%}", str(batch)]
            print(f"| {' | '.join([*cells, str(-(-COCO_IMAGES // batch))])} |")
    links = [f"{gigabits:.0f} Gb/s" for gigabits in arguments.links]
    print(f"\n| {REMEDIES_FOR} GPUs | {' | '.join(links)} |\n| --- |{' ---: |' * len(links)}")
    large = (int(arguments.large_batch[0]), arguments.large_batch[1]) if arguments.large_batch else None
    for name, with_it in remedies(measured, large).items():
        found = [predict(with_it, REMEDIES_FOR, link, arguments.gpus_a_host) for link in arguments.links]
        print(f"| {name} | {' | '.join(f'{one.efficiency:.0%}' for one in found)} |")
    if arguments.plot:
        single = measured.batch / measured.step_seconds
        points = [(gpus, 100 * speed / (gpus * single)) for gpus, speed in speeds.items()]
        try:
            plot(lines, points, arguments.plot)
        except (OSError, ValueError) as error:
            sys.exit(f"scaling_model: no plot in {arguments.plot}: {error}")


if __name__ == "__main__":
    main()
