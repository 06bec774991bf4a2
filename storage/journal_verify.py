"""Reading a journal from end to end and saying what is wrong with it, changing nothing.

Works beside a running server: files are opened read-only, and read a little at a time, so that
nobody waits for us.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.errors import JournalCorruptError, JournalError
from storage.journal_file import SUFFIX, Access, Header, JournalReader, Record, is_unfinished
from storage.journal_log import LOG_SUFFIX, require_sound_log
from storage.journal_record import schema_of
from storage.journal_rows import UnreadableRowsError, decode

ATTEMPTS: Final = 3
"""A file that is being written may look damaged for a moment; one that is damaged stays so."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a file, and where.

    Attributes:
        detail: In words.
        record: Of which record, where that is known.
        offset: At which byte of the file or its log, where that is known.
    """

    detail: str
    record: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class FileReport:
    """What one file holds.

    Attributes:
        path: Where it is.
        header: What it continues; None when that can't be read, or was never written.
        records: Records that are as they were written.
        rows: Rows in them.
        ends: Position after the last of those rows, by dataset.
        arrival: Newest arrival, µs; 0 without records.
        damage: What is wrong; None when nothing is.
    """

    path: Path
    header: Header | None
    records: int
    rows: int
    ends: dict[str, int]
    arrival: int
    damage: Damage | None


def verify(directory: Path) -> Iterator[FileReport]:
    """Yield a report of each file of a journal, in order; none without a directory.

    Raises:
        JournalError: The directory can't be read.
    """
    before: FileReport | None = None
    for path in journal_paths(directory):
        is_last = path == journal_paths(directory)[-1]
        report = _settled(path, before, is_last=is_last)
        if report is not None:
            yield report
            before = report
    yield from _logs_without_file(directory)


def journal_paths(directory: Path) -> list[Path]:
    """Return the files of a journal in order; none without a directory.

    Raises:
        JournalError: The directory can't be read.
    """
    try:
        if not directory.is_dir():
            return []
        return sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX))
    except OSError as error:
        raise JournalError(f"{directory}: {error}") from error


def _logs_without_file(directory: Path) -> Iterator[FileReport]:
    for log in sorted(directory.glob(f"*{SUFFIX}{LOG_SUFFIX}")):
        path = log.with_name(log.name.removesuffix(LOG_SUFFIX))
        if not path.exists() and log.exists() and log.stat().st_size:
            damage = Damage(f"its log {log.name} is there, but the file is missing")
            yield FileReport(path, None, 0, 0, {}, 0, damage)


def _settled(path: Path, before: FileReport | None, *, is_last: bool) -> FileReport | None:
    """Return the report of a file; None when it has gone in the meantime, as old ones do."""
    for _ in range(ATTEMPTS):
        report = _report(path, before, is_last=is_last)
        if report.damage is None:
            break
        if not path.exists():
            return None
    return report


def _report(path: Path, before: FileReport | None, *, is_last: bool) -> FileReport:
    header: Header | None = None
    records = rows = arrival = 0
    ends: dict[str, int] = {}
    try:
        require_sound_log(path)
        if is_last and is_unfinished(path, Access.BESIDE):
            return FileReport(path, None, 0, 0, {}, 0, None)
        reader = JournalReader(path, Access.BESIDE)
        header = reader.header
        ends = dict(header.positions)
        _check_chain(path, header, before)
        for record in reader.records():
            _check_rows(reader, records + 1, record, ends)
            records += 1
            rows += record.rows
            arrival = max(arrival, record.arrival)
    except JournalCorruptError as error:
        damage = Damage(error.detail, error.record, error.offset)
    except JournalError as error:
        damage = Damage(str(error).removeprefix(f"{path}: "))
    else:
        return FileReport(path, header, records, rows, ends, arrival, None)
    return FileReport(path, header, records, rows, ends, arrival, damage)


def _check_chain(path: Path, header: Header, before: FileReport | None) -> None:
    if before is None or before.header is None or before.damage is not None:
        return
    if header.number != before.header.number + 1:
        detail = f"follows file {before.header.number}, so a file between them is missing"
        raise JournalCorruptError(path, None, detail)
    if header.previous_records != before.records:
        detail = f"the file before it ended with record {header.previous_records}"
        raise JournalCorruptError(path, None, f"{detail}, but now holds {before.records}")
    for name, end in before.ends.items():
        if header.positions.get(name, end) != end:
            detail = f"{name} goes on at position {header.positions[name]}, not at {end}"
            raise JournalCorruptError(path, None, detail)


def _check_rows(reader: JournalReader, number: int, record: Record, ends: dict[str, int]) -> None:
    expected = ends.setdefault(record.dataset, record.position)
    if record.position != expected:
        detail = f"holds position {record.position} where {expected} comes next"
        raise JournalCorruptError(reader.path, number, detail)
    ends[record.dataset] += record.rows
    text = reader.header.schemas.get(record.dataset)
    if text is None or not record.rows:
        return
    try:
        found = sum(batch.num_rows for batch in decode(schema_of(text), [record.body]))
    except UnreadableRowsError as error:
        raise JournalCorruptError(reader.path, number, str(error)) from error
    if found != record.rows:
        detail = f"has {found} rows where it says {record.rows}"
        raise JournalCorruptError(reader.path, number, detail)
