"""Learning curves, precision-recall curves and AP per class of the variants, one colour a variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dfvt.reports.published import PUBLISHED

# Okabe and Ito's palette, told apart with every common colour blindness.
VARIANT_COLOURS = {"tiny": "#0072B2", "small": "#E69F00", "base": "#009E73"}
LOSSES = {
    "loss": "total loss",
    "loss_rpn_cls": "RPN classification loss",
    "loss_rpn_bbox": "RPN box loss",
    "loss_cls": "classification loss",
    "loss_bbox": "box loss",
    "loss_mask": "mask loss",
}
IOU_TYPES = {"bbox": "box", "segm": "mask"}
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
}
DPI = 150


def plot_learning_curves(runs: Path, variants: Sequence[str], path: Path) -> None:
    """Draw the loss and its terms over steps and box and mask mAP (percent) over epochs to the PNG `path`.

    Reads `<runs>/<variant>/curve.csv` and `val.csv`. The thin line is the logged loss, the thick
    one its running mean.

    Raises:
        FileNotFoundError: a file is missing; ValueError: it is not the table that training writes.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 6), layout="constrained")
        axes = figure.subplots(2, 4)
        loss_axes, map_axes = axes[:, :3].ravel(), axes[:, 3]
        for variant in variants:
            stage, colour, name = f"train@{variant}", VARIANT_COLOURS[variant], PUBLISHED[variant].name
            curve = read_table(runs / variant / "curve.csv", stage, numbers=("step", *LOSSES))
            val = read_table(runs / variant / "val.csv", stage, numbers=("epoch", "bbox_mAP", "segm_mAP"))
            window = max(1, len(curve) // 15)
            smooth = curve.rolling(window, min_periods=1, center=True).mean()
            for ax, loss in zip(loss_axes, LOSSES, strict=True):
                ax.plot(curve["step"], curve[loss], color=colour, alpha=0.25, linewidth=0.8)
                ax.plot(curve["step"], smooth[loss], color=colour)
            for ax, iou_type in zip(map_axes, IOU_TYPES, strict=True):
                ax.plot(
                    val["epoch"],
                    _percent(val[f"{iou_type}_mAP"]),
                    "o-",
                    color=colour,
                    markersize=4,
                    label=name,
                )
        for ax, title in zip(loss_axes, LOSSES.values(), strict=True):
            ax.set(title=title, xlabel="step")
            ax.set_ylim(bottom=0)
        for ax, kind in zip(map_axes, IOU_TYPES.values(), strict=True):
            ax.set(title=f"validation {kind} mAP (%)", xlabel="epoch")
            ax.set_ylim(bottom=0)
            ax.xaxis.get_major_locator().set_params(integer=True)
        draw_legend(figure, map_axes[0])
        save_figure(figure, path)


def plot_precision_recall(evaluations: Path, variants: Sequence[str], path: Path) -> None:
    """Draw precision over recall at IoU 0.5, the mean over classes, for boxes and masks to the PNG `path`.

    Reads `<evaluations>/<variant>/precision_recall.csv`.

    Raises:
        FileNotFoundError: a file is missing; ValueError: it is not the table that evaluation writes.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 4.8), layout=ConstrainedLayoutEngine(wspace=0.06))
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for variant in variants:
            source = evaluations / variant / "precision_recall.csv"
            colour, name = VARIANT_COLOURS[variant], PUBLISHED[variant].name
            table = read_table(
                source, f"evaluate@{variant}", numbers=["recall", "precision"], text=["iou_type"]
            )
            for ax, iou_type in zip(axes, IOU_TYPES, strict=True):
                curve = table[table["iou_type"] == iou_type].sort_values("recall")
                defined = curve["precision"].where(curve["precision"] >= 0)
                ax.plot(curve["recall"], defined, color=colour, label=name)
        for ax, kind in zip(axes, IOU_TYPES.values(), strict=True):
            ax.set(title=f"{kind}, IoU 0.5", xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes[0].set_ylabel("precision, mean over classes")
        draw_legend(figure, axes[0])
        save_figure(figure, path)


def plot_per_class_ap(evaluations: Path, variants: Sequence[str], path: Path) -> None:
    """Draw box and mask AP (percent) of every class as bars, one a variant, to the PNG `path`.

    Reads `<evaluations>/<variant>/per_class.csv`; a class without an AP has no bar.

    Raises:
        FileNotFoundError: a file is missing; ValueError: it is not the table that evaluation writes.
    """
    columns = [f"{iou_type}_AP" for iou_type in IOU_TYPES]
    tables = {}
    for variant in variants:
        source = evaluations / variant / "per_class.csv"
        table = read_table(source, f"evaluate@{variant}", numbers=columns, text=("class",))
        tables[variant] = table.set_index("class")[columns].apply(_percent)
    classes = list(tables[variants[0]].index)
    with rc_context(STYLE):
        height = 1.2 + len(classes) * (0.12 + 0.07 * len(variants))
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        thickness = 0.8 / len(variants)
        for ax, column, kind in zip(axes, columns, IOU_TYPES.values(), strict=True):
            for place, (variant, table) in enumerate(tables.items()):
                offset = (place - (len(variants) - 1) / 2) * thickness
                where = [classes.index(name) + offset for name in table.index]
                style = {"color": VARIANT_COLOURS[variant], "label": PUBLISHED[variant].name}
                ax.barh(where, table[column], height=thickness, **style)
            ax.set(title=f"{kind} AP (%)")
            ax.set_yticks(range(len(classes)), classes)
            ax.set_xlim(left=0)
            ax.grid(visible=False, axis="y")
        axes[0].set_ylim(len(classes) - 0.5, -0.5)
        draw_legend(figure, axes[0])
        save_figure(figure, path)


def require_output(path: Path, stage: str) -> Path:
    """Return `path`, an output of the DVC stage `stage`, or say which stage makes it (FileNotFoundError)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro {stage}`, which writes it")
    return path


def read_table(path: Path, stage: str, *, numbers: Sequence[str], text: Sequence[str] = ()) -> pd.DataFrame:
    """Read the CSV that `stage` wrote; `numbers` and `text` name the columns that it must have.

    Raises:
        FileNotFoundError: there is no such file; ValueError: a column is missing or not numeric.
    """
    columns = [*text, *numbers]
    try:
        table = pd.read_csv(require_output(path, stage), usecols=columns, dtype=dict.fromkeys(text, "str"))
        return table.astype(dict.fromkeys(numbers, "float64"))
    except ValueError as error:
        expected = ", ".join(columns)
        raise ValueError(
            f"{path} is not a table with the columns {expected}: run `dvc repro -f {stage}` to write it anew"
        ) from error


def save_figure(figure: Figure, path: Path) -> None:
    """Write the PNG under its final name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    # Without the version of matplotlib in it the file depends on its inputs alone.
    figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
    partial.replace(path)


def _percent(values: pd.Series) -> pd.Series:
    """Percent; the -1 with which COCO marks an undefined value becomes NaN, which is not drawn."""
    return 100 * values.where(values >= 0)


def draw_legend(figure: Figure, ax: Axes) -> None:
    """A legend of what is drawn in one of a figure's axes, above all of them."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
