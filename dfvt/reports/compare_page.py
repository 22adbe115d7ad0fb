"""The files of a comparison of runs: a page, a table, all numbers, and mAP against cost."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dfvt.data.files import write_whole
from dfvt.reports import pages
from dfvt.reports.compare import COMPARABLE, NONE, STOPPED, Row, markdown, table_of
from dfvt.reports.drawing import optional_picture, warn_on_stderr
from dfvt.reports.figures import VARIANT_COLOURS, figure_style, save_figure
from dfvt.reports.labels import label_of
from dfvt.reports.published import SOURCE
from dfvt.reports.tables import markdown_table
from dfvt.tracking.runs import RunInfo


def save_comparison(
    rows_by_data: Mapping[str, Sequence[Row]], differences: Mapping[str, Mapping[str, str]], folder: Path
) -> list[Path]:
    """Writes compare.md, .csv (a line a run, unrounded), .html and, where FLOPs are known, pareto.png.

    Args:
        rows_by_data: the rows of each data set.
        differences: config keys whose values differ, with those of each run.
        folder: takes the files.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = []
    for data_set, rows in rows_by_data.items():
        body += [pages.heading(f"Data set {data_set}"), pages.table(*table_of(rows))]
    body.append(pages.paragraph(f"Published: {SOURCE}, profile {COMPARABLE} alone."))
    text = markdown(rows_by_data)
    if differences:
        names = list(dict.fromkeys(name for values in differences.values() for name in values))
        lines = [[key, *(values.get(name, NONE) for name in names)] for key, values in differences.items()]
        body += [pages.heading("Config keys that differ"), pages.table(["key", *names], lines)]
        text += "\n\n" + markdown_table(["key", *names], lines, text_columns=len(names) + 1)
    files = [folder / name for name in ("compare.html", "compare.md", "compare.csv")]
    page, table, lines_of_runs = files
    picture = folder / "pareto.png"
    with optional_picture(picture, warn_on_stderr):
        if figure := draw_pareto(rows_by_data):
            save_figure(figure, picture)
            body.append(pages.drawing(figure))
            text += "\n\n![mAP against cost](pareto.png)"
            files.append(picture)
    pages.save_page(pages.page("Comparison", body), page)
    write_whole(table, text + "\n")
    write_csv([run for rows in rows_by_data.values() for row in rows for run in row.runs], lines_of_runs)
    return files


def write_csv(runs: Sequence[RunInfo], path: Path) -> None:
    """A line for each run with all its parameters, numbers and tags."""
    params, metrics, tags = (
        list(dict.fromkeys(key for run in runs for key in part(run)))
        for part in (lambda run: run.params, lambda run: run.metrics, lambda run: run.tags)
    )
    tags = [tag for tag in tags if not tag.startswith("mlflow.")]
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["run_id", "name", "status", "seconds", *params, *metrics, *tags])
    for run in runs:
        writer.writerow(
            [run.run_id, run.name, run.status, run.seconds]
            + [run.params.get(key, "") for key in params]
            + [defined_value(key, run.metrics.get(key)) for key in metrics]
            + [run.tags.get(key, "") for key in tags]
        )
    write_whole(path, lines.getvalue())


def defined_value(name: str, value: float | None) -> float | None:
    """A metric for a CSV; an mAP or a class's AP that is undefined (COCO's −1) is an empty cell."""
    undefined = value is not None and value < 0 and ("mAP" in name or "_AP/" in name)
    return None if undefined else value


def draw_pareto(rows_by_data: Mapping[str, Sequence[Row]]) -> Figure | None:
    """Box mAP against FLOPs and against the time for an image, the best trade-offs joined by a line.

    Each data set has axes of its own.
    """
    costs = {"flops": ("FLOPs (G)", 1e-9), "ms_per_image": ("ms an image", 1.0)}
    points: dict[tuple[str, str], list[tuple[float, float, Row]]] = {}
    for data_set, rows in rows_by_data.items():
        for cost, (_, factor) in costs.items():
            for row in rows:
                price, mean = row.metric(cost), row.metric("bbox_mAP")
                if price and mean and STOPPED not in row.first.tags:
                    point = factor * price.value, mean.value, row
                    points.setdefault((data_set, cost), []).append(point)
    if not points:
        return None
    with figure_style([row.name for rows in rows_by_data.values() for row in rows]):
        num_rows = len({data_set for data_set, _ in points})
        num_columns = max(Counter(data_set for data_set, _ in points).values())
        figure = Figure(figsize=(5.5 * num_columns, 4 * num_rows), layout="constrained")
        all_axes = figure.subplots(num_rows, num_columns, squeeze=False)
        for ax in all_axes.ravel():
            ax.set_axis_off()
        places = {data_set: row for row, data_set in enumerate(dict.fromkeys(name for name, _ in points))}
        filled: Counter[str] = Counter()
        for (data_set, cost), found in points.items():
            ax = all_axes[places[data_set], filled[data_set]]
            filled[data_set] += 1
            ax.set_axis_on()
            front = pareto_front([(x, y) for x, y, _ in found])
            ax.plot(*zip(*front, strict=True), color="#999999", linewidth=1, zorder=1)
            for x, y, row in found:
                ax.scatter(x, y, color=VARIANT_COLOURS.get(row.variant, "#555555"), zorder=2)
                if len(found) <= 12:
                    text = label_of(row.name)
                    ax.annotate(text, (x, y), fontsize=8, xytext=(4, 4), textcoords="offset points")
            ax.set(title=f"data set {data_set}", xlabel=costs[cost][0], ylabel="box mAP")
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, value) that no other one beats in both, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front
