"""Records of a journal file, made of rows that a store has just taken."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.journal_record import Record
from storage.producers import Mark


@dataclass(frozen=True, slots=True)
class Appended:
    """Rows ``[start, stop)`` of one dataset that were just appended."""

    store: ColumnarStore | BatchedStore
    start: int
    stop: int
    arrival: int
    marks: tuple[Mark, ...] = ()


class RecordMaker:
    """Makes the records of one file, each string in the first that needs it.

    What was made counts only once ``note_written`` is called: what could not be written may be made
    again.
    """

    def __init__(self) -> None:
        self._introduced: dict[tuple[str, str], int] = {}
        self._made: dict[tuple[str, str], int] = {}

    def records(self, parts: Iterable[Appended]) -> list[Record]:
        """Return the records of some rows, adjacent in each dataset.

        A dataset has one record, but for one more where its rows go on in the next chunk: joining
        the two would copy both.
        """
        spans: dict[str, list[Appended]] = {}
        for part in parts:
            spans.setdefault(part.store.dataset.name, []).append(part)
        records: list[Record] = []
        self._made = dict(self._introduced)
        for name, adjacent in spans.items():
            store, position = adjacent[0].store, adjacent[0].start
            strings = _new_strings(store, self._made)
            for rows, body in _bodies(store, position, adjacent[-1].stop):
                arrival = adjacent[-1].arrival
                records.append(Record(name, position, rows, arrival, {}, strings, body))
                position, strings = position + rows, {}
            records[-1] = replace(records[-1], marks=_durable_marks(adjacent))
        return records

    def note_written(self) -> None:
        """Note that the file has the records that were made last."""
        self._introduced = self._made


def _bodies(
    store: ColumnarStore | BatchedStore, start: int, stop: int
) -> Iterator[tuple[int, pa.Buffer | bytes]]:
    """Yield Arrow IPC of the rows ``[start, stop)`` and how many rows it has; at least once."""
    batches = list(store.journal_batches(start, stop))
    if isinstance(store, BatchedStore) and len(batches) > 1:
        batches = [pa.concat_batches(batches)]
    if not batches:
        yield 0, b""
    for batch in batches:
        yield batch.num_rows, batch.serialize()


def _durable_marks(parts: Iterable[Appended]) -> dict[str, int]:
    marks = {mark.stream.producer_name: mark.seq for part in parts for mark in part.marks}
    return {producer: seq for producer, seq in marks.items() if producer is not None}


def _new_strings(
    store: ColumnarStore | BatchedStore, introduced: dict[tuple[str, str], int]
) -> dict[str, list[str]]:
    """Return the strings that the file does not know yet, and count them as introduced."""
    if isinstance(store, BatchedStore):
        return {}
    new = {}
    for column, dictionary in store.dictionaries.items():
        key = (store.dataset.name, column)
        values = dictionary.values(introduced.get(key, 0))
        if values:
            new[column] = values
            introduced[key] = introduced.get(key, 0) + len(values)
    return new
