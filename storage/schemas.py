"""The registry of datasets: their schemas, identities, orders, layouts and readers.

Schemas only ever gain nullable columns, so older journals and files stay readable: the columns they
lack are null. Strings are plain here; ``latest`` and ``range`` send ``Dataset.wire_schema``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Final

import pyarrow as pa

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
DICTIONARY: Final = pa.dictionary(pa.int32(), pa.string())
SYMBOL_PATTERN: Final = re.compile(r"[A-Z0-9][A-Z0-9._-]{0,31}")


class Flag(IntFlag):
    """Bits of the ``flags`` column."""

    VALID_TICK = 1 << 0
    EXTENDED_HOURS = 1 << 1
    SPREAD_LEG = 1 << 2
    FIRST_SUB_TRADE = 1 << 3
    LAST_SUB_TRADE = 1 << 4
    END_OF_BATCH = 1 << 5
    BACKFILLED = 1 << 6
    SUSPICIOUS = 1 << 7
    SYNTHETIC = 1 << 8


class Side(IntEnum):
    """Who crossed the spread."""

    SELL = -1
    UNKNOWN = 0
    BUY = 1


class Kind(IntEnum):
    """What a tick does to the tape."""

    NEW = 0
    CORRECTION = 1
    CANCEL = 2


class Layout(Enum):
    """How the hot store keeps a dataset."""

    COLUMNS = "columns"
    """Preallocated column buffers: fixed-width values and low-cardinality strings only."""
    BATCHES = "batches"
    """The batches as they came: lists and free text."""


@dataclass(frozen=True)
class Dataset:
    """One dataset of the registry.

    ``lane`` names the columns whose combination keeps an order of its own (one feed of one
    contract); the total order of rows is ``ts_event``, then ``lane`` without the symbol, then
    ``sequence`` and ``kind`` where the dataset has them. ``identity`` is empty where equal rows are
    different events.
    """

    name: str
    schema: pa.Schema
    layout: Layout
    lane: tuple[str, ...]
    identity: tuple[str, ...] = ()
    dictionary: tuple[str, ...] = ()
    admin_only: bool = False
    partition_by: tuple[str, ...] = ("symbol", "date")

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Columns of the total order, most significant first."""
        counters = ("sequence", "kind") if self.layout is Layout.COLUMNS else ()
        tail = tuple(name for name in counters if name in self.schema.names)
        return ("ts_event", *(name for name in self.lane if name != "symbol"), *tail)

    @cached_property
    def wire_schema(self) -> pa.Schema:
        """The schema with low-cardinality strings as ``dictionary<int32, utf8>``."""
        return pa.schema(
            field.with_type(DICTIONARY) if field.name in self.dictionary else field
            for field in self.schema
        )

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Columns that every row must have a value in."""
        return tuple(field.name for field in self.schema if not field.nullable)


def _schema(columns: Mapping[str, pa.DataType], *, symbol_optional: bool = False) -> pa.Schema:
    """Prepend the columns all datasets share; a name ending in ``?`` is nullable."""
    shared = {"ts_event": TIMESTAMP, "ts_recv": TIMESTAMP}
    symbol = {"symbol?" if symbol_optional else "symbol": pa.string()}
    return pa.schema(
        pa.field(name.rstrip("?"), data_type, nullable=name.endswith("?"))
        for name, data_type in {**shared, **symbol, **columns}.items()
    )


_F64: Final = pa.float64()
_I64: Final = pa.int64()
_TEXT: Final = pa.string()
_CHANGE_WINDOW: Final = pa.struct(
    {
        "window": pa.int32(),  # minutes; 0 is the current one
        "strike": _F64,
        "value": _F64,
        "old_gex": _F64,
        "new_gex": _F64,
        "delta": _F64,
    }
)
_STRIKE: Final = pa.struct({"strike": _F64, "gex_vol": _F64, "gex_oi": _F64})
_FEED_LANE: Final = ("symbol", "source", "contract")

TICKS: Final = Dataset(
    name="ticks",
    schema=_schema(
        {
            "contract": _TEXT,
            "price": _F64,
            "size": _F64,
            "bid?": _F64,
            "ask?": _F64,
            "side": pa.int8(),
            "kind": pa.int8(),
            "flags": pa.uint16(),
            "exchange?": _TEXT,
            "condition?": _TEXT,
            "sequence": _I64,
            "source": _TEXT,
        }
    ),
    layout=Layout.COLUMNS,
    lane=_FEED_LANE,
    identity=("source", "contract", "sequence", "kind"),
    dictionary=("symbol", "contract", "exchange", "condition", "source"),
)

QUOTES: Final = Dataset(
    name="quotes",
    schema=_schema(
        {
            "contract": _TEXT,
            "bid?": _F64,
            "bid_size?": _F64,
            "ask?": _F64,
            "ask_size?": _F64,
            "flags": pa.uint16(),
            "sequence": _I64,
            "source": _TEXT,
        }
    ),
    layout=Layout.COLUMNS,
    lane=_FEED_LANE,
    dictionary=("symbol", "contract", "source"),
)

DEPTH: Final = Dataset(
    name="depth",
    schema=_schema(
        {
            "contract": _TEXT,
            "action": pa.int8(),
            "side": pa.int8(),
            "price": _F64,
            "size": _F64,
            "orders": pa.int32(),
            "flags": pa.uint16(),
            "sequence": _I64,
            "source": _TEXT,
        }
    ),
    layout=Layout.COLUMNS,
    lane=_FEED_LANE,
    dictionary=("symbol", "contract", "source"),
)

BARS: Final = Dataset(
    name="bars",
    schema=_schema(
        {
            "interval": _TEXT,
            "open": _F64,
            "high": _F64,
            "low": _F64,
            "close": _F64,
            "volume": _F64,
            "vwap": _F64,
            "trades": _I64,
            "buy_volume": _F64,
            "sell_volume": _F64,
            "flags": pa.uint16(),
            "source": _TEXT,
        }
    ),
    layout=Layout.COLUMNS,
    lane=("symbol", "source", "interval"),
    dictionary=("symbol", "interval", "source"),
    partition_by=("symbol", "month"),
)

GEX: Final = Dataset(
    name="gex",
    schema=_schema(
        {
            "endpoint": _TEXT,
            "spot?": _F64,
            "zero_gamma?": _F64,
            "major_pos_vol?": _F64,
            "major_pos_oi?": _F64,
            "major_neg_vol?": _F64,
            "major_neg_oi?": _F64,
            "sum_gex_vol?": _F64,
            "sum_gex_oi?": _F64,
            "net_gex?": _F64,
            "min_dte?": pa.int32(),
            "sec_min_dte?": pa.int32(),
            "change_windows?": pa.list_(_CHANGE_WINDOW),
            "strikes?": pa.list_(_STRIKE),
            "priority": _TEXT,
            "source": _TEXT,
        }
    ),
    layout=Layout.BATCHES,
    lane=("symbol", "endpoint"),
    identity=("symbol", "endpoint", "ts_event"),
    dictionary=("symbol", "endpoint", "priority", "source"),
)


def _operational(
    name: str,
    columns: Mapping[str, pa.DataType],
    *,
    dictionary: tuple[str, ...] = (),
    admin_only: bool = True,
    partition_by: tuple[str, ...] = ("date",),
) -> Dataset:
    return Dataset(
        name=name,
        schema=_schema(columns, symbol_optional=True),
        layout=Layout.BATCHES,
        lane=("symbol",),
        dictionary=dictionary,
        admin_only=admin_only,
        partition_by=partition_by,
    )


WEBHOOK_MESSAGES: Final = _operational(
    "webhook_messages",
    {"topic": _TEXT, "payload": _TEXT},
    dictionary=("topic",),
    admin_only=False,
)
JOBS: Final = _operational(
    "jobs",
    {
        "job_id": _TEXT,
        "kind": _TEXT,
        "payload": _TEXT,
        "state": _TEXT,
        "priority": _TEXT,
        "detail?": _TEXT,
    },
    dictionary=("kind", "state", "priority"),
)
GAPS: Final = _operational(
    "gaps",
    {
        "gap_id": _TEXT,
        "revision": pa.int32(),
        "dataset": _TEXT,
        "source": _TEXT,
        "start": TIMESTAMP,
        "end?": TIMESTAMP,
        "reason": _TEXT,
        "state": _TEXT,
        "rows_recovered": _I64,
    },
    dictionary=("dataset", "source", "reason", "state"),
    admin_only=False,
)
QUARANTINE: Final = _operational(
    "quarantine",
    {"dataset": _TEXT, "source?": _TEXT, "reason": _TEXT, "payload": _TEXT},
    dictionary=("dataset", "source", "reason"),
)
SPOT_CHECKS: Final = _operational(
    "spot_checks",
    {"dataset": _TEXT, "kind": _TEXT, "checked": _I64, "passed": _I64, "detail?": _TEXT},
    dictionary=("dataset", "kind"),
    admin_only=False,
)
SEGMENTS: Final = _operational(
    "segments",
    {
        "dataset": _TEXT,
        "part": _I64,
        "date": pa.date32(),
        "rows": _I64,
        "bytes": _I64,
        "row_hash": _TEXT,
        "first": TIMESTAMP,
        "last": TIMESTAMP,
    },
    dictionary=("dataset",),
    admin_only=False,
    partition_by=("month",),  # its own column ``date`` is that of the rows it tells of
)
QUERIES: Final = _operational(
    "queries",
    {
        "model_id": _TEXT,
        "operation": _TEXT,
        "ticket": _TEXT,
        "calls": _I64,
        "rows": _I64,
        "bytes": _I64,
        "duration_ms": _F64,
        "outcome": _TEXT,
    },
    dictionary=("model_id", "operation", "outcome"),
)
SERVICE_EVENTS: Final = _operational(
    "service_events",
    {"service": _TEXT, "level": _TEXT, "event": _TEXT, "detail?": _TEXT},
    dictionary=("service", "level", "event"),
)

DATASETS: Final[Mapping[str, Dataset]] = MappingProxyType(
    {
        dataset.name: dataset
        for dataset in (
            TICKS,
            QUOTES,
            DEPTH,
            GEX,
            BARS,
            WEBHOOK_MESSAGES,
            JOBS,
            GAPS,
            QUARANTINE,
            SPOT_CHECKS,
            SEGMENTS,
            QUERIES,
            SERVICE_EVENTS,
        )
    }
)
"""All stored datasets by name, in the order users meet them."""


@lru_cache(maxsize=256)
def wire_projection(dataset: str, columns: tuple[str, ...]) -> pa.Schema:
    """Return the wire schema of some columns; kept, because every answer needs one."""
    wire = DATASETS[dataset].wire_schema
    return pa.schema([wire.field(name) for name in columns])


@lru_cache(maxsize=256)
def plain_projection(dataset: str, columns: tuple[str, ...]) -> pa.Schema:
    """Return the schema of some columns with plain strings, as live streams send them."""
    schema = DATASETS[dataset].schema
    return pa.schema([schema.field(name) for name in columns])
