"""What nodes have for a training, as a table; red is what would fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.table import Table
from rich.text import Text


class Check(Protocol):
    """What the table needs of a check."""

    @property
    def name(self) -> str: ...
    @property
    def found(self) -> str: ...
    @property
    def problem(self) -> str | None: ...


class NodeReport(Protocol):
    """What the table needs of a node."""

    @property
    def node(self) -> str: ...
    @property
    def checks(self) -> Sequence[Check]: ...


def doctor_table(reports: Sequence[NodeReport]) -> Table:
    """One row a node, one column a check."""
    names = list(dict.fromkeys(check.name for report in reports for check in report.checks))
    table = Table("node", *names)
    for report in reports:
        cells = {
            check.name: Text(check.found, style="bold red" if check.problem else "")
            for check in report.checks
        }
        table.add_row(report.node, *(cells.get(name, Text("")) for name in names))
    return table
