"""Predictions of a detector on images from anywhere, those that `dfvt test` makes of the same images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np
import torch
from mmcv import Config
from mmcv.parallel import collate
from mmdet.datasets.pipelines import Compose
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dfvt.data.images import read_image
from dfvt.data.loading import ForkingLoader
from dfvt.data.samples import unpack
from dfvt.engine.compat import to_device
from dfvt.engine.config import arguments_of
from dfvt.engine.dataset_configs import tested_data
from dfvt.engine.detection import encoded_results
from dfvt.engine.infer import build_bare_detector
from dfvt.engine.loaders import require_readable
from dfvt.models.checkpoints import load_weights

LOADERS = ("LoadImageFromFile", "LoadImageFromWebcam")


@dataclass(frozen=True)
class Prediction:
    """Objects found on one image of `height` × `width` pixels, the surest first.

    Attributes:
        boxes: (N, 4) as x1, y1, x2, y2 in pixels.
        labels: (N,) indices into the detector's classes.
        scores: (N,) in 0…1.
        masks: COCO run lengths, `{"size": [H, W], "counts": str}` each; None of a detector without masks.
    """

    height: int
    width: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: list[dict[str, Any]] | None


class Predictor:
    """A detector ready to use.

    Attributes:
        classes: the names of its labels.
        read: reads an image as the config's test pipeline does, see `dfvt.data.images.read_image`.
    """

    def __init__(self, cfg: Config, checkpoint: Path, device: torch.device) -> None:
        """Loads the weights.

        Raises:
            FileNotFoundError: the checkpoint is missing.
            ValueError: it does not fit the config, the classes are unknown, or the test pipeline does not
                begin with loading an image.
        """
        model = build_bare_detector(cfg)
        meta = load_weights(model, checkpoint)
        self.classes = class_names(cfg, meta)
        self.device = device
        self.model = model.to(device)
        self.one_at_a_time = Lock()  # a server's threads share the detector
        pipeline = copy.deepcopy(tested_data(cfg).pipeline)
        if pipeline[0].type not in LOADERS:
            raise ValueError(f"the config's test pipeline begins with {pipeline[0].type}, not {LOADERS[0]}")
        loader = {key: value for key, value in pipeline[0].items() if key != "type"}
        color_type, channel_order = loader.get("color_type", "color"), loader.get("channel_order", "bgr")
        require_readable(cfg)
        self.read = partial(read_image, color_type=color_type, channel_order=channel_order)
        pipeline[0] = {"type": "LoadImageFromWebcam", **loader}
        with arguments_of("data.test.pipeline"):
            self.transform = Compose(pipeline)

    def prepare(self, image: NDArray[np.uint8]) -> Any:
        """Return the detector's input of an image, BGR (H, W, 3).

        Raises:
            ValueError: the config's pipeline cannot transform it, as an image of 1 × 10,000 pixels, of which
                nothing is left at the size of the test images.
        """
        try:
            return self.transform({"img": image})
        except cv2.error as error:
            height, width = image.shape[:2]
            raise ValueError(
                f"the config's test pipeline cannot take an image of {width}×{height} pixels ({error.err})"
            ) from error

    @torch.no_grad()
    def predict(self, prepared: Sequence[Any]) -> list[Prediction]:
        """Predictions of what `prepare` made of images; those of one size pass through together."""
        found: dict[int, Prediction] = {}
        groups: dict[Any, list[int]] = {}
        for index, data in enumerate(prepared):
            groups.setdefault(data["img"][0].shape, []).append(index)
        with self.one_at_a_time, encoded_results(self.model, self.device) as results_of:
            for indices in groups.values():
                inputs = unpack(collate([prepared[index] for index in indices], samples_per_gpu=len(indices)))
                metas = inputs["img_metas"][0]
                results = results_of(to_device(inputs, self.device))
                for index, meta, result in zip(indices, metas, results, strict=True):
                    found[index] = as_prediction(result, *meta["ori_shape"][:2])
        return [found[index] for index in range(len(prepared))]

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Predictions of images as `read` gives them: BGR (H, W, 3) unless the config has another order."""
        return self.predict([self.prepare(image) for image in images])


def class_names(cfg: Config, meta: dict[str, Any]) -> tuple[str, ...]:
    """Names of the labels: those that the checkpoint or the config has, or COCO's where there are eighty.

    Raises:
        ValueError: neither has as many as the detector.
    """
    from mmdet.datasets import CocoDataset

    number = cfg.model.roi_head.bbox_head.num_classes
    for names in (meta.get("CLASSES"), tested_data(cfg).get("classes"), CocoDataset.CLASSES):
        if names and not isinstance(names, str) and len(names) == number:
            return tuple(names)
    raise ValueError(
        f"nobody names the {number} classes of the detector: add them with "
        "--cfg-options data.test.classes=[…], or use a checkpoint that has them"
    )


def as_prediction(result: Any, height: int, width: int) -> Prediction:
    """mmdet's result of an image, masks as run lengths, in the order of the scores."""
    per_class, masks_per_class = result if isinstance(result, tuple) else (result, None)
    boxes = np.concatenate(per_class).astype(np.float32)
    labels = np.concatenate([np.full(len(one), label, np.int64) for label, one in enumerate(per_class)])
    order = np.argsort(-boxes[:, 4], kind="stable")
    masks = None
    if masks_per_class is not None:
        encoded = [mask for one in masks_per_class for mask in one]
        masks = [{**encoded[index], "counts": encoded[index]["counts"].decode()} for index in order]
    return Prediction(height, width, boxes[order, :4], labels[order], boxes[order, 4], masks)


class ImageFiles(Dataset):
    """Image files, prepared; a file that cannot be read is the sentence that says why."""

    def __init__(self, paths: Sequence[Path], predictor: Predictor) -> None:
        self.paths, self.read, self.prepare = paths, predictor.read, predictor.prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.prepare(self.read(self.paths[index]))
        except (FileNotFoundError, ValueError) as error:
            return str(error)


def predict_files(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: Callable[[int], object] = lambda number: None,
) -> Iterator[tuple[Path, Prediction | str]]:
    """The prediction of each file, or why it cannot be read, in their order.

    `num_workers` processes read and prepare images ahead; `progress` is called with the number of files done.
    """
    loader = ForkingLoader(ImageFiles(paths, predictor), num_workers, batch_size=batch_size, collate_fn=list)
    remaining = iter(paths)
    for batch in loader:
        predictions = iter(predictor.predict([one for one in batch if not isinstance(one, str)]))
        for one in batch:
            yield next(remaining), one if isinstance(one, str) else next(predictions)
        progress(len(batch))
