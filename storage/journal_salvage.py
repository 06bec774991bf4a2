"""What can still be read of a damaged journal file: every row that proves to be as it was written.

A row vouches for itself by its checksum, wherever it lies. What is found twice, in the file and in
its log, is the same.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from storage.journal_pages import RECORD_COLUMNS, Pages, Place
from storage.journal_record import (
    Header,
    Intact,
    Record,
    Row,
    digest,
    intact,
    record_of,
    schema_of,
    without_rows,
)
from storage.journal_rows import UnreadableRowsError, decode
from storage.schemas import DATASETS, Layout

Key = tuple[str, str]
"""A dataset and one of its columns."""

_HEADER_COLUMNS: Final = 2
"""The seal has as many."""
_DATASET, _ROWS = 1, 3
"""Where a record says whose rows it has, and how many."""


@dataclass(slots=True)
class Salvage:
    """What is intact in a file.

    Attributes:
        path: The file.
        number: Its place in the chain: the checksums of its records count on it.
        header: What it says it continues; None when that is lost.
        sealed: How many records it was finished with; None when it was not, or that is lost.
        places: Where each record is that is intact, or is but for its rows.
        borrowed: What the codes of each dataset and column mean, as other files know it.
    """

    path: Path
    number: int
    header: Header | None = None
    sealed: int | None = None
    places: dict[int, tuple[Place, Intact]] = field(default_factory=dict)
    borrowed: dict[Key, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, number: int) -> "Salvage":
        """Search a file.

        Raises:
            JournalError: It can't be read at all.
        """
        found = cls(path, number)
        with Pages(path) as pages:
            for place in pages.places():
                if place.columns == RECORD_COLUMNS:
                    found._keep(pages, place)
                elif place.columns == _HEADER_COLUMNS:
                    found._keep_header_or_seal(pages, place)
        return found

    @property
    def is_holed(self) -> bool:
        """Whether a record is missing altogether, and with it the strings it introduced."""
        return sorted(self.places) != list(range(1, len(self.places) + 1))

    def borrow_strings(self, other: "Salvage") -> None:
        """Take over what codes mean from another file of the same life, which has the same ones."""
        if self.header is None or other.header is None or self.header.epoch != other.header.epoch:
            return
        for key, values in other.strings().items():
            if len(values) > len(self.borrowed.get(key, [])):
                self.borrowed[key] = values

    def records(self) -> Iterator[tuple[int, Record, int]]:
        """Yield number and content of every record there is, in order, and how many rows it lost.

        Rows with codes that only a missing record could explain are lost as well.
        """
        strings = self.strings() if self.is_holed else {}
        for key, values in self.borrowed.items():
            if len(values) > len(strings.get(key, [])):
                strings[key] = values
        told: set[str] = set()
        for number, row, state in self._stored():
            record = record_of(row) if state is Intact.ALL else without_rows(row)
            if self.is_holed:
                if not self._is_explained(record, strings):
                    record = without_rows(row)
                columns = _columns_of(record.dataset, strings) if record.dataset not in told else {}
                record = replace(record, strings=columns)
                told.add(record.dataset)
            yield number, record, row[_ROWS] - record.rows

    def _stored(self) -> Iterator[tuple[int, Row, Intact]]:
        with Pages(self.path) as pages:
            for number in sorted(self.places):
                place, state = self.places[number]
                row = next(row for row in _rows(pages, place) if intact(self.number, row) is state)
                yield number, row, state

    def strings(self) -> dict[Key, list[str]]:
        """Return what codes mean as far as no record is missing."""
        strings: dict[Key, list[str]] = {}
        for expected, (number, row, _) in enumerate(self._stored(), start=1):
            if number != expected:
                break
            for column, values in without_rows(row).strings.items():
                strings.setdefault((row[_DATASET], column), []).extend(values)
        return strings

    def _is_explained(self, record: Record, strings: Mapping[Key, list[str]]) -> bool:
        dataset = DATASETS.get(record.dataset)
        if not record.rows or dataset is None or dataset.layout is Layout.BATCHES:
            return True
        text = self.header.schemas.get(record.dataset) if self.header else None
        if text is None:
            return False
        schema = schema_of(text)
        try:
            batches = decode(schema, [record.body])
        except UnreadableRowsError:
            return False
        return all(
            pc.max(batch.column(name)).as_py() < len(strings.get((record.dataset, name), []))
            for batch in batches
            for name in dataset.dictionary
            if name in schema.names
        )

    def _keep(self, pages: Pages, place: Place) -> None:
        for row in _rows(pages, place):
            state = intact(self.number, row)
            _, before = self.places.get(place.number, (place, Intact.NOTHING))
            if state is Intact.ALL or (state is not Intact.NOTHING and before is Intact.NOTHING):
                self.places[place.number] = place, state

    def _keep_header_or_seal(self, pages: Pages, place: Place) -> None:
        for content, checksum in pages.rows(place):
            if isinstance(content, str) and digest(self.number, content) == checksum:
                self.header = Header(**json.loads(content))
            elif digest(self.number, "seal", content) == checksum and isinstance(content, int):
                self.sealed = content


def _rows(pages: Pages, place: Place) -> Iterator[Row]:
    for _, *columns in pages.rows(place):
        yield (place.number, *columns)


def _columns_of(dataset: str, strings: Mapping[Key, list[str]]) -> dict[str, list[str]]:
    return {column: values for (name, column), values in strings.items() if name == dataset}
