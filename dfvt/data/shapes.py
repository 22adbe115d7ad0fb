"""A generated instance-segmentation data set: overlapping shapes on textured backgrounds, in COCO layout."""

from __future__ import annotations

import colorsys
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class ShapeClass:
    """A regular polygon whose every second corner lies at ``inner_radius`` of the others' distance."""

    name: str
    num_corners: int
    inner_radius: float
    hue: float


SHAPE_CLASSES = (
    ShapeClass("disk", 48, 1.0, 0.0),
    ShapeClass("box", 4, 1.0, 0.25),
    ShapeClass("triangle", 3, 1.0, 0.5),
    ShapeClass("star", 10, 0.45, 0.75),
)
# Just narrower than half the distance between two classes: colour tells the class as the outline does, so
# that detectors that see a few thousand images in all learn to tell them apart.
HUE_SPREAD = 0.11
# Square root of an object's area, as shares of the image's shorter side.
MIN_SIZE, MAX_SIZE = 0.25, 1.0
MAX_OBJECTS = 3
# No object may end up with less of it to be seen: everything in the picture is annotated.
MIN_VISIBLE_PIXELS = 25
MIN_VISIBLE_SHARE = 0.35
MIN_SHARE_IN_IMAGE = 0.6
# By index rather than by chance, so that small data sets have them too.
CROWD_EVERY, CROWD_AT = 32, 5
EMPTY_EVERY, EMPTY_AT = 200, 50
# Masks have this multiple of the image's resolution: smooth edges, and polygons finer than a pixel.
SUPERSAMPLING = 4
MIN_IMAGE_SIDE = 32
MAX_IMAGES = 1_000_000
JPEG_QUALITY = 92
DESCRIPTION = "Generated overlapping shapes"

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


@dataclass
class _Object:
    class_index: int
    outlines: list[NDArray[np.int32]]  # one, or the members of a crowd; corners (x, y) in supersampled pixels
    visible: ByteArray  # 0 or 1, supersampled
    num_drawn: int  # supersampled pixels before anything hid them

    @property
    def is_crowd(self) -> bool:
        return len(self.outlines) > 1


def generate_shapes(
    root: Path,
    *,
    seed: int = 0,
    num_train: int = 220,
    num_val: int = 80,
    height: int = 128,
    width: int = 160,
) -> None:
    """Write a data set of shapes in COCO 2017 layout to the folder ``root``.

    An image depends on the seed, its split, its index and the image size only, not on the number of images;
    the same arguments give the same bytes. ``root`` appears when it is complete; an earlier generated
    data set there is replaced.

    Args:
        root: folder to make; its parents are made as well.
        seed: non-negative.
        num_train: number of training images, at least 1.
        num_val: number of validation images, at least 1.
        height: image height in pixels.
        width: image width in pixels.

    Raises:
        ValueError: an argument is out of its range, or ``root`` holds something else than generated shapes.
    """
    ranges = {
        "seed": (seed, 0, 2**64),
        "num_train": (num_train, 1, MAX_IMAGES),
        "num_val": (num_val, 1, MAX_IMAGES),
        "height": (height, MIN_IMAGE_SIDE, 4096),
        "width": (width, MIN_IMAGE_SIDE, 4096),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise ValueError(f"data.shapes.{name} is {value}: choose a number from {low} to {high}.")
    if root.exists() and not _is_replaceable(root):
        raise ValueError(f"{root} exists and holds no generated shapes: remove it or choose another folder.")

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.partial-") as scratch:
        complete = Path(scratch) / "complete"
        for split, (name, num_images) in enumerate((("train2017", num_train), ("val2017", num_val))):
            _write_split(complete, name, split, num_images, seed, height, width)
        if root.exists():
            root.replace(Path(scratch) / "previous")
        complete.replace(root)


def _is_replaceable(root: Path) -> bool:
    if not root.is_dir():
        return False
    if not any(root.iterdir()):
        return True
    annotation_file = root / "annotations" / "instances_train2017.json"
    return annotation_file.is_file() and DESCRIPTION in annotation_file.read_text(
        errors="replace", encoding="utf-8"
    )


def _write_split(
    root: Path, name: str, split: int, num_images: int, seed: int, height: int, width: int
) -> None:
    (root / name).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, split, index))))
        is_empty, has_crowd = index % EMPTY_EVERY == EMPTY_AT, index % CROWD_EVERY == CROWD_AT
        image, objects = _draw_image(rng, height, width, is_empty=is_empty, has_crowd=has_crowd)
        image_id = split * MAX_IMAGES + index + 1
        file_name = f"{image_id:012d}.jpg"
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        (root / name / file_name).write_bytes(encoded.tobytes())
        size = {"height": height, "width": width}
        images.append({"id": image_id, "file_name": file_name, "license": 1, **size})
        annotations += [
            {"id": image_id * 100 + number, "image_id": image_id, **_annotate(item, height, width)}
            for number, item in enumerate(objects)
        ]
    content = {
        "info": {"description": f"{DESCRIPTION}, {name}", "version": "1", "seed": seed},
        "licenses": [
            {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
        ],
        "categories": [
            {"id": number, "name": shape.name, "supercategory": "shape"}
            for number, shape in enumerate(SHAPE_CLASSES, start=1)
        ],
        "images": images,
        "annotations": annotations,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    (root / "annotations" / f"instances_{name}.json").write_text(text, encoding="ascii")


def _draw_image(
    rng: np.random.Generator, height: int, width: int, *, is_empty: bool, has_crowd: bool
) -> tuple[ByteArray, list[_Object]]:
    """An image (height, width, BGR) and its objects, from the one behind to the one in front."""
    image = _background(rng, height, width)
    objects: list[_Object] = []
    num_objects = 0 if is_empty else int(rng.integers(1, MAX_OBJECTS + 1))
    for number in range(num_objects + int(has_crowd and not is_empty)):
        for _attempt in range(20):
            propose = _propose_crowd if has_crowd and number == 0 else _propose_object
            candidate = propose(rng, height, width, objects)
            if candidate is not None and _place(candidate, objects):
                for outline in candidate.outlines:
                    _paint(rng, image, outline, SHAPE_CLASSES[candidate.class_index])
                break
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), objects


def _place(candidate: _Object, objects: list[_Object]) -> bool:
    """Put the candidate in front of the objects, unless one of them would be hidden too much."""
    remaining = [item.visible & ~candidate.visible for item in objects]
    for item, visible in zip(objects, remaining, strict=True):
        if not _is_enough(cv2.countNonZero(visible), MIN_VISIBLE_SHARE * item.num_drawn):
            return False
    for item, visible in zip(objects, remaining, strict=True):
        item.visible = visible
    objects.append(candidate)
    return True


def _is_enough(num_visible: int, least: float) -> bool:
    return num_visible >= max(least, MIN_VISIBLE_PIXELS * SUPERSAMPLING**2)


def _propose_object(
    rng: np.random.Generator, height: int, width: int, objects: list[_Object]
) -> _Object | None:
    class_index = int(rng.integers(len(SHAPE_CLASSES)))
    size = min(height, width) * MIN_SIZE * (MAX_SIZE / MIN_SIZE) ** rng.random()
    centre = rng.uniform(0.05, 0.95, 2) * (width, height)
    if objects and rng.random() < 0.5:  # beside another one, so that they overlap
        neighbour = objects[int(rng.integers(len(objects)))].outlines[0].mean(axis=0) / SUPERSAMPLING
        centre = neighbour + rng.uniform(-0.8, 0.8, 2) * size
    outline = _outline(rng, SHAPE_CLASSES[class_index], centre, size)
    visible = _fill([outline], height, width)
    num_drawn = cv2.countNonZero(visible)
    if not _is_enough(num_drawn, MIN_SHARE_IN_IMAGE * (size * SUPERSAMPLING) ** 2):
        return None
    return _Object(class_index, [outline], visible, num_drawn)


def _propose_crowd(
    rng: np.random.Generator, height: int, width: int, objects: list[_Object]
) -> _Object | None:
    assert not objects, "a crowd is drawn first, behind everything else"
    class_index = int(rng.integers(len(SHAPE_CLASSES)))
    size = max(0.07 * min(height, width), 4.0)
    centre = rng.uniform(0.3, 0.7, 2) * (width, height)
    centres = centre + rng.uniform(-1, 1, (int(rng.integers(10, 17)), 2)) * (2.6 * size, 1.6 * size)
    outlines = [_outline(rng, SHAPE_CLASSES[class_index], member, size) for member in centres]
    visible = _fill(outlines, height, width)
    return _Object(class_index, outlines, visible, cv2.countNonZero(visible))


def _outline(
    rng: np.random.Generator, shape: ShapeClass, centre: NDArray[np.float64], size: float
) -> NDArray[np.int32]:
    """Corners (x, y) in supersampled pixels of a stretched and turned shape of area ``size ** 2``."""
    angles = 2 * np.pi / shape.num_corners * np.arange(shape.num_corners)
    radii = np.where(np.arange(shape.num_corners) % 2, shape.inner_radius, 1.0)
    corners = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    turn, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 1.5)
    # A box is stretched along its sides, not along a diagonal: it stays a rectangle.
    side = np.pi / shape.num_corners
    corners = corners @ _rotation(side) * (stretch, 1.0) @ _rotation(turn)
    area = cv2.contourArea(corners.astype(np.float32))
    corners *= size / np.sqrt(area)
    return np.rint((corners + centre) * SUPERSAMPLING).astype(np.int32)


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _fill(outlines: list[NDArray[np.int32]], height: int, width: int) -> ByteArray:
    mask = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    for outline in outlines:  # one by one: filled together, overlaps would become holes
        cv2.fillPoly(mask, [outline], (1,))
    return mask


def _background(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    first, second = (_colour(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.3, 0.85)) for _ in range(2))
    blend = 0.5 + 0.5 * _gradient(rng, height, width)[..., None]
    texture = 0.22 * _noise(rng, height, width, 40) + 0.14 * _noise(rng, height, width, 9)
    grain = rng.integers(-6, 7, (height, width, 1), dtype=np.int8)
    image: FloatArray = (first + (second - first) * blend) * (1 + texture[..., None]) + grain
    return image


def _paint(
    rng: np.random.Generator, image: FloatArray, outline: NDArray[np.int32], shape: ShapeClass
) -> None:
    """Blend a shaded shape and its soft shadow into the image."""
    height, width = image.shape[:2]
    supersampled = _fill([outline], height, width) * np.uint8(255)
    alpha = cv2.resize(supersampled, (width, height), interpolation=cv2.INTER_AREA)
    shadow = cv2.blur(alpha, (7, 7), anchor=(5, 5))  # off the centre: cast to the lower right
    image *= 1 - shadow[..., None] * np.float32(0.35 / 255)

    hue = shape.hue + rng.triangular(-HUE_SPREAD, 0, HUE_SPREAD)
    colour = _colour(hue % 1.0, rng.uniform(0.4, 0.9), rng.uniform(0.5, 0.95))
    texture = _noise(rng, height, width, int(rng.integers(3, 12)))
    shading = 1 + 0.25 * _gradient(rng, height, width) + 0.12 * texture
    image += (colour * shading[..., None] - image) * (alpha[..., None] / np.float32(255))


def _colour(hue: float, saturation: float, value: float) -> FloatArray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)[::-1], np.float32) * 255


def _gradient(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """A plane through the image in a random direction, from about -1 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    return rows * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle))


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> FloatArray:
    """Smooth noise from -1 to 1 with ``cell`` pixels between its knots."""
    knots = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    # On bytes, where OpenCV counts in whole numbers: the same on every processor.
    smooth = cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)
    return smooth.astype(np.float32) / np.float32(127.5) - 1


def _annotate(item: _Object, height: int, width: int) -> dict[str, Any]:
    """The COCO annotation of the visible part; box and area are those of its decoded segmentation."""
    segmentation: dict[str, Any] | list[list[float]]
    if item.is_crowd:
        scaled = cv2.resize(item.visible * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA)
        segmentation = {"counts": _run_lengths(scaled >= 128), "size": [height, width]}
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        segmentation = _polygons(item.visible)
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return {
        "category_id": item.class_index + 1,
        "segmentation": segmentation,
        "area": float(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "iscrowd": int(item.is_crowd),
    }


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn, column by column, the first of 0 (COCO's uncompressed RLE)."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat))
    runs: list[int] = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return runs


def _polygons(visible: ByteArray) -> list[list[float]]:
    """Outlines [x, y, x, y, ...] in image pixels of a supersampled mask."""
    contours, hierarchy = cv2.findContours(visible, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # COCO polygons have no holes: the mask is cut along a column through each.
    holes = [contour for contour, links in zip(contours, hierarchy[0], strict=True) if links[3] >= 0]
    cuts = sorted({int(hole[:, 0, 0].min() + hole[:, 0, 0].max()) // 2 for hole in holes})
    polygons = []
    for left, right in zip([0, *cuts], [*cuts, visible.shape[1]], strict=True):
        strip = np.ascontiguousarray(visible[:, left:right])
        parts = cv2.findContours(strip, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(left, 0))[0]
        for part in parts:
            corners = cv2.approxPolyDP(part, 0.3 * SUPERSAMPLING, True).reshape(-1, 2)
            if len(corners) >= 3 and cv2.contourArea(corners) >= SUPERSAMPLING**2:
                # A contour runs through the middle of pixels.
                polygons.append(np.round((corners + 0.5) / SUPERSAMPLING, 2).ravel().tolist())
    assert polygons, "an object is placed only where enough of it is visible"
    return polygons
