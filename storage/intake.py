"""From the wire into a hot store: decoded, validated, appended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from storage.batched import BatchDecoder, BatchedStore
from storage.columnar import ColumnarStore
from storage.validation import Decoder, Plausibility, Rejected


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of some rows."""

    rejected: Sequence[Rejected]
    duplicates: int


class Intake(Protocol):
    """How the rows of one stream get into a hot store."""

    def append(self, batch: pa.RecordBatch, arrival: int) -> Taken:
        """Validate and append rows."""


class ColumnarIntake:
    """Into column buffers."""

    def __init__(self, store: ColumnarStore, rules: Plausibility, schema: pa.Schema) -> None:
        self._store = store
        self._rules = rules
        self._decoder = Decoder(store.dataset, schema, store.dictionaries)

    def append(self, batch: pa.RecordBatch, arrival: int) -> Taken:
        """See ``Intake.append``."""
        columns, rejected = self._decoder.decode(batch)
        rejected += self._rules.impossible(columns)
        if rejected:
            good = _without(batch.num_rows, rejected)
            columns = [column[good] for column in columns]
        self._rules.flag_improbable(columns, arrival)
        return Taken(rejected, self._store.append(columns))


class BatchedIntake:
    """Into a list of batches."""

    def __init__(self, store: BatchedStore, schema: pa.Schema) -> None:
        self._store = store
        self._decoder = BatchDecoder(store.dataset, schema)

    def append(self, batch: pa.RecordBatch, arrival: int) -> Taken:  # noqa: ARG002
        """See ``Intake.append``."""
        conformed, rejected = self._decoder.decode(batch)
        if rejected:
            conformed = conformed.take(pa.array(_without(batch.num_rows, rejected)))
        return Taken(rejected, self._store.append(conformed))


def intake_of(
    store: ColumnarStore | BatchedStore, rules: Plausibility | None, schema: pa.Schema
) -> Intake:
    """Return the way into a store for the batches of one stream.

    Args:
        store: Where the rows go.
        rules: What its rows must be like; a store of batches knows by itself.
        schema: Of the batches.

    Raises:
        SchemaMismatchError: It is not the dataset's.
    """
    if isinstance(store, BatchedStore):
        return BatchedIntake(store, schema)
    return ColumnarIntake(store, rules or Plausibility(store.dataset, store.dictionaries), schema)


def _without(rows: int, rejected: Sequence[Rejected]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    good = np.ones(rows, bool)
    for found in rejected:
        good[found.rows] = False
    return np.flatnonzero(good)
