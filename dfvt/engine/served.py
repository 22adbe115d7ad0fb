"""A trained detector as MLflow's python function: images in, plain lists and numbers out.

`mlflow.pyfunc` loads it by the name of this module, from a folder with `config.py` and `checkpoint.pth`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dfvt.engine.config import load_config
from dfvt.engine.console import quiet_libraries
from dfvt.engine.infer import choose_device
from dfvt.engine.predict import Prediction, Predictor

CONFIG, CHECKPOINT = "config.py", "checkpoint.pth"
FOUND = ("boxes", "labels", "scores", "masks")


class ServedDetector:
    """Answers with a dictionary an image.

    Its keys are `height`, `width`, `boxes` (x1, y1, x2, y2), `labels` (names), `scores`, `masks` (COCO run
    lengths), and `error`, a sentence about what is no image, or None.
    """

    def __init__(self, folder: Path) -> None:
        quiet_libraries()
        cfg = load_config(folder / CONFIG, import_modules=False)
        self.predictor = Predictor(cfg, folder / CHECKPOINT, choose_device("auto"))

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Finds the objects on images.

        Args:
            model_input: an image or several, in a list, an array, or the first column of a table. An image is
                a file's path, a file's content, that in base64, or pixels, see `dfvt.data.images.read_image`.
            params: `score`, the least that an object must have.
        """
        least = float((params or {}).get("score", 0.0))
        answers = []
        for image in images_of(model_input):
            try:
                (prediction,) = self.predictor([self.predictor.read(source_of(image))])
            except (FileNotFoundError, ValueError) as error:
                answers.append({**dict.fromkeys(("height", "width", *FOUND)), "error": str(error)})
            else:
                answers.append(answer(prediction, self.predictor.classes, least))
        return answers


def _load_pyfunc(path: str) -> ServedDetector:
    """What `mlflow.pyfunc` calls."""
    return ServedDetector(Path(path))


def images_of(model_input: Any) -> Iterable[Any]:
    """The images of what MLflow hands over."""
    if hasattr(model_input, "iloc"):  # a table of pandas, which others need not import
        return list(model_input.iloc[:, 0])
    if isinstance(model_input, str | bytes | Path):
        return [model_input]
    return list(model_input)


def source_of(image: Any) -> Path | bytes | np.ndarray:
    """What `read_image` takes; a text that names no file is base64.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(image, list):  # pixels that came as JSON
        return np.asarray(image, np.uint8)
    if isinstance(image, str):
        try:
            if Path(image).is_file():
                return Path(image)
        except OSError:  # too long for a name
            pass
        try:
            return base64.b64decode(image.partition("base64,")[2] or image, validate=True)
        except binascii.Error as error:
            raise ValueError("it is neither the path of a file nor base64") from error
    if isinstance(image, Path | bytes | np.ndarray):
        return image
    raise ValueError(f"{type(image).__name__} is no image: give a path, bytes, base64 or pixels")


def answer(prediction: Prediction, classes: tuple[str, ...], least: float) -> dict[str, Any]:
    """A prediction as JSON can hold it."""
    sure = np.flatnonzero(prediction.scores >= least)
    return {
        "height": int(prediction.height),
        "width": int(prediction.width),
        "boxes": prediction.boxes[sure].tolist(),
        "labels": [classes[label] for label in prediction.labels[sure]],
        "scores": prediction.scores[sure].tolist(),
        "masks": None if prediction.masks is None else [prediction.masks[index] for index in sure],
        "error": None,
    }
