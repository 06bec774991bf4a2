"""Events of the feed as rows: whole columns at a time, no object an event.

What can't be turned into a row as a column is tried again one by one, so that one bad event does
not take its neighbours with it; it ends in ``quarantine``, as it came.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest.errors import SourceError
from ingest.tastytrade.contracts import Instrument
from ingest.tastytrade.frames import Frame
from storage.schemas import QUARANTINE, QUOTES, TICKS, TIMESTAMP, Dataset, Flag, Kind, Side

SOURCE: Final = "tastytrade"
TRADES: Final = "TimeAndSale"
QUOTES_EVENT: Final = "Quote"
LAST_TRADE: Final = "Trade"

_SIDES: Final = {"BUY": Side.BUY, "SELL": Side.SELL}
_KINDS: Final = {"NEW": Kind.NEW, "CORRECTION": Kind.CORRECTION, "CANCEL": Kind.CANCEL}
_NOTHING: Final = "\x00 "
"""What the feed writes where a code has no value."""
_PAYLOAD_CHARS_MAX: Final = 4_000
UNREADABLE: Final = (ValueError, TypeError, OverflowError, KeyError)
"""What values raise that are not what their field says."""

Rows = Callable[["Events"], pa.RecordBatch]


class Events:
    """Some events of one kind, by column.

    Args:
        fields: What each value is.
        values: Of one event after the other.
        received: When each event came, µs since 1970.
    """

    def __init__(
        self, fields: tuple[str, ...], values: Sequence[Any], received: NDArray[np.int64]
    ) -> None:
        self._at = {name: place for place, name in enumerate(fields)}
        self._fields = fields
        self._values = values
        self.received = received

    def __len__(self) -> int:
        return len(self.received)

    def column(self, name: str, default: object = None) -> Sequence[Any]:
        """Return the values of a field, or as many times the default."""
        at = self._at.get(name)
        return [default] * len(self) if at is None else self._values[at :: len(self._fields)]

    def needed(self, name: str) -> Sequence[Any]:
        """Return the values of a field no row can do without.

        Raises:
            SourceError: The feed does not send it.
        """
        if name not in self._at:
            raise SourceError(f"the feed leaves out {name}, without which its events say nothing")
        return self.column(name)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a field as numbers; what is missing is NaN, as the feed writes it, too."""
        return np.array(self.column(name, np.nan), np.float64)

    def integers(self, name: str) -> NDArray[np.int64]:
        """Return a field as integers; never by way of floats, which hold 53 bits."""
        return np.array(self.column(name, 0), np.int64)

    def select(self, rows: Sequence[int]) -> "Events":
        """Return some of the events."""
        width = len(self._fields)
        kept = [self._values[row * width : (row + 1) * width] for row in rows]
        return Events(self._fields, list(chain.from_iterable(kept)), self.received[list(rows)])

    def text(self) -> str:
        """Return the events as they came, to be looked at."""
        return json.dumps([self._fields, list(self._values)], default=str)[:_PAYLOAD_CHARS_MAX]


def gathered(frames: Sequence[Frame]) -> list[tuple[str, Events]]:
    """Put frames of one kind and layout together, in the order they came."""
    kinds: dict[str, list[Frame]] = {}
    for frame in frames:
        if frame.values:
            kinds.setdefault(frame.kind, []).append(frame)
    return [
        (kind, _joined(list(alike)))
        for kind, members in kinds.items()
        for _, alike in groupby(members, key=lambda frame: frame.fields)
    ]


def _joined(frames: list[Frame]) -> Events:
    fields = frames[0].fields
    values = list(chain.from_iterable(frame.values for frame in frames))
    counts = [len(frame.values) // len(fields) for frame in frames]
    received = np.repeat(np.array([frame.received for frame in frames], np.int64), counts)
    return Events(fields, values, received)


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of some events.

    Attributes:
        rows: Those that are rows now.
        unreadable: The others, as rows of ``quarantine``; None without any.
    """

    rows: pa.RecordBatch | pa.Table
    unreadable: pa.Table | None


def converted(dataset: Dataset, events: Events, rows: Rows) -> Converted:
    """Turn events into rows of ``dataset``, one by one if need be."""
    try:
        return Converted(rows(events), None)
    except UNREADABLE:
        pass
    batches: list[pa.RecordBatch] = []
    bad: list[dict[str, Any]] = []
    for number in range(len(events)):
        event = events.select([number])
        try:
            batches.append(rows(event))
        except UNREADABLE as error:
            bad.append(_quarantined(dataset, event, error))
    table = pa.Table.from_batches(batches, schema=dataset.wire_schema).unify_dictionaries()
    return Converted(table, pa.Table.from_pylist(bad, schema=QUARANTINE.schema))


def _quarantined(dataset: Dataset, event: Events, error: Exception) -> dict[str, Any]:
    received = int(event.received[0])
    return {
        "ts_event": received,
        "ts_recv": received,
        "symbol": None,
        "dataset": dataset.name,
        "source": SOURCE,
        "reason": f"unreadable {type(error).__name__}",
        "payload": event.text(),
    }


class Converter:
    """Turns events of what is followed into rows; events of anything else are dropped.

    Args:
        followed: What the feed's names mean.
    """

    def __init__(self, followed: Sequence[Instrument]) -> None:
        self._codes = {one.contract: code for code, one in enumerate(followed)}
        self._symbols = pa.array(list(dict.fromkeys(one.symbol for one in followed)), pa.string())
        names = self._symbols.to_pylist()
        self._symbol_of = np.array([names.index(one.symbol) for one in followed], np.int32)
        self._contracts = pa.array([one.contract for one in followed], pa.string())
        self._is_index = np.array([one.is_index for one in followed], bool)
        self._quote_number = 0

    def ticks(self, events: Events) -> pa.RecordBatch:
        """Return ``TimeAndSale`` events as ticks."""
        codes, events = self._followed(events)
        flags = (
            _bits(events, "validTick", Flag.VALID_TICK, missing=True)
            | _bits(events, "extendedTradingHours", Flag.EXTENDED_HOURS)
            | _bits(events, "spreadLeg", Flag.SPREAD_LEG)
        )
        kinds = [_KINDS[kind] for kind in events.column("type", "NEW")]
        sides = [_SIDES.get(side, Side.UNKNOWN) for side in events.column("aggressorSide")]
        events.needed("index")
        return self._tick_rows(
            codes,
            events,
            sequence=events.integers("index"),
            flags=flags,
            side=np.array(sides, np.int8),
            kind=np.array(kinds, np.int8),
        )

    def index_values(self, events: Events) -> pa.RecordBatch:
        """Return ``Trade`` events of indices as ticks: nobody trades them, so they have no tape.

        One value comes again after each subscription: its sequence is made of its time, so that it
        is known when it does.
        """
        codes, events = self._followed(events)
        price = events.numbers("price")
        keep = np.flatnonzero(self._is_index[codes] & np.isfinite(price))
        codes, events = codes[keep], events.select(keep.tolist())
        milliseconds = events.integers("time")
        seconds, rest = milliseconds // 1_000, milliseconds % 1_000
        number = events.integers("sequence") & 0x3FFFFF
        nothing = np.zeros(len(events), np.int8)
        return self._tick_rows(
            codes,
            events,
            sequence=seconds << 32 | rest << 22 | number,
            flags=np.full(len(events), Flag.VALID_TICK, np.uint16),
            side=nothing,
            kind=nothing,
        )

    def quotes(self, events: Events) -> pa.RecordBatch:
        """Return ``Quote`` events as quotes.

        The feed mostly leaves their times and sequences out: then the time is that of receipt, and
        the sequence counts.
        """
        codes, events = self._followed(events)
        count = len(events)
        venue = np.maximum(events.integers("bidTime"), events.integers("askTime")) * 1_000
        first = max(self._quote_number + 1, int(events.received[0])) if count else 0
        self._quote_number = first + count - 1 if count else self._quote_number
        columns = {
            **self._shared(codes, np.where(venue > 0, venue, events.received), events.received),
            "bid": _optional(events.numbers("bidPrice")),
            "bid_size": _optional(events.numbers("bidSize")),
            "ask": _optional(events.numbers("askPrice")),
            "ask_size": _optional(events.numbers("askSize")),
            "flags": pa.array(np.zeros(count, np.uint16)),
            "sequence": pa.array(np.arange(first, first + count)),
        }
        return _batch(QUOTES, columns)

    def _tick_rows(
        self,
        codes: NDArray[np.int32],
        events: Events,
        *,
        sequence: NDArray[np.int64],
        flags: NDArray[np.uint16],
        side: NDArray[np.int8],
        kind: NDArray[np.int8],
    ) -> pa.RecordBatch:
        events.needed("time")
        events.needed("price")
        ts_event = events.integers("time") * 1_000 + events.integers("timeNanoPart") // 1_000
        columns = {
            **self._shared(codes, ts_event, events.received),
            # A price that is no number goes on: the service keeps such rows in quarantine.
            "price": pa.array(events.numbers("price")),
            # An index has no size.
            "size": pa.array(np.nan_to_num(events.numbers("size"), nan=0.0)),
            "bid": _optional(events.numbers("bidPrice")),
            "ask": _optional(events.numbers("askPrice")),
            "side": pa.array(side),
            "kind": pa.array(kind),
            "flags": pa.array(flags),
            "exchange": _names(events.column("exchangeCode")),
            "condition": _names(events.column("exchangeSaleConditions")),
            "sequence": pa.array(sequence),
        }
        return _batch(TICKS, columns)

    def _followed(self, events: Events) -> tuple[NDArray[np.int32], Events]:
        codes = [self._codes.get(name, -1) for name in events.needed("eventSymbol")]
        if -1 in codes:
            events = events.select([row for row, code in enumerate(codes) if code >= 0])
            codes = [code for code in codes if code >= 0]
        return np.array(codes, np.int32), events

    def _shared(
        self,
        codes: NDArray[np.int32],
        ts_event: NDArray[np.int64],
        received: NDArray[np.int64],
    ) -> dict[str, pa.Array]:
        """The columns that ticks and quotes have in common."""
        source = pa.array(np.zeros(len(codes), np.int32))
        symbols = pa.array(self._symbol_of[codes])
        return {
            "ts_event": pa.array(ts_event).view(TIMESTAMP),
            "ts_recv": pa.array(received).view(TIMESTAMP),
            "symbol": pa.DictionaryArray.from_arrays(symbols, self._symbols),
            "contract": pa.DictionaryArray.from_arrays(pa.array(codes), self._contracts),
            "source": pa.DictionaryArray.from_arrays(source, pa.array([SOURCE])),
        }


def _batch(dataset: Dataset, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    names = dataset.schema.names
    return pa.RecordBatch.from_arrays([columns[name] for name in names], schema=dataset.wire_schema)


def _bits(events: Events, name: str, flag: Flag, *, missing: bool = False) -> NDArray[np.uint16]:
    values = [value is True for value in events.column(name, missing)]
    return np.where(values, np.uint16(flag), np.uint16(0)).astype(np.uint16)


def _optional(values: NDArray[np.float64]) -> pa.Array:
    """A side without a price has none: null, not NaN."""
    return pa.array(values, mask=~np.isfinite(values))


def _names(values: Sequence[Any]) -> pa.Array:
    known = {value: _name(value) for value in set(values)}
    texts = pa.array([known[value] for value in values], pa.string())
    return texts.dictionary_encode()


def _name(value: object) -> str | None:
    text = "" if value is None else str(value).strip(_NOTHING)
    return text or None
