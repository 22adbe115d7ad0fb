"""Whether a data set in COCO layout is sound: what stops a training, what one should know, and counts."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dfvt.data.coco import (
    CocoAnnotation,
    CocoFile,
    CocoImage,
    SplitFiles,
    class_names_of,
    digest,
    ids_not_evaluated,
    is_there,
    read_annotations,
)
from dfvt.data.decoding import MAX_PIXELS
from dfvt.data.image_checks import NOTHING, SMALLEST_SIDE, Finding, image_findings
from dfvt.data.manifest import DatasetManifest
from dfvt.data.outlines import Box, Fault, judge_outline

SMALL, MEDIUM = 32**2, 96**2  # where COCO's classes of area begin and end, in pixels
LARGEST_SIDE = 65_535  # of a JPEG, in pixels
NOT_TRAINED_ON = re.compile("val|test", re.IGNORECASE)  # in the name of a split or of its folder
COCO_CLASSES = ("person", "toothbrush", 80)  # the first and the last by their ids, and how many
OFFICIAL = {  # images and annotations; source: https://cocodataset.org
    "instances_train2017.json": (118_287, 860_001),
    "instances_val2017.json": (5_000, 36_781),
}


class ObjectSizes(BaseModel):
    """Objects by COCO's classes of area, and by the side of a square of that area; crowds left out."""

    model_config = ConfigDict(frozen=True)

    small: int  # below 32² pixels
    medium: int  # below 96²
    large: int
    num_by_side: dict[int, int]  # from this many pixels, a power of two, up to the next one


class SplitReport(BaseModel):
    """Counts and findings of one split; examples of boxes and outlines are annotation ids."""

    model_config = ConfigDict(frozen=True)

    num_images: int
    num_annotations: int
    num_crowd: int
    num_images_without_objects: int
    num_trained_images: int = 0  # with an object of a listed category, and large enough
    num_objects: dict[str, int]  # by class, crowds left out
    object_sizes: ObjectSizes
    num_images_by_objects: dict[int, int]  # crowds left out
    missing_images: Finding
    backslash_names: Finding = NOTHING  # of missing images
    unreadable_images: Finding
    too_large_images: Finding = NOTHING
    damaged_images: Finding = NOTHING
    small_images: Finding = NOTHING
    size_mismatches: Finding
    turned_sizes: Finding = NOTHING
    missing_outlines: Finding
    outlines_far_outside: Finding
    wrong_run_lengths: Finding
    unknown_category_ids: Finding
    unknown_image_ids: Finding
    wrong_crowd_flags: Finding
    duplicate_ids: Finding
    zero_ids: Finding
    unevaluated_ids: Finding = Finding(count=0, examples=())  # an earlier version did not look for them
    repeated_images: Finding
    names_outside: Finding
    boxes_outside_image: Finding
    untrained: Finding
    misplaced_boxes: Finding
    empty_masks: Finding
    short_polygons: Finding
    area_mismatches: Finding


class Verdict(BaseModel):
    """`problems` stop a training, `warnings` do not; a sentence each."""

    model_config = ConfigDict(frozen=True)

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


class IntegrityReport(Verdict):
    """What was found in a data set."""

    splits: dict[str, SplitReport]
    shared_images: Finding  # with the content of an image of an earlier split


class DatasetReport(IntegrityReport):
    """What was found in the data set of an experiment."""

    name: str
    data_hash: str


# What the findings are called and, where they stop a training, what to do.
_PROBLEMS = {
    "missing_images": ("missing images", "add them"),
    "backslash_names": (
        "missing images with a backslash in their file_name, as Windows writes paths",
        "write file_name with / and relative to the folder of the images",
    ),
    "unreadable_images": ("images that cannot be decoded", "fetch or export them again"),
    "too_large_images": (
        f"images with more than {MAX_PIXELS:,} pixels",
        "scale them down, or cut them into tiles",
    ),
    "size_mismatches": ("images of another size than stated", "correct their width and height"),
    "turned_sizes": (
        "images whose width and height are stated the other way round: their Exif orientation turns them",
        "swap width and height and turn the annotations, or let LoadImageFromFile of the config's pipelines "
        "and the check have color_type color_ignore_orientation",
    ),
    "missing_outlines": ("annotations without an outline of three or more corners", "add it"),
    "outlines_far_outside": ("annotations with an outline far outside of the image", "correct it"),
    "wrong_run_lengths": ("annotations with run lengths that do not fill their image", "export them again"),
    "unknown_category_ids": ("annotations with a category id that is not listed", "list it"),
    "unknown_image_ids": ("annotations with an image id that is not listed", "list it"),
    "wrong_crowd_flags": ("annotations whose iscrowd is neither 0 nor 1", "correct it"),
    "duplicate_ids": ("ids that are used more than once", "number them anew"),
    "zero_ids": ("annotations with the id 0, which COCO's evaluation takes for none", "number them from 1"),
    "unevaluated_ids": (
        "ids that COCO's evaluation cannot hold, which are those of images and categories above 2⁵³, of "
        "images below 0, and of annotations below 0 or above 2⁶³",
        "number them from 1",
    ),
}
_WARNINGS = {
    "boxes_outside_image": "annotations with a box that reaches out of the image",
    "untrained": "objects whose box is narrower or lower than a pixel or outside, or whose area is 0, which "
    "are not trained on",
    "misplaced_boxes": "objects whose box (x, y, width, height) is not that of their outline",
    "empty_masks": "objects whose mask has no pixel",
    "repeated_images": "image files that are listed more than once",
    "damaged_images": "images that are damaged and still decoded, partly with wrong pixels",
    "small_images": f"images under {SMALLEST_SIDE} pixels wide or high, which are not trained on",
    "names_outside": "image names that lead out of the folder",
    "short_polygons": "annotations with a polygon of fewer than three corners beside others",
    "area_mismatches": "objects whose area, which small, medium and large go by, is not that of their mask",
}


# What is an oddity of some objects, and a fault of the export when it is one of most.
_SYSTEMATIC = {
    "untrained": "export boxes as x, y, width, height in pixels, and areas",
    "misplaced_boxes": "export boxes as x, y, width, height in pixels",
    "boxes_outside_image": "export boxes as x, y, width, height in pixels",
    "empty_masks": "export outlines in pixels",
}


def validate_dataset(
    manifest: DatasetManifest, *, decode_images: bool = True, color_type: str = "color"
) -> DatasetReport:
    """Check annotations and images of an experiment's data set, as `check_splits` does."""
    # Not the absolute paths: the report of a project is the same wherever the project lies.
    root = manifest.root
    splits = {
        "train": SplitFiles(root / manifest.train_annotations, root / manifest.train_images),
        "val": SplitFiles(root / manifest.val_annotations, root / manifest.val_images),
    }
    report = check_splits(
        splits, decode_images=decode_images, color_type=color_type, is_coco=manifest.name == "coco2017"
    )
    return DatasetReport(name=manifest.name, data_hash=manifest.data_hash, **dict(report))


def check_splits(
    splits: Mapping[str, SplitFiles],
    *,
    decode_images: bool = True,
    color_type: str = "color",
    is_coco: bool = False,
) -> IntegrityReport:
    """Check annotations and images, and that the splits are of one data set and have no images in common.

    Args:
        splits: by name.
        decode_images: decode every image (JPEG at an eighth of its size), not only its header.
        color_type: how the configs' `LoadImageFromFile` decodes, one of `dfvt.data.decoding.FLAGS`.
        is_coco: the user says that this is COCO 2017, so its counts are compared with the official ones.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: an annotation file is not sound.
    """
    reports: dict[str, SplitReport] = {}
    problems: list[str] = []
    warnings: list[str] = []
    shared: list[str] = []
    first: tuple[Path, dict[int, str]] | None = None
    before: list[Path] = []
    for name, files in splits.items():
        content = read_annotations(files.annotations)
        if not files.images.is_dir():
            raise FileNotFoundError(f"{files.images} is not a directory: name the folder of the images.")
        classes = class_names_of(content, files.annotations)
        first = first or (files.annotations, classes)
        if classes != first[1]:
            problems.append(f"{files.annotations}: its categories are not those of {first[0]}: make them so.")
        reports[name] = check_split(content, files.images, decode_images=decode_images, color_type=color_type)
        is_trained_on = not NOT_TRAINED_ON.search(f"{name} {files.images.name}")
        verdict = judge_split(files.annotations, reports[name], is_trained_on=is_trained_on, is_coco=is_coco)
        images = [files.images / image.file_name for image in content.images]
        del content  # it may be as large as a gigabyte
        found = list(_shared_images(before, images)) if before else []
        warnings += verdict.warnings
        warnings += _sentences(
            files.annotations, Finding.of(found), "images with the content of one of another split"
        )
        problems += verdict.problems
        shared += found
        before += images
    return IntegrityReport(
        splits=reports,
        shared_images=Finding.of(shared),
        problems=tuple(dict.fromkeys(problems)),  # once each: splits may be the same file
        warnings=tuple(dict.fromkeys(warnings)),
    )


def judge_split(
    path: Path, report: SplitReport, *, is_trained_on: bool = True, is_coco: bool = False
) -> Verdict:
    """Turn the findings in the annotation file `path` into sentences that name it."""
    problems: list[str] = []
    warnings: list[str] = []
    for field, (what, remedy) in _PROBLEMS.items():
        problems += _sentences(path, getattr(report, field), what, remedy)
    for field, what in _WARNINGS.items():
        if field not in _SYSTEMATIC:
            warnings += _sentences(path, getattr(report, field), what)
    num_objects = sum(report.num_objects.values())
    for field, remedy in _SYSTEMATIC.items():
        finding = getattr(report, field)
        if finding.count > num_objects / 2:
            problems += _sentences(path, finding, f"more than half of all {_WARNINGS[field]}", remedy)
        else:
            warnings += _sentences(path, finding, _WARNINGS[field])
    absent = Finding.of(name for name, count in report.num_objects.items() if not count)
    if absent.count == len(report.num_objects):
        problems.append(f"{path}: no object is annotated: annotate some.")
    elif is_trained_on and not report.num_trained_images:
        problems.append(
            f"{path}: every image with an object is under {SMALLEST_SIDE} pixels wide or high, and such "
            "images are not trained on: scale the images up (a split for validation or test has val or test "
            "in its name)."
        )
    else:
        warnings += _sentences(path, absent, "classes without objects")
    warnings += _unlike_coco(path, report, is_coco=is_coco)
    return Verdict(problems=tuple(problems), warnings=tuple(warnings))


def _unlike_coco(path: Path, report: SplitReport, *, is_coco: bool) -> list[str]:
    """Compare the counts of a file that claims to be COCO 2017's own with the official ones.

    A file claims it by its name and classes, and by having at least half of the images; or the user says it.
    Files of a chosen part of COCO often keep the name: nobody takes 32 images for all of COCO.
    """
    official, classes = OFFICIAL.get(path.name), list(report.num_objects)
    if official is None or (*classes[:1], *classes[-1:], len(classes)) != COCO_CLASSES:
        return []
    counts = (report.num_images, report.num_annotations)
    if counts == official or not (is_coco or report.num_images >= official[0] / 2):
        return []
    return [
        f"{path}: {counts[0]:,} images and {counts[1]:,} annotations, COCO 2017's own file has "
        f"{official[0]:,} and {official[1]:,}."
    ]


def _sentences(path: Path, finding: Finding, what: str, remedy: str | None = None) -> list[str]:
    """One sentence, or none when nothing was found."""
    if not finding.count:
        return []
    end = f": {remedy}." if remedy else "."
    first = f"{finding.examples[0]}, {finding.reason}" if finding.reason else finding.examples[0]
    return [f"{path}: {what} ({finding.count}, the first is {first}){end}"]


def check_split(
    content: CocoFile, folder: Path, *, decode_images: bool = True, color_type: str = "color"
) -> SplitReport:
    """Check the annotations of a file, and the images that it names in `folder`."""
    annotations = content.annotations
    images = {image.id: image for image in content.images}
    classes = {item.id: item.name for item in sorted(content.categories, key=lambda item: item.id)}
    objects = [item for item in annotations if not item.iscrowd]
    num_of_class = Counter(item.category_id for item in objects)
    num_of_image = Counter(item.image_id for item in objects)
    with_objects = {item.image_id for item in annotations if item.category_id in classes}
    ids = Counter(("image", image.id) for image in content.images)
    ids.update(("annotation", item.id) for item in annotations)

    def found(is_found: Callable[[CocoAnnotation], bool]) -> Finding:
        return Finding.of(item.id for item in annotations if is_found(item))

    return SplitReport(
        num_images=len(content.images),
        num_annotations=len(annotations),
        num_crowd=len(annotations) - len(objects),
        num_images_without_objects=len(images.keys() - {item.image_id for item in annotations}),
        num_trained_images=sum(
            image.id in with_objects and min(image.width, image.height) >= SMALLEST_SIDE
            for image in content.images
        ),
        num_objects={name: num_of_class[number] for number, name in classes.items()},
        object_sizes=_object_sizes(objects),
        num_images_by_objects=dict(sorted(Counter(num_of_image[number] for number in images).items())),
        **image_findings(content.images, folder, decode=decode_images, color_type=color_type),
        **_outline_findings(annotations, images),
        unknown_category_ids=found(lambda item: item.category_id not in classes),
        unknown_image_ids=found(lambda item: item.image_id not in images),
        wrong_crowd_flags=found(lambda item: item.iscrowd not in (0, 1)),
        duplicate_ids=Finding.of(f"{kind} {number}" for (kind, number), count in ids.items() if count > 1),
        boxes_outside_image=found(lambda item: _is_outside(item.bbox, images.get(item.image_id))),
        untrained=found(lambda item: not item.iscrowd and _is_left_out(item, images.get(item.image_id))),
        zero_ids=found(lambda item: item.id == 0),
        unevaluated_ids=Finding.of(ids_not_evaluated(images, (item.id for item in annotations), classes)),
    )


def _object_sizes(objects: list[CocoAnnotation]) -> ObjectSizes:
    areas = [item.area for item in objects]
    sides = Counter(1 << max(int(math.log2(area) // 2), 0) if area >= 1 else 0 for area in areas)
    small, medium = sum(area < SMALL for area in areas), sum(SMALL <= area < MEDIUM for area in areas)
    return ObjectSizes(
        small=small,
        medium=medium,
        large=len(areas) - small - medium,
        num_by_side=dict(sorted(sides.items())),
    )


def _outline_findings(annotations: list[CocoAnnotation], images: dict[int, CocoImage]) -> dict[str, Finding]:
    faults: dict[Fault, list[int]] = {fault: [] for fault in Fault}
    short, mismatches, misplaced, empty = ([] for _ in range(4))
    for item in annotations:
        image = images.get(item.image_id)
        if image is None or not all(1 <= side <= LARGEST_SIDE for side in (image.height, image.width)):
            continue  # its image id or size is reported
        outline = judge_outline(item.segmentation, image.height, image.width)
        if outline.fault:
            faults[outline.fault].append(item.id)
        elif not item.iscrowd:  # those of COCO's crowds are others
            if not outline.area:
                empty.append(item.id)
            elif not _is_area(item, outline.area):
                mismatches.append(item.id)
            if outline.bbox and not _overlap(item.bbox, outline.bbox):
                misplaced.append(item.id)
        if outline.num_short_polygons:
            short.append(item.id)
    return {
        "missing_outlines": Finding.of(faults[Fault.MISSING]),
        "outlines_far_outside": Finding.of(faults[Fault.FAR_OUTSIDE]),
        "wrong_run_lengths": Finding.of(faults[Fault.WRONG_RUNS]),
        "short_polygons": Finding.of(short),
        "area_mismatches": Finding.of(mismatches),
        "misplaced_boxes": Finding.of(misplaced),
        "empty_masks": Finding.of(empty),
    }


def _is_area(item: CocoAnnotation, area: float) -> bool:
    """Whether the stated area is about that of the mask.

    COCO's is that of the polygon; drawing it shifts its edge by up to half a pixel.
    """
    _, _, width, height = item.bbox
    return abs(item.area - area) <= 0.05 * area + abs(width) + abs(height)


def _overlap(one: Box, other: Box) -> bool:
    """Whether two boxes are about the same: an IoU of a half, of boxes two pixels larger on each side."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = ((x - 2, y - 2, w + 4, h + 4) for x, y, w, h in (one, other))
    width, height = min(x1 + w1, x2 + w2) - max(x1, x2), min(y1 + h1, y2 + h2) - max(y1, y2)
    if width <= 0 or height <= 0:
        return False
    return 3 * width * height >= w1 * h1 + w2 * h2


def _is_left_out(item: CocoAnnotation, image: CocoImage | None) -> bool:
    """Whether mmdet's `CocoDataset` leaves an object out."""
    x, y, width, height = item.bbox
    if image and (min(x + width, image.width) <= max(x, 0) or min(y + height, image.height) <= max(y, 0)):
        return True
    return item.area <= 0 or min(width, height) < 1


def _is_outside(box: tuple[float, float, float, float], image: CocoImage | None) -> bool:
    """Whether a box ends more than a pixel beyond its image: COCO's own are off by fractions of one."""
    if image is None:  # reported as an unknown image id
        return False
    x, y, width, height = box
    return min(x, y) < -1 or x + width > image.width + 1 or y + height > image.height + 1


def _shared_images(train: list[Path], val: list[Path]) -> Iterator[str]:
    """Names of the second images whose content one of the first has too."""
    with ThreadPoolExecutor() as pool:
        # Whole files are read only where length and last bytes agree.
        train_ends = list(pool.map(_length_and_end, train))
        val_ends = list(pool.map(_length_and_end, val))
        common = set(train_ends) & set(val_ends) - {None}
        train_paths = [path for path, end in zip(train, train_ends, strict=True) if end in common]
        val_paths = [path for path, end in zip(val, val_ends, strict=True) if end in common]
        train_digests = set(pool.map(digest, train_paths))
        val_digests = list(pool.map(digest, val_paths))
    for path, found in zip(val_paths, val_digests, strict=True):
        if found in train_digests:
            yield path.name


def _length_and_end(path: Path) -> tuple[int, bytes] | None:
    if not is_there(path):
        return None
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(length - 512, 0))
        return length, file.read()
