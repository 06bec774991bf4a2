"""Reading one dataset's files of the lake, as a snapshot sees them."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from storage.lake.files import FileIndex, LakeFile
from storage.lake.reader import LakeReader, Part
from storage.lake.summaries import DAY, Summaries
from storage.ordering import in_order, reading_order
from storage.schemas import Dataset, wire_projection
from storage.selection import Bound, SymbolExtent
from storage.speakers import Span
from storage.streams import Stream


class Lake:
    """All tables of a lake, for readers.

    Args:
        root: The directory of all tables.
    """

    def __init__(self, root: Path) -> None:
        self._reader = LakeReader(root)
        self._summaries = Summaries(self._reader)

    def view(self, dataset: Dataset, index: FileIndex) -> "LakeView":
        """Return the rows of some files of a table."""
        return LakeView(dataset, index, self._reader, self._summaries)


class LakeView:
    """The rows of some data files; what it answers never changes.

    Args:
        dataset: Whose files they are.
        index: The files a snapshot sees.
        reader: Reads them.
        summaries: Remembers what is in them.
    """

    def __init__(
        self, dataset: Dataset, index: FileIndex, reader: LakeReader, summaries: Summaries
    ) -> None:
        self.dataset = dataset
        self.index = index
        self._reader = reader
        self._summaries = summaries

    def __repr__(self) -> str:
        return f"<LakeView {self.dataset.name} {self.index}>"

    @cached_property
    def is_mixed(self) -> bool:
        """Whether a file has rows of several symbols, one after another."""
        return "symbol" not in self.dataset.partition_by

    def symbols(self) -> set[str]:
        """Return the symbols that have rows; rows without a symbol don't count."""
        if not self.is_mixed:
            return set(self.index.symbols())
        return {symbol for file in self.index for symbol in self._extents(file) if symbol}

    def extent(self, symbol: str) -> SymbolExtent | None:
        """Return how far a symbol's rows reach, or None when it has none."""
        if not self.is_mixed:
            return self.index.extent(symbol)
        extent: SymbolExtent | None = None
        for file in self.index:
            found = self._extents(file).get(symbol)
            if found is not None:
                extent = found.joined(extent)
        return extent

    def dates(self, symbol: str, start: int, end: int) -> dict[str, set[int]]:
        """Return the UTC dates (days since 1970) on which each source has a row of a symbol.

        Args:
            symbol: The symbol.
            start: Where a date begins, µs.
            end: Where one begins, µs; excluded.
        """
        found: defaultdict[str, set[int]] = defaultdict(set)
        for file in self.index.of(symbol, start, end):
            dates = (date for date in self.days(file) if start <= date * DAY < end)
            found[file.source or ""].update(dates)
        return found

    def days(self, file: LakeFile) -> frozenset[int]:
        """Return the UTC dates (days since 1970) that a file has rows of."""
        first, last = file.first // DAY, file.last // DAY
        if first == last:
            return frozenset((first,))
        return self._summaries.of(self.dataset, file).dates

    def streams(
        self, symbol: str, spans: Sequence[Span], bounds: tuple[Bound, ...] = ()
    ) -> list[Stream]:
        """Return what to read for one symbol, of files that are of one each.

        Args:
            symbol: The symbol.
            spans: Whose rows of which time.
            bounds: What the rows wanted have in common.
        """
        found = [
            (file, span)
            for span in spans
            for file in self.index.of(symbol, span.start, span.end)
            if span.source in (None, file.source)
        ]
        found.sort(key=lambda one: _arrival(one[0]))
        return [self._stream(file, span, bounds) for file, span in found]

    def mixed_streams(
        self, symbols: Collection[str | None] | None, source: str | None, start: int, end: int
    ) -> list[Stream]:
        """Return what to read of files that have their symbols one after another.

        Args:
            symbols: Symbols wanted, None among them for rows without one; None is all rows.
            source: The source wanted; None is all of them.
            start: µs since 1970.
            end: Likewise, excluded.
        """
        files = sorted(self.index.of(None, start, end), key=_arrival)
        return [self._mixed_stream(file, symbols, Span(start, end, source)) for file in files]

    def newest_first(
        self, symbol: str | None, sources: Collection[str] | None
    ) -> list[tuple[int, LakeFile]]:
        """Return the files with rows of a symbol, and the newest ``ts_event`` each has of it.

        Args:
            symbol: The symbol; None is rows without one.
            sources: Whose rows; None is everybody's.
        """
        found = []
        for file in self.index if symbol is None else self.index.of_symbol(symbol):
            if sources is not None and file.source is not None and file.source not in sources:
                continue
            if not self.is_mixed:
                found.append((file.last, file))
            elif (extent := self._extents(file).get(symbol)) is not None:
                found.append((extent.last, file))
        # Of equal ones, that which came last.
        return sorted(found, key=lambda one: (one[0], _arrival(one[1])), reverse=True)

    def tail(
        self,
        file: LakeFile,
        symbol: str | None,
        sources: Collection[str] | None,
        names: tuple[str, ...],
        limit: int,
    ) -> list[pa.RecordBatch]:
        """Return the newest rows that a file has of a symbol, in order; at least ``limit`` of more.

        Args:
            file: One of those of ``newest_first``.
            symbol: The symbol; None is rows without one.
            sources: Whose rows; None is everybody's.
            names: Columns, those of the order among them.
            limit: Rows wanted.
        """
        if self.is_mixed:
            (source,) = sources or (None,)
            span = Span(file.first, file.last + 1, source)
            return [self._sorted(file, (symbol,), span, names)]
        part = Part(names, file.first, file.last + 1, newest=limit)
        return list(self._reader.batches(self.dataset, file, part))

    def _extents(self, file: LakeFile) -> Mapping[str | None, SymbolExtent]:
        return self._summaries.of(self.dataset, file).symbols

    def _stream(self, file: LakeFile, span: Span, bounds: tuple[Bound, ...]) -> Stream:
        first, last = max(file.first, span.start), min(file.last, span.end - 1)
        is_whole = first == file.first and last == file.last

        def read(names: tuple[str, ...], batch_rows: int) -> Iterator[pa.RecordBatch]:
            part = Part(names, span.start, span.end, bounds, batch_rows)
            return self._reader.batches(self.dataset, file, part)

        return Stream(first, last, read, file.rows if is_whole else None)

    def _mixed_stream(
        self, file: LakeFile, symbols: Collection[str | None] | None, span: Span
    ) -> Stream:
        def read(names: tuple[str, ...], batch_rows: int) -> Iterator[pa.RecordBatch]:
            batch = self._sorted(file, symbols, span, names)
            for at in range(0, batch.num_rows, batch_rows):
                yield batch.slice(at, batch_rows)

        first, last = max(file.first, span.start), min(file.last, span.end - 1)
        is_whole = first == file.first and last == file.last
        everybody = symbols is None and span.source is None
        return Stream(first, last, read, file.rows if is_whole and everybody else None)

    def _sorted(
        self,
        file: LakeFile,
        symbols: Collection[str | None] | None,
        span: Span,
        names: tuple[str, ...],
    ) -> pa.RecordBatch:
        """Return rows of a file that has its symbols one after another, in order of time."""
        order = reading_order(self.dataset)
        chosen = () if span.source is None else ("source",)
        needed = tuple(dict.fromkeys((*names, *order, *chosen)))
        schema = wire_projection(self.dataset.name, needed)
        part = Part(needed, span.start, span.end)
        batches = self._reader.batches(self.dataset, file, part)
        rows = pa.Table.from_batches(batches, schema).unify_dictionaries()
        if symbols is not None:
            wanted = pa.array(symbols, pa.string())
            rows = rows.filter(pc.is_in(rows["symbol"], wanted))
        if span.source is not None:
            rows = rows.filter(pc.equal(rows["source"], span.source))
        if not rows.num_rows:
            return pa.RecordBatch.from_pylist([], wire_projection(self.dataset.name, names))
        return in_order(rows.combine_chunks().to_batches()[0], order).select(list(names))


def _arrival(file: LakeFile) -> tuple[int, int, str]:
    return (file.end, file.part, file.path)
