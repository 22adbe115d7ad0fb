"""Data sets in COCO's layout that nobody would write by hand: a description of one, and its files.

A description is plain data. Hypothesis draws it, `as_json` and `from_json` carry it, `write` makes its files.
"""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

ROTATED = (5, 6, 7, 8)  # values of Exif's orientation that swap width and height


@dataclass(frozen=True)
class ImageFile:
    """One image.

    Attributes:
        id: in the annotation file, any JSON value.
        name: in the annotation file.
        file: where the file lies in its folder, None for no file.
        kind: format and mode, as Pillow names them: `("JPEG", "RGB")`.
        width, height: of the pixels in the file.
        orientation: Exif's, 1 for none.
        damage: `none`, `truncated`, `empty`, `text`, `folder` or `dangling`.
        stated: the size in the annotation file: of the `upright` image, of the `stored` pixels, or `wrong`.
    """

    id: Any
    name: str
    file: str | None
    kind: tuple[str, str]
    width: int
    height: int
    orientation: int = 1
    damage: str = "none"
    stated: str = "upright"

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height in pixels of the image as one looks at it."""
        size = (self.width, self.height)
        return size[::-1] if self.orientation in ROTATED else size

    @property
    def stated_size(self) -> tuple[int, int]:
        width, height = (self.width, self.height) if self.stated == "stored" else self.upright
        return (width + 1, height) if self.stated == "wrong" else (width, height)


@dataclass(frozen=True)
class DrawnObject:
    """One annotation.

    Attributes:
        id: any JSON value.
        image: index of the image, −1 for one that is not listed.
        category: index of the category, −1 for one that is not listed.
        box: x, y, width, height in pixels.
        outline: `polygon`, `triangle`, `parts`, `runs`, `compressed`, `point`, `empty` or `far`.
        iscrowd: its value.
        area: `box`, `none` (zero) or `negative`.
    """

    id: Any
    image: int
    category: int
    box: tuple[float, float, float, float]
    outline: str = "polygon"
    iscrowd: int = 0
    area: str = "box"


@dataclass(frozen=True)
class Split:
    """A split; both paths are relative to the data set's folder."""

    annotations: str
    folder: str
    images: tuple[ImageFile, ...]
    objects: tuple[DrawnObject, ...]


@dataclass(frozen=True)
class DataSet:
    """A data set, and what params.yaml says beside it.

    Attributes:
        project: name of the project's folder.
        root: `data.root`, relative to the project.
        absolute: whether params.yaml has the absolute path.
        categories: id and name of each class.
        settings: further entries of params.yaml, by section.
        encoding: of the terminal.
    """

    project: str
    root: str
    absolute: bool
    categories: tuple[tuple[Any, str], ...]
    train: Split
    val: Split
    settings: dict[str, dict[str, Any]]
    encoding: str = "utf-8"


def as_json(data: DataSet) -> str:
    """A description as one line, in ASCII."""
    return json.dumps(dataclasses.asdict(data))


def from_json(text: str) -> DataSet:
    """The description that `as_json` wrote."""
    fields = json.loads(text)
    for name in ("train", "val"):
        split = fields[name]
        images = tuple(ImageFile(**{**one, "kind": tuple(one["kind"])}) for one in split["images"])
        objects = tuple(DrawnObject(**{**one, "box": tuple(one["box"])}) for one in split["objects"])
        fields[name] = Split(split["annotations"], split["folder"], images, objects)
    fields["categories"] = tuple((number, name) for number, name in fields["categories"])
    return DataSet(**fields)


def write(data: DataSet, project: Path) -> None:
    """Writes images and annotations into the project's folder.

    Raises:
        OSError: the file system takes one of the names not at all.
    """
    root = project / data.root
    for split in (data.train, data.val):
        folder = root / split.folder
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(split.images):
            if image.file is not None:
                write_image(image, folder / image.file, seed=index + 10 * (split is data.val))
        path = root / split.annotations
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content_of(split, data.categories)))


def content_of(split: Split, categories: tuple[tuple[Any, str], ...]) -> dict[str, Any]:
    """The annotation file of a split."""
    images = []
    for image in split.images:
        width, height = image.stated_size
        images.append({"id": image.id, "file_name": image.name, "width": width, "height": height})
    annotations = []
    for item in split.objects:
        width, height = split.images[item.image].stated_size
        x, y, w, h = item.box
        area = {"box": abs(w * h), "none": 0, "negative": -1}[item.area]
        segmentation, area_of_mask = outline_of(item, height, width)
        annotations.append(
            {
                "id": item.id,
                "image_id": split.images[item.image].id if item.image >= 0 else 987_654_321,
                "category_id": categories[item.category][0] if item.category >= 0 else 987_654,
                "bbox": [x, y, w, h],
                "area": area_of_mask if item.area == "box" and area_of_mask is not None else area,
                "segmentation": segmentation,
                "iscrowd": item.iscrowd,
            }
        )
    listed = [{"id": number, "name": name} for number, name in categories]
    return {"images": images, "annotations": annotations, "categories": listed}


def outline_of(item: DrawnObject, height: int, width: int) -> tuple[Any, float | None]:
    """The segmentation of an annotation in COCO's format, and its area where it is not that of the box."""
    x, y, w, h = item.box
    rectangle = [x, y, x + w, y, x + w, y + h, x, y + h]
    if item.outline == "triangle":
        return [[x, y, x + w, y, x, y + h]], abs(w * h) / 2
    if item.outline == "parts":
        return [rectangle, [x, y, x + w, y, x, y + h]], None
    if item.outline == "point":
        return [[x, y, x, y, x, y]], None
    if item.outline == "empty":
        return [], None
    if item.outline == "far":
        return [[0, 0, 1e6, 0, 1e6, 1e6]], None
    if item.outline in ("runs", "compressed"):
        bitmap = np.zeros((height, width), np.uint8, order="F")
        bitmap[max(int(y), 0) : max(int(y + h), 0), max(int(x), 0) : max(int(x + w), 0)] = 1
        if item.outline == "compressed":
            encoded = coco_mask.encode(bitmap)
            return {"size": [height, width], "counts": encoded["counts"].decode()}, float(bitmap.sum())
        changes = np.flatnonzero(np.diff(np.concatenate([[0], bitmap.ravel(order="F")]))).tolist()
        ends = [0, *changes, height * width] if not changes or changes[0] else [*changes, height * width]
        counts = np.diff(ends).tolist() if changes and changes[0] else [0, *np.diff(ends).tolist()]
        if not changes:
            counts = [height * width]
        return {"size": [height, width], "counts": counts}, float(bitmap.sum())
    return [rectangle], None


def write_image(image: ImageFile, path: Path, *, seed: int) -> None:
    """Writes the file of an image, as broken as it is meant to be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.damage == "folder":
        path.mkdir(exist_ok=True)
    elif image.damage == "dangling":
        if not path.is_symlink():
            path.symlink_to("nowhere")
    else:
        content = encoded(image, seed)
        if image.damage == "truncated":
            content = content[: len(content) * 2 // 3]
        elif image.damage == "empty":
            content = b""
        elif image.damage == "text":
            content = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
        path.write_bytes(content)


def encoded(image: ImageFile, seed: int) -> bytes:
    """The content of an image's file."""
    form, mode = image.kind
    pixels = np.random.default_rng(seed).integers(0, 255, (image.height, image.width, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    if mode == "I;16":
        drawn = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        drawn = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    else:
        drawn = rgb.convert(mode)
    options: dict[str, Any] = {}
    if image.orientation != 1:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = image.orientation
        options["exif"] = exif
    if form == "ANIMATED":
        form = "GIF"
        options |= {"save_all": True, "append_images": [drawn.transpose(Image.Transpose.ROTATE_180)]}
    elif form == "ICO":
        options["sizes"] = [drawn.size]  # by default Pillow writes other sizes
    elif form == "PROGRESSIVE":
        form = "JPEG"
        options["progressive"] = True
    file = io.BytesIO()
    drawn.save(file, form, **options)
    return file.getvalue()
