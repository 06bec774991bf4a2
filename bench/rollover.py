"""Rows into the lake and out of memory, while readers ask for the newest ones."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.caller import Caller
from bench.market import TICK_INTERVAL
from bench.measure import Measure
from bench.measures import LATEST_ROWS
from bench.processes import PRODUCERS, bare_server, feeding, produce
from bench.service import Service, running

FILL_BATCH_ROWS = 10_000
HOT_WINDOW_SECONDS = 60
CALL_SECONDS = 0.01
LOOK_SECONDS = 0.5
FEED_SECONDS = 600.0


def rollover(home: Path, rows: int) -> Iterator[Measure]:
    """Fill memory, have it rolled over, and wait until the rows have left."""
    ticket = {"op": "latest", "symbols": ["MNQ"], "limit": LATEST_ROWS}
    settings = {"HOT_WINDOW": f"{HOT_WINDOW_SECONDS}s"}
    with running(home, **settings) as service, bare_server(LATEST_ROWS) as bare:
        began = time.perf_counter()
        # All of it in the past: the newest rows are those of the feed, as they would be.
        count = rows // PRODUCERS
        start = time.time_ns() // 1000 - count * TICK_INTERVAL
        produce(service.uri, service.key, "fill", FILL_BATCH_ROWS, count=count, start=start)
        with feeding(service.uri, service.key, FEED_SECONDS):
            ours = Caller(service.uri, service.key, ticket)
            floor = Caller(bare, "none", b"ready")
            pairs = _call_until_gone(service, ours, floor, rows)
        in_lake = ours.status()["rollover"]["rows"]
        seconds = time.perf_counter() - began
    files = list((home / "data" / "lake" / "ticks").rglob("*.parquet"))
    p50, p99, most = np.percentile(pairs[:, 0], (50, 99, 100)).tolist()
    yield Measure(
        name=f"latest, {LATEST_ROWS:,} rows, while {rows:,} ticks go to the lake and leave memory",
        value=p99,
        unit="ms p99",
        floor=float(np.percentile(pairs[:, 1], 99)),
        floor_is="bare Flight, ready table",
        details={
            "p50": p50,
            "max": most,
            "seconds": seconds,
            "rows_in_lake": in_lake,
            "bytes_a_tick": sum(file.stat().st_size for file in files) / in_lake,
        },
    )


def _call_until_gone(
    service: Service, ours: Caller, floor: Caller, rows: int
) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Return the milliseconds of our calls and the floor's, until rows have left memory."""
    orders = Caller(service.uri, service.key, b"")
    orders.act("rollover", b'{"all": true}')
    pairs, looked = [], time.monotonic()
    while True:
        pairs.append((ours.call()[0] * 1000, floor.call()[0] * 1000))
        time.sleep(CALL_SECONDS)
        if time.monotonic() < looked + LOOK_SECONDS:
            continue
        looked = time.monotonic()
        status = orders.status()
        held = status["datasets"].get("ticks", {"rows": 0})["rows"]
        if status["rollover"]["rows"] >= rows and held < rows // 2:
            return np.array(pairs)
