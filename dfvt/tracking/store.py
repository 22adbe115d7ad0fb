"""Where runs are filed. Needs no MLflow."""

from __future__ import annotations

from dataclasses import dataclass

# Tags of a run in the project's own store: where it belongs, and what it is called there since it was sent;
# of the run there: what it was called here.
MEANT_FOR, SENT_AS, SENT_FROM = "dfvt.meant_for", "dfvt.sent_as", "dfvt.sent_from"


@dataclass(frozen=True)
class Store:
    """Where runs are filed; `meant_for` is where they belong, if that did not answer."""

    uri: str
    meant_for: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        """Of every run there."""
        return {MEANT_FOR: self.meant_for} if self.meant_for else {}
