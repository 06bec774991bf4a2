"""Live streams of ``FakeServer``: what was written, then what is written."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

LOOK_SECONDS: Final = 0.005
"""Between two looks for rows."""


def live_messages(
    asked: Mapping[str, Any], rows: Callable[[], pa.Table], is_over: Callable[[], bool]
) -> Iterator[tuple[pa.RecordBatch, bytes]]:
    """Yield the messages of a live stream; a position is a row's number.

    With ``start`` all rows that are there come first, whatever their time; with ``end`` the stream
    ends behind them.

    Args:
        asked: The ticket.
        rows: Returns all rows of the dataset, in the order they came.
        is_over: Whether the client is gone.
    """
    there = rows()
    schema = _projected(there, asked).schema
    nothing = pa.RecordBatch.from_pylist([], schema)
    pos = asked["after"]["pos"] if "after" in asked else len(there)
    if "start" in asked and "after" not in asked:
        pos = 0
    yield nothing, _about(pos, caught_up=False)
    while True:
        there = rows()
        batches = _projected(there.slice(pos), asked).combine_chunks().to_batches()
        pos = len(there)
        for batch in batches:
            yield batch, _about(pos, caught_up=True)
        if is_over() or "end" in asked:
            return
        time.sleep(LOOK_SECONDS)


def _projected(rows: pa.Table, asked: Mapping[str, Any]) -> pa.Table:
    if asked.get("symbols"):
        wanted = set(asked["symbols"])
        keep = [symbol in wanted for symbol in rows["symbol"].to_pylist()]
        rows = rows.filter(pa.array(keep, pa.bool_()))
    return rows.select(asked["columns"]) if asked.get("columns") else rows


def _about(pos: int, *, caught_up: bool) -> bytes:
    about = {"epoch": 1, "pos": pos, "durable": pos, "caught_up": caught_up}
    return json.dumps(about).encode()
