"""What every tick meets: the way in, and the newest rows out."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.caller import Caller
from bench.floors import sqlite_rows_per_second
from bench.measure import Measure
from bench.processes import FEED_RATE, PRODUCERS, bare_server, feeding, produce
from bench.service import running

LATEST_ROWS = 1_000
WARM_UP_CALLS = 50


def ingest(home: Path, seconds: float) -> Iterator[Measure]:
    """Four producers as fast as acks allow, beside a server that forgets and beside SQLite."""
    for rows in (1_000, 100):
        # A service each: the lake would still be taking in what the first one has sent.
        place = home / str(rows)
        place.mkdir()
        with running(place) as service:
            with bare_server(LATEST_ROWS) as bare:
                floor = produce(bare, "none", f"floor{rows}", rows, seconds=seconds / 4)
            ours = produce(service.uri, service.key, f"bench{rows}", rows, seconds=seconds)
            acked = sum(part["rows"] for part in ours)
            yield Measure(
                name=f"ingest, {PRODUCERS} producers, {rows:,}-row batches, durable acks",
                value=acked / max(part["seconds"] for part in ours),
                unit="ticks/s",
                floor=sum(part["rows"] / part["seconds"] for part in floor),
                floor_is="bare Flight that forgets",
                details={
                    "ack_ms_p50": max(part["ack_ms_p50"] for part in ours),
                    "ack_ms_p99": max(part["ack_ms_p99"] for part in ours),
                    "sqlite_rows_s": sqlite_rows_per_second(rows, 2.0, home),
                },
            )


def latest(home: Path, calls: int) -> Iterator[Measure]:
    """``latest`` while a feed runs; calls take turns with the floor's."""
    ticket = {"op": "latest", "symbols": ["MNQ"], "limit": LATEST_ROWS}
    with (
        running(home) as service,
        bare_server(LATEST_ROWS) as bare,
        feeding(service.uri, service.key, 10 + calls * 0.01),
    ):
        ours = Caller(service.uri, service.key, ticket)
        floor = Caller(bare, "none", b"ready")
        while ours.call()[1] < LATEST_ROWS:
            time.sleep(0.1)
        for caller in (ours, floor):
            for _ in range(WARM_UP_CALLS):
                caller.call()
        pairs = np.array([(ours.call()[0], floor.call()[0]) for _ in range(calls)]) * 1000
    (p50, floor_p50), (p99, floor_p99) = np.percentile(pairs, (50, 99), axis=0).tolist()
    yield Measure(
        name=f"latest, {LATEST_ROWS:,} rows, beside {FEED_RATE:,} ticks/s",
        value=p50,
        unit="ms p50",
        floor=floor_p50,
        floor_is="bare Flight, ready table",
        details={"p99": p99, "floor_p99": floor_p99, "max": float(pairs[:, 0].max())},
    )
