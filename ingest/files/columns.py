"""Which column of a file is what of a tick."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ingest.errors import ColumnMappingError

REQUIRED: Final = ("ts_event", "price", "size")
OPTIONAL: Final = ("ts_recv", "bid", "ask", "side", "exchange", "condition")


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """What is taken from a file, and what is not.

    Attributes:
        mapped: Column of the file by field of the tick.
        ignored: Columns of the file that nothing is taken from.
    """

    mapped: Mapping[str, str]
    ignored: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read, each once."""
        return tuple(dict.fromkeys(self.mapped.values()))


def plan_columns(path: Path, columns: Sequence[str], mapping: Mapping[str, str]) -> ColumnPlan:
    """Match a file's columns to the fields of a tick.

    Columns named as a field map by themselves; ``mapping`` (field to column) goes before that.

    Args:
        path: The file, for messages.
        columns: Its columns.
        mapping: What the caller says, such as ``{"price": "px"}``.

    Raises:
        ColumnMappingError: A field or column does not exist, is there twice, or is missing.
    """
    fields = (*REQUIRED, *OPTIONAL)
    for field, column in mapping.items():
        if field not in fields:
            raise ColumnMappingError(f"{field!r} is no field to map; there are {', '.join(fields)}")
        if column not in columns:
            raise ColumnMappingError(
                f"{path}: {field} shall come from {column!r}, but {_has(columns)}"
            )
    wanted = {field: mapping.get(field, field) for field in fields}
    mapped = {field: column for field, column in wanted.items() if column in columns}
    _check_complete(path, columns, mapped)
    taken = set(mapped.values())
    ignored = tuple(column for column in columns if column not in taken)
    return ColumnPlan(MappingProxyType(mapped), ignored)


def _check_complete(path: Path, columns: Sequence[str], mapped: Mapping[str, str]) -> None:
    missing = [field for field in REQUIRED if field not in mapped]
    if missing:
        example = " ".join(f"--map {field}=COLUMN" for field in missing)
        raise ColumnMappingError(
            f"{path}: nothing to take {', '.join(missing)} from; {_has(columns)}; say which it is:"
            f" {example}"
        )
    counts = Counter(columns)
    for field, column in mapped.items():
        if counts[column] > 1:
            raise ColumnMappingError(
                f"{path}: {field} comes from {column!r}, which is there {counts[column]} times;"
                " rename one"
            )


def _has(columns: Sequence[str]) -> str:
    return f"the file has {', '.join(columns) or 'no columns'}"
