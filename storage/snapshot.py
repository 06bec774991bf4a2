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
from storage.errors import InvalidDataError
from storage.ledger import Known
from storage.schemas import DATASETS, Dataset, wire_projection
from storage.selection import Order, Selection, SymbolExtent

COVERAGE_KEY: Final = b"tickflight.coverage"

View = ColumnarView | BatchedView


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows on their way to a reader.

    Attributes:
        schema: Schema of every batch, with the coverage as metadata.
        batches: The rows, in order; read once.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


class Snapshot:
    """All datasets as they were at one moment.

    Args:
        number: Unique within one life of the server.
        epoch: Life of the server.
        views: One view a dataset, all taken before any is read.
        known: What is known of holes, rejects and witnesses at that moment.
        now: Microseconds since 1970 at that moment.
    """

    def __init__(
        self,
        number: int,
        epoch: int,
        views: Mapping[str, View],
        known: Known,
        now: int,
    ) -> None:
        self.id = f"{epoch}.{number}"
        self.now = now
        self.known = known
        self._views = views

    def __repr__(self) -> str:
        return f"<Snapshot {self.id}>"

    def latest(self, dataset: str, selection: Selection, limit: int) -> Answer:
        """Return the newest ``limit`` rows of each symbol by total order, oldest first.

        Raises:
            InvalidDataError: A column is unknown.
        """
        batch = self._views[dataset].latest(selection, limit, self.now)
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
    ) -> Answer:
        """Return the rows with ``start <= ts_event < end`` in total order, streamed.

        Raises:
            InvalidDataError: A column is unknown, or the span ends before it starts.
        """
        if end < start:
            raise InvalidDataError("end lies before start", field="end")
        batches = self._views[dataset].range(selection, start, end, order)
        return Answer(self.schema(dataset, selection, (start, end)), batches)

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
        view = self._views[dataset]
        symbols = selection.symbols if selection.symbols is not None else view.symbols()
        known, source = self.known, selection.source
        parts = {
            symbol: coverage_of(known, dataset, symbol, view.extent(symbol), requested, source)
            for symbol in symbols
        }
        return Coverage(self.id, parts)

    def symbols(self, dataset: str) -> dict[str, SymbolExtent]:
        """Return the symbols that have rows, and how far they reach."""
        view = self._views[dataset]
        found = ((symbol, view.extent(symbol)) for symbol in view.symbols())
        return {symbol: extent for symbol, extent in found if extent is not None}


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
