"""What a feed is to the rest of ingest."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import pyarrow as pa


class Continuity(Enum):
    """What it means that a source did not run for a while."""

    SYNTHETIC = "synthetic"
    """It makes up its rows as it goes: nothing was missed before it ran."""
    LOST = "lost"
    """The venue went on without us and does not repeat: a hole stays one."""
    REFILLED = "refilled"
    """The venue went on without us, and can be asked later: a hole stays open until then."""


@dataclass(frozen=True, slots=True)
class SourceProfile:
    """What the runner must know about a source to speak for it.

    Attributes:
        name: As in the ``source`` column; its service is ``ingest.<name>``.
        datasets: What it writes; an outage is one in each of them.
        symbols: Whose rows it writes; empty when it can't know beforehand.
        continuity: What time without it means.
        clock_margin_us: How far its clock may be from ours, its rows' way to us included: an
            outage is told longer by this at both ends, because what was on its way is lost, too.
    """

    name: str
    datasets: tuple[str, ...]
    symbols: tuple[str, ...]
    continuity: Continuity
    clock_margin_us: int = 0


class SourceWriter(Protocol):
    """The one way out of a source."""

    async def write(self, dataset: str, rows: pa.RecordBatch | pa.Table) -> None:
        """Hand over rows in the order they shall have; waits while the service can't take more."""

    async def alive(self, heard: int | None = None) -> None:
        """Say that the venue is heard although it has no rows: an outage is over, or none began.

        Rows written say so too, by their ``ts_recv``; a feed that may be quiet calls this on each
        heartbeat.

        Args:
            heard: When, µs since 1970; now, if not given.
        """

    async def flush(self) -> None:
        """Wait until everything written is durable; a feed that has an end calls it there."""

    async def missed(self, dataset: str, symbol: str, start: int, end: int) -> None:
        """Say that rows of a symbol with ``start`` ≤ ``ts_event`` < ``end`` never came (µs)."""

    async def remark(self, detail: str) -> None:
        """Say something of the running feed that its operator should know."""


class Source(Protocol):
    """A feed. ``run`` again after a failure must connect anew: nothing of the old run is reused."""

    @property
    def profile(self) -> SourceProfile:
        """What the source is."""

    async def run(self, writer: SourceWriter) -> None:
        """Write rows until there are no more, which for a live feed is never.

        Raises:
            SourceError: The feed failed; the runner starts it again after a while.
            SourceRefusedError: The feed refused us; starting again would not help.
            ConfigurationError: The settings can't work.
        """
