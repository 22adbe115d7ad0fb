"""What a detector found on images: pictures, and one file in COCO's format."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from dfvt.data.files import write_whole
from dfvt.engine.predict import Prediction
from dfvt.reports.instances import draw_instances
from dfvt.reports.pages import JPEG_QUALITY

LARGEST_PICTURE = 1333  # pixels; larger images are drawn smaller
REFUSED = frozenset('<>:"|?*\\')  # in names of files, by file systems of Windows
LONGEST_STEM = 200  # bytes; most file systems take 255, and numbers and a suffix are added


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
        """Add what was found on an image; returns how many objects have the score.

        JSON holds text alone: bytes of a name that are not UTF-8 are written as `\\xNN`.
        """
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
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


def earlier_pictures(predictions: Path) -> list[str] | None:
    """Read which pictures an earlier `predict` wrote.

    Args:
        predictions: the file `predictions.json`, which may be absent.

    Returns:
        The picture's file name for each image that has one; None if there is no such file.

    Raises:
        ValueError: the file is not one that `predict` wrote, so it must not be replaced.
    """
    if predictions.is_dir():
        raise ValueError(f"{predictions} is a folder: choose another --out")
    if not predictions.is_file():
        return None
    try:
        images = json.loads(predictions.read_text(encoding="utf-8"))["images"]
        names = [PurePosixPath(image["picture"]).name for image in images if "picture" in image]
        # The file may come from elsewhere: only files in the folder of pictures are ever removed.
        return [name for name in names if name not in ("", "..")]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{predictions} was not written by predict: choose another --out") from error


def inputs_without_pictures(paths: Sequence[Path], pictures: Path, earlier: Sequence[str]) -> list[Path]:
    """Leave the pictures of an earlier `predict` out of the images to predict on.

    Without this check, the second `dfvt predict … photos --out photos` takes the pictures of the first one
    as photos, and `dfvt predict … pictures --out .` draws over the user's own images.

    Args:
        paths: images to predict on.
        pictures: the folder that takes the new pictures.
        earlier: the names of the files in it that an earlier `predict` wrote.

    Raises:
        ValueError: an image lies in the folder and `predict` did not write it, or no image remains.
    """
    folder, drawn = pictures.resolve(), set(earlier)
    inside = {path for path in paths if path.parent.resolve() == folder}
    for path in inside:
        if path.name not in drawn:
            raise ValueError(f"the image {path} lies where predict writes its pictures: choose another --out")
    if paths and len(inside) == len(paths):
        raise ValueError(f"all images are pictures that predict wrote into {pictures}: name other images")
    return [path for path in paths if path not in inside]


def require_replaceable(pictures: Path, names: Iterable[str], earlier: Iterable[str]) -> None:
    """Check that new pictures replace no file of the user's.

    Args:
        pictures: the folder that takes them.
        names: of the new pictures.
        earlier: names of the files in it that an earlier `predict` wrote.

    Raises:
        ValueError: the folder holds another file of such a name.
    """
    if not pictures.exists():
        return
    present = {same_file_key(path.name): path for path in pictures.iterdir()}
    drawn = {same_file_key(name) for name in earlier}
    for name in names:
        key = same_file_key(name)
        if key in present and key not in drawn:
            raise ValueError(f"{present[key]} was not written by predict: choose another --out")


def replace_pictures(partial: Path, pictures: Path, earlier: Iterable[str]) -> None:
    """Move finished pictures to their folder, in place of those of an earlier `predict`.

    Args:
        partial: the folder of the new ones, which goes; it may be absent.
        pictures: their folder; it goes too if it is empty at the end.
        earlier: names of the files in `pictures` that an earlier `predict` wrote.
    """
    for name in earlier:
        (pictures / name).unlink(missing_ok=True)
    if partial.is_dir():
        pictures.mkdir(parents=True, exist_ok=True)
        for path in partial.iterdir():
            path.replace(pictures / path.name)
        partial.rmdir()
    if pictures.is_dir() and not any(pictures.iterdir()):
        pictures.rmdir()


def picture_names(paths: Sequence[Path]) -> list[str]:
    """Give the picture of each file a name that no other picture has.

    The name is the file's own, as `photo.jpg`. Files of the same name, whatever their case, have their
    position in `paths` too, as `photo-0002.jpg`: some file systems take `a.jpg` and `A.jpg` for the same.
    Characters that some file systems refuse become `_`, and long names are cut.
    """
    stems = [_stem(path.name) for path in paths]
    counts = Counter(map(same_file_key, stems))
    taken = {key for key, count in counts.items() if count == 1}
    names = []
    for number, stem in enumerate(stems, 1):
        name = stem
        if counts[same_file_key(stem)] > 1:
            name = f"{stem}-{number:04}"
            # Another file may have this very name. Each such file is met once, so the time stays linear.
            while same_file_key(name) in taken:
                name = f"{name}-{number:04}"
            taken.add(same_file_key(name))
        names.append(f"{name}.jpg")
    return names


def _stem(name: str) -> str:
    """A file's name without its suffix, as every file system takes it."""
    stem = "".join(
        "_" if character in REFUSED or not character.isprintable() else character
        for character in Path(name).stem
    )
    return stem.encode()[:LONGEST_STEM].decode(errors="ignore")


def same_file_key(name: str) -> str:
    """Equal for names that some file system takes for the same: those of one spelling in any case."""
    return normalize("NFD", normalize("NFD", name).casefold())
