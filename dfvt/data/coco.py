"""Data sets in COCO layout: their annotation files, and the manifest that describes one."""

from __future__ import annotations

import codecs
import errno
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from dfvt.data.manifest import DatasetManifest

SPLITS = ("train", "val")
MAX_ID = 2**53  # of images and categories: evaluation compares them as 64-bit floats
MAX_ANNOTATION_ID = 2**63 - 1


class CocoImage(msgspec.Struct, frozen=True, gc=False):
    id: int
    file_name: str
    height: int
    width: int


NO_OUTLINE = msgspec.Raw(b"null")


class CocoAnnotation(msgspec.Struct, frozen=True, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels
    area: float
    iscrowd: int
    # As Python's numbers, COCO's take gigabytes: see dfvt.data.outlines. A detector without masks has none.
    segmentation: msgspec.Raw = NO_OUTLINE


class CocoCategory(msgspec.Struct, frozen=True, gc=False):
    id: int
    name: str


class CocoFile(msgspec.Struct, frozen=True):
    """The parts of an annotation file that training and evaluation rely on."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


_DECODER = msgspec.json.Decoder(CocoFile)


def read_annotations(path: Path) -> CocoFile:
    """Read an annotation file of COCO's instance format.

    Raises:
        FileNotFoundError: there is none at ``path``.
        ValueError: it is truncated, not JSON, or lacks something that COCO's format has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put COCO annotations there, or correct its path.")
    content = path.read_bytes()
    try:
        return _DECODER.decode(content)
    except msgspec.ValidationError as error:
        raise ValueError(
            f"{path} is not in COCO's instance format ({_in_place(error)}): correct or export it again."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = str(error)
        if content.startswith(codecs.BOM_UTF8):
            why = "it begins with a byte-order mark, which JSON must not"
        elif re.search(rb"[:\[,\s-](NaN|Infinity)\b", content):
            why = "it has NaN or Infinity, which JSON has not"
        raise ValueError(f"{path} is truncated or not JSON ({why}): fetch or export it again.") from error


def _in_place(error: msgspec.ValidationError) -> str:
    """What is wrong, after its place: `annotations[3].bbox: Expected …`."""
    what, _, place = str(error).partition(" - at `$")
    return f"{place.strip('`').lstrip('.')}: {what}".removeprefix(": ").replace("`", "")


def describe_dataset(
    name: Literal["mini", "custom", "coco2017"],
    root: Path,
    *,
    train_annotations: str | Path,
    train_images: str | Path,
    val_annotations: str | Path,
    val_images: str | Path,
    generated: bool,
) -> DatasetManifest:
    """Read a data set in COCO layout; every image is hashed.

    Args:
        name: the profile that it belongs to.
        root: its folder, recorded as given.
        train_annotations: annotation file of the training split, relative to ``root``, as the following are.
        train_images: folder of the training images.
        val_annotations: annotation file of the validation split.
        val_images: folder of the validation images.
        generated: whether this project made it.

    Raises:
        FileNotFoundError: the folder, an annotation file, an image folder or images are missing.
        ValueError: an annotation file is not sound, or the two splits have different categories.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a directory: set data.root to the folder of a data set in COCO layout."
        )
    annotation_files = {"train": root / train_annotations, "val": root / val_annotations}
    image_folders = {"train": root / train_images, "val": root / val_images}
    categories: dict[str, dict[int, str]] = {}
    image_names: dict[str, list[str]] = {}
    for split in SPLITS:
        content = read_annotations(annotation_files[split])
        categories[split] = class_names_of(content, annotation_files[split])
        image_names[split] = sorted(image.file_name for image in content.images)
        _require_images(split, image_names[split], image_folders[split], annotation_files[split])
    if categories["train"] != categories["val"]:
        raise ValueError(
            f"{annotation_files['train']} and {annotation_files['val']} have different categories: "
            "give both the same ids and names."
        )
    return DatasetManifest(
        name=name,
        generated=generated,
        root=root,
        train_annotations=Path(train_annotations),
        train_images=Path(train_images),
        val_annotations=Path(val_annotations),
        val_images=Path(val_images),
        classes=tuple(categories["train"].values()),
        data_hash=_hash_dataset(annotation_files, image_folders, image_names),
        num_train_images=len(image_names["train"]),
        num_val_images=len(image_names["val"]),
    )


def class_names_of(content: CocoFile, path: Path) -> dict[int, str]:
    """Class names by category id, in the order of the ids.

    Raises:
        ValueError: `path` has no categories, or two of one id or name.
    """
    pairs = sorted((category.id, category.name) for category in content.categories)
    if not pairs:
        raise ValueError(f"{path} has no categories: add the classes of the data set.")
    for position, kind in enumerate(("id", "name")):
        value, count = Counter(pair[position] for pair in pairs).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{path} has {count} categories with the {kind} {value}: make it unique.")
    return dict(pairs)


def ids_not_evaluated(
    images: Iterable[int], annotations: Iterable[int], categories: Iterable[int]
) -> Iterator[str]:
    """Name the ids with which COCO's evaluation gives wrong numbers, or fails.

    faster-coco-eval keeps ids of images and categories as 64-bit floats, so that several above 2⁵³ become
    one, and evaluates no masks of an image whose id is below 0. It keeps ids of annotations as 64-bit
    integers, and takes those below 1 for "no object matches".
    """
    yield from (f"image {number}" for number in images if not 0 <= number <= MAX_ID)
    yield from (f"category {number}" for number in categories if not -MAX_ID <= number <= MAX_ID)
    yield from (f"annotation {number}" for number in annotations if not 0 <= number <= MAX_ANNOTATION_ID)


@dataclass(frozen=True)
class SplitFiles:
    """Where a split lies: its annotation file, and the folder of its images."""

    annotations: Path
    images: Path


def find_splits(root: Path) -> dict[str, SplitFiles]:
    """List the splits of a folder in COCO layout, trainings first.

    A split is `annotations/instances_NAME.json` with the images in `NAME/` or `images/NAME/`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no such pair.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a directory: name the folder of a data set in COCO layout.")
    splits = {}
    for path in root.glob("annotations/instances_*.json"):
        name = path.stem.removeprefix("instances_")
        if not name:
            continue
        folder = next((folder for folder in (root / name, root / "images" / name) if folder.is_dir()), None)
        if folder:
            splits[name] = SplitFiles(path, folder)
    if not splits:
        raise ValueError(
            f"{root} has no annotations/instances_NAME.json with a folder NAME or images/NAME: "
            "name them with --annotations and --images."
        )
    return {name: splits[name] for name in sorted(splits, key=lambda name: ("train" not in name, name))}


def _require_images(split: str, names: list[str], folder: Path, annotation_file: Path) -> None:
    if not names:
        raise ValueError(f"{annotation_file} names no images: choose annotations that do.")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a directory: set data.{split}_images to the folder of the images."
        )
    missing = [name for name in names if not is_there(folder / name)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images named in {annotation_file} are missing in {folder}, "
            f"the first is {missing[0]}: add them, or correct data.{split}_images."
        )


def _hash_dataset(
    annotation_files: dict[str, Path], image_folders: dict[str, Path], image_names: dict[str, list[str]]
) -> str:
    """SHA-256 over the annotations and the names and content of the images, wherever they lie."""
    entries = []
    for split in SPLITS:
        entries.append((f"{split} annotations", annotation_files[split]))
        entries += [(f"{split} {name}", image_folders[split] / name) for name in image_names[split]]
    with ThreadPoolExecutor() as pool:
        digests = pool.map(digest, (path for _, path in entries))
        total = hashlib.sha256()
        for (label, _), found in zip(entries, digests, strict=True):
            total.update(f"{label}\0{found}\n".encode())
    return total.hexdigest()


def is_there(path: Path) -> bool:
    """Whether there is such a file; a name that is none, too long say, is of no file."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
