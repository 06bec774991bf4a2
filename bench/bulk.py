"""Much at once: old data into the lake, a range out of memory, a restart that reads all back."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq

import tickflight
from bench.caller import Caller
from bench.market import ticks
from bench.measure import Measure
from bench.processes import PRODUCERS, bare_server, finished, produce, start_producer
from bench.service import Service, running, seconds_to_start
from storage.journal_file import SUFFIX
from tickflightd.testing import RunningService

SYMBOL = "MNQ"
FILL_BATCH_ROWS = 10_000
SMALL_BATCH_ROWS = 100
REPEATS = 5
OLD_US = 1_700_000_000 * 1_000_000
LATER = "2100-01-01T00:00:00Z"
"""Ticks of a producer without a pace lie in the future."""


def loading(home: Path, rows: int) -> Iterator[Measure]:
    """Old ticks of six symbols past memory into the lake, beside pyarrow that writes one file."""
    batches = list(islice(ticks("bulk", FILL_BATCH_ROWS, OLD_US), rows // FILL_BATCH_ROWS))
    began = time.perf_counter()
    with pq.ParquetWriter(home / "plain.parquet", batches[0].schema, compression="zstd") as plain:
        plain.write_table(pa.Table.from_batches(batches))
    floor_seconds = time.perf_counter() - began
    with running(home) as service, tickflight.connect(service.uri, service.key) as client:
        began = time.perf_counter()
        with client.bulk("ticks", "bench") as writer:
            for batch in batches:
                writer.write(batch)
        seconds = time.perf_counter() - began
        held = Caller(service.uri, service.key, b"").status()["datasets"]
    stats = writer.stats
    yield Measure(
        name=f"import of {rows:,} old ticks, past memory, durable and visible",
        value=stats.rows_durable / seconds,
        unit="ticks/s",
        floor=rows / floor_seconds,
        floor_is="pyarrow writes one Parquet file, no fsync",
        details={
            "seconds": seconds,
            "lost": rows - stats.rows_durable,
            "in_memory": held.get("ticks", {"rows": 0})["rows"],
        },
    )


def raw_range(home: Path, rows: int) -> Iterator[Measure]:
    """All ticks of one symbol out of memory, beside a bare server that reads them from Parquet."""
    with running(home) as service:
        filling = start_producer(
            service.uri, service.key, "fill", FILL_BATCH_ROWS, count=rows, symbols=1
        )
        finished(filling)
        ticket = {"op": "range", "dataset": "ticks", "symbols": [SYMBOL], "start": 0, "end": LATER}
        parquet = home / "ticks.parquet"
        pq.write_table(_read(service, ticket), parquet, compression="zstd")
        with bare_server(1, parquet) as bare:
            ours = Caller(service.uri, service.key, ticket)
            floor = Caller(bare, "none", b"parquet")
            pairs = [(ours.drain(), floor.drain()) for _ in range(REPEATS)]
    assert all(mine[1] == theirs[1] == rows for mine, theirs in pairs), pairs
    seconds, floor_seconds = (float(np.median([p[i][0] for p in pairs])) for i in (0, 1))
    yield Measure(
        name=f"range, {rows:,} ticks of one symbol, from memory",
        value=rows / seconds,
        unit="ticks/s",
        floor=rows / floor_seconds,
        floor_is="pq.read_table + bare Flight",
        details={"seconds": seconds, "floor_seconds": floor_seconds},
    )


def _read(service: Service, ticket: dict[str, object]) -> object:
    client = flight.connect(service.uri)
    options = flight.FlightCallOptions(
        headers=[(b"authorization", f"Bearer {service.key}".encode())]
    )
    return client.do_get(flight.Ticket(json.dumps(ticket)), options).read_all()


def restart(home: Path, rows: int) -> Iterator[Measure]:
    """Fill in small batches, kill -9, start again; beside SQLite reading the same files."""
    with running(home) as service:
        count = rows // PRODUCERS
        sent = produce(service.uri, service.key, "fill", SMALL_BATCH_ROWS, count=count)
        service.process.process.kill()
        service.process.wait()
        # In turns with empty ones: what it takes to start Python is no part of recovery.
        empty_seconds = seconds_to_start(home / "before")
        began = time.perf_counter()
        with RunningService(home, DEMO="0", FLIGHT_URI=service.uri) as again:
            seconds = time.perf_counter() - began
            held = Caller(again.uri, service.key, b"").status()["datasets"]["ticks"]["rows"]
    acked = int(sum(part["rows"] for part in sent))
    journal = home / "data" / "journal"
    read_seconds, size = _read_with_sqlite(journal)
    empty_seconds = (empty_seconds + seconds_to_start(home / "after")) / 2
    yield Measure(
        name=f"restart after kill -9, {acked:,} ticks that came in {SMALL_BATCH_ROWS}-row batches",
        value=seconds,
        unit="s to ready",
        floor=empty_seconds + read_seconds,
        floor_is="an empty start, and sqlite3 reading the same journal",
        details={
            "empty_start_s": empty_seconds,
            "sqlite_s": read_seconds,
            "ticks_a_second": held / seconds,
            "lost": acked - held,
            "journal_bytes_a_tick": size / held,
        },
    )


def _read_with_sqlite(journal: Path) -> tuple[float, int]:
    """Return the seconds it takes to fetch every record, and the bytes of the files."""
    began, size = time.perf_counter(), 0
    for path in sorted(journal.glob(f"*{SUFFIX}")):
        size += path.stat().st_size
        with closing(sqlite3.connect(path)) as connection:
            for _ in connection.execute("SELECT * FROM records"):
                pass
    return time.perf_counter() - began, size
