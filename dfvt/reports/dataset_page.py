"""A page about a data set: whether it is sound, its classes, the sizes of its objects, objects per image."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfvt.data.validation import IntegrityReport, SplitReport
from dfvt.reports import pages
from dfvt.reports.dataset import count_rows, verdict_of
from dfvt.reports.drawing import reason_of
from dfvt.reports.figures import figure_style
from dfvt.reports.labels import label_of, missing_font_warning

logger = logging.getLogger(__name__)
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito's
MOST_OBJECTS = 20  # images with so many or more objects share a bar


def save_dataset_page(report: IntegrityReport, title: str, path: Path) -> None:
    """Write the page about a data set, one HTML file."""
    body = [pages.paragraph(verdict_of(report))]
    for name, lines in (("Problems", report.problems), ("Warnings", report.warnings)):
        if lines:
            body += [pages.heading(name), pages.bullets(lines)]
    body += [pages.heading("What there is"), pages.table(["", *report.splits], count_rows(report))]
    for name, draw in (("Objects", _draw_sizes), ("Classes", _draw_classes)):
        body += [pages.heading(name), _optional_drawing(draw, report.splits)]
    classes = {one for split in report.splits.values() for one in split.num_objects}
    if warning := missing_font_warning(classes):
        body.append(pages.paragraph(warning))
    pages.save_page(pages.page(title, body), path)


def _optional_drawing(
    draw: Callable[[Mapping[str, SplitReport]], Figure], splits: Mapping[str, SplitReport]
) -> str:
    """Return a figure for the page, or why it was not drawn: the verdict does not depend on it."""
    try:
        return pages.drawing(draw(splits))
    except Exception as error:
        sentence = f"This figure was not drawn: {reason_of(error)}"
        logger.warning(sentence)
        return pages.paragraph(sentence)


def _draw_sizes(splits: Mapping[str, SplitReport]) -> Figure:
    """Shares of objects by size, and of images by their number of objects."""
    with figure_style():
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        sides = sorted({side for split in splits.values() for side in split.object_sizes.num_by_side})
        labels = [f"{side}–{2 * side}" if side else "below 1" for side in sides]
        by_side = {name: split.object_sizes.num_by_side for name, split in splits.items()}
        _bars(left, by_side, sides, labels)
        left.set(title="objects by size", xlabel="√area (pixels)", ylabel="objects (%)")
        by_objects = {name: _capped(split.num_images_by_objects) for name, split in splits.items()}
        numbers = sorted({number for one in by_objects.values() for number in one})
        labels = [f"{number}{'+' * (number == MOST_OBJECTS)}" for number in numbers]
        _bars(right, by_objects, numbers, labels)
        right.set(title="images by their number of objects", xlabel="objects", ylabel="images (%)")
        left.legend()
    return figure


def _capped(num_images_by_objects: Mapping[int, int]) -> Counter[int]:
    capped: Counter[int] = Counter()
    for number, count in num_images_by_objects.items():
        capped[min(number, MOST_OBJECTS)] += count
    return capped


def _bars(ax: Axes, counts: Mapping[str, Mapping[int, int]], keys: list[int], labels: list[str]) -> None:
    """A group of bars for each key, in percent of a split's total."""
    thickness = 0.8 / len(counts)
    for place, (name, one) in enumerate(counts.items()):
        total = max(sum(one.values()), 1)
        where = [index + (place - (len(counts) - 1) / 2) * thickness for index in range(len(keys))]
        values = [100 * one.get(key, 0) / total for key in keys]
        ax.bar(where, values, thickness, color=COLOURS[place % len(COLOURS)], label=name)
    ax.set_xticks(range(len(keys)), labels, rotation=45 if len(keys) > 8 else 0)
    ax.grid(visible=False, axis="x")


def _draw_classes(splits: Mapping[str, SplitReport]) -> Figure:
    """Objects of each class, the most frequent first, on a logarithmic axis."""
    totals: Counter[str] = Counter()
    for split in splits.values():
        totals.update(split.num_objects)
    names = [name for name, _ in totals.most_common()]
    with figure_style(names):
        figure = Figure(figsize=(11, 1.4 + 0.24 * len(names)), layout="constrained")
        ax = figure.subplots()
        thickness = 0.8 / len(splits)
        for place, (name, split) in enumerate(splits.items()):
            where = [index + (place - (len(splits) - 1) / 2) * thickness for index in range(len(names))]
            values = [split.num_objects.get(one, 0) for one in names]
            ax.barh(where, values, thickness, color=COLOURS[place % len(COLOURS)], label=name)
        ax.set(title="objects by class", xlabel="objects", xscale="symlog", xlim=(0, None))
        ax.set_yticks(range(len(names)), map(label_of, names))
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.legend(loc="lower right")
    return figure
