"""Impossible rows on their way to quarantine: what was sent, as JSON, and why it can't be."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from storage.schemas import QUARANTINE, SYMBOL_PATTERN, TIMESTAMP, Dataset
from storage.validation import Rejected


def set_aside(
    dataset: Dataset, batch: pa.RecordBatch, rejected: Sequence[Rejected], arrival: int
) -> pa.RecordBatch:
    """Return the rows of ``batch`` that were rejected, each once, as rows of ``quarantine``."""
    reasons: dict[int, str] = {}
    for found in rejected:
        for row in found.rows.tolist():
            reasons.setdefault(row, found.reason)
    chosen = pa.array(list(reasons), pa.int64())
    rows: list[dict[str, Any]] = _plain(pa.Table.from_batches([batch])).take(chosen).to_pylist()
    now = pa.scalar(arrival, TIMESTAMP)
    columns = {
        "ts_event": [now] * len(rows),
        "ts_recv": [now] * len(rows),
        "symbol": [_symbol_or_none(row.get("symbol")) for row in rows],
        "dataset": [dataset.name] * len(rows),
        "source": [row.get("source") for row in rows],
        "reason": list(reasons.values()),
        "payload": [json.dumps(_as_json(row), allow_nan=False) for row in rows],
    }
    return pa.RecordBatch.from_pydict(columns, schema=QUARANTINE.schema)


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows with instants in µs and dates in days: Python's own end with the year 9999."""
    return list(_plain(table).to_pylist())


def _plain(table: pa.Table) -> pa.Table:
    # Nullable all of them: a client may promise that a column has no nulls, and send one.
    fields = [pa.field(field.name, _plain_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _plain_type(data_type: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(data_type):
        return pa.int64()
    if pa.types.is_string_view(data_type):  # of which Arrow can't take rows
        return pa.string()
    return pa.int32() if pa.types.is_date32(data_type) else data_type


def _symbol_or_none(symbol: str | None) -> str | None:
    good = symbol is not None and SYMBOL_PATTERN.fullmatch(symbol) is not None
    return symbol if good else None


def _as_json(value: object) -> object:
    """JSON knows no NaN and no infinity: they become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    return [_as_json(part) for part in value] if isinstance(value, list) else value
