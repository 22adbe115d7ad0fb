"""Names as labels of pictures: of a length that fits, in fonts that have their characters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib
REGULAR = 400  # the weight of a font
LAST_RESORT = "Last Resort"  # also comes with matplotlib: it draws a box for every character that exists
# If several fonts have the same number of the characters, one of these is taken.
PREFERRED_FAMILIES = ("Noto Sans", "Source Han Sans", "WenQuanYi", "PingFang", "Microsoft YaHei", "Hiragino")
MAX_LENGTH = 40  # characters; a longer label leaves no room for the picture


def label_of(name: str) -> str:
    """Return a class name as a label: one line of at most `MAX_LENGTH` characters that can be drawn."""
    line = "".join(
        " " if one.isspace() else one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in name
    )
    return line if len(line) <= MAX_LENGTH else f"{line[: MAX_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def font_families(texts: Iterable[str]) -> list[str]:
    """Return the families that matplotlib needs for texts: its own, then those that have what it lacks."""
    families, _ = _families_and_missing(texts)
    return families


def font_file(texts: Iterable[str]) -> str:
    """Return the font file that has the most characters of the texts, for libraries that take one file."""
    needed = _drawn_characters(texts)
    families, _ = _families_and_missing(texts)
    files = [_file_of(family) for family in families]
    return min(files, key=lambda file: len(needed - _characters_of(file)))


def missing_characters(texts: Iterable[str]) -> str:
    """Return the characters of the texts that no installed font has, in the order of their numbers."""
    _, missing = _families_and_missing(texts)
    return "".join(map(chr, sorted(missing)))


def missing_font_warning(class_names: Iterable[str]) -> str | None:
    """Return a sentence about the characters of class names that no installed font has, if there are any."""
    missing = missing_characters(class_names)
    if not missing:
        return None
    examples = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return (
        f"no installed font has these characters of the class names: {examples}; pictures show squares "
        "instead. Install a font that has them (for Chinese, Japanese and Korean on Debian: "
        "`apt-get install fonts-noto-cjk`)."
    )


@contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """Silence matplotlib's warning for each missing character; `missing_font_warning` is one for all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        yield


def _drawn_characters(texts: Iterable[str]) -> set[int]:
    return {ord(one) for text in texts for one in text if one.isprintable() and not one.isspace()}


def _families_and_missing(texts: Iterable[str]) -> tuple[list[str], set[int]]:
    """Choose families, the one with the most missing characters first."""
    families = [DEFAULT_FAMILY]
    missing = _drawn_characters(texts) - _characters_of(_file_of(DEFAULT_FAMILY))
    while missing:
        best = max(_other_families(), key=lambda family: len(missing & _characters_of(_file_of(family))))
        added = missing & _characters_of(_file_of(best))
        if not added:
            break
        families.append(best)
        missing -= added
    return families, missing


@cache
def _other_families() -> list[str]:
    """All installed families but matplotlib's own, the preferred ones first.

    matplotlib keeps a list of the fonts that were installed when it first ran, so newer ones are added here.
    """
    from matplotlib import font_manager

    listed = {entry.fname for entry in font_manager.fontManager.ttflist}
    for file in set(font_manager.findSystemFonts()) - listed:
        with suppress(OSError, RuntimeError):  # a damaged font file of the machine is not this program's
            font_manager.fontManager.addfont(file)
    names = {entry.name for entry in font_manager.fontManager.ttflist} - {DEFAULT_FAMILY}
    usable = [name for name in names if not name.startswith(LAST_RESORT)]
    return sorted(usable, key=lambda name: (not name.startswith(PREFERRED_FAMILIES), name))


def _file_of(family: str) -> str:
    """The upright file of a family whose weight is the nearest to regular."""
    from matplotlib import font_manager

    entries = [entry for entry in font_manager.fontManager.ttflist if entry.name == family]

    def place(entry: FontEntry) -> tuple[bool, int, str]:
        weight = entry.weight if isinstance(entry.weight, int) else font_manager.weight_dict[entry.weight]
        return entry.style != "normal", abs(weight - REGULAR), entry.fname

    return min(entries, key=place).fname


@cache
def _characters_of(file: str) -> frozenset[int]:
    """The characters of a font; none of a font that cannot be drawn in any size (emoji made of pixels)."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
