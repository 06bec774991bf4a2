"""Gaps for our own downtime: what sources may have sent while nobody took it.

A life of the server that begins finds out which sources were sending when the last one ended (who
had a stream open, says ``sessions``; who sent something, says the journal), and opens a gap in each
of their datasets and symbols, from the last row that is durable. Once a source
is heard again and has caught up, the rows themselves say what became of it. ``ts_recv`` is when the
source had a row, whenever it got through to us:

- where its instants go on as densely as before, a spool or a resend has delivered everything: the
  gap is filled, and ``rows_recovered`` counts what came late;
- else the longest hole that is left is the gap, and nobody will fill it.

A gap's id is that which the source's own runner would give it (``ingest.outages``): when both fell
and both tell, it is one gap.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, final

import numpy as np
import pyarrow as pa
import structlog

from flight_server.events import RESTARTING, RUNNING, Told, tellings
from flight_server.sessions import Session, SessionFile
from storage.errors import StorageError
from storage.ledger import Gap
from storage.ports import MICROSECONDS, Clock
from storage.producers import AppendStream
from storage.runs import Integers
from storage.schemas import DEPTH, GAPS, GEX, QUOTES, TICKS
from storage.selection import ALL_SOURCES, Selection
from storage.snapshot import Snapshot
from storage.store import Store

PRODUCER: Final = "tickflightd:downtime"
"""Numbers our rows through all lives: a row is written once however often we fall."""
MARKET: Final = (TICKS.name, QUOTES.name, DEPTH.name, GEX.name)
"""Datasets that sources feed as it happens."""
REASON: Final = "downtime"
ACTIVE: Final = 10 * MICROSECONDS
"""A source whose last row is older than this when the server ended was quiet: nothing says that it
had anything to send, µs."""
ALIVE_SECONDS: Final = 2.0
"""How old the word that the server is alive may get."""
NOTE_SECONDS: Final = 0.1
"""How late it is noted that a stream begins or ends: a small part of what a gap is worth."""
LOOK_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 5.0
"""From the first fresh row of a source to the verdict: rows of its other streams may still come."""
BEFORE: Final = 60 * MICROSECONDS
"""How much of the time before shows how densely a source sends, and how late rows may be, µs."""
QUIET: Final = 1 * MICROSECONDS
"""A hole no longer than this is none: batches, and clocks that are set right."""
USUAL_TIMES: Final = 3
"""A hole may be so many times as long as the longest one before the server ended."""
NEWEST_ROWS: Final = 200
"""Rows of a symbol in which its sources are looked for."""
TICK: Final = 10_000
"""Instants are told apart to ten milliseconds: a day of them then takes 70 MB at worst, µs."""
PARTS_MAX: Final = 256
"""Blocks whose instants are kept apart before they are joined."""
_FOREVER: Final = 1 << 62
_SENDING: Final = frozenset({RUNNING, RESTARTING})
_SERVICE_PREFIX: Final = "ingest."
_OPEN: Final = "open"
_LOG: Final = structlog.get_logger(__name__)

_Feed = tuple[str, str]
"""Dataset and source."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a feed's downtime.

    Attributes:
        start: Where the longest hole that is left begins, µs.
        end: Where it ends; where nothing is missing, when the feed was heard again.
        filled: Whether it is no longer than the feed's usual pauses.
    """

    start: int
    end: int
    filled: bool


@final
class DowntimeWatch:
    """Opens the gaps of a downtime and closes them; ``begin`` before anything can come in.

    Args:
        store: Where rows are read and gaps are written.
        sessions: What the last life noted, and where this one does.
        writing: Returns the datasets that have a stream open.
        clock: Where time comes from.
    """

    def __init__(
        self,
        store: Store,
        sessions: SessionFile,
        writing: Callable[[], frozenset[str]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._writing = writing
        self._clock = clock
        self._up = clock.now()
        self._seq = store.producers.durable(PRODUCER)
        # The mutable state: what the file says, feeds whose gaps are open, and when a verdict on
        # them is due.
        self._noted: frozenset[str] = frozenset()
        self._noted_at = self._looked_at = clock.monotonic()
        self._watched: set[_Feed] = set()
        self._due: dict[_Feed, float] = {}
        self._stream: AppendStream | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="downtime", daemon=True)

    @property
    def watched(self) -> frozenset[_Feed]:
        """Feeds that were not heard again yet, or not long enough."""
        return frozenset(self._watched)

    def begin(self) -> None:
        """Open a gap for each feed that was cut off when the last life ended.

        Raises:
            StorageError: The store can't be written.
        """
        snapshot = self._store.snapshot()
        lasting = [gap for gap in snapshot.known.gaps() if gap.end is None and gap.is_hole]
        session = self._sessions.read()
        opened: list[Gap] = []
        if session is not None and session.epoch == self._store.epoch - 1:
            opened = list(cut_off(snapshot, session, lasting))
        if opened:
            self._write(opened)
        known = [gap for gap in lasting if gap.reason == REASON]
        self._watched = {(gap.dataset, gap.source) for gap in (*opened, *known)}
        self._note(frozenset())

    def start(self) -> None:
        """Note who is there, and look for who is back, until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Note and look no more; before streams are ended, or it would note that they are."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Close the gaps of feeds that have caught up."""
        if not self._watched:
            return
        snapshot, now = self._store.snapshot(), self._clock.monotonic()
        for feed in sorted(self._watched):
            gaps = self._open_gaps(snapshot, feed)
            if not gaps:  # the runner of the source was faster
                self._forget(feed)
            elif feed in self._due:
                if now >= self._due[feed]:
                    self._write(closed(snapshot, gaps, self._up))
                    self._forget(feed)
            elif _newest_receipt(snapshot, feed, gaps) >= self._up:
                self._due[feed] = now + SETTLE_SECONDS

    def _open_gaps(self, snapshot: Snapshot, feed: _Feed) -> list[Gap]:
        return [
            gap
            for gap in snapshot.known.gaps()
            if (gap.dataset, gap.source) == feed
            and gap.reason == REASON
            and gap.state == _OPEN
            and gap.end is None
            and gap.symbol is not None
        ]

    def _forget(self, feed: _Feed) -> None:
        self._watched.discard(feed)
        self._due.pop(feed, None)

    def _run(self) -> None:
        while not self._stopping.wait(NOTE_SECONDS):
            self.note()
            if self._clock.monotonic() < self._looked_at + LOOK_SECONDS:
                continue
            self._looked_at = self._clock.monotonic()
            try:
                self.look()
            except StorageError as error:
                _LOG.warning("downtime not told", reason=str(error))

    def note(self) -> None:
        """Note who is there, where that has changed or was noted a while ago."""
        writing = self._writing()
        late = self._clock.monotonic() >= self._noted_at + ALIVE_SECONDS
        if writing != self._noted or (writing and late):
            self._note(writing)

    def _note(self, writing: frozenset[str]) -> None:
        self._sessions.write(self._store.epoch, self._clock.now(), writing)
        self._noted, self._noted_at = writing, self._clock.monotonic()

    def _write(self, gaps: Iterable[Gap]) -> None:
        if self._stream is None:
            self._stream = self._store.open_stream(GAPS.name, GAPS.schema)
        now = self._clock.now()
        rows = [asdict(gap) | {"ts_event": now, "ts_recv": now} for gap in gaps]
        self._stream.push(
            pa.RecordBatch.from_pylist(rows, schema=GAPS.schema), PRODUCER, self._seq + 1
        )
        self._seq += 1


def cut_off(snapshot: Snapshot, session: Session, lasting: Sequence[Gap]) -> Iterable[Gap]:
    """Yield a gap for each feed and symbol that was sending when the last life ended.

    Args:
        snapshot: What that life has left.
        session: Who was there, and when.
        lasting: Gaps that were open then: who was known to be cut off is not cut off again.
    """
    told = tellings(snapshot)
    known = {(gap.dataset, gap.source, gap.symbol) for gap in lasting}
    shared = {(gap.dataset, gap.source) for gap in lasting if gap.symbol is None}
    for dataset in sorted(session.datasets.intersection(MARKET)):
        for source, receipts in _receipts(snapshot, dataset).items():
            last = max(receipts.values())
            if last < session.alive - ACTIVE or not _was_sending(told, source):
                continue
            if (dataset, source) in shared:
                continue
            for symbol in sorted(receipts):
                if (dataset, source, symbol) not in known:
                    parts = (source, dataset, symbol, REASON, str(last))
                    gap_id = ":".join(parts)
                    yield Gap(gap_id, 0, dataset, source, symbol, last, None, REASON, _OPEN, 0)


def closed(snapshot: Snapshot, gaps: Sequence[Gap], up: int) -> list[Gap]:
    """Return the gaps of one feed as they are now that it has caught up.

    Args:
        snapshot: What there is.
        gaps: Open gaps of one dataset and source.
        up: When this life began, µs.
    """
    dataset, source = gaps[0].dataset, gaps[0].source
    began = min(gap.start for gap in gaps)
    symbols = tuple(sorted({gap.symbol for gap in gaps if gap.symbol is not None}))
    selection = Selection(symbols=symbols, columns=("symbol", "ts_recv"), source=source)
    answer = snapshot.range(dataset, selection, max(0, began - BEFORE), _FOREVER)
    instants = _Instants()
    recovered = dict.fromkeys(symbols, 0)
    for batch in answer.batches:
        receipts = batch.column(1).cast(pa.int64()).to_numpy()
        instants.add(receipts)
        late = pa.array((receipts > began) & (receipts < up))
        for one in batch.column(0).filter(late).value_counts().to_pylist():
            recovered[one["values"]] += one["counts"]
    verdict = judged(instants.all(), began, up, _holes(snapshot, dataset, source, began))
    return [_closed(gap, verdict, recovered.get(gap.symbol or "", 0)) for gap in gaps]


class _Instants:
    """Instants, each once, as coarse as a ``TICK``."""

    def __init__(self) -> None:
        self._parts: list[Integers] = []

    def add(self, instants: Integers) -> None:
        self._parts.append(np.unique(instants // TICK))
        if len(self._parts) >= PARTS_MAX:
            self._parts = [np.unique(np.concatenate(self._parts))]

    def all(self) -> Integers:
        return np.unique(np.concatenate([np.empty(0, np.int64), *self._parts])) * TICK


def judged(
    receipts: Integers, began: int, up: int, holes: Iterable[tuple[int, int]] = ()
) -> Verdict:
    """Judge what is missing by when a feed had its rows.

    Args:
        receipts: Instants at which it had some, in order, from a while before ``began`` on.
        began: The last one before the server ended, µs.
        up: When the server was back.
        holes: Spans before ``began`` that are known to lack rows: no measure of what is usual.
    """
    before = receipts[(receipts >= began - BEFORE) & (receipts <= began)]
    pauses = np.diff(before)
    for start, end in holes:
        pauses[(before[:-1] < end) & (before[1:] > start)] = 0
    after = receipts[receipts > began]
    heard = after[: int(np.searchsorted(after, up)) + 1]
    steps = np.diff(np.concatenate([[began], heard, [up] if not len(heard) else []]))
    longest = int(steps.argmax())
    back = int(heard[-1]) if len(heard) else up
    if steps[longest] <= max(QUIET, USUAL_TIMES * int(pauses.max(initial=0))):
        return Verdict(began, back, filled=True)
    start = began if longest == 0 else int(heard[longest - 1])
    return Verdict(start, start + int(steps[longest]), filled=False)


def _holes(snapshot: Snapshot, dataset: str, source: str, began: int) -> list[tuple[int, int]]:
    return [
        (gap.start, gap.end)
        for gap in snapshot.known.gaps()
        if (gap.dataset, gap.source) == (dataset, source)
        and gap.is_hole
        and gap.end is not None
        and gap.end > began - BEFORE
    ]


def _closed(gap: Gap, verdict: Verdict, recovered: int) -> Gap:
    return replace(
        gap,
        revision=gap.revision + 1,
        start=verdict.start,
        end=verdict.end,
        state="filled" if verdict.filled else "unfillable",
        rows_recovered=recovered,
    )


def _was_sending(told: Mapping[str, Told], source: str) -> bool:
    """Return whether a source was at work; one that tells nothing of itself may have been."""
    said = told.get(f"{_SERVICE_PREFIX}{source}")
    return said is None or said.state in _SENDING


def _receipts(snapshot: Snapshot, dataset: str) -> dict[str, dict[str, int]]:
    """Return when the newest row of each source and symbol was received, µs."""
    columns = ("symbol", "source", "ts_recv")
    sources = {name for extent in snapshot.symbols(dataset).values() for name in extent.sources}
    found: dict[str, dict[str, int]] = {}
    for chosen in (ALL_SOURCES, *sorted(sources)):
        limit = NEWEST_ROWS if chosen == ALL_SOURCES else 1
        answer = snapshot.latest(dataset, Selection(columns=columns, source=chosen), limit)
        rows = pa.Table.from_batches(answer.batches)
        receipts = rows["ts_recv"].cast(pa.int64()).to_pylist()
        names = zip(rows["source"].to_pylist(), rows["symbol"].to_pylist(), strict=True)
        for (source, symbol), receipt in zip(names, receipts, strict=True):
            of_source = found.setdefault(source, {})
            of_source[symbol] = max(receipt, of_source.get(symbol, 0))
    return found


def _newest_receipt(snapshot: Snapshot, feed: _Feed, gaps: Sequence[Gap]) -> int:
    dataset, source = feed
    symbols = tuple(gap.symbol for gap in gaps if gap.symbol is not None)
    chosen = Selection(symbols=symbols, columns=("ts_recv",), source=source)
    rows = pa.Table.from_batches(snapshot.latest(dataset, chosen, 1).batches)
    return max(rows["ts_recv"].cast(pa.int64()).to_pylist(), default=0)
