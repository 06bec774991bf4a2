"""Which files a table of the lake has, and how to find some of them without opening one."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate

from storage.selection import SymbolExtent


class FileKind(StrEnum):
    """What made a data file; its name begins with it."""

    PART = "part"
    """One part of a dataset, rolled over out of memory."""
    COMPACT = "compact"
    """Several files of one symbol, date and source, joined."""
    BULK = "bulk"
    """An import of old data that never was in memory."""
    BARS = "bars"
    """Bars built from the ticks of the lake."""


@dataclass(frozen=True, slots=True)
class LakeFile:
    """One data file, as the table's log tells of it.

    Attributes:
        path: Where it lies below the table's root, decoded.
        kind: What made it.
        symbol: The one symbol of its rows, or None where a table isn't partitioned by symbol.
        date: Its partition: a UTC date ``2026-11-20``, or a month ``2026-11``.
        source: The one source of its rows, or None where rows have none, or several.
        rows: How many.
        bytes: Size on disk.
        first: Oldest ``ts_event`` in it, µs.
        last: Newest ``ts_event`` in it, µs; included.
        part: Number of the part that brought it; of a joined file, the newest it was joined from.
        end: Position that all its rows lie below; 0 for rows that never had one. Memory has the
            rows from a snapshot's ``base`` on, so the snapshot sees files with ``end <= base``.
    """

    path: str
    kind: FileKind
    symbol: str | None
    date: str
    source: str | None
    rows: int
    bytes: int
    first: int
    last: int
    part: int
    end: int


class FileIndex:
    """The files of one version of a table; never changes.

    Args:
        version: Version of the Delta table.
        files: All its data files.
        retained_from: Instant that retention has moved up to: older rows were dropped, µs.
        follows: Of bars, the newest part of ticks that they are made of.
    """

    def __init__(
        self,
        version: int,
        files: Iterable[LakeFile] = (),
        *,
        retained_from: int = 0,
        follows: int = 0,
    ) -> None:
        self.version = version
        self.files = tuple(files)
        self.retained_from = retained_from
        self.follows = follows

    def __repr__(self) -> str:
        return f"<FileIndex version {self.version}, {len(self.files)} files>"

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[LakeFile]:
        return iter(self.files)

    def visible(self, base: int) -> "FileIndex":
        """Return the files whose rows all lie below the position ``base``."""
        return self._with([file for file in self.files if file.end <= base])

    @cached_property
    def built(self) -> "FileIndex":
        """The files of bars that were built from the ticks of the lake."""
        return self._with([file for file in self.files if file.kind is FileKind.BARS])

    @cached_property
    def told(self) -> "FileIndex":
        """The files whose rows somebody has sent."""
        return self._with([file for file in self.files if file.kind is not FileKind.BARS])

    def of(self, symbol: str | None, start: int, end: int) -> tuple[LakeFile, ...]:
        """Return the files that may hold rows with ``start <= ts_event < end``, oldest first.

        Args:
            symbol: Rows of one symbol; None is all of them. Files that aren't of one symbol are
                returned for each.
            start: µs since 1970.
            end: Likewise, excluded.
        """
        spans = self._all if symbol is None else self._by_symbol.get(symbol, self._shared)
        return spans.within(start, end)

    def symbols(self) -> list[str]:
        """Return the symbols that files are of, sorted."""
        return sorted(self._by_symbol)

    def of_symbol(self, symbol: str) -> tuple[LakeFile, ...]:
        """Return all files that may hold rows of a symbol, oldest first."""
        return self._by_symbol.get(symbol, self._shared).files

    def sources(self, symbol: str) -> Mapping[str, int]:
        """Return the sources with rows of a symbol, and the newest ``ts_event`` of each."""
        spans = self._by_symbol.get(symbol)
        return {} if spans is None else spans.sources

    def last(self, symbol: str) -> int | None:
        """Return the newest ``ts_event`` of a symbol's files, None where it has none."""
        spans = self._by_symbol.get(symbol)
        return None if spans is None else spans.last

    def extent(self, symbol: str) -> SymbolExtent | None:
        """Return how far the rows of a symbol's files reach, None where it has none."""
        spans = self._by_symbol.get(symbol)
        return None if spans is None else spans.extent

    def _with(self, files: Sequence[LakeFile]) -> "FileIndex":
        if len(files) == len(self.files):
            return self
        return FileIndex(
            self.version, files, retained_from=self.retained_from, follows=self.follows
        )

    @cached_property
    def _by_symbol(self) -> Mapping[str, "_Spans"]:
        files: defaultdict[str, list[LakeFile]] = defaultdict(list)
        for file in self.files:
            if file.symbol is not None:
                files[file.symbol].append(file)
        return {symbol: _Spans(own) for symbol, own in files.items()}

    @cached_property
    def _shared(self) -> "_Spans":
        return _Spans(file for file in self.files if file.symbol is None)

    @cached_property
    def _all(self) -> "_Spans":
        return _Spans(self.files)


class _Spans:
    """Files by time. They overlap seldom, but a file that came late may lie across many."""

    def __init__(self, files: Iterable[LakeFile]) -> None:
        self.files = tuple(sorted(files, key=lambda file: (file.first, file.end, file.path)))
        self._firsts = [file.first for file in self.files]
        self._reach = list(accumulate((file.last for file in self.files), max))

    @property
    def last(self) -> int:
        """Newest ``ts_event``."""
        return self._reach[-1]

    @cached_property
    def sources(self) -> Mapping[str, int]:
        """Newest ``ts_event`` of each source."""
        newest: dict[str, int] = {}
        for file in self.files:
            if file.source is not None:
                newest[file.source] = max(file.last, newest.get(file.source, file.last))
        return newest

    @cached_property
    def extent(self) -> SymbolExtent:
        """How far the rows reach."""
        rows = sum(file.rows for file in self.files)
        return SymbolExtent(rows, self.files[0].first, self.last, frozenset(self.sources))

    def within(self, start: int, end: int) -> tuple[LakeFile, ...]:
        low = bisect_left(self._reach, start)
        high = bisect_left(self._firsts, end)
        return tuple(file for file in self.files[low:high] if file.last >= start)
