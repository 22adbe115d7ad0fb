"""What a detector found on images: pictures, and one file in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from dfvt.data.files import write_whole
from dfvt.engine.predict import Prediction
from dfvt.reports.gallery import draw_instances
from dfvt.reports.pages import JPEG_QUALITY

LARGEST_PICTURE = 1333  # pixels; larger images are drawn smaller


class PredictionFiles:
    """Collects predictions; `save` writes a data set in COCO's layout that other tools can read, and browse.

    Its annotations have a `score` beside COCO's keys.
    """

    def __init__(self, classes: Sequence[str], score_threshold: float) -> None:
        self.classes = classes
        self.score_threshold = score_threshold
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, name: str, prediction: Prediction, picture: str | None = None) -> int:
        """Takes in what was found on the image `name`; returns how many objects are sure enough."""
        image_id = len(self.images) + 1
        size = {"height": prediction.height, "width": prediction.width}
        shown = {} if picture is None else {"picture": picture}
        self.images.append({"id": image_id, "file_name": name, **size, **shown})
        sure = np.flatnonzero(prediction.scores >= self.score_threshold)
        for index in sure:
            x1, y1, x2, y2 = (float(value) for value in prediction.boxes[index])
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": int(prediction.labels[index]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": float(prediction.scores[index]),
            }
            if prediction.masks is not None:
                annotation["segmentation"] = prediction.masks[index]
                annotation["area"] = float(coco_mask.area(prediction.masks[index]))
            self.annotations.append(annotation)
        return len(sure)

    def save(self, path: Path) -> None:
        """Writes the file; it appears when it is complete."""
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(self.classes)]
        content = {"images": self.images, "annotations": self.annotations, "categories": categories}
        write_whole(path, json.dumps(content))


def draw_prediction(
    image: NDArray[np.uint8],
    prediction: Prediction,
    classes: Sequence[str],
    score_threshold: float,
    path: Path,
) -> None:
    """Writes the JPEG `path` of an image (RGB) with what was found on it, the surest on top."""
    sure = np.flatnonzero(prediction.scores >= score_threshold)[::-1]
    masks: Any = np.zeros((len(sure), *image.shape[:2]), bool)
    if prediction.masks is not None:
        masks = [prediction.masks[index] for index in sure]
    drawn = draw_instances(
        image,
        prediction.boxes[sure],
        masks,
        [int(label) for label in prediction.labels[sure]],
        [float(score) for score in prediction.scores[sure]],
        classes,
        scale=min(LARGEST_PICTURE / max(image.shape[:2]), 1.0),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn).save(path, quality=JPEG_QUALITY)


def remove_pictures(predictions: Path) -> int:
    """Removes the pictures that an earlier file of predictions names, and it; returns how many images it had.

    Raises:
        ValueError: the file is no such file, but another one that is not to be replaced.
    """
    if not predictions.is_file():
        return 0
    try:
        images = json.loads(predictions.read_text())["images"]
        names = [one["picture"] for one in images if "picture" in one]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{predictions} is no file of predict's: choose another --out") from error
    for name in names:
        (predictions.parent / "pictures" / Path(name).name).unlink(missing_ok=True)  # nowhere else
    predictions.unlink()
    return len(images)


def picture_names(paths: Sequence[Path]) -> list[str]:
    """A name of its own for the picture of each file: the file's, with its number where two have the same."""
    stems = [path.stem for path in paths]
    return [
        f"{stem}.jpg" if stems.count(stem) == 1 else f"{stem}-{number:04}.jpg"
        for number, stem in enumerate(stems, 1)
    ]
