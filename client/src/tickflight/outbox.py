"""What was written and is not yet durable on the server. No I/O, no clock, no lock: the engine's.

Rows pass these stages, always in the order they were written:

    gathered ──seal──► numbered ──next_batch──► in flight ──acked──► durable, and forgotten
                          ▲                         │
                          └────────rewind───────────┘  the stream was lost: the same batches, the
                                                       same numbers, again

Rules:
1. A number once given keeps its rows for ever; that is what lets the server drop repeats by number.
2. Numbered batches lie in memory or on disk. What is on disk is one run, and nothing unacked
   precedes it: after a crash the run on disk continues exactly what the server has.
3. Nothing is forgotten before its ack.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from tickflight.errors import SequenceError

if TYPE_CHECKING:
    from tickflight.records import Title
    from tickflight.spool import Leftover, Place

GATHER_ROWS: Final = 8_192
"""Rows that go out without waiting for more: by then a batch's own cost no longer counts."""
LINGER_SECONDS: Final = 0.010
"""How long rows wait for company while others are in flight: a commit takes about as long."""
MAX_IN_FLIGHT_BATCHES: Final = 1_024
"""Enough for 15,000 batches a second at an ack delay of 60 ms; bounds what is sent twice."""
MAX_IN_FLIGHT_BYTES: Final = 32 * 2**20
"""Likewise for big batches."""
_NO_LIMIT: Final = 2**63  # above any number a producer can come to


@dataclass(slots=True, eq=False)
class Batch:
    """Numbered rows: in memory as ``parts``, on disk at ``place``, or for a moment both."""

    seq: int
    rows: int
    size: int
    parts: tuple[Any, ...] | None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """The server's word: all up to ``seq`` is durable; row counts since its previous word."""

    seq: int
    rows: int = 0
    quarantined: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class _Entry:
    part: object
    rows: int
    size: int
    kind: object
    written_at: float


class Outbox:
    """One producer's rows on their way; ``kind`` of a part says which may share a batch."""

    def __init__(self, title: Title, *, first_seq: int = 1, memory_limit: int = 0) -> None:
        self.title = title
        self.durable = first_seq - 1
        self.memory_bytes = 0
        self.rows_written = 0
        self.rows_durable = 0
        self.rows_quarantined = 0
        self.rows_duplicate = 0
        self.hurry = False
        """Whether somebody waits for the gathered rows."""
        # The mutable state: a queue of parts, the numbered batches without a hole, three marks.
        self._memory_limit = memory_limit
        self._gathered: deque[_Entry] = deque()
        self._gathered_rows = 0
        self._unacked: dict[int, Batch] = {}
        self._next_seq = first_seq
        self._cursor = first_seq  # the next to go out on this stream
        self._sent = first_seq - 1  # the newest that ever went out
        self._on_disk = first_seq - 1  # the newest that is on disk
        self._in_flight_bytes = 0

    @classmethod
    def of_earlier_life(cls, leftover: Leftover) -> Self:
        """What a writer that is no more left on disk.

        Its batches keep producer and numbers. Under a new producer the server could not tell rows
        it already has from rows it lacks; and a new life must not add batches under the old
        producer, because it can't know what else the old life had numbered and sent.
        """
        outbox = cls(leftover.title, first_seq=leftover.batches[0].seq)
        outbox._restore(leftover)
        return outbox

    def _restore(self, leftover: Leftover) -> None:
        for one in leftover.batches:
            self._unacked[one.seq] = Batch(one.seq, one.rows, one.place.length, None, one.place)
            self.rows_written += one.rows
        self._on_disk = leftover.batches[-1].seq
        self._next_seq = self._on_disk + 1
        self._sent = _NO_LIMIT  # the old life may have sent more than it had put on disk

    def __repr__(self) -> str:
        return (
            f"<Outbox {self.title.producer}: {self._gathered_rows} rows gathered,"
            f" {len(self._unacked)} batches unacked, {self.in_flight} in flight,"
            f" durable {self.durable}>"
        )

    @property
    def settled(self) -> bool:
        """Whether all that was written is durable."""
        return not self._unacked and not self._gathered

    @property
    def all_sent(self) -> bool:
        """Whether nothing is left to send on this stream."""
        return self._cursor == self._next_seq and not self._gathered

    @property
    def in_flight(self) -> int:
        """Batches sent on this stream and not yet acked."""
        return self._cursor - self.durable - 1

    @property
    def in_memory(self) -> bool:
        """Whether a crash now would lose rows that were written."""
        return bool(self._gathered) or self._next_seq - 1 > max(self._on_disk, self.durable)

    @property
    def gathered_rows(self) -> int:
        """Rows not yet numbered."""
        return self._gathered_rows

    @property
    def spooled(self) -> list[Batch]:
        """Unacked batches that are on disk."""
        return [batch for batch in self._unacked.values() if batch.place is not None]

    def fits(self, size: int) -> bool:
        """Whether ``size`` more bytes keep the bound; into an empty memory anything fits."""
        return self.memory_bytes == 0 or self.memory_bytes + size <= self._memory_limit

    def put(self, part: object, *, rows: int, size: int, kind: object, now: float) -> None:
        """Take rows."""
        self._gathered.append(_Entry(part, rows, size, kind, now))
        self._gathered_rows += rows
        self.rows_written += rows
        self.memory_bytes += size

    def next_batch(self, now: float) -> Batch | None:
        """The batch to send now, marked as in flight; None when it is time to wait."""
        if self._window_is_full:
            return None
        if self._cursor == self._next_seq and not (self._due(now) and self.seal()):
            return None
        batch = self._unacked[self._cursor]
        self._cursor += 1
        self._sent = max(self._sent, batch.seq)
        self._in_flight_bytes += batch.size
        return batch

    def wait(self, now: float) -> float | None:
        """Seconds until gathered rows go out without company; None when only an ack can help."""
        age = self.age(now)
        return None if age is None or self._window_is_full else max(0.0, LINGER_SECONDS - age)

    def age(self, now: float) -> float | None:
        """Seconds that the oldest gathered rows have waited; None when there are none."""
        return now - self._gathered[0].written_at if self._gathered else None

    def seal(self) -> bool:
        """Number the oldest gathered rows; whether there were any."""
        if not self._gathered:
            return False
        taken = [self._gathered.popleft()]
        rows = taken[0].rows
        while (
            self._gathered
            and rows + self._gathered[0].rows <= GATHER_ROWS
            and self._gathered[0].kind == taken[0].kind
        ):
            taken.append(self._gathered.popleft())
            rows += taken[-1].rows
        self._gathered_rows -= rows
        self._unacked[self._next_seq] = Batch(
            seq=self._next_seq,
            rows=rows,
            size=sum(entry.size for entry in taken),
            parts=tuple(entry.part for entry in taken),
        )
        self._next_seq += 1
        return True

    def _due(self, now: float) -> bool:
        return (
            self.in_flight == 0
            or self.hurry
            or self._gathered_rows >= GATHER_ROWS
            or (self.age(now) or 0.0) >= LINGER_SECONDS
        )

    @property
    def _window_is_full(self) -> bool:
        return (
            self.in_flight >= MAX_IN_FLIGHT_BATCHES or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES
        )

    def acked(self, ack: Ack) -> None:
        """Forget what the server has made durable.

        Raises:
            SequenceError: the server claims batches that were never sent; another writer has used
                this producer id, and ours would be dropped as repeats.
        """
        if ack.seq > self._sent:
            raise SequenceError(
                f"the server already has batches of producer {self.title.producer!r} up to"
                f" {ack.seq}: continue with first_seq={ack.seq + 1}, or take a new producer id",
                expected=ack.seq + 1,
            )
        self.rows_quarantined += ack.quarantined
        self.rows_duplicate += ack.duplicates
        durable = min(ack.seq, self._next_seq - 1)
        for seq in range(self.durable + 1, durable + 1):
            batch = self._unacked.pop(seq)
            self.rows_durable += batch.rows
            if batch.parts is not None:
                self.memory_bytes -= batch.size
            if seq < self._cursor:
                self._in_flight_bytes -= batch.size
        self.durable = max(self.durable, durable)
        self._cursor = max(self._cursor, self.durable + 1)

    def rewind(self) -> None:
        """Begin again with the first unacked batch: a new stream has seen none of them."""
        self._cursor = self.durable + 1
        self._in_flight_bytes = 0

    def can_resume_at(self, expected: int | None) -> bool:
        """Whether a server that expects this number can be served from what is kept."""
        return expected is not None and self.durable < expected <= self._next_seq

    def to_spill(self, limit: int) -> list[Batch]:
        """The batches to put on disk next, oldest first, about ``limit`` bytes of them."""
        batches: list[Batch] = []
        size = 0
        for seq in range(max(self._on_disk, self.durable) + 1, self._next_seq):
            batches.append(self._unacked[seq])
            size += batches[-1].size
            if size >= limit:
                break
        return batches

    def spilled(self, batch: Batch, place: Place) -> None:
        """Note that a batch is on disk; its memory is free."""
        self._on_disk = max(self._on_disk, batch.seq)
        if batch.seq > self.durable:
            self.memory_bytes -= batch.size
            batch.place = place
            batch.parts = None
