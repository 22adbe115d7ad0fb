"""Pages that open in a browser, each one file: a title, and sections of tables, lists and pictures."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dfvt.data.files import write_whole
from dfvt.reports.labels import quiet_about_glyphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JPEG_QUALITY = 88
LARGEST_PICTURE = 640  # pixels
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 76rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem 1.2rem .2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr { border-bottom: 1px solid #ddd; }
svg, img { max-width: 100%; height: auto; }
figure div { position: relative; }
figure img { display: block; width: 100%; }
figure svg { position: absolute; inset: 0; width: 100%; height: 100%; }
figure g:hover { stroke-width: 4px; }
figure text { fill: #fff; stroke: #000; stroke-width: 3px; paint-order: stroke; stroke-dasharray: none; }
#bare:checked ~ .grid svg { display: none; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole page; `title` is text, `body` is what the functions below return."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return "\n".join(["<!doctype html>", head, f"<h1>{escape(title)}</h1>", *body, ""])


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = ["".join(f"<th>{escape(cell)}</th>" for cell in header)]
    cells += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def drawing(figure: Figure) -> str:
    """A figure as SVG, which depends on nothing but what it shows."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": "dfvt"}), quiet_about_glyphs():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


@dataclass(frozen=True)
class Shape:
    """An object on a picture, in the picture's pixels."""

    label: str  # written on it where there is room
    hint: str  # shown where the pointer rests on it
    colour: str
    outlines: Sequence[Sequence[float]]  # x1, y1, x2, y2, … each
    bbox: tuple[float, float, float, float]  # x, y, width, height
    dashed: bool = False


@dataclass(frozen=True)
class Picture:
    """An RGB image (H, W, 3), objects on it, the largest first, and a line below."""

    image: NDArray[np.uint8]
    caption: str
    shapes: Sequence[Shape] = ()


def pictures(shown: Iterable[Picture]) -> str:
    """A grid of pictures; a box to tick hides what is drawn on them."""
    switch = '<input type="checkbox" id="bare"><label for="bare"> images alone</label>'
    return switch + '<div class="grid">' + "".join(map(_picture, shown)) + "</div>"


def _picture(shown: Picture) -> str:
    height, width = shown.image.shape[:2]
    file, image = io.BytesIO(), Image.fromarray(shown.image)
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    image.save(file, format="jpeg", quality=JPEG_QUALITY)
    source = f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
    svg = f'<svg viewBox="0 0 {width} {height}">{"".join(_shape(one, width) for one in shown.shapes)}</svg>'
    caption = f"<figcaption>{escape(shown.caption)}</figcaption>"
    return f'<figure><div><img src="{source}" loading="lazy">{svg}</div>{caption}</figure>'


def _shape(shape: Shape, image_width: int) -> str:
    x, y, width, height = shape.bbox
    line, text = image_width / 400, image_width / 36
    dashes = f' stroke-dasharray="{4 * line:.1f}"' if shape.dashed else ""
    path = "".join(f"M{' '.join(f'{value:.1f}' for value in outline)}Z" for outline in shape.outlines)
    drawn = [
        f'<g fill="{shape.colour}" stroke="{shape.colour}" stroke-width="{line:.1f}"{dashes}>',
        f"<title>{escape(shape.hint)}</title>",
        f'<path d="{path}" fill-opacity="0.4"/>',
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" '
        'fill-opacity="0"/>',
    ]
    if width > text * 0.6 * len(shape.label) and height > 1.5 * text:
        drawn.append(
            f'<text x="{x + line:.1f}" y="{y + text:.1f}" font-size="{text:.1f}">{escape(shape.label)}</text>'
        )
    return "".join([*drawn, "</g>"])


def save_page(text: str, path: Path) -> None:
    """Write a page under its name only when it is complete.

    Raises:
        ValueError: there is something else of that name.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file: name one for the page")
    write_whole(path, text)
