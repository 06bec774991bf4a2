"""Stores and services as the other tests have them, and rows about the quality of rows."""

from typing import Any

import pyarrow as pa

from storage.schemas import GAPS, SPOT_CHECKS
from tests.flight_server.conftest import anyone, house
from tests.storage.conftest import NOON, lab, rows_of, store

__all__ = ["anyone", "gap", "house", "lab", "spot_check", "store"]


def gap(gap_id: str, start: int, end: int | None, **columns: Any) -> pa.RecordBatch:
    """Build a row of the gaps dataset; its span is relative to noon."""
    defaults = {
        "ts_event": NOON,
        "ts_recv": NOON,
        "symbol": "MNQ",
        "gap_id": gap_id,
        "revision": 1,
        "dataset": "ticks",
        "source": "demo",
        "start": NOON + start,
        "end": None if end is None else NOON + end,
        "reason": "disconnect",
        "state": "open",
        "rows_recovered": 0,
    }
    return rows_of(GAPS, 1, defaults, **columns)


def spot_check(**columns: Any) -> pa.RecordBatch:
    """Build a row of the spot_checks dataset."""
    defaults = {
        "ts_event": NOON,
        "ts_recv": NOON,
        "symbol": "MNQ",
        "dataset": "ticks",
        "kind": "cross_source",
        "checked": 3,
        "passed": 3,
    }
    return rows_of(SPOT_CHECKS, 1, defaults, **columns)
