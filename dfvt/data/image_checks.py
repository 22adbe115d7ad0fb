"""What is found out about the image files of a data set: missing, not decoded, of another size, too small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import cv2
from pydantic import BaseModel, ConfigDict

from dfvt.data.coco import CocoImage, is_there
from dfvt.data.decoding import Size, TooLargeError, damage_of, measure, measure_header, quiet_pillow

NUM_EXAMPLES = 100
SMALLEST_SIDE = 32  # of an image that mmdet's `CustomDataset._filter_imgs` trains on, in pixels
STORED = "color_ignore_orientation"  # an image as it is stored, before its Exif orientation turns it


class Finding(BaseModel):
    """How often something was found, the first hundred file names or ids, and the reason of the first."""

    model_config = ConfigDict(frozen=True)

    count: int
    examples: tuple[str, ...]
    reason: str = ""

    @classmethod
    def of(cls, items: Iterable[object]) -> Finding:
        found = [str(item) for item in items]
        return cls(count=len(found), examples=tuple(found[:NUM_EXAMPLES]))

    @classmethod
    def with_reasons(cls, reasons: Mapping[str, str]) -> Finding:
        """A finding of file names, each with a reason."""
        return cls.of(reasons).model_copy(update={"reason": next(iter(reasons.values()), "")})


NOTHING = Finding(count=0, examples=())  # of what an earlier version did not look for


def leads_out(name: str) -> bool:
    """Whether an image's name is not that of a file in its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def image_findings(
    images: list[CocoImage], folder: Path, *, decode: bool, color_type: str
) -> dict[str, Finding]:
    """Compare the images that annotations name with the files in `folder`.

    Args:
        images: of the annotation file.
        folder: where the files are.
        decode: whether to decode each file, not only its header.
        color_type: how the loader decodes, one of `dfvt.data.decoding.FLAGS`.

    Returns:
        Findings by the names of the fields of `dfvt.data.validation.SplitReport`.
    """
    stated = {image.file_name: (image.width, image.height) for image in images}
    missing = {name for name in stated if not is_there(folder / name)}
    times = Counter(image.file_name for image in images)
    there = [name for name in stated if name not in missing]
    with _silent_opencv(), quiet_pillow(), ThreadPoolExecutor() as pool:
        inspect = partial(_inspect, decode=decode, color_type=color_type)
        seen = dict(zip(there, pool.map(inspect, (folder / name for name in there)), strict=True))
    refused = {name: one.refusal for name, one in seen.items() if one.refusal and not one.is_too_large}
    other = [name for name, one in seen.items() if one.size and one.size != stated[name]]
    turned = {name for name in other if (stated[name][1], stated[name][0]) == seen[name].size}
    turned = {name for name in turned if _size_of(folder / name, STORED) == stated[name]}
    return {
        "repeated_images": Finding.of(name for name, count in times.items() if count > 1),
        "names_outside": Finding.of(name for name in stated if leads_out(name)),
        "missing_images": Finding.of(name for name in stated if name in missing and "\\" not in name),
        "backslash_names": Finding.of(name for name in stated if name in missing and "\\" in name),
        "unreadable_images": Finding.with_reasons(refused),
        "too_large_images": Finding.of(name for name, one in seen.items() if one.is_too_large),
        "damaged_images": Finding.with_reasons(
            {name: one.damage for name, one in seen.items() if one.damage}
        ),
        "small_images": Finding.of(name for name, size in stated.items() if min(size) < SMALLEST_SIDE),
        "size_mismatches": Finding.of(name for name in other if name not in turned),
        "turned_sizes": Finding.of(name for name in other if name in turned),
    }


@dataclass(frozen=True)
class _Inspection:
    """The size that a loader sees, or why it refuses the file; and what is damaged though it does not."""

    size: Size | None = None
    refusal: str = ""
    damage: str = ""
    is_too_large: bool = False


def _inspect(path: Path, *, decode: bool, color_type: str) -> _Inspection:
    try:
        if not decode:
            return _Inspection(measure_header(path, color_type))
        content = path.read_bytes()
        return _Inspection(measure(content, color_type), damage=damage_of(content) or "")
    except OSError as error:
        return _Inspection(refusal=f"it cannot be read ({error.strerror})")
    except ValueError as error:
        return _Inspection(refusal=str(error), is_too_large=isinstance(error, TooLargeError))


def _size_of(path: Path, color_type: str) -> Size | None:
    return _inspect(path, decode=False, color_type=color_type).size


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Drop OpenCV's own messages about files that it cannot decode: the check names them."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)
