"""Images from anywhere, decoded as the loaders of trainings decode them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dfvt.data.decoding import MAX_PIXELS, Size, decode

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


def read_image(
    source: Path | bytes | NDArray, color_type: str = "color", channel_order: str = "bgr"
) -> NDArray[np.uint8]:
    """Read an image as mmdet's `LoadImageFromFile` does.

    Args:
        source: a file; a file's content; or pixels of 8 or 16 bit: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA
            (H, W, 4). Alpha is left out, 16 bit become 8. Pixels are taken as upright.
        color_type: how the loader of a config decodes, one of `dfvt.data.decoding.FLAGS`.
        channel_order: "bgr", or "rgb" for a loader that turns colours round.

    Returns:
        With the defaults BGR, 8 bit, upright, (H, W, 3); grey colour types give (H, W).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, is damaged, or has more than `MAX_PIXELS` pixels; one sentence without
            its name.
    """
    if isinstance(source, np.ndarray):
        image: NDArray = from_pixels(source)
        if color_type.startswith("grayscale"):
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    else:
        image = decode(source if isinstance(source, bytes) else read_file(source), color_type)
    if color_type == "color" and channel_order == "rgb":  # mmcv turns round those of no other type
        image = image[..., ::-1]
    return np.ascontiguousarray(image)


def read_picture(path: Path, stated: Size | None = None) -> NDArray[np.uint8]:
    """Read an image to draw on, RGB, (H, W, 3).

    It is upright, unless annotations state the size (width, height) that it has as it is stored: a config
    with `color_type="color_ignore_orientation"` reads it so.

    Raises:
        FileNotFoundError, ValueError: as `read_image`.
    """
    image = read_image(path)
    if stated and image.shape[:2] != stated[::-1] and image.shape[:2] == stated:
        stored = read_image(path, "color_ignore_orientation")
        image = stored if stored.shape[:2] == stated[::-1] else image
    return np.ascontiguousarray(image[..., ::-1])


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error


def from_pixels(pixels: NDArray) -> NDArray[np.uint8]:
    """BGR of pixels in the order of their colours that most libraries have, RGB.

    Raises:
        ValueError: their shape or type is none of an image.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise ValueError(f"an array of the shape {pixels.shape} is no image: (H, W), or (H, W, 1, 3 or 4)")
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise ValueError(f"it has {pixels.shape[1]}×{pixels.shape[0]} pixels, more than {MAX_PIXELS:,}")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an array of {pixels.dtype} is no image: use uint8 from 0 to 255, or uint16")
    colours = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., 2::-1]
    return np.ascontiguousarray(colours)


def find_images(patterns: list[str]) -> list[Path]:
    """List the files that names, folders (with their subfolders) and patterns (`*`, `?`, `**`) mean.

    A file that is named is taken whatever its suffix is; of a folder, files with an image's suffix. A file
    that is named twice, `a.jpg` and `/data/a.jpg`, is listed once.

    Raises:
        FileNotFoundError: a name, folder or pattern means no file.
        ValueError: a name is empty, or that of a device or a pipe.
    """
    images: dict[Path, Path] = {}
    resolve = cache(Path.resolve)
    for pattern in patterns:
        if not pattern:
            raise ValueError("an image has an empty name: leave it out, or name a file, folder or pattern")
        path, is_pattern = Path(pattern), any(character in pattern for character in "*?[")
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
            )
            if not files:
                raise FileNotFoundError(
                    f"no image is in {pattern}: there is no {', '.join(sorted(SUFFIXES))}"
                )
        elif path.is_file():
            files = [path]
        elif path.exists():
            raise ValueError(f"{pattern} is neither a file nor a folder")
        elif is_pattern:
            anchor = Path(path.anchor)
            files = sorted(file for file in anchor.glob(str(path.relative_to(anchor))) if file.is_file())
            if not files:
                raise FileNotFoundError(f"no file matches {pattern}")
        else:
            raise FileNotFoundError(f"there is no file {pattern}")
        for file in files:
            images.setdefault(resolve(file.parent) / file.name, file)
    return list(images.values())
