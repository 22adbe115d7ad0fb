"""Data sets in COCO layout: the manifest says what one is, the integrity report whether it is sound."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, FailFast, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

SPLITS = ("train", "val")


class CocoImage(TypedDict):
    id: int
    file_name: str
    height: int
    width: int


class CocoAnnotation(TypedDict):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]  # x, y, width, height in pixels
    area: FiniteFloat
    segmentation: list[list[float]] | dict[str, Any]  # polygons, or run lengths
    iscrowd: int


class CocoCategory(TypedDict):
    id: int
    name: str


class CocoFile(TypedDict):
    """The parts of an annotation file that training and evaluation rely on."""

    images: Annotated[list[CocoImage], FailFast()]
    annotations: Annotated[list[CocoAnnotation], FailFast()]
    categories: Annotated[list[CocoCategory], FailFast()]


_COCO_FILE = TypeAdapter(CocoFile)


class DatasetManifest(BaseModel):
    """Where a data set lies, its classes in the order of their category ids, and a hash of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["mini", "custom", "coco2017"]
    generated: bool
    root: Path
    train_annotations: Path  # this and the next three are relative to root
    train_images: Path
    val_annotations: Path
    val_images: Path
    classes: tuple[str, ...]
    data_hash: str
    num_train_images: int
    num_val_images: int

    @property
    def train_annotations_path(self) -> Path:
        return (self.root / self.train_annotations).absolute()

    @property
    def train_images_path(self) -> Path:
        return (self.root / self.train_images).absolute()

    @property
    def val_annotations_path(self) -> Path:
        return (self.root / self.val_annotations).absolute()

    @property
    def val_images_path(self) -> Path:
        return (self.root / self.val_images).absolute()

    @classmethod
    def load(cls, path: Path) -> DatasetManifest:
        """Read a manifest.

        Raises:
            FileNotFoundError: there is none at ``path``.
            ValueError: the file is no manifest.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `dvc repro fetch_data`.")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(
                f"{path} is no data set manifest ({_first_error(error)}): run `dvc repro --force fetch_data`."
            ) from error

    def save(self, path: Path) -> None:
        """Write the manifest as JSON; the file appears when it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def read_annotations(path: Path) -> CocoFile:
    """Read an annotation file of COCO's instance format.

    Raises:
        FileNotFoundError: there is none at ``path``.
        ValueError: it is truncated, not JSON, or lacks something that COCO's format has.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: put COCO annotations there, or correct its path in params.yaml."
        )
    try:
        return _COCO_FILE.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise ValueError(
                f"{path} is truncated or not JSON ({_first_error(error)}): fetch it again."
            ) from error
        raise ValueError(
            f"{path} is not in COCO's instance format ({_first_error(error)}): correct or export it again."
        ) from error


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    # Deeper places name pydantic's own types.
    place = ".".join(str(part) for part in first["loc"][:3])
    return " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())


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
        categories[split] = _categories(content, annotation_files[split])
        image_names[split] = sorted(image["file_name"] for image in content["images"])
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


def _categories(content: CocoFile, path: Path) -> dict[int, str]:
    """Class names by category id, in the order of the ids."""
    pairs = sorted((category["id"], category["name"]) for category in content["categories"])
    if not pairs:
        raise ValueError(f"{path} has no categories: add the classes of the data set.")
    for position, kind in enumerate(("id", "name")):
        value, count = Counter(pair[position] for pair in pairs).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{path} has {count} categories with the {kind} {value}: make it unique.")
    return dict(pairs)


def _require_images(split: str, names: list[str], folder: Path, annotation_file: Path) -> None:
    if not names:
        raise ValueError(f"{annotation_file} names no images: choose annotations that do.")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a directory: set data.{split}_images to the folder of the images."
        )
    missing = [name for name in names if not (folder / name).is_file()]
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
        digests = pool.map(_digest, (path for _, path in entries))
        total = hashlib.sha256()
        for (label, _), digest in zip(entries, digests, strict=True):
            total.update(f"{label}\0{digest}\n".encode())
    return total.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Finding(BaseModel):
    """How often something was found, and the first few file names or ids."""

    model_config = ConfigDict(frozen=True)

    count: int
    examples: tuple[str, ...]

    @classmethod
    def of(cls, items: Iterable[object]) -> Finding:
        found = [str(item) for item in items]
        return cls(count=len(found), examples=tuple(found[:10]))


class SplitReport(BaseModel):
    """Counts and findings of one split; examples of boxes and segmentations are annotation ids."""

    model_config = ConfigDict(frozen=True)

    num_images: int
    num_annotations: int
    num_crowd: int
    num_images_without_objects: int
    num_objects: dict[str, int]  # by class, crowds left out
    missing_images: Finding
    unreadable_images: Finding
    size_mismatches: Finding
    boxes_outside_image: Finding
    empty_boxes: Finding
    empty_segmentations: Finding
    unknown_category_ids: Finding
    unknown_image_ids: Finding
    duplicate_ids: Finding


class IntegrityReport(BaseModel):
    """What was found in a data set: ``problems`` stop a training, ``warnings`` do not."""

    model_config = ConfigDict(frozen=True)

    name: str
    data_hash: str
    train: SplitReport
    val: SplitReport
    shared_images: Finding
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


# What the findings are called and, where they stop a training, what to do.
_PROBLEMS = {
    "missing_images": ("missing images", "add them"),
    "unreadable_images": ("images that cannot be decoded", "fetch them again"),
    "empty_segmentations": ("annotations without an outline of three or more corners", "add it"),
    "unknown_category_ids": ("annotations with a category id that is not listed", "list it"),
    "unknown_image_ids": ("annotations with an image id that is not listed", "list it"),
    "duplicate_ids": ("ids that are used more than once", "number them anew"),
}
_WARNINGS = {
    "size_mismatches": "images of another size than stated",
    "boxes_outside_image": "annotations with a box that reaches out of the image",
    "empty_boxes": "annotations with a box narrower or lower than a pixel, which are not trained on",
}


def validate_dataset(manifest: DatasetManifest) -> IntegrityReport:
    """Check annotations and images of a data set; every image is decoded (JPEG at an eighth of its size).

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: an annotation file is not sound.
    """
    # Not the absolute paths: the report of a project is the same wherever the project lies.
    root = manifest.root
    files = {"train": root / manifest.train_annotations, "val": root / manifest.val_annotations}
    folders = {"train": root / manifest.train_images, "val": root / manifest.val_images}
    contents = {split: read_annotations(files[split]) for split in SPLITS}
    reports = {split: _check_split(contents[split], folders[split]) for split in SPLITS}
    train_paths, val_paths = (
        [folders[split] / image["file_name"] for image in contents[split]["images"]] for split in SPLITS
    )
    shared = Finding.of(_shared_images(train_paths, val_paths))
    problems: list[str] = []
    warnings: list[str] = []
    for split, report in reports.items():
        path = files[split]
        for field, (what, remedy) in _PROBLEMS.items():
            problems += _sentences(path, getattr(report, field), what, remedy)
        for field, what in _WARNINGS.items():
            warnings += _sentences(path, getattr(report, field), what)
        absent = Finding.of(name for name, count in report.num_objects.items() if not count)
        if absent.count == len(report.num_objects):
            problems.append(f"{path}: no object is annotated: annotate some.")
        else:
            warnings += _sentences(path, absent, "classes without objects")
    warnings += _sentences(files["val"], shared, "images with the content of a training image")
    return IntegrityReport(
        name=manifest.name,
        data_hash=manifest.data_hash,
        train=reports["train"],
        val=reports["val"],
        shared_images=shared,
        # Once each: both splits may be the same file.
        problems=tuple(dict.fromkeys(problems)),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _sentences(path: Path, finding: Finding, what: str, remedy: str | None = None) -> list[str]:
    """One sentence, or none when nothing was found."""
    if not finding.count:
        return []
    end = f": {remedy}." if remedy else "."
    return [f"{path}: {what} ({finding.count}, the first is {finding.examples[0]}){end}"]


def _check_split(content: CocoFile, folder: Path) -> SplitReport:
    annotations = content["annotations"]
    images = {image["id"]: image for image in content["images"]}
    classes = {item["id"]: item["name"] for item in sorted(content["categories"], key=itemgetter("id"))}
    num_objects = Counter(item["category_id"] for item in annotations if not item["iscrowd"])

    paths = {image["file_name"]: folder / image["file_name"] for image in content["images"]}
    missing = {name: path for name, path in paths.items() if not path.is_file()}
    with ThreadPoolExecutor() as pool:
        sizes = dict(zip(paths, pool.map(_image_size, paths.values()), strict=True))
    stated_sizes = {image["file_name"]: (image["width"], image["height"]) for image in content["images"]}
    ids = Counter(("image", image["id"]) for image in content["images"])
    ids.update(("annotation", item["id"]) for item in annotations)

    def found(is_found: Callable[[CocoAnnotation], bool]) -> Finding:
        return Finding.of(item["id"] for item in annotations if is_found(item))

    return SplitReport(
        num_images=len(content["images"]),
        num_annotations=len(annotations),
        num_crowd=len(annotations) - num_objects.total(),
        num_images_without_objects=len(images.keys() - {item["image_id"] for item in annotations}),
        num_objects={name: num_objects[number] for number, name in classes.items()},
        missing_images=Finding.of(missing),
        unreadable_images=Finding.of(n for n, size in sizes.items() if size is None and n not in missing),
        size_mismatches=Finding.of(n for n, size in sizes.items() if size and size != stated_sizes[n]),
        boxes_outside_image=found(lambda item: _is_outside(item["bbox"], images.get(item["image_id"]))),
        empty_boxes=found(lambda item: min(item["bbox"][2:]) < 1),
        empty_segmentations=found(lambda item: _is_empty(item["segmentation"])),
        unknown_category_ids=found(lambda item: item["category_id"] not in classes),
        unknown_image_ids=found(lambda item: item["image_id"] not in images),
        duplicate_ids=Finding.of(f"{kind} {number}" for (kind, number), count in ids.items() if count > 1),
    )


def _is_outside(box: tuple[float, float, float, float], image: CocoImage | None) -> bool:
    """Whether a box ends more than a pixel beyond its image: COCO's own are off by fractions of one."""
    if image is None:  # reported as an unknown image id
        return False
    x, y, width, height = box
    return min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1


def _is_empty(segmentation: list[list[float]] | dict[str, Any]) -> bool:
    """Whether pycocotools refuses it: it judges a list of polygons by the first."""
    if isinstance(segmentation, dict):
        return not segmentation.get("counts") or not segmentation.get("size")
    return not segmentation or len(segmentation[0]) < 6


def _image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image, None when it cannot be decoded."""
    try:
        with Image.open(path) as image:
            size = image.size
            image.draft(image.mode, (size[0] // 8, size[1] // 8))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # how Pillow names damage
        return None
    return size


def _shared_images(train: list[Path], val: list[Path]) -> list[str]:
    """Names of the validation images whose content a training image has too."""
    with ThreadPoolExecutor() as pool:
        # Whole files are read only where length and last bytes agree.
        train_ends = list(pool.map(_length_and_end, train))
        val_ends = list(pool.map(_length_and_end, val))
        common = set(train_ends) & set(val_ends) - {None}
        train_paths = [path for path, end in zip(train, train_ends, strict=True) if end in common]
        val_paths = [path for path, end in zip(val, val_ends, strict=True) if end in common]
        train_digests = set(pool.map(_digest, train_paths))
        val_digests = pool.map(_digest, val_paths)
        return [
            path.name for path, digest in zip(val_paths, val_digests, strict=True) if digest in train_digests
        ]


def _length_and_end(path: Path) -> tuple[int, bytes] | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(length - 512, 0))
        return length, file.read()
