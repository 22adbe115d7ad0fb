"""What the device does to the images of a batch before the model sees them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from mmcv import Config, ConfigDict
from torch import Tensor

from dfvt.data.canvases import Canvas
from dfvt.engine.dataset_configs import pipelines_of

AFTER_NORMALIZE = {"Pad", "DefaultFormatBundle", "Collect"}  # they change no pixel


@dataclass(frozen=True)
class Normalization:
    """mmdet's `Normalize`: `mean` and `std` of the three channels, whose order may be turned round first."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    to_rgb: bool

    def __call__(self, images: Tensor, shapes: Tensor) -> Tensor:
        """Float images of bytes (B, 3, H, W); `shapes` (B, 2) are what is not padding, which becomes zero."""
        height, width = images.shape[-2:]
        rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
        inside = (rows < shapes[:, :1])[:, :, None] & (columns < shapes[:, 1:])[:, None]
        values = (images.flip(1) if self.to_rgb else images).float()
        constants = torch.tensor([self.mean, [1 / one for one in self.std]])
        mean, factor = constants.to(values.device, non_blocking=True)[:, None, :, None, None]
        return torch.where(inside[:, None], (values - mean) * factor, 0.0)


@dataclass(frozen=True)
class ImagePreparation:
    """Done to the inputs of `train_step` on the device.

    Attributes:
        normalization: of images that travelled as bytes, if they did: a quarter of what floats are.
        channels_last: whether they lie so in memory.
    """

    normalization: Normalization | None = None
    channels_last: bool = False

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        images = inputs["img"]
        if self.normalization:
            shapes = torch.tensor([meta["img_shape"][:2] for meta in inputs["img_metas"]])
            images = self.normalization(images, shapes.to(images.device, non_blocking=True))
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return {**inputs, "img": images}


def images_of(cfg: Config) -> tuple[ConfigDict, ImagePreparation]:
    """The config of the training data set, and what the device does to its batches.

    `normalize_on_device = True` of a config lets images travel as bytes; `channels_last = True` lets them lie
    channels-last, as the weights of the model's convolutions do.

    Raises:
        ValueError: its `Normalize` cannot be done on the device, see `without_normalize`.
    """
    data, normalization = cfg.data.train, None
    if cfg.get("normalize_on_device"):
        data, normalization = without_normalize(data)
    return data, ImagePreparation(normalization, bool(cfg.get("channels_last")))


def canvases_of(cfg: Config) -> list[Canvas]:
    """`canvases = [(height, width), …]` of a config: the shapes that training batches are padded to.

    Raises:
        ValueError: one is no pair of whole numbers from 1.
    """
    canvases = cfg.get("canvases") or ()
    if not isinstance(canvases, list | tuple):
        raise ValueError(f"canvases {canvases!r} must be a list of heights and widths, [(800, 1344), …]")
    for canvas in canvases:
        sides = canvas if isinstance(canvas, list | tuple) else ()
        if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
            raise ValueError(
                f"canvases has {canvas!r}: each is a height and a width in pixels, as in [(800, 1344)]"
            )
    return [(height, width) for height, width in canvases]


def without_normalize(data: ConfigDict) -> tuple[ConfigDict, Normalization]:
    """A training data set's config without its `Normalize`, and what that did.

    Raises:
        ValueError: its pipelines have none or different ones, or change pixels after it.
    """
    data = copy.deepcopy(data)
    found = []
    for pipeline in pipelines_of(data):
        place = next((place for place, step in enumerate(pipeline) if step["type"] == "Normalize"), None)
        if place is None:
            continue
        after = {step["type"] for step in pipeline[place + 1 :]} - AFTER_NORMALIZE
        if after:
            raise ValueError(
                f"normalize_on_device cannot do what {', '.join(sorted(after))} comes after: remove the key"
            )
        step = pipeline.pop(place)
        found.append(Normalization(tuple(step["mean"]), tuple(step["std"]), step.get("to_rgb", True)))
        for other in pipeline:
            if other["type"] == "DefaultFormatBundle":
                other["img_to_float"] = False
    if len(set(found)) != 1:
        what = "several different ones" if found else "none"
        raise ValueError(f"normalize_on_device needs one Normalize, data.train has {what}: remove the key")
    return data, found[0]
