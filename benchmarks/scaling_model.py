"""What a training on many hosts would reach, from what `benchmarks.scaling` measured on one.

Usage: python -m benchmarks.scaling_model SCALING_JSON [--links 200 400] [--gpus-a-host 8] [--plot PNG]

A step takes as long as its computation on one GPU, the exchange of gradients that is not hidden behind it,
and the wait for the slowest of all processes. The first is measured with one GPU, the other two are measured
with the GPUs of one host, and continued:

- Gradients (float32) are summed up inside each host, then between hosts, then spread inside each host again,
  as NCCL does. The hosts' part sends 2·(H−1)/H of them through each host's link; each of a step's `MESSAGES`
  takes 2·log2(H) hops. None of that is hidden: a graph's gradients come all at once, after its backward pass.
- Of N processes the slowest is as late as the greatest of N normal numbers. What the GPUs of one host lose
  beyond the exchange says how large those are.

What is known by measurement is printed beside what the model says of it.
"""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

LINK_EFFICIENCY = 0.8  # of what a link's name says, in all-reduces of large messages
HOP_SECONDS = 10e-6  # of a small message between two hosts
MESSAGES = 3  # of a step: losses, gradients, whether anybody is to stop
COUNTS = (16, 32, 64, 128, 256, 512)
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
    """

    batch: int
    step_seconds: float
    exchange_seconds: float
    gradient_bytes: float
    late_seconds: float
    gpus: int


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
    through_link = 2 * (num_hosts - 1) / num_hosts * num_bytes / (gigabits * 1e9 / 8 * LINK_EFFICIENCY)
    return through_link + MESSAGES * 2 * math.log2(num_hosts) * HOP_SECONDS


def predict(measured: Measured, num_gpus: int, gigabits: float, gpus_a_host: int) -> Prediction:
    """The parts of a step on `num_gpus` GPUs in hosts of `gpus_a_host`.

    What was late on the measured host is late on each; it grows as the lateness of the slowest does.
    """
    num_hosts = -(-num_gpus // gpus_a_host)
    inside = measured.exchange_seconds if num_gpus > 1 else 0.0
    outside = between_hosts(num_hosts, measured.gradient_bytes, gigabits)
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
        ValueError: there is no row of one GPU, or none of several with and without the exchange.
    """
    rows = [row for row in json.loads(path.read_text()) if row["variant"] == variant]
    single = next((row for row in rows if row["gpus"] == 1), None)
    several = [row for row in rows if row["gpus"] > 1 and row.get("gradients_share") is not None]
    if single is None or not several:
        raise ValueError(
            f"{path} has not what is needed of {variant}: run benchmarks.scaling with --gpus 1,2 or more"
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


def plot(predictions: dict[str, Sequence[Prediction]], path: Path) -> None:
    """Efficiency by number of GPUs, a line for each kind of link."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, line in predictions.items():
        axes.plot([one.gpus for one in line], [100 * one.efficiency for one in line], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set(xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--links", nargs="+", type=float, default=[200.0, 400.0], help="Gb/s of a host")
    parser.add_argument("--gpus-a-host", type=int, default=8)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    measured, rows = read(arguments.measured, arguments.variant)
    print("| GPUs of one host | img/s measured | the model's |\n| ---: | ---: | ---: |")
    for row in rows:
        expected = predict(measured, int(row["gpus"]), 1.0, int(row["gpus"]))
        print(f"| {row['gpus']} | {row['images_per_second']:.1f} | {expected.images_per_second:.1f} |")
    print(
        "\n| GPUs | link, Gb/s | step, ms | computes | exchanges | waits | img/s | efficiency | batch | "
        "iterations an epoch |\n|" + " ---: |" * 10
    )
    lines: dict[str, list[Prediction]] = {}
    for gigabits in arguments.links:
        line = [predict(measured, count, gigabits, arguments.gpus_a_host) for count in COUNTS]
        lines[f"{gigabits:.0f} Gb/s a host"] = line
        for one in line:
            parts = [f"{1e3 * part:.1f}" for part in (one.compute, one.exchange, one.wait)]
            step = one.compute + one.exchange + one.wait
            batch = one.gpus * measured.batch
            cells = [str(one.gpus), f"{gigabits:.0f}", f"{1e3 * step:.1f}", *parts]
            cells += [f"{one.images_per_second:.0f}", f"{one.efficiency:.0%}", str(batch)]
            print(f"| {' | '.join([*cells, str(-(-COCO_IMAGES // batch))])} |")
    if arguments.plot:
        plot(lines, arguments.plot)


if __name__ == "__main__":
    main()
