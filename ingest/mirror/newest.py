"""The newest row of each symbol, and which of them have yet to be written."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from storage.schemas import DATASETS, GEX, QUOTES, TICKS

MIRRORED: Final = (TICKS.name, QUOTES.name, GEX.name)
"""Datasets that are mirrored."""
PREFIX: Final = "tickflight"

Fields = dict[str, str]
"""A row as a hash of Redis: everything is text, and what is absent is empty."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The newest row of a key, and what makes it the newest."""

    rank: tuple[Any, ...]
    fields: Fields


@final
class Newest:
    """Keeps the newest rows; safe to share between threads.

    The newest is the last in total order, as for ``latest``: a row that came late does not replace
    one that happened after it. However fast rows come, what has to be written is at most one row a
    key, so whoever writes may be as slow as he is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._unwritten: set[str] = set()
        # Set while there is something to write.
        self._changed = threading.Event()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, dataset: str, rows: pa.RecordBatch | pa.Table) -> None:
        """Take rows of a dataset, in any order."""
        ranked = [(_rank(dataset, row), row) for row in _candidates(rows)]
        with self._lock:
            for rank, row in ranked:
                for key in keys_of(dataset, row):
                    self._offer(key, rank, row)
            if self._unwritten:
                self._changed.set()

    def wait(self, seconds: float) -> bool:
        """Wait for something to write; returns whether there is."""
        return self._changed.wait(seconds)

    def wake(self) -> None:
        """Let whoever waits look up."""
        self._changed.set()

    def unwritten(self) -> dict[str, Fields]:
        """Return what is to be written, and count it as written."""
        with self._lock:
            found = {key: self._kept[key].fields for key in self._unwritten}
            self._unwritten.clear()
            self._changed.clear()
        return found

    def again(self, keys: Iterable[str]) -> None:
        """Count keys as unwritten."""
        with self._lock:
            self._unwritten.update(keys)
            if self._unwritten:
                self._changed.set()

    def all_again(self) -> None:
        """Count everything as unwritten: nobody knows what Redis has."""
        with self._lock:
            keys = tuple(self._kept)
        self.again(keys)

    def _offer(self, key: str, rank: tuple[Any, ...], row: Mapping[str, Any]) -> None:
        known = self._kept.get(key)
        if known is None or rank > known.rank:
            self._kept[key] = _Kept(rank, fields_of(row))
            self._unwritten.add(key)


def keys_of(dataset: str, row: Mapping[str, Any]) -> list[str]:
    """Return the keys of the hashes that a row may be in."""
    symbol = f"{PREFIX}:{dataset}:{row['symbol']}"
    return [symbol, f"{symbol}:{row['endpoint']}"] if dataset == GEX.name else [symbol]


def fields_of(row: Mapping[str, Any]) -> Fields:
    """Return a row as text: instants in µs since 1970, lists as JSON."""
    return {name: _text(value) for name, value in row.items()}


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case list() | dict():
            return json.dumps(value, separators=(",", ":"))
        case _:
            return str(value)


def _rank(dataset: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in DATASETS[dataset].order)


def _candidates(rows: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows that may be the newest of their symbol, with instants as integers.

    Of thousands of rows these are a few: only they are worth a look in Python.
    """
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    if not table.num_rows:
        return
    names = [name for name in ("symbol", "endpoint") if name in table.column_names]
    group = np.zeros(table.num_rows, np.int64)
    for name in names:
        codes = table[name].combine_chunks().dictionary_encode().indices.to_numpy()
        group = group * (int(codes.max()) + 1) + codes
    instants = table["ts_event"].cast(pa.int64()).to_numpy()
    _, group = np.unique(group, return_inverse=True)
    newest = np.full(int(group.max()) + 1, np.iinfo(np.int64).min)
    np.maximum.at(newest, group, instants)
    chosen = table.take(pa.array(np.flatnonzero(instants == newest[group])))
    plain = [
        field.with_type(pa.int64()) if pa.types.is_timestamp(field.type) else field
        for field in chosen.schema
    ]
    yield from chosen.cast(pa.schema(plain)).to_pylist()
