"""Whether an image decodes, found out without all of its pixels where its format allows that."""

from __future__ import annotations

from PIL import Image

DAMAGE = (OSError, SyntaxError, ValueError)  # how Pillow names it


def decode_coarsely(image: Image.Image) -> None:
    """Decodes an opened image, a JPEG at an eighth of its size; raises one of `DAMAGE` if it is cut off."""
    width, height = image.size
    image.draft(image.mode, (max(width // 8, 1), max(height // 8, 1)))
    image.load()
