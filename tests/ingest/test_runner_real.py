"""Sources through the real client into the real server."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

import tickflight
from ingest.demo import DemoSource
from ingest.ports import SystemClock
from ingest.runner import RunOptions, RunResult, RunState, run_source
from ingest.source import Continuity, SourceProfile, SourceWriter
from storage.schemas import TICKS, Flag

SYMBOLS = ("MES", "MNQ", "NQ", "SPY", "QQQ", "VIX")
ENOUGH_ROWS = 600


async def play_demo(client: tickflight.Client, spool: Path) -> RunResult:
    """Run the demo until the server shows enough of it, and stop it as a signal would."""
    stop = asyncio.Event()
    source = DemoSource(SYMBOLS, rate=1_000, clock=SystemClock())
    running = asyncio.create_task(
        run_source(source, client, stop=stop, options=RunOptions(spool=spool))
    )
    while not running.done():
        held = await asyncio.to_thread(client.symbols, "ticks")
        if sum(one.rows for one in held) >= ENOUGH_ROWS:
            stop.set()
        await asyncio.sleep(0.05)
    return await running


def test_the_demo_runs_stops_at_once_and_leaves_what_it_sent(
    client: tickflight.Client, tmp_path: Path
) -> None:
    result = asyncio.run(asyncio.wait_for(play_demo(client, tmp_path / "spool"), 60))
    assert result == RunResult(RunState.STOPPED, restarts=0)
    rows = client.latest([], limit=10_000).arrow()
    assert set(rows["symbol"].to_pylist()) == set(SYMBOLS)
    identities = Counter((row["contract"], row["sequence"]) for row in rows.to_pylist())
    assert set(identities.values()) == {1}
    # Clean ticks: nothing about them is improbable to the server.
    assert set(rows["flags"].to_pylist()) == {Flag.VALID_TICK | Flag.SYNTHETIC}
    assert client.latest([], dataset="quotes").arrow().num_rows > 0
    events = client.latest([], dataset="service_events").arrow().to_pylist()
    assert [(row["service"], row["event"]) for row in events] == [
        ("ingest.demo", "running"),
        ("ingest.demo", "stopped"),
    ]
    assert client.latest([], dataset="quarantine").arrow().num_rows == 0


@dataclass
class OneTick:
    """A feed whose venue does not wait: one tick, then no more."""

    profile = SourceProfile("feed", ("ticks",), ("MNQ",), Continuity.LOST)

    async def run(self, writer: SourceWriter) -> None:
        now = time.time_ns() // 1_000
        row = {"ts_event": now, "ts_recv": now, "symbol": "MNQ", "contract": "/MNQZ26:XCME"}
        row |= {"price": 1.0, "size": 1.0, "side": 0, "kind": 0, "flags": 1, "sequence": now}
        row |= {"source": "feed"}
        await writer.write("ticks", pa.Table.from_pylist([row], TICKS.schema))


def test_the_time_between_two_runs_of_a_real_feed_is_a_gap(client: tickflight.Client) -> None:
    for _ in range(2):
        asyncio.run(run_source(OneTick(), client, stop=asyncio.Event()))
    first, second = client.latest("MNQ").arrow()["ts_recv"].cast(pa.int64()).to_pylist()
    opened, closed = client.latest("MNQ", dataset="gaps").arrow().to_pylist()
    assert (opened["reason"], opened["state"], opened["end"]) == ("downtime", "open", None)
    assert (closed["revision"], closed["state"]) == (1, "unfillable")
    assert opened["start"].timestamp() * 1_000_000 == first
    assert closed["end"].timestamp() * 1_000_000 >= second
