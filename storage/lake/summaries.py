"""What only the rows of a data file tell: whose they are, and of which dates."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from storage.lake.files import LakeFile
from storage.lake.reader import LakeReader, Part
from storage.ordering import instants_of
from storage.ports import MICROSECONDS
from storage.schemas import Dataset
from storage.selection import SymbolExtent

DAY: Final = 86_400 * MICROSECONDS
SUMMARIES_MAX: Final = 8_192
"""Files remembered, below 1 kB each for most: eight operational datasets for years."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a file has.

    Attributes:
        symbols: How far the rows of each symbol reach; None is rows without one.
        dates: UTC dates of the rows, days since 1970.
    """

    symbols: Mapping[str | None, SymbolExtent]
    dates: frozenset[int]


class Summaries:
    """Reads the summary of a file once; safe to share between threads."""

    def __init__(self, reader: LakeReader) -> None:
        self._reader = reader
        self._known: OrderedDict[tuple[str, str], Summary] = OrderedDict()
        self._changing = threading.Lock()

    def of(self, dataset: Dataset, file: LakeFile) -> Summary:
        """Return the summary of a file.

        Raises:
            LakeCorruptError: The file is missing or damaged.
        """
        key = (dataset.name, file.path)
        with self._changing:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        summary = self._read(dataset, file)
        with self._changing:
            self._known[key] = summary
            while len(self._known) > SUMMARIES_MAX:
                self._known.popitem(last=False)
        return summary

    def _read(self, dataset: Dataset, file: LakeFile) -> Summary:
        symbols: dict[str | None, SymbolExtent] = {}
        dates: set[int] = set()
        part = Part(("ts_event", "symbol"), file.first, file.last + 1)
        for batch in self._reader.batches(dataset, file, part):
            instants = instants_of(batch)
            dates.update((instants // DAY).tolist())
            for symbol, extent in _extents(batch):
                symbols[symbol] = extent.joined(symbols.get(symbol))
        return Summary(symbols, frozenset(dates))


def _extents(batch: pa.RecordBatch) -> list[tuple[str | None, SymbolExtent]]:
    column = batch.column("symbol")
    if pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
    rows = pa.table({"symbol": column, "at": batch.column("ts_event").cast(pa.int64())})
    by_symbol = rows.group_by("symbol").aggregate([("at", "count"), ("at", "min"), ("at", "max")])
    return [
        (row["symbol"], SymbolExtent(row["at_count"], row["at_min"], row["at_max"]))
        for row in by_symbol.to_pylist()
    ]
