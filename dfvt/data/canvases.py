"""Batches of few shapes: each is padded to the smallest of a few canvases that holds it.

cuDNN, `torch.compile` and CUDA graphs pay for every shape that they have not met, some of them seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

Canvas = tuple[int, int]  # height, width


def canvas_for(height: int, width: int, canvases: Sequence[Canvas]) -> Canvas:
    """The canvas of the fewest pixels that holds an image.

    Raises:
        ValueError: none does.
    """
    fitting = [canvas for canvas in canvases if canvas[0] >= height and canvas[1] >= width]
    if not fitting:
        listed = ", ".join(f"{h}x{w}" for h, w in canvases)
        raise ValueError(f"no canvas of {listed} holds a batch of {height}x{width} pixels: add one that does")
    return min(fitting, key=lambda canvas: canvas[0] * canvas[1])


def in_order(canvases: Sequence[Canvas]) -> list[Canvas]:
    """Canvases so that neighbours are alike: from the tallest portrait to the widest landscape."""
    return sorted(canvases, key=lambda canvas: (canvas[1] / canvas[0], canvas[0] * canvas[1]))


def pad_to_canvas(images: Tensor, canvases: Sequence[Canvas]) -> Tensor:
    """Images (B, C, H, W) with zeros on the bottom and right up to a canvas; see `canvas_for`."""
    height, width = images.shape[-2:]
    canvas = canvas_for(height, width, canvases)
    return F.pad(images, (0, canvas[1] - width, 0, canvas[0] - height))
