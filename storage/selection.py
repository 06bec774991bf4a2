"""What a reader asks of a snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

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


@dataclass(frozen=True, slots=True)
class SymbolExtent:
    """How far a symbol's rows reach: instants in µs, both ends included.

    ``sources`` is how many sources sent them; where there are several, ``rows`` counts them all.
    """

    rows: int
    first: int
    last: int
    sources: int
