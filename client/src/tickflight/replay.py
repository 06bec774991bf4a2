"""Replays: rows of several datasets again, in the order in which they were received.

The server streams each dataset in that order as fast as it is read. Here the streams are merged and
paced: at any moment as little is read ahead as gRPC holds, and a batch of each dataset.
"""

from __future__ import annotations

import json
import math
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa

from tickflight.coverage import Coverage
from tickflight.errors import InvalidRequestError, ServerError, TickflightError
from tickflight.lasting import LastingStream
from tickflight.result import plain_schema

if TYPE_CHECKING:
    from pyarrow import flight

    from tickflight.connection import Connection

STEP_SECONDS: Final = 0.005
"""Rows that fall due within it come together."""
SILENCE_SECONDS: Final = 30.0
"""Silence after which a connection counts as lost: the server says every two that it is there."""
RECEIVED: Final = "ts_recv"
NEVER: Final = 1 << 62
"""Later than any instant."""
NO_COLUMNS: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})
"""Nothing said of the columns of any dataset: all of them come."""
_MICROSECONDS: Final = 1_000_000

Columns = Mapping[str, Iterable[str]] | Iterable[str]
"""Columns of each dataset, or the same of all."""


class Pace:
    """When rows are due: a clock that starts with the first row and stops at the end of the span.

    Args:
        speed: So many times as fast as rows were received; 0 is at once.
        end: Where the clock stops, µs: what was received later is known by then.
        monotonic: Our clock, in seconds.
    """

    def __init__(self, speed: float, end: int, monotonic: Callable[[], float]) -> None:
        self._speed = speed
        self._end = end
        self._monotonic = monotonic
        self._started: float | None = None
        self._first = 0
        self._told = 0.0

    def now(self, receipt: int) -> int:
        """Return what the clock says, µs; beyond all instants when everything is due.

        Args:
            receipt: That of the next row; the first ever starts the clock.
        """
        if not self._speed:
            return NEVER
        self._told = self._monotonic()
        if self._started is None:
            self._started = self._told
            self._first = min(receipt, self._end)
        now = self._first + int((self._told - self._started) * self._speed * _MICROSECONDS)
        return NEVER if now >= self._end else now

    def seconds_to(self, receipt: int) -> float:
        """Return how long to wait for a row, and for those that fall due right after another."""
        if not self._speed or self._started is None:
            return 0.0
        due = (min(receipt, self._end) - self._first) / _MICROSECONDS / self._speed
        return max(self._started + due, self._told + STEP_SECONDS) - self._monotonic()


class Replay:
    """Record batches of several datasets, merged by ``ts_recv``; made by ``Client.replay``.

    Iterate over it: each item is the name of a dataset and a batch of its rows, with plain strings,
    as a live stream gives them. No row comes before one that was received earlier; of those
    received at one instant, the datasets come in the order in which they were asked for. A lost
    connection is made again, and every row still comes once.

    Read it from one thread; ``close`` may be called from any.
    """

    def __init__(
        self,
        connection: Connection,
        datasets: Sequence[str],
        asked: Mapping[str, Any],
        *,
        speed: float,
        columns: Mapping[str, Sequence[str]] = NO_COLUMNS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the streams; see ``Client.replay`` for the arguments."""
        if not datasets or len(set(datasets)) < len(datasets):
            raise InvalidRequestError("name each dataset once, and at least one", field="datasets")
        if not (math.isfinite(speed) and speed >= 0):
            raise InvalidRequestError("speed is 0 (as fast as possible) or more", field="speed")
        self._closing = threading.Event()
        self._feeds: list[_Feed] = []
        span = {name: asked[name] for name in ("start", "end")}
        try:
            for rank, dataset in enumerate(datasets):
                ticket = {**asked, **span, "dataset": dataset, "speed": 0}
                feed = _Feed(connection, ticket, columns.get(dataset), rank, self._closing)
                self._feeds.append(feed)
                span = feed.span  # what is relative to now is the same for all
        except TickflightError:
            self.close()
            raise
        self._pace = Pace(speed, span["end"], monotonic)
        self._now = -1
        self.schemas: Mapping[str, pa.Schema] = {feed.dataset: feed.schema for feed in self._feeds}
        """Schema of each dataset's batches; its metadata has the coverage."""
        self.at: int | None = None
        """When the last row given out was received, in epoch µs."""

    def __repr__(self) -> str:
        names = " ".join(feed.dataset for feed in self._feeds)
        return f"<Replay {names} {'closed' if self._closing.is_set() else self.at}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[str, pa.RecordBatch]:
        while not self._closing.is_set():
            waiting = [feed for feed in self._feeds if feed.refill()]
            if not waiting:
                break
            feed = min(waiting, key=_turn)
            if feed.receipt <= self._now:
                others = [_turn(other) for other in waiting if other is not feed]
                batch, self.at = feed.take(min(others, default=None), self._now)
                return feed.dataset, batch
            # All that was due is given out: only now does the clock move on, for all datasets.
            self._closing.wait(max(self._pace.seconds_to(feed.receipt), 0.0))
            self._now = self._pace.now(feed.receipt)
        self.close()
        raise StopIteration

    @property
    def reconnects(self) -> int:
        """How often a connection was lost and made again."""
        return sum(feed.reconnects for feed in self._feeds)

    def each(self, callback: Callable[[str, pa.RecordBatch], None]) -> None:
        """Call ``callback`` with each dataset and batch until the replay ends or is closed."""
        for dataset, batch in self:
            callback(dataset, batch)

    def close(self) -> None:
        """End the replay; whoever waits for a batch is told that there are no more."""
        self._closing.set()
        for feed in self._feeds:
            feed.close()


class LiveReplay:
    """A replay of one dataset that is read as a live stream is; made by ``Client.live``."""

    def __init__(self, replay: Replay) -> None:
        (self.schema,) = replay.schemas.values()
        """Schema of every batch; its metadata has the coverage."""
        self.caught_up = True
        """As of a live stream; on the clock of a replay, nothing newer ever waits."""
        self.position = None
        """A replay has no place among what arrives."""
        self._replay = replay

    def __repr__(self) -> str:
        return f"<LiveReplay of {self._replay!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        _, batch = next(self._replay)
        return batch

    @property
    def coverage(self) -> Coverage:
        """How complete the rows are."""
        return Coverage.from_metadata(self.schema.metadata)

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and made again."""
        return self._replay.reconnects

    def each(self, callback: Callable[[pa.RecordBatch], None]) -> None:
        """Call ``callback`` with each batch until the replay ends or is closed."""
        for batch in self:
            callback(batch)

    def close(self) -> None:
        """End the replay; whoever waits for a batch is told that there are no more."""
        self._replay.close()


class _Feed:
    """The rows of one dataset in the order of receipt, over as many connections as it takes."""

    def __init__(
        self,
        connection: Connection,
        ticket: Mapping[str, Any],
        columns: Sequence[str] | None,
        rank: int,
        closing: threading.Event,
    ) -> None:
        self.dataset: str = ticket["dataset"]
        self.rank = rank
        self._columns = None if columns is None else list(columns)
        self._ticket = dict(ticket)
        if self._columns is not None:
            self._ticket["columns"] = list(dict.fromkeys((*self._columns, RECEIVED)))
        # What was read and not given out yet.
        self._rows: pa.RecordBatch | None = None
        self._receipts: Sequence[int] = ()
        self._at = 0
        # How far the stream was read: the last receipt, how many rows had it, and how many of them
        # another connection has given us again.
        self._last = -1
        self._rows_at_last = 0
        self._known: int | None = None
        self._stream = LastingStream(
            connection,
            lambda: self._ticket,
            patience=lambda: SILENCE_SECONDS,
            again=self._note_connected,
            closing=closing,
        )
        try:
            about = _about(self._stream.first())
            self.schema = self._projected(plain_schema(self._stream.schema))
        except TickflightError:
            self.close()
            raise
        self.span = {name: about[name] for name in ("start", "end")}
        self._ticket |= self.span

    @property
    def reconnects(self) -> int:
        return self._stream.reconnects

    @property
    def receipt(self) -> int:
        """When the next row was received, µs."""
        return self._receipts[self._at]

    def refill(self) -> bool:
        """See to it that there is a next row; return whether there is one."""
        while self._at >= len(self._receipts):
            batch = self._read()
            if batch is None:
                return False
            self._rows, self._receipts, self._at = batch, _receipts_of(batch), 0
            self._skip_known()
            self._note()
        return True

    def take(self, other: tuple[int, int] | None, now: int) -> tuple[pa.RecordBatch, int]:
        """Take the rows whose turn is before another feed's, and that are due.

        Returns:
            The rows, and when the last of them was received.
        """
        assert self._rows is not None  # noqa: S101 - it was refilled
        stop = bisect_right(self._receipts, now, self._at)
        if other is not None:
            receipt, rank = other
            border = bisect_right if self.rank < rank else bisect_left
            stop = border(self._receipts, receipt, self._at, stop)
        rows = self._rows.slice(self._at, stop - self._at)
        self._at = stop
        return rows if self._columns is None else rows.select(self._columns), self._receipts[
            stop - 1
        ]

    def close(self) -> None:
        self._stream.close()

    # The connection

    def _read(self) -> pa.RecordBatch | None:
        """Return the next batch, None at the end."""
        while True:
            try:
                chunk = self._stream.read()
            except StopIteration:
                return None
            if chunk.data is not None and chunk.data.num_rows:
                return chunk.data

    def _note_connected(self) -> None:
        self._known = self._rows_at_last

    # What comes

    def _skip_known(self) -> None:
        """Leave out what an earlier connection has given: the order is the same every time."""
        if self._known is None:
            return
        first = bisect_left(self._receipts, self._last)
        behind = bisect_right(self._receipts, self._last)
        again = min(self._known, behind - first)
        self._at = first + again
        self._known -= again
        if behind < len(self._receipts):
            self._known = None

    def _note(self) -> None:
        if self._at < len(self._receipts):
            last = self._receipts[-1]
            first = max(self._at, bisect_left(self._receipts, last))
            kept = self._rows_at_last if last == self._last else 0
            self._last, self._rows_at_last = last, kept + len(self._receipts) - first

    def _projected(self, schema: pa.Schema) -> pa.Schema:
        if self._columns is None:
            return schema
        return pa.schema([schema.field(name) for name in self._columns], schema.metadata)


def _turn(feed: _Feed) -> tuple[int, int]:
    """Return what decides whose row comes next."""
    return feed.receipt, feed.rank


def _receipts_of(batch: pa.RecordBatch) -> Sequence[int]:
    """Return when rows were received, µs, without copying."""
    column = batch.column(batch.schema.get_field_index(RECEIVED))
    instants = memoryview(column.buffers()[1]).cast("q")
    return instants[column.offset : column.offset + len(column)]


def _about(chunk: flight.FlightStreamChunk) -> dict[str, Any]:
    try:
        about = json.loads(chunk.app_metadata.to_pybytes())
    except (AttributeError, ValueError):
        about = None
    if not isinstance(about, dict) or not {"replay", "start", "end"} <= about.keys():
        raise ServerError("the server's replay can't be read: update tickflight")
    return about
