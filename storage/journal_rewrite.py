"""A journal written anew from what is intact of another one, and an account of what is not.

Positions have no holes: where rows were lost, those after them move up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from storage.batched import BatchedStore
from storage.columnar import ColumnarStore
from storage.errors import JournalError
from storage.journal import HOUR
from storage.journal_file import JournalWriter, file_name
from storage.journal_record import Header, Record, schema_text
from storage.journal_salvage import Salvage
from storage.journal_verify import FileReport
from storage.ports import MICROSECONDS
from storage.schemas import DATASETS, GAPS, TIMESTAMP, Layout

COMMIT_BYTES: Final = 32 << 20
"""Bodies written in one transaction."""
REASON: Final = "downtime"
"""Of the gaps that lost rows leave: the service itself has lost them, no source was at fault."""
SOURCE: Final = "journal"
ANY_DATASET: Final = "any"
"""Stands for a dataset that can't be told any more."""
_PERHAPS: Final = tuple(name for name, one in DATASETS.items() if one.partition_by != ("date",))


@dataclass(frozen=True, slots=True)
class Lost:
    """Rows of one dataset that a file has lost.

    Attributes:
        file: Its name.
        dataset: Which, or ``ANY_DATASET``.
        rows: How many; None when that can't be told.
        after: They arrived after this, µs.
        before: They arrived before this, µs.
    """

    file: str
    dataset: str
    rows: int | None
    after: int
    before: int


class Rewriter:
    """Writes a journal, file by file.

    Args:
        target: Directory of the new journal.
        rolled: By dataset, the position below which the lake holds every row.
    """

    def __init__(self, target: Path, rolled: Mapping[str, int]) -> None:
        self.lost: list[Lost] = []
        self._target = target
        self._rolled = rolled
        self._last = Header(0, 0, 0, {}, {}, 0)
        self._ends: dict[str, int] = {}
        self._old_ends: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        self._records = 0
        self._arrival = 0
        self._schemas = {
            name: schema_text(
                ColumnarStore(dataset).journal_schema
                if dataset.layout is Layout.COLUMNS
                else BatchedStore(dataset).journal_schema
            )
            for name, dataset in DATASETS.items()
        }

    def is_continued_by(self, report: FileReport) -> bool:
        """Whether a file that nothing is wrong with fits behind what is written so far."""
        header = report.header
        if header is None or not self._last.number:
            return header is not None
        same = all(header.positions.get(name, end) == end for name, end in self._ends.items())
        return same and header.previous_records == self._records

    def passed(self, report: FileReport) -> None:
        """Go on behind a file that is taken as it is."""
        assert report.header is not None  # noqa: S101 - it would not be taken
        self._last = report.header
        self._ends, self._old_ends = dict(report.ends), dict(report.ends)
        self._marks |= report.header.marks
        self._records = report.records
        self._arrival = max(self._arrival, report.arrival)

    def fill_up_to(self, number: int) -> None:
        """Write an empty file in place of each that is missing before ``number``."""
        while self._last.number and self._last.number + 1 < number:
            self._begin(self._next_header()).seal()

    def rewrite(self, salvage: Salvage, following: Header | None) -> None:
        """Write a file anew; ``following`` is the header of the next one there is."""
        header = salvage.header or self._header_of(salvage, following)
        if self._last.number:
            before = _Account(
                file_name(self._last.number, self._last.hour), self._arrival, self._old_ends
            )
            before.close(header, missing=False)
            self.lost += before.lost
        else:
            self._ends, self._old_ends = dict(header.positions), dict(header.positions)
        self._marks |= header.marks
        writer = self._begin(
            replace(
                header,
                positions=dict(self._ends),
                marks=dict(self._marks),
                previous_records=self._records,
                schemas=header.schemas or self._schemas,
            )
        )
        self._copy(writer, salvage, header, following)
        writer.seal()
        self._records = writer.records

    def tell(self, now: int) -> None:
        """Write a last file that tells in ``gaps`` what was lost."""
        arrival = max(now, self._arrival)
        header = self._next_header()
        hour = max(header.hour, arrival // HOUR * HOUR)
        rows = _gaps(self.lost, arrival)
        writer = self._begin(replace(header, epoch=header.epoch + 1, hour=hour))
        position = self._ends.setdefault(GAPS.name, 0)
        body = rows.serialize()
        writer.commit([Record(GAPS.name, position, rows.num_rows, arrival, {}, {}, body)])
        writer.seal()

    def _begin(self, header: Header) -> JournalWriter:
        self._last, self._records = header, 0
        return JournalWriter(self._target / file_name(header.number, header.hour), header)

    def _next_header(self) -> Header:
        return Header(
            number=self._last.number + 1,
            epoch=self._last.epoch,
            hour=self._last.hour,
            positions=dict(self._ends),
            marks=dict(self._marks),
            previous_records=self._records,
            schemas=self._schemas,
        )

    def _header_of(self, salvage: Salvage, following: Header | None) -> Header:
        """Make up the header of a file that has lost its own."""
        began = datetime.strptime(salvage.path.name[9:20], "%Y%m%dT%H").replace(tzinfo=UTC)
        positions = dict(self._old_ends)
        if not self._last.number:
            positions = {} if following is None else dict(following.positions)
            for _, record, _ in salvage.records():
                positions[record.dataset] = min(
                    positions.get(record.dataset, record.position), record.position
                )
        epoch = self._last.epoch + 1 if following is None else following.epoch
        hour = int(began.timestamp()) * MICROSECONDS
        return Header(salvage.number, epoch, hour, positions, {}, 0)

    def _copy(
        self, writer: JournalWriter, salvage: Salvage, header: Header, following: Header | None
    ) -> None:
        account = _Account(salvage.path.name, header.hour, dict(self._old_ends))
        waiting: list[Record] = []
        last = size = 0
        for number, record, lost in salvage.records():
            account.count(record, lost)
            end = self._ends.setdefault(record.dataset, record.position)
            waiting.append(replace(record, position=end))
            self._ends[record.dataset] = end + record.rows
            self._marks |= record.marks
            self._arrival = max(self._arrival, record.arrival)
            last, size = number, size + len(record.body)
            if size > COMMIT_BYTES:
                writer.commit(waiting)
                waiting, size = [], 0
        writer.commit(waiting)
        account.close(following, missing=salvage.sealed is not None and salvage.sealed > last)
        self._refuse_if_rolled(salvage, header, account)
        self.lost += account.lost
        self._old_ends = account.ends

    def _refuse_if_rolled(self, salvage: Salvage, header: Header, account: "_Account") -> None:
        for lost in account.lost:
            name = lost.dataset
            if self._rolled.get(name, 0) > header.positions.get(name, 0):
                raise JournalError(
                    f"{salvage.path}: {name} has lost rows, and the lake holds some of this file;"
                    " the journal is as it was: restore the file from a copy"
                )


class _Account:
    """Counts what one file has lost, in the positions that were acknowledged."""

    def __init__(self, file: str, hour: int, ends: dict[str, int]) -> None:
        self.ends = ends
        self._lost: dict[str, Lost] = {}
        self._file = file
        self._hour = hour
        self._arrival = hour

    @property
    def lost(self) -> list[Lost]:
        """What is lost, by dataset."""
        return list(self._lost.values())

    def count(self, record: Record, lost: int) -> None:
        """Take a record in that has lost some rows; what is missing before it shows, too."""
        name = record.dataset
        missing = record.position - self.ends.get(name, record.position) + lost
        self.ends[name] = record.position + record.rows + lost
        if missing > 0:
            self._note(name, missing, record.arrival + 1)
        self._arrival = max(self._arrival, record.arrival)

    def close(self, following: Header | None, *, missing: bool) -> None:
        """Take in where the next file begins; ``missing``: there were records behind the last."""
        before = self._hour + HOUR if following is None else following.hour + HOUR
        for name, end in ({} if following is None else following.positions).items():
            lost = end - self.ends.get(name, end)
            if lost > 0:
                self._note(name, lost, before)
            self.ends[name] = end
        if following is None and missing:
            self._note(ANY_DATASET, None, before)

    def _note(self, dataset: str, rows: int | None, before: int) -> None:
        known = self._lost.get(dataset)
        after = self._arrival if known is None else known.after
        if known is not None and known.rows is not None and rows is not None:
            rows += known.rows
        before = max(before, self._arrival)
        self._lost[dataset] = Lost(self._file, dataset, rows, after, before)


def _gaps(lost: list[Lost], now: int) -> pa.RecordBatch:
    """Return a gap for each loss; where the dataset is not known, one for each it may be."""
    rows = [
        _gap(at, one, dataset, now)
        for at, one in enumerate(lost)
        for dataset in (_PERHAPS if one.dataset == ANY_DATASET else (one.dataset,))
    ]
    return pa.RecordBatch.from_pylist(rows, schema=GAPS.schema)


def _gap(number: int, lost: Lost, dataset: str, now: int) -> dict[str, Any]:
    values = {
        "ts_event": pa.scalar(now, TIMESTAMP),
        "ts_recv": pa.scalar(now, TIMESTAMP),
        "symbol": None,
        "gap_id": f"{SOURCE}:{lost.file}:{number}:{dataset}:{now}",
        "revision": 0,
        "dataset": dataset,
        "source": SOURCE,
        "start": pa.scalar(lost.after, TIMESTAMP),
        "end": pa.scalar(lost.before, TIMESTAMP),
        "reason": REASON,
        "state": "open",
        "rows_recovered": 0,
    }
    return {field.name: values.get(field.name) for field in GAPS.schema}
