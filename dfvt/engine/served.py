"""A trained detector as MLflow's python function: images in, plain lists and numbers out.

`mlflow.pyfunc` loads it by the name of this module, from a folder with `config.py` and `checkpoint.pth`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfvt.engine.console import quiet_libraries
from dfvt.engine.custom_modules import refuse_custom_modules
from dfvt.engine.infer import choose_device
from dfvt.engine.plain import load_plain_config
from dfvt.engine.predict import Prediction, Predictor

CONFIG, CHECKPOINT = "config.py", "checkpoint.pth"
FOUND = ("boxes", "labels", "scores", "masks")


class ServedDetector:
    """Answers with a dictionary for each image.

    Its keys are `height`, `width`, `boxes` (x1, y1, x2, y2), `labels` (names), `scores`, `masks` (COCO run
    lengths) and `error`. If an input cannot be used, its `error` is a sentence that says why, and the other
    values are None; else `error` is None.

    Whoever sends a request must not learn which files this machine has, let alone see them: a text is read as
    a path only with `read_paths`. A `pathlib.Path` is always read: no request can contain one.
    """

    def __init__(self, folder: Path, *, read_paths: bool = False) -> None:
        """Load a detector.

        Args:
            folder: has its config and checkpoint.
            read_paths: whether a text may be the path of a file on this machine.
        """
        quiet_libraries()
        cfg = load_plain_config(folder / CONFIG)
        refuse_custom_modules(cfg, f"config {folder / CONFIG}")
        self.predictor = Predictor(cfg, folder / CHECKPOINT, choose_device("auto"))
        self.read_paths = read_paths

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Finds the objects on images.

        Args:
            model_input: an image or several, in a list, an array, or the first column of a table. An image is
                a `Path`, a file's content, that in base64, or pixels, see `dfvt.data.images.read_image`; and
                with `read_paths` a path as text.
            params: `score`, the least score of an object that is returned.
        """
        threshold = float((params or {}).get("score", 0.0))
        return [self._answer_to(image, threshold) for image in images_of(model_input)]

    def _answer_to(self, image: Any, threshold: float) -> dict[str, Any]:
        try:
            source = source_of(image, read_paths=self.read_paths)
            (prediction,) = self.predictor([self.predictor.read(source)])
        except (FileNotFoundError, ValueError) as error:
            return {**dict.fromkeys(("height", "width", *FOUND)), "error": str(error)}
        except (torch.OutOfMemoryError, MemoryError):
            return {**dict.fromkeys(("height", "width", *FOUND)), "error": "there is no memory left for it"}
        return answer(prediction, self.predictor.classes, threshold)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> ServedDetector:
    """Load the model for `mlflow.pyfunc`; `model_config` has the arguments of `ServedDetector`.

    Raises:
        ValueError: `read_paths` is not a truth value.
    """
    read_paths = (model_config or {}).get("read_paths", False)
    if not isinstance(read_paths, bool):
        raise ValueError(f"read_paths of the model's config is {read_paths!r}: use true or false")
    return ServedDetector(Path(path), read_paths=read_paths)


def images_of(model_input: Any) -> Iterable[Any]:
    """List the images of what MLflow hands over.

    Raises:
        ValueError: it cannot hold images.
    """
    if hasattr(model_input, "iloc"):  # a table of pandas, which others need not import
        is_column = model_input.ndim == 1 or not model_input.shape[1]
        return list(model_input if is_column else model_input.iloc[:, 0])
    if isinstance(model_input, str | bytes | Path):
        return [model_input]
    if isinstance(model_input, np.ndarray) and model_input.dtype.kind in "biuf":
        # (H, W) and (H, W, channels) are an image; its rows are none.
        is_image = model_input.ndim < 3 or (model_input.ndim == 3 and model_input.shape[2] in (1, 3, 4))
        return [model_input] if is_image else list(model_input)
    if not isinstance(model_input, Iterable) or isinstance(model_input, Mapping):
        raise ValueError(f"{type(model_input).__name__} cannot hold images: give a list")
    return list(model_input)


def source_of(image: Any, *, read_paths: bool = False) -> Path | bytes | np.ndarray:
    """Return what `read_image` takes for an image that came from anywhere.

    Raises:
        ValueError: it cannot be an image.
    """
    if isinstance(image, list | tuple):  # pixels that came as JSON
        return pixels_of(image)
    if isinstance(image, str):
        path = path_of(image) if read_paths else None
        return path or content_of(image, read_paths=read_paths)
    if isinstance(image, Path | bytes | np.ndarray):
        return image
    raise ValueError(f"{type(image).__name__} is no image: give a path, bytes, base64 or pixels")


def path_of(text: str) -> Path | None:
    """Return the path of a file that there is, None if `text` names none."""
    try:
        return Path(text) if Path(text).is_file() else None
    except (OSError, ValueError):  # too long for a name, or not one at all
        return None


def content_of(text: str, *, read_paths: bool) -> bytes:
    """Decode base64, which may be the end of a data URL.

    Raises:
        ValueError: it is something else. The sentence is the same whether there is such a file or not.
    """
    encoded = "".join((text.partition("base64,")[2] or text).split())  # encoders may break lines
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        if read_paths:
            raise ValueError("it is neither the path of a file nor base64") from error
        raise ValueError("it is not base64 (paths are read only with read_paths, see the README)") from error


def pixels_of(rows: Sequence[Any]) -> np.ndarray:
    """Turn nested lists of numbers into pixels; `read_image` judges their shape.

    Raises:
        ValueError: they are ragged, or hold something else than whole numbers from 0 to 255.
    """
    try:
        pixels = np.asarray(rows)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError("its pixels are not rows of one length") from error
    if pixels.size and pixels.dtype.kind not in "iuf":
        raise ValueError("its pixels are not numbers")
    valid = (pixels >= 0) & (pixels <= 255) & (pixels == np.floor(pixels)) if pixels.size else np.True_
    if not valid.all():
        raise ValueError(
            f"its pixels are not whole numbers from 0 to 255: {pixels[~valid][0]!s} is one of them"
        )
    if pixels.ndim == 2 and pixels.shape[1] in (1, 3, 4):
        # Of `{"inputs": [image]}` MLflow makes a table with a column for each row, and keeps the first one.
        raise ValueError(
            f"its shape {pixels.shape} is that of one row of pixels: send pixels as dataframe_split with one "
            "column, or send base64"
        )
    return pixels.astype(np.uint8)


def answer(prediction: Prediction, classes: tuple[str, ...], threshold: float) -> dict[str, Any]:
    """A prediction as JSON can hold it."""
    sure = np.flatnonzero(prediction.scores >= threshold)
    return {
        "height": int(prediction.height),
        "width": int(prediction.width),
        "boxes": prediction.boxes[sure].tolist(),
        "labels": [classes[label] for label in prediction.labels[sure]],
        "scores": prediction.scores[sure].tolist(),
        "masks": None if prediction.masks is None else [prediction.masks[index] for index in sure],
        "error": None,
    }
