"""Ten times the usual rate, past the memory there is: nothing lost, and readers don't notice."""

import argparse
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tickflight
from bench.caller import Caller
from bench.market import ticks
from bench.measure import Measure
from bench.measures import LATEST_ROWS
from bench.processes import FEED_RATE, bare_server, finished, start
from bench.service import running

TIMES = 10
BATCH_ROWS = 1_000
SMALL_LIMIT = "48MiB"
"""Half a million ticks: a burst fills it in five seconds."""
CALL_SECONDS = 0.01
DRAIN_SECONDS = 300.0


def burst(home: Path, seconds: float) -> Iterator[Measure]:
    """Burst past the limit, and count what has arrived in memory and lake."""
    limits = {"HOT_MEMORY_LIMIT": SMALL_LIMIT}
    with running(home, **limits) as service, bare_server(LATEST_ROWS) as bare:
        words = (service.uri, str(home / "spool"), f"--seconds={seconds}")
        writing = start("bench.burst", service.key, *words)
        latencies, floor = _call_while_bursting(service.uri, service.key, bare, seconds)
        asking = Caller(service.uri, service.key, b"")
        used = asking.status()["memory"]
        sent = finished(writing)
        held = sum(one["rows"] for one in asking.act("symbols")["datasets"]["ticks"].values())
        rolled = asking.status()["rollover"]["rows"]
    yield Measure(
        name=f"latest, {LATEST_ROWS:,} rows, in a burst of {TIMES * FEED_RATE:,} ticks/s"
        " past HOT_MEMORY_LIMIT",
        value=float(np.percentile(latencies, 99)),
        unit="ms p99",
        floor=float(np.percentile(floor, 99)),
        floor_is="bare Flight, ready table",
        details={
            "p50": float(np.percentile(latencies, 50)),
            "written": sent["written"],
            "lost": sent["written"] - held,
            "memory_over_limit": used["used"] / used["limit"],
            "rolled_over": rolled,
            "seconds_to_drain": sent["drained_seconds"],
        },
    )


def _call_while_bursting(
    uri: str, key: str, bare: str, seconds: float
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of our calls and the floor's, taking turns."""
    ours = Caller(uri, key, {"op": "latest", "symbols": ["MNQ"], "limit": LATEST_ROWS})
    floor = Caller(bare, "none", b"ready")
    while ours.call()[1] < LATEST_ROWS:
        time.sleep(0.1)
    pairs = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pairs.append((ours.call()[0] * 1000, floor.call()[0] * 1000))
        time.sleep(CALL_SECONDS)
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def main() -> None:
    """Write at the rate of a burst, then wait until all of it is durable."""
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("spool", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    batches = ticks("burst", BATCH_ROWS, time.time_ns() // 1000)
    written, began = 0, time.monotonic()
    with (
        tickflight.connect(args.uri, input().strip()) as client,
        client.writer("ticks", name="burst", spool=args.spool) as writer,
    ):
        while time.monotonic() - began < args.seconds:
            writer.write(next(batches))
            written += BATCH_ROWS
            pause = began + written / (TIMES * FEED_RATE) - time.monotonic()
            threading.Event().wait(max(0.0, pause))
        ended = time.monotonic()
        writer.flush(DRAIN_SECONDS)
    print(json.dumps({"written": written, "drained_seconds": time.monotonic() - ended}))


if __name__ == "__main__":
    main()
