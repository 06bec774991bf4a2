"""What everything that reads files of ticks does the same: checking options, converting rows."""

from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa

from ingest.errors import BadValueError, ConfigurationError, ImportFileError
from ingest.files.ticks import TickConverter
from storage.schemas import SYMBOL_PATTERN


def check_options(symbol: str, timezone: str | None) -> None:
    """Refuse a symbol nobody could ask for, and a time zone that is none.

    Raises:
        ConfigurationError: One of them can't be used.
    """
    if not SYMBOL_PATTERN.fullmatch(symbol):
        raise ConfigurationError(
            f"{symbol!r} is no symbol: 1 to 32 of A-Z 0-9 . _ -, a letter or digit first"
        )
    if timezone is not None:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigurationError(
                f"{timezone!r} is no time zone; take a name such as America/New_York"
            ) from None


def convert_rows(
    path: Path, converter: TickConverter, rows: pa.RecordBatch, first_row: int, base: int
) -> pa.RecordBatch:
    """Return rows of a file as ticks.

    Args:
        path: The file, for messages.
        converter: The file's.
        rows: Some of its rows.
        first_row: Which row of the file is the first of them.
        base: What ``sequence`` counts from.

    Raises:
        ImportFileError: A value is not what its column must hold.
    """
    try:
        return converter.convert(rows, base + first_row)
    except BadValueError as error:
        where = f"row {first_row + error.row} (counted from 0)"
        raise ImportFileError(path, str(error), where=where) from None
