"""How long the check of a data set of COCO's size takes, and what memory.

The annotations are made up: outlines of 5 and more corners (26 in the mean), crowds in run lengths. The
images are links to a few small ones, so that their headers are read, but hardly from a disk.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from argparse import ArgumentParser
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dfvt.data.coco import find_splits
from dfvt.data.validation import OFFICIAL, check_splits

SIZES = ((640, 480), (480, 640), (640, 427), (500, 375))
CROWD_EVERY = 86  # annotations, as in COCO


def generate(root: Path) -> None:
    """A data set with as many images and annotations as COCO 2017."""
    rng = np.random.default_rng(0)
    first = 1
    for file, (num_images, num_annotations) in OFFICIAL.items():
        split = file.removeprefix("instances_").removesuffix(".json")
        images = make_images(root, split, num_images, first, rng)
        first += num_images
        owners = np.sort(rng.integers(0, num_images, num_annotations))
        content = {
            "images": images,
            "annotations": [make_annotation(images[o], n, rng) for n, o in enumerate(owners, 1)],
            "categories": [{"id": number + 1, "name": f"class {number}"} for number in range(80)],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / file).write_text(json.dumps(content), encoding="utf-8")


def make_images(
    root: Path, split: str, num_images: int, first: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    (root / split).mkdir(parents=True)
    for index, (width, height) in enumerate(SIZES):
        noise = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height)).save(root / f"{split}_{index}.jpg", quality=60)
    images = []
    for index in range(num_images):
        name = f"{first + index:012d}.jpg"
        os.link(root / f"{split}_{index % len(SIZES)}.jpg", root / split / name)
        width, height = SIZES[index % len(SIZES)]
        url = f"http://images.cocodataset.org/{split}/{name}"
        images.append(
            {"id": first + index, "file_name": name, "coco_url": url, "height": height, "width": width}
        )
    return images


def make_annotation(image: dict[str, Any], number: int, rng: np.random.Generator) -> dict[str, Any]:
    height, width = image["height"], image["width"]
    radius = np.exp(rng.uniform(np.log(4), np.log(min(height, width) / 2.2)))
    centre = rng.uniform((radius, radius), (width - radius, height - radius))
    crowd = number % CROWD_EVERY == 0
    segmentation: Any
    if crowd:
        left, top = (int(value - radius) for value in centre)
        side = int(2 * radius)
        counts = [left * height + top] + [side, height - side] * side
        counts[-1] = height * width - sum(counts[:-1])
        segmentation, bbox, area = (
            {"size": [height, width], "counts": counts},
            [left, top, side, side],
            side**2,
        )
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.geometric(1 / 22) + 4))
        distances = radius * rng.uniform(0.7, 1, len(angles))
        x, y = (
            (centre[0] + distances * np.cos(angles)).round(2),
            (centre[1] + distances * np.sin(angles)).round(2),
        )
        segmentation = [np.stack([x, y], axis=1).ravel().tolist()]
        bbox = [float(value) for value in (x.min(), y.min(), np.ptp(x), np.ptp(y))]
        area = float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": number % 80 + 1,
        "bbox": bbox,
        "area": area,
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


def measure(root: Path, decode_images: bool) -> tuple[float, float, int]:
    """Seconds, the most GiB that this process had, and problems."""
    started = time.perf_counter()
    report = check_splits(find_splits(root), decode_images=decode_images)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, len(report.problems)


def in_new_process(function: Any, *arguments: Any) -> Any:
    """Its peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the data set is made, if it is not there yet")
    root = parser.parse_args().folder
    if not root.exists():
        in_new_process(generate, root)
    print(f"{platform.machine()}, {os.cpu_count()} cores\n")
    print("| images | seconds | GiB | problems |\n| --- | ---: | ---: | ---: |")
    for decode in (False, True):
        seconds, memory, problems = in_new_process(measure, root, decode)
        images = "decoded" if decode else "headers alone"
        print(f"| {images} | {seconds:.0f} | {memory:.2f} | {problems} |", flush=True)


if __name__ == "__main__":
    main()
