"""The size of a detector as a table, beside the published one."""

from __future__ import annotations

from dfvt.models.complexity import Complexity
from dfvt.reports.published import COUNTED_INPUT_SHAPE, SOURCE, number_of, published_counterpart

COLUMNS = "{:28}{:>16}{:>12}{:>18}"


def complexity_table(size: Complexity) -> str:
    """Lines of a table: backbone, neck, heads and all, then its published counterpart and the differences.

    The published FLOPs are of 800×1280 pixels and stand beside others' only.
    """
    height, width = size.input_shape
    rows: list[tuple[str, ...]] = [(f"{height}×{width} pixels", "params", "FLOPs", "with attention")]
    rows += [
        (name, f"{part.num_params:,}", _giga(part.flops), _giga(part.flops_with_attention))
        for name, part in size.parts.items()
    ]
    rows.append(("all", f"{size.num_params:,}", _giga(size.flops), _giga(size.flops_with_attention)))
    notes = [
        "FLOPs: multiply-adds as mmdet counts, with norms and biases, without products inside attention;",
        '"with attention" counts convolutions and all matrix products, those inside attention too, alone.',
    ]
    published = published_counterpart(size.backbone_params)
    if published:
        rows.append(("", "", "", ""))
        counted = published.params_counted, published.flops_counted, published.flops_counted_with_attention
        printed = number_of(published.params_printed), number_of(published.flops_printed)
        rows.append((f"{published.name} as printed", published.params_printed, published.flops_printed, ""))
        rows.append(("  its published code counts", f"{counted[0]:,}", *map(_giga, counted[1:])))
        ours = [size.num_params]
        if size.input_shape == COUNTED_INPUT_SHAPE:
            ours += [size.flops, size.flops_with_attention]
        for name, theirs in (("  ours against the paper", printed), ("  ours against that count", counted)):
            cells = [f"{(our / their - 1) * 100:+.2f} %" for our, their in zip(ours, theirs, strict=False)]
            rows.append((name, *cells, *[""] * (3 - len(cells))))
        notes.append(f"Published: {SOURCE}, 80 classes, 800×1280 pixels.")
    return "\n".join([*(COLUMNS.format(*row).rstrip() for row in rows), "", *notes])


def _giga(flops: float) -> str:
    return f"{flops / 1e9:.2f}G"
