"""Rows into a file: streamed in bounded memory, whole or not there at all.

Rows go to a hidden file beside the one that was asked for, which takes its name once everything is
on disk: a stream that is cut, a full disk or a Ctrl-C leave nothing that looks like an export.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tickflight.errors import ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType

    from tickflight.result import Result

PARQUET_ROW_GROUP_ROWS: Final = 122_880
"""What readers such as DuckDB work on at a time; also the most that waits in memory."""


class FileFormat(StrEnum):
    """What a file of rows is."""

    PARQUET = "parquet"
    CSV = "csv"
    ARROW = "arrow"
    """Arrow IPC, also known as Feather: opened without reading it."""


class Existing(Enum):
    """What becomes of a file that is there already."""

    REFUSE = "refuse"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written.

    Attributes:
        path: Where it is.
        rows: Rows in it.
        bytes: Its size.
    """

    path: Path
    rows: int
    bytes: int


Progress = Callable[[int, int | None], None]
"""Called after each batch: rows so far, and the time of the last one (µs), where rows have one."""


class _Sink(Protocol):
    """The writers of pyarrow."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def write_table(self, table: pa.Table) -> None: ...


def export(
    result: Result,
    path: Path,
    form: FileFormat,
    *,
    existing: Existing = Existing.REFUSE,
    progress: Progress = lambda _rows, _instant: None,
) -> Exported:
    """Write an answer to a file, from the stream, without ever holding all of it.

    Args:
        result: Rows that were not streamed yet.
        path: Where to.
        form: As what.
        existing: What becomes of a file that is there.
        progress: See ``Progress``.

    Raises:
        ConfigurationError: The file is there and may not be replaced, can't be written, or can't
            hold such rows.
        TickflightError: The stream was cut; there is no file then.
    """
    _check(path, existing)
    rows = 0
    schema = result.schema.remove_metadata()
    with (
        _file_errors(path),
        _appearing(path, existing) as file,
        _sink(file, schema, form) as sink,
    ):
        for table in _tables(result):
            sink.write_table(table)
            rows += table.num_rows
            progress(rows, _last_instant(table))
    return Exported(path, rows, path.stat().st_size)


def format_of(path: Path) -> FileFormat | None:
    """Return the format that a file's name stands for; None when it stands for none."""
    suffix = path.suffix.lower().removeprefix(".")
    suffix = {"pq": "parquet", "feather": "arrow", "ipc": "arrow"}.get(suffix, suffix)
    return FileFormat(suffix) if suffix in list(FileFormat) else None


def _tables(result: Result) -> Iterator[pa.Table]:
    """Yield rows in pieces of a row group's size."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in result.reader():
        waiting.append(batch)
        count += batch.num_rows
        if count >= PARQUET_ROW_GROUP_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _sink(file: BinaryIO, schema: pa.Schema, form: FileFormat) -> _Sink:
    sink: _Sink
    match form:
        case FileFormat.PARQUET:
            sink = pyarrow.parquet.ParquetWriter(file, schema, compression="zstd")
        case FileFormat.CSV:
            sink = pyarrow.csv.CSVWriter(file, schema)
        case FileFormat.ARROW:
            sink = pa.ipc.new_file(file, schema)
    return sink


@contextmanager
def _appearing(path: Path, existing: Existing) -> Iterator[BinaryIO]:
    """Write to a file that takes its name at the end, or never was there."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _check(path, existing)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check(path: Path, existing: Existing) -> None:
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory: name a file")
    if existing is Existing.REFUSE and path.exists():
        raise ConfigurationError(f"{path} is there already: name another file, or say --force")


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turn what files and their formats raise into our own errors; the stream's are already."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigurationError(
            f"{path}: such rows do not fit this format, take parquet ({error})"
        ) from None
    except OSError as error:
        if isinstance(error, ConnectionError | TimeoutError):
            raise  # the server's, not the file's
        raise ConfigurationError(f"{path}: {error.strerror or error}") from None


def _last_instant(table: pa.Table) -> int | None:
    if "ts_event" not in table.column_names or not table.num_rows:
        return None
    return int(table["ts_event"][-1].value)
