"""How the pipelines of a config load images, and whether their next steps can take those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmcv import Config

from dfvt.data.decoding import FLAGS
from dfvt.engine.dataset_configs import pipelines_of

LOADER = "LoadImageFromFile"
SPLITS = ("train", "val", "test")


def color_types_of(cfg: Config) -> dict[str, str]:
    """The `color_type` that each split of a config loads images with, by the name of the split.

    Raises:
        ValueError: mmcv has no such type.
    """
    found: dict[str, str] = {}
    for split in SPLITS:
        for pipeline in pipelines_of(cfg.data.get(split)):
            for step in steps_of(pipeline):
                if step.get("type") == LOADER:
                    found[split] = step.get("color_type", "color")
                    if found[split] not in FLAGS:
                        raise ValueError(
                            f"color_type {found[split]!r} of {LOADER} in data.{split} must be one of "
                            f"{', '.join(FLAGS)}"
                        )
    return found


def steps_of(pipeline: Any) -> Iterator[dict[str, Any]]:
    """The steps of a pipeline, and those inside of its steps."""
    if isinstance(pipeline, list | tuple):
        for item in pipeline:
            yield from steps_of(item)
    elif isinstance(pipeline, dict):
        if "type" in pipeline:
            yield pipeline
        for value in pipeline.values():
            yield from steps_of(value)


def require_readable(cfg: Config) -> None:
    """Refuse pipelines that load images of one channel and normalise three, which OpenCV cannot do.

    Raises:
        ValueError: they do, or mmcv has no such `color_type`.
    """
    for split, color_type in color_types_of(cfg).items():
        channels = {"g": 1, "c": 3}.get(color_type[0])  # of "unchanged" the file decides
        for pipeline in pipelines_of(cfg.data.get(split)):
            for step in steps_of(pipeline):
                if step["type"] != "Normalize" or channels is None:
                    continue
                if np.size(step.get("mean", ())) != channels or (channels == 1 and step.get("to_rgb", True)):
                    given, to_rgb = np.size(step.get("mean", ())), step.get("to_rgb", True)
                    raise ValueError(
                        f"data.{split} loads images with color_type={color_type!r}, of {channels} channel"
                        f"{'s' * (channels > 1)}, but its Normalize has {given} values of mean and "
                        f"to_rgb={to_rgb}: "
                        + ("give one of mean and std, and to_rgb=False" if channels == 1 else "give three")
                    )


def require_color_type(cfg: Config, checked: str) -> None:
    """Refuse a config that turns images by their Exif orientation where the check of the data set did not.

    Args:
        cfg: of a detector.
        checked: the `color_type` that the data set was checked with.

    Raises:
        ValueError: it does, or the other way round.
    """
    for split, color_type in color_types_of(cfg).items():
        if follows_orientation(color_type) != follows_orientation(checked):
            raise ValueError(
                f"the config's data.{split} loads images with color_type={color_type!r}, but the data set "
                f"was checked with {checked!r}: set validation.color_type of params.yaml to {color_type}"
            )


def follows_orientation(color_type: str) -> bool:
    """Whether images are turned upright by their Exif orientation."""
    return color_type in ("color", "grayscale")
