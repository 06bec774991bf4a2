"""How long a tick takes from the feed to everybody who subscribes to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.measure import Measure
from bench.processes import FEED_RATE, bare_server, finished, start
from bench.service import running

FEW, MANY = 20, 200
"""Subscribers at once."""
BATCH_ROWS = 20
"""Rows the feed sends at a time, two milliseconds apart."""
SETTLE_SECONDS = 3.0
"""What the feed runs longer than its subscribers, at both ends."""


def live(home: Path, seconds: float) -> Iterator[Measure]:
    """Subscribers beside a bare server that hands on what it is sent, as it is."""
    for subscribers in (FEW, MANY):
        place = home / str(subscribers)
        place.mkdir()
        with running(place) as service:
            ours = _followed(service.uri, service.key, subscribers, seconds)
        with bare_server(1) as bare:
            floor = _followed(bare, "none", subscribers, seconds)
        yield Measure(
            name=f"live, tick in → {subscribers} subscribers, {FEED_RATE:,} ticks/s",
            value=ours["p50"],
            unit="ms p50",
            floor=floor["p50"],
            floor_is="bare Flight that hands on",
            details={
                "p99": ours["p99"],
                "max": ours["max"],
                "lost": ours["lost"],
                "batches_s": ours["batches"] / seconds,
                "floor_p99": floor["p99"],
                "floor_batches_s": floor["batches"] / seconds,
            },
        )


def _followed(uri: str, key: str, subscribers: int, seconds: float) -> dict[str, Any]:
    """Let subscribers follow a feed; return how late its rows were, in ms, and how many came."""
    feed = start(
        "bench.feed",
        key,
        uri,
        f"--rows={BATCH_ROWS}",
        f"--rate={FEED_RATE}",
        f"--seconds={seconds + 3 * SETTLE_SECONDS}",
    )
    counts = (f"--count={subscribers}", f"--seconds={seconds}")
    followed = start("bench.subscribers", key, uri, *counts)
    try:
        return finished(followed)
    finally:
        feed.terminate()
        feed.wait()
