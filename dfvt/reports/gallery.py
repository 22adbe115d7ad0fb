"""Instances drawn on images: truth beside prediction, and all variants beside each other."""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO

from dfvt.data.files import write_whole
from dfvt.data.images import read_picture
from dfvt.reports.drawing import Warn, optional_picture
from dfvt.reports.figures import DPI, save_figure
from dfvt.reports.instances import draw_instances
from dfvt.reports.published import PUBLISHED
from dfvt.reports.tables import require_output

SHOWN_FILE = "gallery/predictions.json"  # of an evaluation: the predictions on the images that a report shows
GALLERY_CELL = (640, 560)
OVERVIEW_CELL = (360, 300)


class RunLengths(TypedDict):
    size: tuple[int, int]  # height, width
    counts: str


@dataclass(frozen=True)
class Instance:
    """One object on an image, with the keys of COCO's result format; ground truth has the score 1.

    It has a mask, a box, or both.
    """

    image_id: int
    category_id: int
    score: float
    segmentation: RunLengths | None = None
    bbox: tuple[float, float, float, float] | None = None  # x, y, width, height in pixels


Instances = Mapping[int, list[Instance]]
"""Predictions by image id, the surest last."""


def draw_gallery(
    images: Path,
    truth: COCO,
    found: Instances,
    out: Path,
    *,
    title: str,
    image_ids: Iterable[int],
    warn: Warn,
) -> list[Path]:
    """Write one PNG an image, `<out>/<image id>.png`: truth on the left, predictions on the right.

    Args:
        images: folder of the images.
        truth: the annotations.
        found: the predictions that are drawn.
        out: folder of the gallery.
        title: stands over the predictions.
        image_ids: of these images.
        warn: is told of each picture that cannot be drawn, and why.

    Returns:
        The pictures that were drawn.
    """
    written = []
    for image_id in image_ids:
        path = out / f"{image_id}.png"
        with optional_picture(path, warn):
            panels = _draw_panels(images, truth, image_id, [found], GALLERY_CELL, with_scores=True)
            _save_grid([panels], ["ground truth", title], path)
            written.append(path)
    return written


def draw_overview(
    images: Path, truth: COCO, found: Mapping[str, Instances], path: Path, *, image_ids: Sequence[int]
) -> None:
    """Write one PNG: a row an image, the truth in the first column, then a column a variant of `found`.

    Panels are small and labels short, without scores: the picture is to be read at the width of a page.
    The other arguments are those of `draw_gallery`. There must be an image.

    Raises:
        FileNotFoundError: an image is missing; ValueError: it cannot be read.
    """
    assert image_ids, "a picture of no images has no size"
    rows = [
        _draw_panels(images, truth, image_id, list(found.values()), OVERVIEW_CELL, with_scores=False)
        for image_id in image_ids
    ]
    _save_grid(rows, ["ground truth", *(PUBLISHED[variant].name for variant in found)], path)


def load_ground_truth(annotations: Path) -> COCO:
    """The annotations as pycocotools has them.

    Raises:
        FileNotFoundError: there is no such file; ValueError: it is no COCO file, or has no images.
    """
    require_output(annotations, "fetch_data")
    try:
        content = json.loads(annotations.read_bytes())
        dataset = COCO()
        dataset.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
            dataset.createIndex()
        empty = not content["images"] or not content["categories"]
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(f"{annotations} is not a COCO file: run `dvc repro validate_data`") from error
    if empty:
        raise ValueError(f"{annotations} has no images or no categories: run `dvc repro validate_data`")
    return dataset


def choose_instances(
    records: Iterable[Mapping[str, Any]], image_ids: Iterable[int], score_threshold: float
) -> Instances:
    """Return what a gallery of some images shows: predictions (COCO result records) from a score on."""
    shown = set(image_ids)
    chosen: dict[int, list[Instance]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["score"]):
        if record["score"] >= score_threshold and record["image_id"] in shown:
            chosen[record["image_id"]].append(msgspec.convert(record, Instance))
    return chosen


def write_instances(instances: Instances, path: Path) -> None:
    """Write instances in COCO's result format, for `read_instances`."""
    records = [asdict(instance) for of_image in instances.values() for instance in of_image]
    write_whole(path, json.dumps(records))


def read_instances(path: Path, truth: COCO, variant: str, score_threshold: float) -> Instances:
    """Read the predictions of a variant in COCO's result format, from a score on.

    Raises:
        FileNotFoundError: there is no such file; ValueError: it is not in that format, or of other images.
    """
    anew = f"run `dvc repro -f evaluate@{variant}` to write it anew"
    try:
        content = require_output(path, f"evaluate@{variant}").read_bytes()
        instances = msgspec.json.decode(content, type=list[Instance])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not in COCO's result format: {anew}") from error
    of_image: dict[int, list[Instance]] = defaultdict(list)
    for instance in sorted(instances, key=lambda instance: instance.score):
        if instance.category_id not in truth.cats or instance.image_id not in truth.imgs:
            what = f"image {instance.image_id}, category {instance.category_id}"
            raise ValueError(f"{path} is of another data set ({what}): {anew}")
        if instance.score >= score_threshold:
            of_image[instance.image_id].append(instance)
    return of_image


def _truth(dataset: COCO, image_id: int) -> list[Instance]:
    """The annotated objects, the largest first, without crowd regions, which no prediction has to match."""
    annotations = dataset.loadAnns(dataset.getAnnIds(imgIds=[image_id], iscrowd=False))
    return [
        Instance(
            image_id,
            item["category_id"],
            1.0,
            dataset.annToRLE(item) if item.get("segmentation") else None,
            item["bbox"],
        )
        for item in sorted(annotations, key=lambda item: -item["area"])
    ]


def spread_images(truth: COCO, num_images: int) -> list[int]:
    """Return at most so many images, spread evenly over the sorted ids."""
    image_ids = sorted(truth.imgs)
    spread = np.linspace(0, len(image_ids) - 1, min(num_images, len(image_ids)))
    return [image_ids[index] for index in spread.round().astype(int)]


def _draw_panels(
    images: Path,
    dataset: COCO,
    image_id: int,
    found: Sequence[Instances],
    cell: tuple[int, int],
    *,
    with_scores: bool,
) -> list[NDArray[np.uint8]]:
    """The truth, then each of `found`, scaled to fit into a cell of (width, height) pixels."""
    file = images / dataset.imgs[image_id]["file_name"]
    stated = dataset.imgs[image_id]["width"], dataset.imgs[image_id]["height"]
    try:
        image: NDArray[Any] = read_picture(file, stated)
    except ValueError as error:
        raise ValueError(f"{file}: {error}: run `dvc repro validate_data`") from error
    scale = min(cell[0] / image.shape[1], cell[1] / image.shape[0])
    category_ids = sorted(dataset.cats)
    class_names = [dataset.cats[category_id]["name"] for category_id in category_ids]
    panels = []
    for index, items in enumerate([_truth(dataset, image_id), *(one.get(image_id, []) for one in found)]):
        masks = [item.segmentation for item in items]
        boxes = np.array([_bbox_of(item) for item in items], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [category_ids.index(item.category_id) for item in items]
        scores = [item.score for item in items] if with_scores and index > 0 else None
        panels.append(draw_instances(image, boxes, masks, labels, scores, class_names, scale=scale))
    return panels


def _bbox_of(item: Instance) -> Sequence[float]:
    """x, y, width, height in pixels."""
    if item.bbox is not None:
        return item.bbox
    assert item.segmentation is not None, "an instance has a mask or a box"
    return rle.toBbox(item.segmentation).tolist()


def _save_grid(rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str], path: Path) -> None:
    """Save panels pixel for pixel, a title over each column."""
    gap, top = 12, 36
    cell_width = max(panel.shape[1] for row in rows for panel in row)
    heights = [max(panel.shape[0] for panel in row) for row in rows]
    width = gap + len(titles) * (cell_width + gap)
    height = top + sum(heights) + gap * len(rows)
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / DPI, height / DPI))
    for column, title in enumerate(titles):
        left = gap + column * (cell_width + gap)
        centre = ((left + cell_width / 2) / width, 1 - top / 2 / height)
        figure.text(*centre, title, ha="center", va="center", fontsize=9)
        y = top
        for row, row_height in zip(rows, heights, strict=True):
            panel = row[column]
            x = left + (cell_width - panel.shape[1]) // 2
            canvas[y : y + panel.shape[0], x : x + panel.shape[1]] = panel
            y += row_height + gap
    figure.figimage(canvas)
    save_figure(figure, path)
