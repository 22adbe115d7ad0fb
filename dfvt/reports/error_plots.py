"""Pictures of what `dfvt.reports.errors` finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from dfvt.reports.curves import IOU_TYPES, STYLE, VARIANT_COLOURS, draw_legend, read_table, save_figure
from dfvt.reports.errors import KINDS, NO_OBJECT, NOT_FOUND
from dfvt.reports.published import PUBLISHED

MAX_NUMBERED = 20  # classes up to which a confusion matrix has numbers in its cells


def plot_errors(evaluations: Path, variants: Sequence[str], path: Path) -> None:
    """Draw what each kind of error costs in AP at IoU 0.5 (percent) as bars, one a variant, to a PNG.

    Reads `<evaluations>/<variant>/errors.csv`.

    Raises:
        FileNotFoundError: a file is missing; ValueError: it is not the table that evaluation writes.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        thickness = 0.8 / len(variants)
        for place, variant in enumerate(variants):
            source = evaluations / variant / "errors.csv"
            table = read_table(
                source, f"evaluate@{variant}", numbers=["AP50_cost"], text=["iou_type", "error"]
            )
            offset = (place - (len(variants) - 1) / 2) * thickness
            for ax, iou_type in zip(axes, IOU_TYPES, strict=True):
                costs = table[table["iou_type"] == iou_type].set_index("error")["AP50_cost"].reindex(KINDS)
                style = {"color": VARIANT_COLOURS[variant], "label": PUBLISHED[variant].name}
                ax.bar(np.arange(len(KINDS)) + offset, 100 * costs, width=thickness, **style)
        for ax, kind in zip(axes, IOU_TYPES.values(), strict=True):
            ax.set(title=f"{kind} AP at IoU 0.5 that errors cost (%)")
            ax.set_xticks(range(len(KINDS)), KINDS, rotation=30, ha="right")
            ax.grid(visible=False, axis="x")
        draw_legend(figure, axes[0])
        save_figure(figure, path)


def plot_confusion(source: Path, stage: str, path: Path) -> None:
    """Draw the confusion matrix `source` to a PNG: a row a true class, with the shares of its objects.

    Raises:
        FileNotFoundError: the file is missing; ValueError: it is not the table that evaluation writes.
    """
    table = read_table(source, stage, numbers=["number"], text=["actual", "predicted"])
    names = sorted({*table["actual"], *table["predicted"]} - {NO_OBJECT, NOT_FOUND})
    rows, columns = [*names, NO_OBJECT], [*names, NOT_FOUND]
    counts = table.pivot_table(index="actual", columns="predicted", values="number", aggfunc="sum")
    counts = counts.reindex(index=rows, columns=columns).fillna(0)
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    with rc_context({**STYLE, "axes.grid": False}):
        side = 2.5 + 0.22 * len(rows) if len(rows) > MAX_NUMBERED else 2.5 + 0.6 * len(rows)
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        ax = figure.subplots()
        picture = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ax.set_xticks(range(len(columns)), columns, rotation=90)
        ax.set_yticks(range(len(rows)), rows)
        ax.set(xlabel="predicted", ylabel="actual")
        if len(names) <= MAX_NUMBERED:
            for (row, column), number in np.ndenumerate(counts.to_numpy()):
                colour = "white" if shares.iat[row, column] > 0.5 else "black"
                ax.text(column, row, f"{number:.0f}", ha="center", va="center", color=colour)
        figure.colorbar(picture, ax=ax, label="share of the actual class", shrink=0.8)
        save_figure(figure, path)
