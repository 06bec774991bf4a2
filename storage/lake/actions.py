"""What a commit says about files: actions as delta-rs takes and gives them, and our own notes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from storage.lake import layout
from storage.lake.files import LakeFile
from storage.lake.row_hash import as_text
from storage.lake.writer import WrittenFile


def data_files(actions: pa.Table) -> Iterator[LakeFile]:
    """Yield the files of a table out of its add actions, flattened."""
    names = ("path", "size_bytes", "num_records", "min.ts_event", "max.ts_event")
    columns = [values_of(actions, name) for name in names]
    sources = [values_of(actions, f"{end}.source") for end in ("min", "max")]
    for path, size, rows, first, last, lowest, highest in zip(*columns, *sources, strict=True):
        place = layout.FilePath.parse(path)
        yield LakeFile(
            path=path,
            kind=place.name.kind,
            symbol=place.symbol,
            date=place.date,
            source=lowest if lowest == highest else None,
            rows=rows,
            bytes=size,
            first=first,
            last=last,
            part=place.name.part,
            end=place.name.end,
        )


def values_of(actions: pa.Table, name: str) -> list[Any]:
    """Return one column of add actions, instants in µs; None for each where there is none."""
    if name not in actions.schema.names:
        return [None] * actions.num_rows
    column = actions[name]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return list(column.to_pylist())


def statistics(file: WrittenFile) -> str:
    """Return the statistics of an add action, JSON as the protocol wants it.

    Source: the Delta transaction log protocol, "Per-file Statistics".
    """
    lowest: dict[str, str] = {"ts_event": _instant(file.first)}
    highest: dict[str, str] = {"ts_event": _instant(file.last)}
    if file.source is not None:
        lowest["source"] = highest["source"] = file.source
    return json.dumps(
        {"numRecords": file.rows, "minValues": lowest, "maxValues": highest, "nullCount": {}}
    )


def _instant(instant: int) -> str:
    scalar = pa.scalar(instant, pa.timestamp("us"))
    return f"{scalar.cast(pa.string()).as_py().replace(' ', 'T')}Z"


def facts_of(file: WrittenFile) -> dict[str, Any]:
    """Return what a commit's metadata says about a file; ``written`` reads it back."""
    return {
        "rows": file.rows,
        "bytes": file.bytes,
        "first": file.first,
        "last": file.last,
        "source": file.source,
        "row_hash": as_text(file.row_hash),
        "blake2b": file.digest,
    }


def written(path: str, facts: Mapping[str, Any]) -> WrittenFile:
    """Return a file as it was committed."""
    return WrittenFile(
        path=path,
        rows=facts["rows"],
        bytes=facts["bytes"],
        first=facts["first"],
        last=facts["last"],
        source=facts["source"],
        row_hash=int(facts["row_hash"], 16),
        digest=facts["blake2b"],
    )
