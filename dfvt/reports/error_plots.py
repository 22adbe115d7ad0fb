"""Pictures of what `dfvt.reports.errors` finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dfvt.reports.curves import IOU_TYPES, evaluated_types, read_table
from dfvt.reports.errors import KINDS, NO_OBJECT, NOT_FOUND
from dfvt.reports.figures import VARIANT_COLOURS, draw_legend, figure_style, save_figure
from dfvt.reports.labels import label_of
from dfvt.reports.published import PUBLISHED

MAX_NUMBERED = 20  # classes up to which a confusion matrix has numbers in its cells
MAX_NAMED = 100  # classes up to which a confusion matrix has their names; more names cannot be read


def plot_errors(evaluations: Path, variants: Sequence[str], path: Path) -> None:
    """Draw what each kind of error costs in AP at IoU 0.5 as bars, one a variant, to a PNG.

    Reads `<evaluations>/<variant>/errors.csv`.

    Raises:
        FileNotFoundError: a file is missing; ValueError: it is not the table that evaluation writes.
    """
    tables = {
        variant: read_table(
            evaluations / variant / "errors.csv",
            f"evaluate@{variant}",
            numbers=["AP50_cost"],
            text=["iou_type", "error"],
        )
        for variant in variants
    }
    iou_types = evaluated_types(tables.values())
    with figure_style():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.subplots(1, max(len(iou_types), 1), sharey=True, squeeze=False)[0]
        thickness = 0.8 / len(variants)
        for ax, iou_type in zip(axes, iou_types, strict=False):
            for place, (variant, table) in enumerate(tables.items()):
                offset = (place - (len(variants) - 1) / 2) * thickness
                costs = table[table["iou_type"] == iou_type].set_index("error")["AP50_cost"].reindex(KINDS)
                style = {"color": VARIANT_COLOURS[variant], "label": PUBLISHED[variant].name}
                ax.bar(np.arange(len(KINDS)) + offset, costs, width=thickness, **style)
            ax.set(title=f"{IOU_TYPES[iou_type]} AP at IoU 0.5 that errors cost")
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
    with figure_style(names, {"axes.grid": False}):
        side = 2.5 + (0.6 if len(names) <= MAX_NUMBERED else 0.22) * min(len(rows), MAX_NAMED)
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        ax = figure.subplots()
        picture = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        named = len(names) <= MAX_NAMED
        ax.set_xticks(
            range(len(columns)) if named else [], map(label_of, columns) if named else [], rotation=90
        )
        ax.set_yticks(range(len(rows)) if named else [], map(label_of, rows) if named else [])
        ax.set(xlabel="predicted", ylabel="actual")
        if len(names) <= MAX_NUMBERED:
            for (row, column), number in np.ndenumerate(counts.to_numpy()):
                colour = "white" if shares.iat[row, column] > 0.5 else "black"
                ax.text(column, row, f"{number:.0f}", ha="center", va="center", color=colour)
        figure.colorbar(picture, ax=ax, label="share of the actual class", shrink=0.8)
        save_figure(figure, path)
