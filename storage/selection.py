"""What a reader asks of a snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from storage.errors import InvalidDataError
from storage.schemas import Dataset

ALL_SOURCES: Final = "all"
"""The ``source`` that asks for every source instead of the best one."""


class Order(Enum):
    """How the rows of several symbols follow each other."""

    TIME = "time"
    SYMBOL = "symbol"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which columns of which rows.

    Attributes:
        symbols: Symbols asked for; None is every symbol, and rows without one.
        columns: Columns in the order wanted; None is all of the dataset's.
        source: A source's name, ``"all"``, or None for the best one of each symbol and date.
        narrow: Send only the strings that the answer's rows use, for readers who may not know
            what else there is.
    """

    symbols: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    source: str | None = None
    narrow: bool = False

    def columns_of(self, dataset: Dataset) -> tuple[str, ...]:
        """Return the columns to send.

        Raises:
            InvalidDataError: A column is unknown or named twice.
        """
        if self.columns is None:
            return tuple(dataset.schema.names)
        for name in self.columns:
            if name not in dataset.schema.names:
                known = ", ".join(dataset.schema.names)
                message = f"{dataset.name} has no column {name!r}; its columns are {known}"
                raise InvalidDataError(message, field="columns")
        if len(set(self.columns)) < len(self.columns) or not self.columns:
            raise InvalidDataError("name each column once, and at least one", field="columns")
        return self.columns


class Comparison(Enum):
    """How a value is compared with a bound."""

    BELOW = "<"
    AT_MOST = "<="
    EQUAL = "="
    AT_LEAST = ">="
    ABOVE = ">"


@dataclass(frozen=True, slots=True)
class Bound:
    """What all rows wanted have in common: one numeric column compared with one number."""

    column: str
    comparison: Comparison
    value: float


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of a span of time.

    Attributes:
        selection: Which columns of which rows.
        start: First instant, µs.
        end: Instant after the last, µs.
        order: How the rows of several symbols follow each other.
        bounds: What the rows wanted have in common; readers may leave out others, and need not.
    """

    selection: Selection
    start: int
    end: int
    order: Order = Order.TIME
    bounds: tuple[Bound, ...] = ()


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """Which source speaks for a symbol where several do.

    Attributes:
        priority: Source names, best first; others follow by name.
        fresh_us: A source with a row this recent is live: ``latest`` listens to live ones alone.
    """

    priority: Sequence[str]
    fresh_us: int

    def rank(self, source: str) -> tuple[int, str]:
        """Return a sort key, best source first."""
        known = list(self.priority)
        return (known.index(source) if source in known else len(known), source)

    def speaking(self, newest: Mapping[str, int], now: int) -> list[str]:
        """Return the sources that ``latest`` listens to: live ones, or that of the newest row.

        Args:
            newest: Newest ``ts_event`` of each source, µs.
            now: µs.
        """
        live = [source for source, last in newest.items() if last >= now - self.fresh_us]
        return live or [source for source, last in newest.items() if last == max(newest.values())]


@dataclass(frozen=True, slots=True)
class SymbolExtent:
    """How far a symbol's rows reach: instants in µs, both ends included.

    ``sources`` sent them; where there are several, ``rows`` counts the rows of all. None is named
    where a dataset doesn't choose between sources.
    """

    rows: int
    first: int
    last: int
    sources: frozenset[str] = frozenset()

    def fields(self) -> dict[str, Any]:
        """Return the fields by name, as JSON can hold them."""
        return {
            "rows": self.rows,
            "first": self.first,
            "last": self.last,
            "sources": sorted(self.sources),
        }

    def joined(self, other: "SymbolExtent | None") -> "SymbolExtent":
        """Return the extent of these rows and others."""
        if other is None:
            return self
        return SymbolExtent(
            self.rows + other.rows,
            min(self.first, other.first),
            max(self.last, other.last),
            self.sources | other.sources,
        )
