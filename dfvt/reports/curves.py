"""Learning curves, precision-recall curves and AP per class of the variants, one colour a variant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dfvt.reports.figures import VARIANT_COLOURS, draw_legend, figure_style, save_figure
from dfvt.reports.labels import label_of
from dfvt.reports.published import PUBLISHED
from dfvt.reports.tables import require_output

LOSSES = {
    "loss": "total loss",
    "loss_rpn_cls": "RPN classification loss",
    "loss_rpn_bbox": "RPN box loss",
    "loss_cls": "classification loss",
    "loss_bbox": "box loss",
    "loss_mask": "mask loss",
}
IOU_TYPES = {"bbox": "box", "segm": "mask"}
MAX_SIDE = 400.0  # inches; matplotlib draws at most 2¹⁶ pixels
# Numbers that are undefined are empty; earlier versions wrote COCO's −1, or NaN.
UNDEFINED_CELLS = ("", "nan", "NaN")


def plot_learning_curves(runs: Path, variants: Sequence[str], path: Path) -> None:
    """Draw the loss and its terms over steps and box and mask mAP over epochs to the PNG `path`.

    Reads `<runs>/<variant>/curve.csv` and `val.csv`. The thin line is the logged loss, the thick
    one its running mean. A loss or an mAP that none of the detectors has gets no axes.

    Raises:
        FileNotFoundError: a file is missing; ValueError: it is not the table that training writes.
    """
    curves, vals = {}, {}
    for variant in variants:
        stage = f"train@{variant}"
        curves[variant] = read_table(
            runs / variant / "curve.csv", stage, numbers=("step", "loss"), optional=tuple(LOSSES)
        )
        maps = tuple(f"{iou_type}_mAP" for iou_type in IOU_TYPES)
        vals[variant] = read_table(runs / variant / "val.csv", stage, numbers=("epoch",), optional=maps)
    losses = [loss for loss in LOSSES if any(curve[loss].notna().any() for curve in curves.values())]
    iou_types = [one for one in IOU_TYPES if any(val[f"{one}_mAP"].notna().any() for val in vals.values())]
    with figure_style():
        figure = Figure(figsize=(12, 6), layout="constrained")
        axes = figure.subplots(2, 4)
        loss_axes, map_axes = axes[:, :3].ravel(), axes[:, 3]
        for ax in (*loss_axes[len(losses) :], *map_axes[len(iou_types) :]):
            ax.set_axis_off()
        for variant in variants:
            colour, curve, val = VARIANT_COLOURS[variant], curves[variant], vals[variant]
            window = max(1, len(curve) // 15)
            smooth = curve.rolling(window, min_periods=1, center=True).mean()
            for ax, loss in zip(loss_axes, losses, strict=False):
                ax.plot(curve["step"], curve[loss], color=colour, alpha=0.25, linewidth=0.8)
                ax.plot(curve["step"], smooth[loss], color=colour)
            for ax, iou_type in zip(map_axes, iou_types, strict=False):
                style = {"color": colour, "markersize": 4, "label": PUBLISHED[variant].name}
                ax.plot(val["epoch"], defined(val[f"{iou_type}_mAP"]), "o-", **style)
        # Limits end the scaling to what is drawn, so they come after all of it.
        for ax, loss in zip(loss_axes, losses, strict=False):
            ax.set(title=LOSSES[loss], xlabel="step")
            ax.set_ylim(bottom=0)
        for ax, iou_type in zip(map_axes, iou_types, strict=False):
            ax.set(title=f"validation {IOU_TYPES[iou_type]} mAP", xlabel="epoch")
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
    tables = {
        variant: read_table(
            evaluations / variant / "precision_recall.csv",
            f"evaluate@{variant}",
            numbers=["recall", "precision"],
            text=["iou_type"],
        )
        for variant in variants
    }
    iou_types = [
        one for one in IOU_TYPES if any((table["iou_type"] == one).any() for table in tables.values())
    ]
    with figure_style():
        figure = Figure(figsize=(9, 4.8), layout=ConstrainedLayoutEngine(wspace=0.06))
        axes = figure.subplots(1, max(len(iou_types), 1), sharex=True, sharey=True, squeeze=False)[0]
        for ax, iou_type in zip(axes, iou_types, strict=False):
            for variant, table in tables.items():
                curve = table[table["iou_type"] == iou_type].sort_values("recall")
                style = {"color": VARIANT_COLOURS[variant], "label": PUBLISHED[variant].name}
                ax.plot(curve["recall"], defined(curve["precision"]), **style)
            ax.set(title=f"{IOU_TYPES[iou_type]}, IoU 0.5", xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes[0].set_ylabel("precision, mean over classes")
        draw_legend(figure, axes[0])
        save_figure(figure, path)


def plot_per_class_ap(evaluations: Path, variants: Sequence[str], path: Path) -> None:
    """Draw box and mask AP of every class as bars, one a variant, to the PNG `path`.

    Reads `<evaluations>/<variant>/per_class.csv`; a class without an AP has no bar.

    Raises:
        FileNotFoundError: a file is missing; ValueError: it is not the table that evaluation writes.
    """
    columns = [f"{iou_type}_AP" for iou_type in IOU_TYPES]
    tables = {}
    for variant in variants:
        source = evaluations / variant / "per_class.csv"
        table = read_table(
            source, f"evaluate@{variant}", numbers=["bbox_AP"], text=("class",), optional=columns
        )
        tables[variant] = table.set_index("class")[columns].apply(defined)
    places = {
        name: place for place, name in enumerate(dict.fromkeys(i for t in tables.values() for i in t.index))
    }
    shown = [one for one in columns if one == "bbox_AP" or any(t[one].notna().any() for t in tables.values())]
    with figure_style(places):
        height = min(1.2 + len(places) * (0.12 + 0.07 * len(variants)), MAX_SIDE)
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
        thickness = 0.8 / len(variants)
        for ax, column in zip(axes, shown, strict=True):
            for number, (variant, table) in enumerate(tables.items()):
                offset = (number - (len(variants) - 1) / 2) * thickness
                where = [places[name] + offset for name in table.index]
                style = {"color": VARIANT_COLOURS[variant], "label": PUBLISHED[variant].name}
                ax.barh(where, table[column], height=thickness, **style)
            ax.set(title=f"{IOU_TYPES[column.removesuffix('_AP')]} AP")
            ax.set_yticks(range(len(places)), map(label_of, places))
            ax.grid(visible=False, axis="y")
        axes[0].set_xlim(left=0)  # after the last bar: it ends the scaling of both axes to what is drawn
        axes[0].set_ylim(len(places) - 0.5, -0.5)
        draw_legend(figure, axes[0])
        save_figure(figure, path)


def read_table(
    path: Path,
    stage: str,
    *,
    numbers: Sequence[str],
    text: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> pd.DataFrame:
    """Read the CSV that `stage` wrote; an undefined number is NaN, a text is what is written.

    pandas alone would read texts such as "None", "NA" and "" as missing values, and classes have such names.

    Args:
        path: the file.
        stage: the DVC stage that writes it.
        numbers: columns of numbers that it must have.
        text: columns of text that it must have.
        optional: columns of numbers that are all NaN where the file does not have them.

    Raises:
        FileNotFoundError: there is no such file; ValueError: a column is missing or not numeric.
    """
    required = list(dict.fromkeys([*text, *numbers]))
    columns = list(dict.fromkeys([*required, *optional]))
    try:
        table = pd.read_csv(
            require_output(path, stage),
            usecols=lambda name: name in columns,
            dtype=dict.fromkeys(text, "str"),
            keep_default_na=False,
            na_values={name: list(UNDEFINED_CELLS) for name in columns if name not in text},
        )
        if not set(required) <= set(table.columns):
            raise ValueError("a column is missing")
        table = table.reindex(columns=columns)
        return table.astype(dict.fromkeys([name for name in columns if name not in text], "float64"))
    except ValueError as error:
        expected = ", ".join(required)
        raise ValueError(
            f"{path} is not a table with the columns {expected}: run `dvc repro -f {stage}` to write it anew"
        ) from error


def evaluated_types(tables: Iterable[pd.DataFrame]) -> list[str]:
    """Return the IoU types that any of the tables has rows of, in the order of `IOU_TYPES`."""
    present = {name for table in tables for name in table["iou_type"]}
    return [iou_type for iou_type in IOU_TYPES if iou_type in present]


def defined(values: pd.Series) -> pd.Series:
    """The values; the −1 with which COCO marks an undefined value becomes NaN, which is not drawn."""
    return values.where(values >= 0)
