"""A page of images with their annotations drawn on them, the broken ones too."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from dfvt.data.coco import (
    NO_OUTLINE,
    CocoAnnotation,
    CocoFile,
    CocoImage,
    SplitFiles,
    class_names_of,
    read_annotations,
)
from dfvt.data.images import read_picture
from dfvt.data.outlines import RunLengths, is_polygon, judge_outline, read_outline
from dfvt.reports import pages
from dfvt.reports.instances import CLASS_COLOURS


def save_browse_page(
    files: SplitFiles,
    path: Path,
    *,
    title: str,
    num_images: int = 48,
    class_name: str | None = None,
    seed: int = 0,
) -> int:
    """Write a page of images drawn at random, with their boxes, masks and labels; returns how many.

    Args:
        files: the split.
        path: the HTML file.
        title: of the page.
        num_images: at most so many.
        class_name: only images with objects of this class.
        seed: other images for another one.

    Raises:
        FileNotFoundError: the annotation file is missing.
        ValueError: it is not sound, has no images or no such class, or no image has the class.
    """
    content = read_annotations(files.annotations)
    names = class_names_of(content, files.annotations)
    if class_name is not None and class_name not in names.values():
        raise ValueError(
            f"{files.annotations} has no class {class_name!r}: it has {', '.join(names.values())}"
        )
    of_image: dict[int, list[CocoAnnotation]] = defaultdict(list)
    for item in content.annotations:
        of_image[item.image_id].append(item)
    chosen = _choose(content, of_image, names, class_name, num_images, seed)
    if not content.images:
        raise ValueError(f"{files.annotations} lists no images")
    if not chosen:
        raise ValueError(f"no image of {files.annotations} has an object of class {class_name!r}")
    shown = [_picture(files.images, image, of_image[image.id], names) for image in chosen]
    summary = f"{len(chosen)} of {len(content.images):,} images of {files.annotations}"
    body = [pages.paragraph(f"{summary}, drawn at random (seed {seed})"), pages.pictures(shown)]
    pages.save_page(pages.page(title, body), path)
    return len(chosen)


def _choose(
    content: CocoFile,
    of_image: dict[int, list[CocoAnnotation]],
    names: dict[int, str],
    class_name: str | None,
    num_images: int,
    seed: int,
) -> list[CocoImage]:
    images = content.images
    if class_name is not None:
        images = [
            image
            for image in images
            if any(names.get(item.category_id) == class_name for item in of_image.get(image.id, ()))
        ]
    return random.Random(seed).sample(images, min(num_images, len(images)))


def _picture(
    folder: Path, image: CocoImage, items: list[CocoAnnotation], names: dict[int, str]
) -> pages.Picture:
    """The image with its annotations, and a line about it."""
    try:
        rgb = read_picture(folder / image.file_name, (image.width, image.height))
    except (ValueError, OSError) as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else error
        return pages.Picture(np.full((240, 320, 3), 230, np.uint8), f"{image.file_name}: {reason}")
    height, width = rgb.shape[:2]
    numbers = {number: index for index, number in enumerate(names)}
    faults, shapes = [], []
    for item in sorted(items, key=lambda item: -item.area):
        has_outline = bytes(item.segmentation) != bytes(NO_OUTLINE)  # detectors may give boxes alone
        fault = judge_outline(item.segmentation, height, width).fault if has_outline else None
        if fault:
            faults.append(f"annotation {item.id} has {fault.value}")
        shapes.append(
            pages.Shape(
                label=_label(item, names),
                hint=f"{_label(item, names)}, annotation {item.id}, area {item.area:.0f}",
                colour=CLASS_COLOURS[numbers.get(item.category_id, 0) % len(CLASS_COLOURS)],
                outlines=_outlines(item) if has_outline and not fault else [],
                bbox=item.bbox,
                dashed=bool(item.iscrowd),
            )
        )
    counts = Counter(shape.label for shape in shapes)
    objects = ", ".join(f"{label} {count}" for label, count in counts.most_common()) or "nothing annotated"
    caption = "; ".join([f"{image.file_name}, {width}×{height}: {objects}", *faults])
    return pages.Picture(rgb, caption, shapes)


def _label(item: CocoAnnotation, names: dict[int, str]) -> str:
    name = names.get(item.category_id, f"unknown category {item.category_id}")
    return f"{name} (crowd)" if item.iscrowd else name


def _outlines(item: CocoAnnotation) -> list[list[float]]:
    """The polygons of a sound outline."""
    outline = read_outline(item.segmentation)
    if not isinstance(outline, RunLengths):
        assert outline is not None
        return [polygon for polygon in outline if is_polygon(polygon)]
    runs: Any = {"size": list(outline.size), "counts": outline.counts}
    if not isinstance(outline.counts, str):
        runs = coco_mask.frPyObjects(runs, *outline.size)
    contours, _ = cv2.findContours(coco_mask.decode(runs), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.ravel().astype(float).tolist() for contour in contours]
