"""What Hypothesis draws: data sets most of which are sound, with every name, id, path and format."""

from __future__ import annotations

import unicodedata
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.data_sets import DataSet, DrawnObject, ImageFile, Split
from tests.fuzz.pools import (
    CLASS_NAMES,
    EXPERIMENTS,
    FOLDERS,
    IDS,
    KINDS,
    NONSENSE,
    ODD_SIZES,
    PARTS,
    STEMS,
    SUFFIXES,
)

SIDES = st.integers(32, 72)  # pixels


def rarely(draw: Any, one_in: int) -> bool:
    """True in one of so many draws; Hypothesis shrinks it to False."""
    return draw(st.integers(0, one_in - 1)) == one_in - 1


def texts(pool: list[str], max_size: int = 30) -> st.SearchStrategy[str]:
    """Mostly texts of a pool, else any; no lone surrogates, which UTF-8 has not."""
    return st.sampled_from(pool) | st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)


@st.composite
def ids(draw: Any, number: int, smallest: int) -> list[Any]:
    """So many ids, mostly different whole numbers."""
    if not rarely(draw, 3):
        return list(range(smallest or 1, (smallest or 1) + number))
    pool = st.sampled_from([one for one in IDS if one >= smallest]) | st.integers(smallest, 2**55)
    chosen = draw(st.lists(pool, min_size=number, max_size=number, unique=True))
    if rarely(draw, 8):
        chosen[draw(st.integers(0, number - 1))] = draw(st.sampled_from(NONSENSE))
    elif rarely(draw, 12):
        chosen[-1] = chosen[0]
    return chosen


@st.composite
def file_names(draw: Any, kind: tuple[str, str]) -> str:
    """A name in a folder; the extension mostly fits the format."""
    stem = draw(texts([*STEMS], 20)).replace("/", "∕").replace("\0", "")
    if not stem.strip(".") and not stem:
        stem = "a"
    suffix = SUFFIXES[kind[0]]
    if rarely(draw, 4):
        suffix = draw(
            st.sampled_from(["jpg", "JPG", "jpeg", "png", "tiff", "txt", "", "jpg.png", "npy", "json"])
        )
    return draw(st.sampled_from(FOLDERS)) + stem + ("." + suffix if suffix else "")


@st.composite
def images(draw: Any, number: int) -> tuple[ImageFile, ...]:
    numbers = draw(ids(number, 0))
    drawn: list[ImageFile] = []
    for index in range(number):
        kind = draw(st.sampled_from(KINDS))
        name = draw(file_names(kind))
        if any(one.name == name for one in drawn) and not rarely(draw, 3):
            name = f"{index}{name}" if "/" not in name else name.replace("/", f"/{index}", 1)
        width, height = (
            (draw(SIDES), draw(SIDES)) if not rarely(draw, 6) else draw(st.sampled_from(ODD_SIZES))
        )
        orientation = (
            draw(st.integers(1, 8)) if kind[0] in ("JPEG", "PNG", "TIFF", "WEBP") and rarely(draw, 6) else 1
        )
        file: str | None = name
        damage, stated = "none", "upright"
        if rarely(draw, 40):
            change = draw(st.sampled_from(["form", "slashes", "missing", "case", "stated", "damage"]))
            if change == "form":
                file = unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), name)
            elif change == "slashes":
                file, name = f"val2017/{name}", f"val2017\\{name}"
            elif change == "missing":
                file = None
            elif change == "case":
                file = name.swapcase()
            elif change == "stated":
                stated = draw(st.sampled_from(["stored", "wrong"]))
            else:
                damage = draw(st.sampled_from(["truncated", "empty", "text", "folder", "dangling"]))
        drawn.append(ImageFile(numbers[index], name, file, kind, width, height, orientation, damage, stated))
    return tuple(drawn)


@st.composite
def boxes(draw: Any, width: int, height: int, *, odd: bool) -> tuple[float, float, float, float]:
    """A box in an image; an odd one is tiny, outside or negative."""
    w, h = draw(st.integers((width + 1) // 2, width)), draw(st.integers((height + 1) // 2, height))
    x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
    if odd:
        change = draw(
            st.sampled_from(["thin", "tiny", "left", "right", "negative", "swapped", "huge", "nothing"])
        )
        if change == "thin":
            w = 1
        elif change == "tiny":
            return x, y, 0.3, 0.4
        elif change == "left":
            x, y = -w // 2, -h // 2
        elif change == "right":
            x, y = width + 3, height + 3
        elif change == "negative":
            return x + w, y, -w, h
        elif change == "swapped":
            return x + w, y + h, -w, -h
        elif change == "huge":
            return -width, -height, 3 * width, 3 * height
        else:
            return x, y, 0, 0
    if rarely(draw, 3):
        return x + 0.25, y + 0.125, max(w - 0.5, 0.5), max(h - 0.75, 0.5)
    return x, y, w, h


@st.composite
def objects(draw: Any, drawn: tuple[ImageFile, ...], num_classes: int) -> tuple[DrawnObject, ...]:
    """Annotations: one whole object on most images, and odd ones beside."""
    items: list[DrawnObject] = []
    for index, image in enumerate(drawn):
        width, height = image.stated_size
        if not (index and rarely(draw, 3)):
            for _ in range(draw(st.integers(1, 2))):
                outline = draw(
                    st.sampled_from(["polygon", "polygon", "triangle", "parts", "runs", "compressed"])
                )
                box = draw(boxes(width, height, odd=False))
                items.append(DrawnObject(0, index, draw(st.integers(0, num_classes - 1)), box, outline))
        if rarely(draw, 4):
            box = draw(boxes(width, height, odd=draw(st.booleans())))
            crowd = int(rarely(draw, 2))
            outline = draw(st.sampled_from(["polygon", "runs", "compressed", "point", "parts"]))
            area = draw(st.sampled_from(["box", "box", "none", "negative"]))
            items.append(
                DrawnObject(0, index, draw(st.integers(0, num_classes - 1)), box, outline, crowd, area)
            )
        if rarely(draw, 40):
            outline = draw(st.sampled_from(["empty", "far", "polygon"]))
            category, of_image = (-1, index) if rarely(draw, 4) else (0, -1 if rarely(draw, 4) else index)
            crowd = 2 if rarely(draw, 4) else 0
            items.append(
                DrawnObject(0, of_image, category, draw(boxes(width, height, odd=False)), outline, crowd)
            )
    numbers = draw(ids(len(items), 1))
    return tuple(
        DrawnObject(number, one.image, one.category, one.box, one.outline, one.iscrowd, one.area)
        for number, one in zip(numbers, items, strict=True)
    )


@st.composite
def folders(draw: Any, usual: str) -> str:
    """A path of up to two parts, mostly the usual one."""
    if not rarely(draw, 3):
        return usual
    parts = draw(st.lists(texts(PARTS, 10), min_size=1, max_size=2))
    cleaned = [part.replace("/", "").replace("\0", "") or "a" for part in parts]
    return "/".join("a" if part in (".", "..") else part for part in cleaned)


@st.composite
def splits(draw: Any, name: str, num_classes: int, num_images: int) -> Split:
    drawn = draw(images(num_images))
    folder = draw(folders(name))
    if rarely(draw, 15):
        folder = "."
    return Split(
        draw(folders(f"annotations/instances_{name}")) + ".json",
        folder,
        drawn,
        draw(objects(drawn, num_classes)),
    )


@st.composite
def data_sets(draw: Any) -> DataSet:
    """A data set with all that belongs to it."""
    names = draw(st.lists(texts(CLASS_NAMES), min_size=1, max_size=4, unique=True))
    if rarely(draw, 30):  # more than a matrix has numbers for
        names += [name for name in (f"class {index}" for index in range(30)) if name not in names]
    if rarely(draw, 40):
        names.append(names[0])
    numbers = draw(ids(len(names), 0))
    categories = list(zip(numbers, names, strict=True))
    if rarely(draw, 3):
        categories = draw(st.permutations(categories))
    train = draw(splits("train2017", len(names), draw(st.integers(1, 3))))
    val = draw(splits("val2017", len(names), draw(st.integers(1, 3))))
    if rarely(draw, 60):
        val = Split(val.annotations, val.folder, (), ())
    if rarely(draw, 30):
        val = train
    settings: dict[str, dict[str, Any]] = {
        "evaluate": {
            "num_gallery_images": draw(st.integers(0, 3)),
            "score_threshold": draw(st.sampled_from([0.0, 0.0, 0.5])),
        }
    }
    if rarely(draw, 3):
        settings["tracking"] = {"experiment": draw(st.sampled_from(EXPERIMENTS))}
    if rarely(draw, 5):
        settings["report"] = {"title": draw(texts(CLASS_NAMES)).strip() or "title"}
    project = draw(folders("project")).replace("/", " ")
    root = draw(folders("data/source"))
    if rarely(draw, 15):
        root = "."
    return DataSet(
        project,
        root,
        draw(st.booleans()),
        tuple(categories),
        train,
        val,
        settings,
        draw(st.sampled_from(["utf-8", "utf-8", "ascii", "latin-1"])),
    )
