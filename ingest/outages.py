"""Outages as rows: what was not heard, from when to when, and what becomes of it.

A gap is known by its id; its newest revision says what it is now. An outage of a source is one gap
in each of its datasets and symbols, so that whoever asks for one symbol finds its gaps by it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import product
from typing import Any

import pyarrow as pa

from ingest.source import Continuity, SourceProfile
from storage.schemas import GAPS, SERVICE_EVENTS


class GapReason(Enum):
    """Why rows are missing."""

    DISCONNECT = "disconnect"
    SEQUENCE = "sequence"
    SILENCE = "silence"
    DOWNTIME = "downtime"
    OVERFLOW = "overflow"


class GapState(Enum):
    """What becomes of a gap."""

    OPEN = "open"
    FILLED = "filled"
    UNFILLABLE = "unfillable"


class Level(Enum):
    """How much a service event matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Gap:
    """One revision of one gap; instants are microseconds since 1970, ``end`` None while it lasts.

    ``symbol`` None means every symbol of the source.
    """

    gap_id: str
    revision: int
    dataset: str
    source: str
    symbol: str | None
    start: int
    end: int | None
    reason: GapReason
    state: GapState
    rows_recovered: int = 0


_Lane = tuple[str, str | None]


@dataclass(slots=True)
class OutageLog:
    """The gaps of one source that last at the moment; every change is returned as rows to write."""

    profile: SourceProfile
    _lasting: dict[_Lane, Gap] = field(default_factory=dict)

    @property
    def lasting(self) -> bool:
        """Whether an outage is on."""
        return bool(self._lasting)

    def adopt(self, gaps: Iterable[Gap]) -> None:
        """Take over gaps that an earlier run opened and did not live to close."""
        self._lasting.update({(gap.dataset, gap.symbol): gap for gap in gaps})

    def begin(self, start: Mapping[str, int], reason: GapReason) -> list[Gap]:
        """Open a gap in each dataset of ``start``, at its instant, where none is open yet."""
        margin = self.profile.clock_margin_us
        opened = [
            self._gap(dataset, symbol, reason, start[dataset] - margin, None, GapState.OPEN)
            for dataset, symbol in self._lanes()
            if dataset in start and (dataset, symbol) not in self._lasting
        ]
        self.adopt(opened)
        return opened

    def end(self, now: int) -> list[Gap]:
        """Close what lasts: rows come again."""
        state = self._closed_state()
        heard = now + self.profile.clock_margin_us
        closed = [
            replace(gap, revision=gap.revision + 1, end=max(heard, gap.start), state=state)
            for gap in self._lasting.values()
        ]
        self._lasting.clear()
        return closed

    def lost(
        self,
        dataset: str,
        symbols: Iterable[str | None],
        start: int,
        end: int,
        *,
        reason: GapReason = GapReason.OVERFLOW,
    ) -> list[Gap]:
        """Note rows from ``start`` to ``end`` that did not come, or that could not be kept."""
        state = self._closed_state()
        return [self._gap(dataset, symbol, reason, start, end, state) for symbol in symbols]

    def _lanes(self) -> Iterator[_Lane]:
        return product(self.profile.datasets, self.profile.symbols or (None,))

    def _closed_state(self) -> GapState:
        refilled = self.profile.continuity is Continuity.REFILLED
        return GapState.OPEN if refilled else GapState.UNFILLABLE

    def _gap(
        self,
        dataset: str,
        symbol: str | None,
        reason: GapReason,
        start: int,
        end: int | None,
        state: GapState,
    ) -> Gap:
        # The id follows from what the gap is: recording it twice makes one gap, not two.
        parts = (self.profile.name, dataset, symbol or "*", reason.value, str(start))
        return Gap(
            ":".join(parts), 0, dataset, self.profile.name, symbol, start, end, reason, state
        )


def gap_rows(gaps: Iterable[Gap], recorded: int) -> pa.Table:
    """Return gaps as rows of the ``gaps`` dataset, recorded at ``recorded`` (µs since 1970)."""
    return _table(
        GAPS.schema,
        [
            {
                "ts_event": recorded,
                "ts_recv": recorded,
                "symbol": gap.symbol,
                "gap_id": gap.gap_id,
                "revision": gap.revision,
                "dataset": gap.dataset,
                "source": gap.source,
                "start": gap.start,
                "end": gap.end,
                "reason": gap.reason.value,
                "state": gap.state.value,
                "rows_recovered": gap.rows_recovered,
            }
            for gap in gaps
        ],
    )


def lasting_gaps(rows: pa.Table, source: str) -> list[Gap]:
    """Return the gaps of ``source`` that no revision in ``rows`` has closed."""
    newest: dict[str, Gap] = {}
    for row in _with_integer_times(rows).to_pylist():
        known = newest.get(row["gap_id"])
        if row["source"] == source and (known is None or row["revision"] > known.revision):
            newest[row["gap_id"]] = _gap_from_row(row)
    return [gap for gap in newest.values() if gap.end is None]


def event_rows(
    service: str, level: Level, event: str, detail: str | None, recorded: int
) -> pa.Table:
    """Return one row of the ``service_events`` dataset."""
    return _table(
        SERVICE_EVENTS.schema,
        [
            {
                "ts_event": recorded,
                "ts_recv": recorded,
                "symbol": None,
                "service": service,
                "level": level.value,
                "event": event,
                "detail": detail,
            }
        ],
    )


def _table(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def _with_integer_times(rows: pa.Table) -> pa.Table:
    times = [name for name in ("start", "end") if name in rows.column_names]
    for name in times:
        index = rows.column_names.index(name)
        rows = rows.set_column(index, name, rows[name].cast(pa.int64()))
    return rows


def _gap_from_row(row: Mapping[str, Any]) -> Gap:
    return Gap(
        gap_id=row["gap_id"],
        revision=row["revision"],
        dataset=row["dataset"],
        source=row["source"],
        symbol=row["symbol"],
        start=row["start"],
        end=row["end"],
        reason=GapReason(row["reason"]),
        state=GapState(row["state"]),
        rows_recovered=row["rows_recovered"],
    )
