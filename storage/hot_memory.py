"""Rows in memory, as those who free them see them."""

from collections.abc import Mapping
from typing import Final

from storage.appender import Appender
from storage.lake.table import LakeTable
from storage.ledger import CoverageLedger
from storage.ports import Clock
from storage.published import HotStore, Publication

FREE_PAUSE_SECONDS: Final = 0.001
"""Between two pieces of memory given back: each takes a millisecond in which nobody else runs."""


class HotMemory:
    """Counts rows in memory and lets them go; used by one thread.

    Args:
        stores: Every dataset.
        publication: What readers see.
        appender: Whose thread alone may change what is in memory.
        ledger: Learns from rows before they leave.
        clock: Where pauses come from.
    """

    def __init__(
        self,
        stores: Mapping[str, HotStore],
        publication: Publication,
        appender: Appender,
        ledger: CoverageLedger,
        clock: Clock,
    ) -> None:
        self._stores = stores
        self._publication = publication
        self._appender = appender
        self._ledger = ledger
        self._clock = clock

    @property
    def row_bytes(self) -> int:
        """Bytes that rows and their indexes take, without what outlives them."""
        return row_bytes(self._stores)

    def base(self, dataset: str) -> int:
        """Return the position of a dataset's oldest row in memory."""
        return self._stores[dataset].base

    def flip(self, bases: Mapping[str, int]) -> None:
        """Let rows below new bases leave memory for the lake.

        Raises:
            StoreClosedError: The store is shutting down.
        """
        self._ledger.known()  # it reads each row once, and has to while the row is here
        held = self._appender.between_appends(lambda: self._publication.flip(bases))
        while held:
            held.pop()
            self._clock.sleep(FREE_PAUSE_SECONDS)

    def show(self, table: LakeTable) -> None:
        """Publish a table's newest version."""
        self._publication.show({table.dataset.name: table.index})

    def in_use(self, dataset: str) -> set[str]:
        """Return the paths of the lake's files that a snapshot still sees."""
        return self._publication.in_use(dataset)


def row_bytes(stores: Mapping[str, HotStore]) -> int:
    """Return the bytes that rows and their indexes take."""
    return sum(store.state.nbytes for store in stores.values())
