"""The one reader of image files, for the check, the training and the prediction: OpenCV decides.

mmdet's loader decodes with OpenCV. Pillow only reads headers here, so that nothing too large is decoded, and
says why OpenCV refuses a file.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # decoded they take 300 MB
FLAGS = {  # mmcv's names, the `color_type` of a config
    "color": cv2.IMREAD_COLOR,
    "grayscale": cv2.IMREAD_GRAYSCALE,
    "unchanged": cv2.IMREAD_UNCHANGED,
    "color_ignore_orientation": cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    "grayscale_ignore_orientation": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
}
EIGHTH = cv2.IMREAD_REDUCED_GRAYSCALE_8  # added to a flag: a JPEG decodes at an eighth of its size
DAMAGE = (OSError, SyntaxError, ValueError)  # how Pillow names it
JPEG = ("JPEG", "MPO")
TURNED = ("JPEG", "MPO", "PNG", "WEBP")  # formats whose Exif orientation OpenCV follows, and Pillow does not
SIDEWAYS = (5, 6, 7, 8)  # values of Exif's orientation that swap width and height

SMALLER = "scale it down, or cut it into tiles"

Size = tuple[int, int]  # width, height


class TooLargeError(ValueError):
    """An image has more than `MAX_PIXELS` pixels."""


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that Pillow may open.

    These are all but EPS: Pillow starts Ghostscript to decode it, and images come from anywhere. OpenCV does
    not know the format.
    """
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Drop Pillow's warnings: about large images (`MAX_PIXELS` decides) and odd meta data."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode(content: bytes, color_type: str = "color") -> NDArray:
    """Decode the content of an image file as mmdet's `LoadImageFromFile` does.

    Args:
        content: what the file holds.
        color_type: one of `FLAGS`.

    Returns:
        Pixels, (H, W, 3) as BGR, or (H, W) for grey ones; of 8 bit unless `color_type` is "unchanged".

    Raises:
        ValueError: the file is no image, is damaged or too large; one sentence without the file's name.
    """
    with quiet_pillow():
        _require_size(content)
        return _decode(content, FLAGS[color_type])


def measure(content: bytes, color_type: str = "color") -> Size:
    """Decode an image, a JPEG at an eighth of its size, and return the size that `decode` would give it.

    Raises:
        ValueError: as `decode`.
    """
    header = _require_size(content)
    flag = FLAGS[color_type]
    if header is None or header.format not in JPEG or flag == cv2.IMREAD_UNCHANGED:
        height, width = _decode(content, flag).shape[:2]
        return width, height
    width, height = header.size
    small_height, small_width = _decode(content, flag | EIGHTH).shape[:2]
    turned = (small_width, small_height) != (-(-width // 8), -(-height // 8))
    return (height, width) if turned else (width, height)


def measure_header(path: Path, color_type: str = "color") -> Size:
    """Read the size that `decode` would give an image from the file's header alone, where that is possible.

    Raises:
        ValueError: as `decode`.
    """
    with path.open("rb") as file:
        header = _open(file)
        if header is None:
            return measure(path.read_bytes(), color_type)
        _require_few_pixels(*header.size)
        try:
            orientation = header.getexif().get(ExifTags.Base.Orientation)
        except DAMAGE:
            orientation = None
        width, height = header.size
        follows = color_type in ("color", "grayscale") and header.format in TURNED
        return (height, width) if follows and orientation in SIDEWAYS else (width, height)


def damage_of(content: bytes) -> str | None:
    """Return what Pillow finds damaged in an image that OpenCV may decode nevertheless, or None."""
    try:
        image = _open(io.BytesIO(content))
        if image is not None:
            width, height = image.size
            image.draft(image.mode, (max(width // 8, 1), max(height // 8, 1)))
            image.load()
    except (*DAMAGE, Image.DecompressionBombError) as error:
        return str(error) or type(error).__name__
    return None


def _decode(content: bytes, flag: int) -> NDArray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error as error:
        raise ValueError(f"it cannot be decoded ({error.err or error.msg})") from error
    if image is None:
        raise ValueError(_why_not(content))
    _require_few_pixels(image.shape[1], image.shape[0])
    return image


def _why_not(content: bytes) -> str:
    """Say why OpenCV does not decode a file."""
    try:
        header = _open(io.BytesIO(content))
    except ValueError as error:
        return str(error)
    if header is None:
        return "it is no image that can be read"
    damage = damage_of(content)
    if damage:
        return f"it is damaged ({damage})"
    kind = f"{header.format} image of mode {header.mode}"
    return f"it is damaged, or a kind of image that OpenCV cannot decode ({kind}): save it as JPEG or PNG"


def _require_size(content: bytes) -> Image.Image | None:
    """Refuse what is too large before it is decoded; return what Pillow knows of it."""
    if not content:
        raise ValueError("it is empty")
    header = _open(io.BytesIO(content))
    if header is not None:
        _require_few_pixels(*header.size)
    return header


def _open(file: IO[bytes]) -> Image.Image | None:
    """Read a header; None if Pillow does not know the format."""
    try:
        return Image.open(file, formats=readable_formats())
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"it has more than {MAX_PIXELS:,} pixels: {SMALLER}") from error
    except DAMAGE as error:
        raise ValueError(f"it is damaged ({error})") from error


def _require_few_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise TooLargeError(f"it has {width}×{height} pixels, more than {MAX_PIXELS:,}: {SMALLER}")
