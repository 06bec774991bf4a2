"""Files of ticks as streams of record batches, in bounded memory, whatever their format.

The content says what a file is, not its name. Parquet pages are checked against their checksums
where they have them, and Arrow IPC, which has none, is validated before use.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ingest.errors import ImportFileError

BATCH_ROWS_MAX: Final = 65_536
"""Rows a format is asked for at a time, where it lets itself be asked."""
CSV_BLOCK_BYTES: Final = 1 << 20
"""Text parsed at a time; also the longest line."""

_HEAD_BYTES: Final = 8_192
_DELIMITERS: Final = (",", ";", "\t", "|")
_ENCODINGS: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class FileFormat(Enum):
    """What a file can be."""

    PARQUET = "Parquet"
    ARROW_FILE = "Arrow IPC file"
    ARROW_STREAM = "Arrow IPC stream"
    CSV = "CSV"


_MAGIC: Final = (
    (b"PAR1", FileFormat.PARQUET),
    (b"ARROW1", FileFormat.ARROW_FILE),
    (b"\xff\xff\xff\xff", FileFormat.ARROW_STREAM),
)


class TickFile(Protocol):
    """An opened file."""

    @property
    def format(self) -> FileFormat:
        """What it is."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns, in its order."""

    @property
    def rows(self) -> int | None:
        """How many rows it has, where that is known without reading them."""

    @property
    def position(self) -> int | None:
        """Bytes of the file read so far, where it is read from one end to the other."""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read these columns of all rows, in order; once.

        Raises:
            ImportFileError: The file is damaged, or a value does not fit its column.
        """


def open_file(path: Path) -> TickFile:
    """Open a file of ticks.

    Raises:
        ImportFileError: It can't be read, or is of no format we know.
    """
    with _naming(path, "the head"):
        with path.open("rb") as file:
            encoding = _encoding(file.read(_HEAD_BYTES))
        with pa.input_stream(path, compression=encoding) as stream:
            head = stream.read(_HEAD_BYTES)
        file_format = _format(path, head)
        if encoding and file_format in (FileFormat.PARQUET, FileFormat.ARROW_FILE):
            detail = f"{file_format.value} inside {encoding}: decompress it first"
            raise ImportFileError(path, detail)
        match file_format:
            case FileFormat.PARQUET:
                return _Parquet(path)
            case FileFormat.ARROW_FILE:
                return _ArrowFile(path)
            case FileFormat.ARROW_STREAM:
                return _ArrowStream(path, encoding)
            case FileFormat.CSV:
                return _Csv(path, encoding)


class _Parquet:
    format = FileFormat.PARQUET
    position: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        # Buffered and not pre-fetched: a row group may be larger than memory.
        self._file = pq.ParquetFile(
            path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
        )
        self.columns = tuple(self._file.schema_arrow.names)
        self.rows: int | None = self._file.metadata.num_rows

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for group in range(self._file.num_row_groups):
            with _naming(self._path, f"row group {group}"):
                yield from self._file.iter_batches(
                    BATCH_ROWS_MAX, row_groups=[group], columns=list(columns)
                )


class _ArrowFile:
    format = FileFormat.ARROW_FILE
    position: int | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = pa.ipc.open_file(pa.OSFile(str(path)))
        self.columns = tuple(self._reader.schema.names)
        self.rows: int | None = self._reader.count_rows()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for number in range(self._reader.num_record_batches):
            with _naming(self._path, f"record batch {number}"):
                batch = self._reader.get_batch(number).select(list(columns))
                batch.validate(full=True)
            yield batch


class _ArrowStream:
    format = FileFormat.ARROW_STREAM
    rows: int | None = None

    def __init__(self, path: Path, encoding: str | None) -> None:
        self._path = path
        self._file = pa.OSFile(str(path))
        self._reader = pa.ipc.open_stream(_decoded(self._file, encoding))
        self.columns = tuple(self._reader.schema.names)

    @property
    def position(self) -> int | None:
        return int(self._file.tell())

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        number = 0
        while True:
            with _naming(self._path, f"record batch {number}"):
                try:
                    batch = self._reader.read_next_batch().select(list(columns))
                except StopIteration:
                    return
                batch.validate(full=True)
            yield batch
            number += 1


class _Csv:
    """Text: every column is read as text, for its meaning is known only to who asked for it."""

    format = FileFormat.CSV
    rows: int | None = None

    def __init__(self, path: Path, encoding: str | None) -> None:
        self._path = path
        self._encoding = encoding
        self._file = pa.OSFile(str(path))
        head = bytes(_decoded(self._file, encoding).read(_HEAD_BYTES))
        first_line = head.partition(b"\n")[0].decode("utf-8-sig")
        self._delimiter = max(_DELIMITERS, key=first_line.count)
        self.columns = tuple(self._open(None).schema.names)

    @property
    def position(self) -> int | None:
        return None if self._file.closed else int(self._file.tell())

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with _naming(self._path, None):
            yield from self._open(columns)

    def _open(self, columns: Sequence[str] | None) -> pacsv.CSVStreamingReader:
        wanted = None if columns is None else list(columns)
        self._file = pa.OSFile(str(self._path))
        return pacsv.open_csv(
            _decoded(self._file, self._encoding),
            # Without threads a message about a bad line says which one it is.
            read_options=pacsv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(delimiter=self._delimiter),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted or (), pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )


def rebatch(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Cut a stream of batches anew: all of ``rows`` rows but the last."""
    held: list[pa.RecordBatch] = []
    missing = rows
    for batch in batches:
        rest = batch
        while rest.num_rows >= missing:
            yield pa.concat_batches([*held, rest.slice(0, missing)])
            rest = rest.slice(missing)
            held, missing = [], rows
        if rest.num_rows:
            held.append(rest)
            missing -= rest.num_rows
    if held:
        yield pa.concat_batches(held)


def _decoded(file: pa.NativeFile, encoding: str | None) -> pa.NativeFile:
    return file if encoding is None else pa.CompressedInputStream(file, encoding)


def _encoding(head: bytes) -> str | None:
    return next((name for magic, name in _ENCODINGS.items() if head.startswith(magic)), None)


def _format(path: Path, head: bytes) -> FileFormat:
    if not head:
        raise ImportFileError(path, "the file is empty")
    for magic, file_format in _MAGIC:
        if head.startswith(magic):
            return file_format
    if b"\0" in head:
        raise ImportFileError(
            path, "neither Parquet, Arrow, Feather (version 2) nor text in UTF-8; convert it to one"
        )
    return FileFormat.CSV


@contextmanager
def _naming(path: Path, where: str | None) -> Iterator[None]:
    """Turn what the readers raise into an error that names the file and the part of it."""
    try:
        yield
    except OSError as error:
        raise ImportFileError(path, error.strerror or str(error), where=where) from None
    except UnicodeDecodeError:
        raise ImportFileError(path, "the text is not UTF-8; convert it", where=where) from None
    except pa.ArrowException as error:
        raise ImportFileError(path, str(error), where=where) from None
