"""The one way out: everything a reader sees, he sees through a ``Snapshot``.

A snapshot is the state of all datasets at one moment; asking it twice gives the same answer. Live
streams, SQL, coverage and the lake's files join it here, so that no reader can meet a row twice or
miss one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from storage.batched_view import BatchedView
from storage.columnar_view import ColumnarView
from storage.coverage import Coverage, coverage_of
from storage.errors import InvalidDataError, RetentionError
from storage.joined import Joined, JoinedBatches, JoinedColumns
from storage.kept_bars import KeptBars
from storage.lake.files import FileIndex
from storage.lake.view import Lake
from storage.ledger import Known
from storage.schemas import BARS, DATASETS, TICKS, Dataset, wire_projection
from storage.selection import Order, Selection, Slice, SourcePolicy, SymbolExtent
from storage.speakers import DAY, Interval
from storage.where import Where

COVERAGE_KEY: Final = b"tickflight.coverage"

HotView = ColumnarView | BatchedView


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows on their way to a reader.

    Attributes:
        schema: Schema of every batch, with the coverage as metadata.
        batches: The rows, in order; read once.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@dataclass(frozen=True, slots=True)
class Moment:
    """What a snapshot is made of, all of it taken at once.

    Attributes:
        hot: Rows in memory, by dataset.
        files: Files of the lake none of whose rows are in memory, by dataset.
        known: What is known of holes, rejects and witnesses.
        now: Microseconds since 1970.
    """

    hot: Mapping[str, HotView]
    files: Mapping[str, FileIndex]
    known: Known
    now: int


class Snapshot:
    """All datasets as they were at one moment.

    Args:
        identity: Of this moment, unique for ever.
        moment: What there was.
        lake: Reads its files.
        policy: Which source speaks for a symbol.
    """

    def __init__(self, identity: str, moment: Moment, lake: Lake, policy: SourcePolicy) -> None:
        self.id = identity
        self.now = moment.now
        self.known = moment.known
        self._moment = moment
        self._lake = lake
        self._policy = policy

    def __repr__(self) -> str:
        return f"<Snapshot {self.id}>"

    def latest(self, dataset: str, selection: Selection, limit: int) -> Answer:
        """Return the newest ``limit`` rows of each symbol by total order, oldest first.

        Raises:
            InvalidDataError: A column is unknown.
            LakeCorruptError: A file is missing or damaged.
        """
        batch = self._joined(dataset).latest(selection, limit, self.now)
        requested = _span(batch) if batch.num_rows else None
        coverage = self.coverage(dataset, selection, requested)
        schema = batch.schema.with_metadata({COVERAGE_KEY: coverage.to_json()})
        return Answer(schema, iter([batch]))

    def range(
        self,
        dataset: str,
        selection: Selection,
        start: int,
        end: int,
        order: Order = Order.TIME,
        where: Where | None = None,
    ) -> Answer:
        """Return the rows with ``start <= ts_event < end`` in total order, streamed.

        Raises:
            InvalidDataError: A column is unknown, or the span ends before it starts.
            RetentionError: It starts where rows were dropped for their age.
            LakeCorruptError: While the rows are read: a file is missing or damaged.
        """
        if end < start:
            raise InvalidDataError("end lies before start", field="end")
        self.check_retained(dataset, selection, start)
        names = selection.columns_of(DATASETS[dataset])
        view = self._joined(dataset)
        if where is None:
            batches = view.range(Slice(selection, start, end, order), names)
        else:
            wanted = Slice(selection, *where.span(start, end), order, where.bounds)
            needed = tuple(dict.fromkeys((*names, *where.columns)))
            batches = where.kept(view.range(wanted, needed), names)
        return Answer(self.schema(dataset, selection, (start, end)), batches)

    def end(self, dataset: str) -> int:
        """Return the position after the newest row: what it does not have arrives from there on."""
        return self._moment.hot[dataset].end

    def days(self, dataset: str, selection: Selection, start: int, end: int) -> list[int]:
        """Return the UTC dates (days since 1970) that a range may have rows on, in order.

        Raises:
            RetentionError: It starts where rows were dropped for their age.
            LakeCorruptError: A file is missing or damaged.
        """
        self.check_retained(dataset, selection, start)
        return self._joined(dataset).days(Slice(selection, start, end))

    def count(self, dataset: str, selection: Selection, start: int, end: int) -> int | None:
        """Return how many rows a range has, None where that would mean reading them."""
        return self._joined(dataset).count(Slice(selection, start, end))

    def schema(
        self, dataset: str, selection: Selection, requested: tuple[int, int] | None
    ) -> pa.Schema:
        """Return the schema of an answer, with its coverage as metadata."""
        names = selection.columns_of(DATASETS[dataset])
        coverage = self.coverage(dataset, selection, requested)
        return wire_projection(dataset, names).with_metadata({COVERAGE_KEY: coverage.to_json()})

    def coverage(
        self, dataset: str, selection: Selection, requested: tuple[int, int] | None
    ) -> Coverage:
        """Return how complete a slice is; ``requested`` in µs, end excluded."""
        view = self._joined(dataset)
        symbols = selection.symbols if selection.symbols is not None else view.symbols()
        known, source = self.known, selection.source
        parts = {
            symbol: coverage_of(known, dataset, symbol, view.extent(symbol), requested, source)
            for symbol in symbols
        }
        return Coverage(self.id, parts)

    def symbols(self, dataset: str) -> dict[str, SymbolExtent]:
        """Return the symbols that have rows, and how far they reach."""
        view = self._joined(dataset)
        found = ((symbol, view.extent(symbol)) for symbol in view.symbols())
        return {symbol: extent for symbol, extent in found if extent is not None}

    def kept_bars(self, selection: Selection, start: int, end: int) -> KeptBars:
        """Return the bars that the lake keeps, as far as they stand for their ticks; spans in µs.

        Raises:
            RetentionError: The span starts where ticks were dropped for their age.
        """
        self.check_retained(TICKS.name, selection, start)
        kept = self._lake.view(BARS, self._moment.files[BARS.name].built)
        hot, files = self._moment.hot[TICKS.name], self._moment.files[TICKS.name]
        return KeptBars(self._joined_columns(TICKS, hot, files), kept, selection, start, end)

    def told_bars(self) -> JoinedColumns:
        """Return the bars that somebody has sent."""
        return self._joined_columns(
            BARS, self._moment.hot[BARS.name], self._moment.files[BARS.name].told
        )

    def _joined(self, dataset: str) -> Joined:
        hot, files = self._moment.hot[dataset], self._moment.files[dataset]
        if isinstance(hot, BatchedView):
            return JoinedBatches(hot, self._lake.view(DATASETS[dataset], files))
        return self._joined_columns(DATASETS[dataset], hot, files)

    def _joined_columns(self, dataset: Dataset, hot: HotView, files: FileIndex) -> JoinedColumns:
        assert isinstance(hot, ColumnarView)  # noqa: S101 - the registry says so

        def holes(symbol: str, source: str, within: Interval) -> list[Interval]:
            found = self.known.holes(dataset.name, symbol, within, source)
            return [(gap.start, within[1] if gap.end is None else gap.end) for gap in found]

        lake = self._lake.view(dataset, files)
        return JoinedColumns(hot, lake, self._policy, holes)

    def check_retained(self, dataset: str, selection: Selection, start: int) -> None:
        """Refuse a range that begins where rows were dropped.

        One from 0 on asks for what there is. Rows that were imported again, or late, lie below the
        watermark and are answered: where they begin, so does what is kept.

        Raises:
            RetentionError: Rows after ``start`` were dropped for their age.
        """
        oldest = self._moment.files[dataset].retained_from
        if not 0 < start < oldest:
            return
        view = self._joined(dataset)
        symbols = view.symbols() if selection.symbols is None else selection.symbols
        extents = (view.extent(symbol) for symbol in symbols)
        firsts = [extent.first // DAY * DAY for extent in extents if extent is not None]
        oldest = min([oldest, *firsts])
        if start < oldest:
            raise RetentionError(oldest)


def dataset_named(name: str) -> Dataset:
    """Return a dataset of the registry.

    Raises:
        InvalidDataError: There is none of that name.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        known = ", ".join(DATASETS)
        message = f"there is no dataset {name!r}; the datasets are {known}"
        raise InvalidDataError(message, field="dataset")
    return dataset


def _span(batch: pa.RecordBatch) -> tuple[int, int] | None:
    at = batch.schema.get_field_index("ts_event")
    if at < 0:
        return None
    instants = batch.column(at)
    return instants[0].value, instants[-1].value + 1
