"""Importing files of ticks: each content once, and to the end, however often it is tried.

A batch of the import is always the same rows of the file under the same number, so the number of
the last durable batch says which row comes next.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from ingest.errors import ImportConflictError, ImportFileError
from ingest.files import registry
from ingest.files.columns import ColumnPlan, plan_columns
from ingest.files.conversion import check_options, convert_rows
from ingest.files.reading import TickFile, open_file, rebatch
from ingest.files.registry import Fingerprint, Registration, Standing
from ingest.files.ticks import TickConverter
from ingest.ports import RowWriter, Service, WriterStats
from tickflight import TickflightError

BATCH_ROWS: Final = 16_384
"""Rows a batch, for ever: a resumed import counts batches. More than the SDK's writer gathers
(8,192) and less than it splits (65,536), so what is written is what gets a number."""
OLD_US: Final = 86_400 * 1_000_000
"""Age of a file's newest row from which nobody looks for it among the newest rows there are."""
BULK_ROWS_MIN: Final = 500_000
"""Rows of an old file that are better off past memory: below, a commit of its own costs more."""
STALL_SECONDS: Final = 60.0
"""How long the service may take nothing before the import gives up; it can be taken up again."""
ROW_BITS: Final = 32
"""``sequence`` is the file's number, then the row in so many bits."""
ROWS_MAX: Final = 1 << ROW_BITS
"""Rows a file, for the row to fit its part of ``sequence``."""


class ImportOutcome(Enum):
    """What an import did."""

    IMPORTED = "imported"
    RESUMED = "resumed"
    ALREADY_IMPORTED = "already imported"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """How the import of one file went.

    Attributes:
        path: The file.
        outcome: What was done; nothing is sent of content that is already there.
        rows: Rows in the file.
        first_row: The first that was sent now, from 0; all before it were durable.
        quarantined: Rows sent now that can't be, and are in ``quarantine``.
        duplicates: Rows sent now that the service had.
        truncated: Rows of the file whose ``ts_event`` was finer than a microsecond and was cut.
        mapped: Column of the file by field of the tick.
        ignored: Columns of the file that nothing was taken from.
        note: What else the caller should know.
    """

    path: Path
    outcome: ImportOutcome
    rows: int
    first_row: int
    quarantined: int
    duplicates: int
    truncated: int
    mapped: Mapping[str, str]
    ignored: tuple[str, ...]
    note: str | None = None


class ImportStage(Enum):
    """What an import is doing with a file."""

    CHECKING = "checking"
    SENDING = "sending"


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """Where the import of one file is.

    Attributes:
        path: The file.
        stage: Each begins with row 0 again.
        rows: Rows done.
        rows_total: Rows there are; None while a format that does not say so is checked.
        bytes_done: Bytes done, or their share of the file.
        bytes_total: Size of the file.
    """

    path: Path
    stage: ImportStage
    rows: int
    rows_total: int | None
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for, besides the files; ``report`` takes progress."""

    symbol: str
    contract: str
    timezone: str | None
    report: Callable[[ImportProgress], None]

    def options(self, plan: ColumnPlan) -> dict[str, Any]:
        """What makes another import of the same content a different one."""
        return {
            "symbol": self.symbol,
            "contract": self.contract,
            "timezone": self.timezone,
            "columns": dict(plan.mapped),
        }

    def converter(self, plan: ColumnPlan) -> TickConverter:
        return TickConverter(
            plan, symbol=self.symbol, contract=self.contract, timezone=self.timezone
        )


@dataclass(frozen=True, slots=True)
class _Checked:
    """A file whose every value is known to convert; the converter knows the units of its times.

    ``newest`` is its newest ``ts_event``, µs.
    """

    path: Path
    plan: ColumnPlan
    fingerprint: Fingerprint
    converter: TickConverter
    rows: int
    truncated: int
    newest: int


def import_ticks(
    service: Service,
    paths: Sequence[Path],
    *,
    symbol: str,
    mapping: Mapping[str, str] | None = None,
    timezone: str | None = None,
    contract: str | None = None,
    progress: Callable[[ImportProgress], None] | None = None,
) -> list[ImportReport]:
    """Import files of ticks, in order; all of it is durable and visible when this returns.

    Every file's columns are looked at before anything is sent, and each file is read through once
    before its first row is: half of a file under a wrong reading would be hard to take back.

    Args:
        service: Where to; a client whose key has the scope ``write``.
        paths: Parquet, CSV (plain, gzip or zstd), Arrow IPC or Feather files.
        symbol: What people will ask for.
        mapping: Column by field where their names differ, such as ``{"price": "px"}``.
        timezone: Zone of instants that name none, such as ``America/New_York``.
        contract: What traded; the symbol when None.
        progress: Called after each batch.

    Returns:
        One report a file.

    Raises:
        ConfigurationError: The symbol or time zone is none.
        ColumnMappingError: A file's columns do not give a tick.
        ImportFileError: A file can't be read, or a value in it is not what it must be.
        ImportConflictError: Half of a file is in under other options.
        tickflight.errors.TickflightError: The service could not be asked or refused.
    """
    check_options(symbol, timezone)
    request = _Request(symbol, contract or symbol, timezone, progress or _ignore)
    plans = [plan_columns(path, open_file(path).columns, mapping or {}) for path in paths]
    return [
        _import_file(service, path, plan, request) for path, plan in zip(paths, plans, strict=True)
    ]


def _import_file(service: Service, path: Path, plan: ColumnPlan, request: _Request) -> ImportReport:
    file = _check_file(path, plan, request)
    options = request.options(plan)
    known = registry.register(service, path, file.fingerprint, options)
    changed = _differences(known.options, options)
    if known.standing is Standing.COMPLETE:
        return _report(file, ImportOutcome.ALREADY_IMPORTED, file.rows, note=_kept(changed))
    if changed:
        raise ImportConflictError(
            f"{path}: an import of it was begun with {changed}; finish it that way first"
        )
    done = max(known.durable_seq, known.bulk_seq)
    first_row = done * BATCH_ROWS
    ticks = _ticks(file, known, request, done)
    if _goes_past_memory(file, known):
        stats = _send_in_bulk(service, file, ticks, done + 1)
    else:
        stats = _send(service, file, ticks, done + 1)
    registry.complete(service, file.fingerprint, file.rows)
    outcome = ImportOutcome.RESUMED if done else ImportOutcome.IMPORTED
    return _report(file, outcome, min(first_row, file.rows), stats)


def _check_file(path: Path, plan: ColumnPlan, request: _Request) -> _Checked:
    """Read a file through: what it is, how many rows it has, and that all of them convert."""
    fingerprint = registry.fingerprint(path)
    converter = request.converter(plan)
    file = open_file(path)
    rows = newest = 0
    for batch in rebatch(file.batches(plan.columns), BATCH_ROWS):
        ticks = convert_rows(path, converter, batch, rows, 0)
        rows += batch.num_rows
        newest = max(newest, pc.max(ticks["ts_event"].cast(pa.int64())).as_py() or 0)
        request.report(_progress(file, path, fingerprint, rows))
    if rows > ROWS_MAX:
        raise ImportFileError(path, f"{rows:,} rows, more than {ROWS_MAX:,}; split the file")
    return _Checked(path, plan, fingerprint, converter, rows, converter.truncated_rows, newest)


def _goes_past_memory(file: _Checked, known: Registration) -> bool:
    """Whether a file's rows go straight into the lake; one that was begun goes on as it began."""
    if known.durable_seq or known.bulk_seq:
        return known.bulk_seq > 0
    return file.rows >= BULK_ROWS_MIN and file.newest < time.time_ns() // 1_000 - OLD_US


def _ticks(
    file: _Checked, known: Registration, request: _Request, done: int
) -> Iterator[pa.RecordBatch]:
    """Yield the batches that are not durable yet."""
    batches = rebatch(open_file(file.path).batches(file.plan.columns), BATCH_ROWS)
    row = done * BATCH_ROWS
    for batch in islice(batches, done, None):
        ticks = convert_rows(file.path, file.converter, batch, row, known.number << ROW_BITS)
        registry.check_unchanged(file.path, file.fingerprint)
        yield ticks
        row += batch.num_rows
        request.report(_sent(file, row))


def _send(
    service: Service, file: _Checked, batches: Iterator[pa.RecordBatch], first_seq: int
) -> WriterStats:
    """Write batches, and wait until they are durable."""
    writer = service.writer("ticks", producer=file.fingerprint.producer, first_seq=first_seq)
    with _ended(writer):
        for ticks in batches:
            writer.write(ticks, timeout=STALL_SECONDS)
        writer.flush(STALL_SECONDS)
        return writer.stats


def _send_in_bulk(
    service: Service, file: _Checked, batches: Iterator[pa.RecordBatch], first_seq: int
) -> WriterStats:
    """Likewise, past the service's memory."""
    with service.bulk("ticks", file.fingerprint.producer, first_seq=first_seq) as writer:
        for ticks in batches:
            writer.write(ticks)
    return writer.stats


@contextmanager
def _ended(writer: RowWriter) -> Iterator[None]:
    """Close the writer; after a failure without waiting, for the next try goes on from there."""
    try:
        yield
    except BaseException:
        with suppress(TickflightError):
            writer.close(timeout=0)
        raise
    writer.close()


def _report(
    file: _Checked,
    outcome: ImportOutcome,
    first_row: int,
    stats: WriterStats | None = None,
    note: str | None = None,
) -> ImportReport:
    return ImportReport(
        path=file.path,
        outcome=outcome,
        rows=file.rows,
        first_row=first_row,
        quarantined=stats.rows_quarantined if stats else 0,
        duplicates=stats.rows_duplicate if stats else 0,
        truncated=file.truncated,
        mapped=file.plan.mapped,
        ignored=file.plan.ignored,
        note=note,
    )


def _progress(file: TickFile, path: Path, fingerprint: Fingerprint, rows: int) -> ImportProgress:
    size = fingerprint.size_bytes
    done = file.position
    if done is None:
        done = size * rows // file.rows if file.rows else size
    return ImportProgress(path, ImportStage.CHECKING, rows, file.rows, min(done, size), size)


def _sent(file: _Checked, rows: int) -> ImportProgress:
    size = file.fingerprint.size_bytes
    return ImportProgress(
        file.path, ImportStage.SENDING, rows, file.rows, size * rows // file.rows, size
    )


def _kept(changed: str) -> str | None:
    return f"it was imported with {changed}, and stays as it is" if changed else None


def _differences(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What an earlier import did differently, in words; empty when nothing."""
    names = [name for name in sorted({*known, *asked}) if known.get(name) != asked.get(name)]
    return ", ".join(f"{name} {known.get(name)} instead of {asked.get(name)}" for name in names)


def _ignore(_: ImportProgress) -> None:
    """Stand in for a caller who does not look."""
