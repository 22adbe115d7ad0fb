"""Images from anywhere, decoded as the loaders of trainings decode them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import mmcv
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dfvt.data.decoding import DAMAGE, decode_coarsely

MAX_PIXELS = 100_000_000  # decoded they take 300 MB
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


def read_image(source: Path | bytes | NDArray) -> NDArray[np.uint8]:
    """An image as mmcv and OpenCV have it: BGR, 8 bit, upright, (H, W, 3).

    Args:
        source: a file; a file's content; or pixels of 8 or 16 bit: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA
            (H, W, 4). Alpha is left out, 16 bit become 8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, is damaged, or has more than `MAX_PIXELS` pixels; one sentence without
            its name.
    """
    if isinstance(source, np.ndarray):
        return from_pixels(source)
    content = source if isinstance(source, bytes) else read_file(source)
    if not content:
        raise ValueError("it is empty")
    require_sound(content)
    image = mmcv.imfrombytes(content, flag="color")
    if image is None:
        raise ValueError("it cannot be decoded")
    return np.ascontiguousarray(image)


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


def require_sound(content: bytes) -> None:
    """Looks at the size before anything is decoded, and at the whole before it is used.

    Raises:
        ValueError: as `read_image`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides
            image = Image.open(io.BytesIO(content))
            width, height = image.size
            if width * height <= MAX_PIXELS:
                decode_coarsely(image)
    except UnidentifiedImageError as error:
        raise ValueError("it is no image that can be read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels") from error
    except DAMAGE as error:
        raise ValueError(f"it is damaged ({error})") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width}×{height} pixels, more than {MAX_PIXELS:,}")


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
    """The files that names, folders (with those in them) and patterns (`*`, `?`, `**`) mean, each once.

    Files that are named are taken whatever they are called; of folders those with an image's suffix.

    Raises:
        FileNotFoundError: one means nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path, magic = Path(pattern), any(character in pattern for character in "*?[")
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
        elif path.is_file():
            files = [path]
        else:
            anchor = Path(path.anchor) if path.anchor else Path()
            relative = path.relative_to(path.anchor) if path.anchor else path
            files = sorted(one for one in anchor.glob(str(relative)) if one.is_file()) if magic else []
        if not files:
            if path.is_dir():
                raise FileNotFoundError(
                    f"no image is in {pattern}: there is no {', '.join(sorted(SUFFIXES))}"
                )
            raise FileNotFoundError(f"no file matches {pattern}" if magic else f"there is no file {pattern}")
        found |= dict.fromkeys(files)
    return list(found)
