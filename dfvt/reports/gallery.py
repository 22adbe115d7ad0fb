"""Instances drawn on images: truth beside prediction, and all variants beside each other."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from dfvt.data.images import read_picture
from dfvt.reports.curves import DPI, require_output, save_figure
from dfvt.reports.published import PUBLISHED

# Okabe and Ito's palette without black and blue, on which the black labels cannot be read. It starts again
# after six classes.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")
GALLERY_CELL = (640, 560)
OVERVIEW_CELL = (360, 300)


class RunLengths(TypedDict):
    size: tuple[int, int]  # height, width
    counts: str


@dataclass(frozen=True)
class Instance:
    """One object on an image, with the keys of COCO's result format; ground truth has the score 1."""

    image_id: int
    category_id: int
    score: float
    segmentation: RunLengths
    bbox: tuple[float, float, float, float] | None = None  # x, y, width, height in pixels


def draw_instances(
    image: NDArray[np.uint8],
    boxes: NDArray[Any],
    masks: Sequence[Any] | NDArray[np.bool_],
    labels: Sequence[int],
    scores: Sequence[float] | None,
    class_names: Sequence[str],
    *,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Draw masks, boxes and class names, with scores where given, on a copy of an image, the last on top.

    Args:
        image: RGB, (H, W, 3).
        boxes: (N, 4) as x1, y1, x2, y2 in pixels.
        masks: N COCO run-length encodings, or booleans (N, H, W).
        labels: N indices into `class_names`.
        scores: N confidences in 0…1, or None for ground truth.
        scale: size of the result relative to `image`; small images are readable when they are drawn enlarged.

    Returns:
        RGB, (round(H * scale), round(W * scale), 3).
    """
    import torch
    from matplotlib import font_manager
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    assert len(boxes) == len(masks) == len(labels), "one box, mask and label an object"
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas: NDArray[Any] = cv2.resize(image, size, interpolation=interpolation)
    if not len(labels):
        return canvas
    bitmaps = [rle.decode(mask) if isinstance(mask, Mapping) else mask.astype(np.uint8) for mask in masks]
    bitmaps = [cv2.resize(bitmap, size, interpolation=cv2.INTER_LINEAR) for bitmap in bitmaps]
    edges = [bitmap - cv2.erode(bitmap, np.ones((5, 5), np.uint8)) for bitmap in bitmaps]
    colours: list[Any] = [CLASS_COLOURS[label % len(CLASS_COLOURS)] for label in labels]
    names = [class_names[label] for label in labels]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    drawn = torch.from_numpy(canvas).permute(2, 0, 1)
    # One at a time: together, torchvision blackens the pixels that several masks share.
    for bitmap, edge, colour in zip(bitmaps, edges, colours, strict=True):
        drawn = draw_segmentation_masks(drawn, torch.from_numpy(bitmap > 0), alpha=0.45, colors=colour)
        drawn = draw_segmentation_masks(drawn, torch.from_numpy(edge > 0), alpha=1.0, colors=colour)
    drawn = draw_bounding_boxes(
        drawn,
        torch.as_tensor(np.asarray(boxes, np.float64) * scale),
        labels=names,
        colors=colours,
        width=2,
        font=font_manager.findfont("DejaVu Sans"),
        font_size=14,
        fill_labels=True,
    )
    return drawn.permute(1, 2, 0).numpy()


def draw_gallery(
    images: Path,
    annotations: Path,
    predictions: Path,
    out: Path,
    *,
    variant: str,
    score_threshold: float,
    num_images: int,
    image_ids: Sequence[int] | None = None,
) -> list[Path]:
    """Write one PNG an image, `<out>/<image id>.png`: truth on the left, predictions on the right.

    Args:
        images: folder of the images.
        annotations: ground truth in COCO format.
        predictions: masks in COCO's result format; boxes are their key `bbox`, or else those of the masks.
        out: folder of the gallery.
        variant: the detector that predicted.
        score_threshold: predictions below it are not drawn.
        num_images: how many images at most.
        image_ids: of which the first ones are drawn; None spreads them evenly over the sorted ids.

    Raises:
        FileNotFoundError: a file or an image is missing; ValueError: one is not in that format.
    """
    dataset = load_ground_truth(annotations)
    found = _load_predictions(predictions, dataset, variant, score_threshold)
    written = []
    for image_id in _choose(dataset, num_images) if image_ids is None else image_ids[:num_images]:
        titles = ["ground truth", f"{PUBLISHED[variant].name}, score ≥ {score_threshold:g}"]
        panels = _draw_panels(images, dataset, image_id, [found], GALLERY_CELL, with_scores=True)
        written.append(out / f"{image_id}.png")
        _save_grid([panels], titles, written[-1])
    return written


def draw_overview(
    images: Path,
    annotations: Path,
    predictions: Mapping[str, Path],
    path: Path,
    *,
    score_threshold: float,
    num_images: int,
) -> None:
    """Write one PNG: a row an image, the truth in the first column, then a column a variant of `predictions`.

    Panels are small and labels short, without scores: the picture is to be read at the width of a page.
    The other arguments, the choice of images and the errors are those of `draw_gallery`.
    """
    dataset = load_ground_truth(annotations)
    found = [_load_predictions(file, dataset, name, score_threshold) for name, file in predictions.items()]
    rows = [
        _draw_panels(images, dataset, image_id, found, OVERVIEW_CELL, with_scores=False)
        for image_id in _choose(dataset, num_images)
    ]
    _save_grid(rows, ["ground truth", *(PUBLISHED[variant].name for variant in predictions)], path)


def load_ground_truth(annotations: Path) -> COCO:
    """The annotations as pycocotools has them.

    Raises:
        FileNotFoundError: there is no such file; ValueError: it is no COCO file, or has no images.
    """
    require_output(annotations, "fetch_data")
    try:
        # pycocotools reports its progress on standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = COCO(str(annotations))
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(f"{annotations} is not a COCO file: run `dvc repro validate_data`") from error
    if not dataset.imgs or not dataset.cats:
        raise ValueError(f"{annotations} has no images or no categories: run `dvc repro validate_data`")
    return dataset


def _load_predictions(
    path: Path, dataset: COCO, variant: str, score_threshold: float
) -> Mapping[int, list[Instance]]:
    """The predictions on each image, the surest last."""
    anew = f"run `dvc repro -f evaluate@{variant}` to write it anew"
    try:
        content = require_output(path, f"evaluate@{variant}").read_bytes()
        instances = TypeAdapter(list[Instance]).validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{path} does not hold masks in COCO's result format: {anew}") from error
    of_image: dict[int, list[Instance]] = defaultdict(list)
    for instance in sorted(instances, key=lambda instance: instance.score):
        if instance.category_id not in dataset.cats or instance.image_id not in dataset.imgs:
            what = f"image {instance.image_id}, category {instance.category_id}"
            raise ValueError(f"{path} is of another data set ({what}): {anew}")
        if instance.score >= score_threshold:
            of_image[instance.image_id].append(instance)
    return of_image


def _truth(dataset: COCO, image_id: int) -> list[Instance]:
    """The annotated objects, the largest first, without crowd regions, which no prediction has to match."""
    annotations = dataset.loadAnns(dataset.getAnnIds(imgIds=[image_id], iscrowd=False))
    return [
        Instance(image_id, item["category_id"], 1.0, dataset.annToRLE(item), item["bbox"])
        for item in sorted(annotations, key=lambda item: -item["area"])
    ]


def _choose(dataset: COCO, num_images: int) -> list[int]:
    image_ids = sorted(dataset.imgs)
    spread = np.linspace(0, len(image_ids) - 1, min(num_images, len(image_ids)))
    return [image_ids[index] for index in spread.round().astype(int)]


def _draw_panels(
    images: Path,
    dataset: COCO,
    image_id: int,
    found: Sequence[Mapping[int, list[Instance]]],
    cell: tuple[int, int],
    *,
    with_scores: bool,
) -> list[NDArray[np.uint8]]:
    """The truth, then each of `found`, scaled to fit into a cell of (width, height) pixels."""
    file = images / dataset.imgs[image_id]["file_name"]
    stated = dataset.imgs[image_id]["width"], dataset.imgs[image_id]["height"]
    try:
        image: NDArray[Any] = read_picture(file, stated)
    except (FileNotFoundError, ValueError) as error:
        sentence = f"{file} is missing or not an image: run `dvc repro validate_data`"
        raise FileNotFoundError(sentence) from error
    scale = min(cell[0] / image.shape[1], cell[1] / image.shape[0])
    category_ids = sorted(dataset.cats)
    class_names = [dataset.cats[category_id]["name"] for category_id in category_ids]
    panels = []
    for index, items in enumerate([_truth(dataset, image_id), *(one.get(image_id, []) for one in found)]):
        masks = [item.segmentation for item in items]
        boxes = np.array([item.bbox or rle.toBbox(item.segmentation) for item in items], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [category_ids.index(item.category_id) for item in items]
        scores = [item.score for item in items] if with_scores and index > 0 else None
        panels.append(draw_instances(image, boxes, masks, labels, scores, class_names, scale=scale))
    return panels


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
