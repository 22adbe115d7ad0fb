"""The shapes that training images will have after their augmentation, drawn without touching a pixel.

The pipeline's own steps draw what they always draw; only what they would do to pixels is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mmcv
import numpy as np
from mmdet.datasets import ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmdet.datasets.pipelines import AutoAugment, Pad, RandomCrop, RandomFlip, Resize

from dfvt.data.canvases import Canvas, canvas_for, in_order
from dfvt.data.samples import SampleKey, kept_generators, seed_augmentation

Shape = tuple[int, int]  # height, width
Step = Callable[[dict[str, Any]], dict[str, Any]]
WITHOUT_EFFECT = {
    "LoadImageFromFile",
    "LoadAnnotations",
    "Normalize",
    "DefaultFormatBundle",
    "Collect",
}


class Outline:
    """Stands where an image would be: it has a shape, and can be cropped."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = (height, width, 3)

    def __getitem__(self, region: tuple[slice, slice, Any]) -> Outline:
        height, width = (
            len(range(*part.indices(size))) for part, size in zip(region[:2], self.shape[:2], strict=True)
        )
        return Outline(height, width)


def forecast_shapes(dataset: Any) -> Callable[[Sequence[SampleKey]], list[Shape]]:
    """A function that says which shapes samples of an mmdet training data set will have, padding included.

    Raises:
        ValueError: a step of the pipeline, or a wrapper of data sets, is not known here.
    """
    if isinstance(dataset, RepeatDataset):
        forecast, number = forecast_shapes(dataset.dataset), len(dataset.dataset)
        return lambda keys: forecast([SampleKey(key.image % number, key.seed) for key in keys])
    if isinstance(dataset, ClassBalancedDataset):
        forecast, places = forecast_shapes(dataset.dataset), dataset.repeat_indices
        return lambda keys: forecast([SampleKey(places[key.image], key.seed) for key in keys])
    if isinstance(dataset, ConcatDataset):
        forecasts = [forecast_shapes(part) for part in dataset.datasets]
        starts = np.cumsum([0, *(len(part) for part in dataset.datasets)])

        def of_parts(keys: Sequence[SampleKey]) -> list[Shape]:
            parts = np.searchsorted(starts, [key.image for key in keys], side="right") - 1
            shapes: dict[int, Shape] = {}
            for part in map(int, np.unique(parts)):
                places = [int(place) for place in np.flatnonzero(parts == part)]
                own = [SampleKey(keys[at].image - int(starts[part]), keys[at].seed) for at in places]
                shapes.update(zip(places, forecasts[part](own), strict=True))
            return [shapes[place] for place in range(len(keys))]

        return of_parts
    if not hasattr(dataset, "data_infos"):
        raise ValueError(f"group_by_canvas knows no {type(dataset).__name__}: remove it from the config")
    steps = [step for step in map(drawing, dataset.pipeline.transforms) if step]

    def of_images(keys: Sequence[SampleKey]) -> list[Shape]:
        shapes = []
        with kept_generators():
            for key in keys:
                info = dataset.data_infos[key.image]
                results: dict[str, Any] = {
                    "img": Outline(info["height"], info["width"]),
                    "img_fields": ["img"],
                }
                seed_augmentation(key.seed)
                for step in steps:
                    results = step(results)
                shapes.append(results["img"].shape[:2])
        return shapes

    return of_images


def drawing(step: Any) -> Step | None:
    """What a step of a pipeline draws and does to a shape; None where that is nothing.

    Raises:
        ValueError: it is not known here.
    """
    if type(step) is Resize:
        resize = copy.copy(step)
        resize._resize_img = partial(_resize, step.keep_ratio)
        return resize
    if type(step) is RandomCrop and step.allow_negative_crop:  # else it may ask for another image
        return step
    if type(step) is RandomFlip:
        return lambda results: {**step({**results, "img_fields": []}), "img_fields": ["img"]}
    if type(step) is AutoAugment:
        augment = copy.copy(step)
        augment.transforms = [_chain(part.transforms) for part in step.transforms]
        return augment
    if type(step) is Pad:
        return partial(_pad, step)
    if type(step).__name__ in WITHOUT_EFFECT:
        return None
    raise ValueError(
        f"group_by_canvas does not know what {type(step).__name__} does: remove it from the config"
    )


def _chain(steps: Sequence[Any]) -> Step:
    parts = [part for part in map(drawing, steps) if part]

    def run(results: dict[str, Any]) -> dict[str, Any]:
        for part in parts:
            results = part(results)
        return results

    return run


def _resize(keep_ratio: bool, results: dict[str, Any]) -> None:
    height, width, _ = results["img"].shape
    size = mmcv.rescale_size((width, height), results["scale"]) if keep_ratio else results["scale"]
    results["img"] = Outline(size[1], size[0])
    results["scale_factor"] = 1.0  # the next one wants to know that there was one


def _pad(step: Pad, results: dict[str, Any]) -> dict[str, Any]:
    height, width, _ = results["img"].shape
    if step.pad_to_square:
        height = width = max(height, width)
    elif step.size:
        height, width = step.size
    else:
        divisor = step.size_divisor
        height, width = -(-height // divisor) * divisor, -(-width // divisor) * divisor
    return {**results, "img": Outline(height, width)}


def canvas_forecast(dataset: Any, canvases: Sequence[Canvas]) -> Callable[[Sequence[SampleKey]], list[int]]:
    """A function that says which of the canvases, in their order, samples of a data set will need.

    Raises:
        ValueError: there are no canvases, or none holds a sample, or `forecast_shapes` does.
    """
    if not canvases:
        raise ValueError(
            "group_by_canvas needs canvases to group by: set canvases too, or group_by_canvas=False"
        )
    forecast = forecast_shapes(dataset)
    places = {canvas: place for place, canvas in enumerate(in_order(canvases))}
    return lambda keys: [places[canvas_for(*shape, canvases)] for shape in forecast(keys)]
