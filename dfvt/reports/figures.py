"""How all figures of the reports look, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfvt.reports.labels import font_families, quiet_about_glyphs

# Okabe and Ito's palette, told apart with every common colour blindness.
VARIANT_COLOURS = {"tiny": "#0072B2", "small": "#E69F00", "base": "#009E73"}
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a dollar in a name is a dollar
}
DPI = 150


@contextmanager
def figure_style(texts: Iterable[str] = (), changes: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Draw in the body as all figures of the reports look.

    Args:
        texts: the fonts must have their characters.
        changes: settings of matplotlib that the figure has in place of those of `STYLE`.
    """
    with rc_context({**STYLE, "font.family": font_families(texts), **(changes or {})}):
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write the PNG under its final name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with quiet_about_glyphs():
        # Without the version of matplotlib in it the file depends on its inputs alone.
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
    partial.replace(path)


def draw_legend(figure: Figure, ax: Axes) -> None:
    """A legend of what is drawn in one of a figure's axes, above all of them."""
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
