"""Where runs are filed. Needs no MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dfvt.tracking.addresses import with_credentials, without_credentials

# Tags of a run in the project's own store: where it belongs, and what it is called there since it was sent;
# of the run there: what it was called here.
MEANT_FOR, SENT_AS, SENT_FROM = "dfvt.meant_for", "dfvt.sent_as", "dfvt.sent_from"
# A tag of a run that evaluate filed because no store had the training's run: the id of that run.
NOTED_RUN = "dfvt.noted_run"


@dataclass(frozen=True)
class Store:
    """Where runs are filed.

    Ray Tune writes it to disk with a sweep's state: credentials are removed from both addresses.

    Attributes:
        address: the store's address.
        meant_for: where the runs belong, if that store did not answer.
    """

    address: str
    meant_for: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", without_credentials(self.address))
        if self.meant_for:
            object.__setattr__(self, "meant_for", without_credentials(self.meant_for))

    def __setstate__(self, state: Mapping[str, str | None]) -> None:
        """Read what earlier versions wrote, too: their store had `uri` instead of `address`."""
        address = state["address"] if "address" in state else state["uri"]
        self.__init__(address, state["meant_for"])  # type: ignore[misc]

    @property
    def uri(self) -> str:
        """The address with the credentials that the environment has for it."""
        return with_credentials(self.address)

    @property
    def tags(self) -> dict[str, str]:
        """Of every run there."""
        return {MEANT_FOR: self.meant_for} if self.meant_for else {}
