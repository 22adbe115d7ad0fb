"""One setting for the size of images, which the pipelines of all splits and the canvases follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmcv import Config

from dfvt.engine.dataset_configs import pipelines_of, tested_data
from dfvt.engine.loaders import steps_of

ImageSize = tuple[int, int]  # the longer and the shorter side in pixels, as mmdet's `img_scale`
SPLITS = ("train", "val", "test")
SCALE = "img_scale"
SIZES = {  # of the steps of pipelines, the argument that is a size in pixels
    "RandomCrop": "crop_size",
    "RandomCenterCropPad": "crop_size",
    "Pad": "size",
    "RandomAffine": "border",
}
LEAST = 32  # pixels of a side


def image_size_of(cfg: Config) -> ImageSize:
    """The longer and the shorter side, in pixels, of the box that test images are scaled to fit into.

    It is the largest one where they are scaled to several.

    Raises:
        ValueError: the test pipeline does not tell.
    """
    given = [
        step.get(SCALE)
        for step in steps_of(tested_data(cfg).get("pipeline"))
        if step["type"] == "MultiScaleFlipAug"
    ]
    scales = [scale for one in given if one for scale in (one if isinstance(one, list) else [one])]
    if not scales:
        raise ValueError(
            "the config's data.test.pipeline has no MultiScaleFlipAug with an img_scale: nothing says how "
            "large images are"
        )
    long, short = max((max(scale), min(scale)) for scale in scales)
    return int(long), int(short)


def set_image_size(cfg: Config, size: Sequence[int]) -> None:
    """Makes images of another size in training, validation and prediction.

    The size is that of validation and prediction. All other sizes of the config keep their proportion to it:
    the scales and crops of a training with several scales, the canvases, paddings of a fixed size.

    Args:
        cfg: changed in place.
        size: the longer and the shorter side, in pixels, of the box that images are scaled to fit into.

    Raises:
        ValueError: the size is none, or the config has no size to begin from, or one that is a square.
    """
    if (
        len(size) != 2
        or any(not isinstance(side, int) or isinstance(side, bool) or side < LEAST for side in size)
        or size[0] < size[1]
    ):
        raise ValueError(
            f"image_size {list(size)} must be two whole numbers of at least {LEAST} pixels, the longer side "
            "first"
        )
    from dfvt.engine.options import SECTIONS  # imports mmdet, which takes seconds

    before = image_size_of(cfg)
    if before[0] == before[1] and size[0] != size[1]:
        raise ValueError(
            f"image_size {list(size)} must have two equal sides: the config scales images to squares of "
            f"{before[0]}×{before[1]}"
        )
    scaled = _scaling(before, (size[0], size[1]))
    divisor = _divisor_of(cfg)
    for name in cfg:
        if name not in SECTIONS[""]:  # variables of the file, which the record shows
            cfg[name] = _resized(cfg[name], scaled) if name != SCALE else _sized(cfg[name], scaled)
    for split in SPLITS:
        if split in cfg.data:
            cfg.data[split] = _resized(cfg.data[split], scaled)
    if cfg.get("canvases"):
        padded = {-(-side // divisor) * divisor: side for side in before}

        def canvas_side(side: int) -> int:
            return -(-scaled(padded.get(side, side)) // divisor) * divisor

        canvases = [tuple(map(canvas_side, canvas)) for canvas in cfg.canvases]
        cfg.canvases = list(dict.fromkeys(canvases))


def _scaling(before: ImageSize, after: ImageSize) -> Callable[[float], int]:
    """The side, in whole pixels, that becomes of one: linear between 0, the shorter and the longer side."""
    (long, short), (new_long, new_short) = before, after

    def scaled(side: float) -> int:
        if side < 0:
            return -scaled(-side)
        if side <= short:
            return round(side * new_short / short)
        if long == short or side >= long:
            return round(side * new_long / long)
        return round(new_short + (side - short) * (new_long - new_short) / (long - short))

    return scaled


def _resized(value: Any, scaled: Callable[[float], int]) -> Any:
    """A copy of a part of a config with other sizes."""
    if isinstance(value, dict):
        kind = value.get("type")
        if kind == "Albu" and any({"height", "width"} & set(step) for step in steps_of(value)):
            raise ValueError("image_size cannot change the sizes in Albu: set them in the config")
        sizes = {SCALE, SIZES.get(kind) if isinstance(kind, str) else None}
        if str(value.get("crop_type", "")).startswith("relative"):  # a share of the image
            sizes.discard("crop_size")
        return type(value)(
            {
                key: _sized(item, scaled) if key in sizes else _resized(item, scaled)
                for key, item in value.items()
            }
        )
    if isinstance(value, list | tuple):
        return type(value)(_resized(item, scaled) for item in value)
    return value


def _sized(value: Any, scaled: Callable[[float], int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_sized(item, scaled) for item in value)
    return scaled(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _divisor_of(cfg: Config) -> int:
    """What the sides of padded images are multiples of."""
    return max(
        (
            int(step.get("size_divisor") or 1)
            for split in SPLITS
            for pipeline in pipelines_of(cfg.data.get(split))
            for step in steps_of(pipeline)
            if step["type"] == "Pad"
        ),
        default=1,
    )
