"""Objects drawn on an image: masks, boxes and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont
from pycocotools import mask as rle

from dfvt.reports.labels import font_file, label_of

# Okabe and Ito's palette without black and blue, on which the black labels cannot be read. It starts again
# after six classes.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")
OPACITY = 0.45  # of a mask
LINE_WIDTH = 2  # pixels
FONT_SIZE = 14


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
        boxes: (N, 4) as x1, y1, x2, y2 in pixels, in any order of the corners, and inside the image or not.
        masks: N COCO run-length encodings (None where an object has none), or booleans (N, H, W).
        labels: N indices into `class_names`.
        scores: N confidences in 0…1, or None for ground truth.
        scale: size of the result relative to `image`; small images are readable when they are drawn enlarged.

    Returns:
        RGB, (round(H * scale), round(W * scale), 3).
    """
    assert len(boxes) == len(masks) == len(labels), "one box, mask and label an object"
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas: NDArray[Any] = cv2.resize(image, size, interpolation=interpolation)
    if not len(labels):
        return canvas
    colours = [ImageColor.getrgb(CLASS_COLOURS[label % len(CLASS_COLOURS)]) for label in labels]
    names = [label_of(class_names[label]) for label in labels]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    for mask, colour in zip(masks, colours, strict=True):
        if mask is None:
            continue
        bitmap = rle.decode(mask) if isinstance(mask, Mapping) else mask.astype(np.uint8)
        bitmap = cv2.resize(bitmap, size, interpolation=cv2.INTER_LINEAR)
        edge = bitmap - cv2.erode(bitmap, np.ones((5, 5), np.uint8))
        inside = bitmap > 0
        canvas[inside] = (1 - OPACITY) * canvas[inside] + OPACITY * np.array(colour)
        canvas[edge > 0] = colour
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(font_file(names), FONT_SIZE)
    corners = drawable_boxes(boxes, scale, size).astype(int).tolist()
    for (left, top, right, bottom), name, colour in zip(corners, names, colours, strict=True):
        draw.rectangle((left, top, right, bottom), outline=colour, width=LINE_WIDTH)
        place = left + LINE_WIDTH + 1, top + LINE_WIDTH + 1
        x1, y1, x2, y2 = draw.textbbox(place, name, font=font)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), fill=colour)
        draw.text(place, name, fill="black", font=font)
    return np.array(picture)


def drawable_boxes(boxes: NDArray[Any], scale: float, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return scaled boxes that Pillow can draw on a canvas of `size` (width, height).

    Annotated boxes may have a negative width or lie far outside, which the check calls a warning. The smaller
    coordinate comes first, and corners far outside are brought closer.
    """
    width, height = size
    corners = np.nan_to_num(np.asarray(boxes, np.float64)).reshape(-1, 2, 2)
    with np.errstate(over="ignore"):
        corners = np.sort(corners * scale, axis=1)
    return np.clip(corners, [-width, -height], [2 * width, 2 * height]).reshape(-1, 4)
