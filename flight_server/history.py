"""What was asked, by whom, and what became of it: the dataset ``queries`` and the usage of keys.

A streamed answer and a denial are a row each. Short answers come by the thousand, so they are a row
a minute for each model, operation and outcome, with sums; so are the calls beyond ``ROWS_A_FLUSH``
a second, and the credentials that were refused. Readers only add to sums in memory; a thread of our
own writes them down, through the same door as all other rows.
"""

import datetime as dt
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, final

import pyarrow as pa
import structlog

from flight_server.calls import DENIED, OK, Call
from flight_server.errors import ControlStoreError, Refusal
from flight_server.usage import Usage, UsageTable
from storage.errors import StorageError
from storage.ports import MICROSECONDS, Clock
from storage.producers import AppendStream
from storage.schemas import QUERIES
from storage.store import Store

FLUSH_SECONDS: Final = 1.0
"""How late a call is in the history, and how much of it a crash takes."""
SUMS_SECONDS: Final = 60.0
"""How much time one row of sums stands for."""
USAGE_SECONDS: Final = 15.0
"""How late the usage of keys is: a transaction in ``control.db``, which makes keys be read anew."""
ROWS_A_FLUSH: Final = 256
"""Rows of single calls a flush; a client gone wild must not fill the memory with its history."""
USAGE_KEPT_DAYS: Final = 400
"""How long usage is kept: a year can be compared with the one before."""
SHORT: Final = frozenset({"latest"})
"""Operations of which only sums are kept."""
ROW_OF_ITS_OWN: Final = frozenset({"range", "live"})
"""Operations whose every call is a row; of all others, that is true of the denied ones alone."""
_LOG: Final = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Row:
    ts_event: int
    model_id: str
    operation: str
    ticket: str
    calls: int
    rows: int
    bytes: int
    duration_ms: float
    outcome: str


@dataclass(slots=True)
class _Sums:
    calls: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0


@final
class QueryHistory:
    """Keeps the history. ``note`` is cheap and never waits; ``start`` once, ``stop`` once.

    Args:
        store: Where the rows go.
        usage: Where the usage of keys goes.
        refused: Returns how many credentials were refused since the start, by cause.
        clock: Where time comes from.
    """

    def __init__(
        self,
        store: Store,
        usage: UsageTable,
        refused: Callable[[], Mapping[Refusal, int]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._usage_table = usage
        self._refused = refused
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: list[_Row] = []
        self._sums: dict[tuple[str, str, str], _Sums] = {}
        self._usage: dict[str, Usage] = {}
        self._refused_before: Counter[Refusal] = Counter()
        self._stream: AppendStream | None = None
        self._summed_up_at = self._used_up_at = clock.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self.folded = 0
        """Calls that would have been a row of their own and are only in sums."""

    def start(self) -> None:
        """Begin to write.

        Raises:
            StorageError: The store can't be written.
            ControlStoreError: Likewise ``control.db``.
        """
        today = _day(self._clock.now())
        self._usage_table.forget(today - dt.timedelta(days=USAGE_KEPT_DAYS))
        self._stream = self._store.open_stream(QUERIES.name, QUERIES.schema)
        self._thread.start()

    def stop(self) -> None:
        """Write everything down, and no more from then on."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush(everything=True)

    def note(self, call: Call) -> None:
        """Note a call that has ended."""
        caller = call.caller
        if caller.is_server:
            return
        with self._lock:
            used = self._usage.get(caller.key_id)
            if used is None:
                used = self._usage[caller.key_id] = Usage(caller.key_id, caller.model_id)
            used.calls += 1
            used.rows += call.rows
            used.bytes += call.bytes
            operation = call.operation
            if operation in SHORT and call.outcome == OK:
                self._sum(call)
            elif operation in ROW_OF_ITS_OWN or call.outcome == DENIED:
                self._note_alone(call)
            elif operation in SHORT or call.outcome != OK:
                self._sum(call)

    def flush(self, *, everything: bool = False) -> None:
        """Write down what is due; with ``everything``, the sums of an unfinished minute too."""
        now = self._clock.monotonic()
        rows = self._take_rows()
        if everything or now >= self._summed_up_at + SUMS_SECONDS:
            self._summed_up_at = now
            rows += self._take_sums()
        if rows:
            self._append(rows)
        if everything or now >= self._used_up_at + USAGE_SECONDS:
            self._used_up_at = now
            self._write_usage()

    def _sum(self, call: Call) -> None:
        of = (call.caller.model_id, call.operation, call.outcome)
        sums = self._sums.get(of)
        if sums is None:
            sums = self._sums[of] = _Sums()
        sums.calls += 1
        sums.rows += call.rows
        sums.bytes += call.bytes
        sums.seconds += call.seconds

    def _note_alone(self, call: Call) -> None:
        if len(self._rows) >= ROWS_A_FLUSH:
            self.folded += 1
            self._sum(call)
            return
        self._rows.append(
            _Row(
                self._clock.now(),
                call.caller.model_id,
                call.operation,
                call.ticket,
                1,
                call.rows,
                call.bytes,
                call.seconds * 1_000,
                call.outcome,
            )
        )

    def _take_rows(self) -> list[_Row]:
        with self._lock:
            rows, self._rows = self._rows, []
        return rows

    def _take_sums(self) -> list[_Row]:
        with self._lock:
            sums, self._sums = self._sums, {}
        now = self._clock.now()
        rows = [
            _Row(now, model_id, operation, "", s.calls, s.rows, s.bytes, s.seconds * 1_000, outcome)
            for (model_id, operation, outcome), s in sums.items()
        ]
        refused = Counter(self._refused())
        for cause, count in (refused - self._refused_before).items():
            ticket = json.dumps({"cause": cause})
            rows.append(_Row(now, "", "authenticate", ticket, count, 0, 0, 0.0, DENIED))
        self._refused_before = refused
        return rows

    def _append(self, rows: list[_Row]) -> None:
        if self._stream is None:
            return
        records = [asdict(row) | {"ts_recv": row.ts_event} for row in rows]
        try:
            self._stream.push(pa.RecordBatch.from_pylist(records, schema=QUERIES.schema))
        except StorageError as error:
            _LOG.warning("history not written", rows=len(rows), reason=str(error))

    def _write_usage(self) -> None:
        with self._lock:
            used, self._usage = self._usage, {}
        if not used:
            return
        try:
            self._usage_table.add(_day(self._clock.now()), used.values())
        except ControlStoreError as error:
            _LOG.warning("usage not written", keys=len(used), reason=str(error))

    def _run(self) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            self.flush()


def _day(instant: int) -> dt.date:
    return dt.datetime.fromtimestamp(instant / MICROSECONDS, tz=dt.UTC).date()
