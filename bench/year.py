"""A year of one symbol out of the lake: its bars of a minute, and its ticks."""

import datetime as dt
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.caller import Caller
from bench.market import SYMBOLS, ticks
from bench.measure import Measure
from bench.processes import bare_server
from bench.service import Service, running
from storage.bars_keeper import BarsKeeper
from storage.lake import layout
from storage.lake.files import FileKind
from storage.lake.layout import DAY_US, FileName
from storage.lake.table import LakeTable
from storage.lake.view import Lake
from storage.lake.writer import WrittenFile, write_file
from storage.ports import MICROSECONDS, SystemDisk
from storage.schemas import BARS, TICKS

SYMBOL: Final = SYMBOLS[0]
DAYS: Final = 365
SESSION_MINUTES: Final = 1_380
"""Minutes of a session of CME; each has a tick at least, so each has a bar."""
MONTH_DAYS: Final = 30
FIRST_DAY: Final = 20_089
"""2025-01-01, in days since 1970."""
BATCH_ROWS: Final = 4_096
"""After as many rows the market's prices repeat: they are the same in all batches."""
CALLS: Final = 20
REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class Year:
    """What was written, and what that took.

    Attributes:
        ticks: Rows.
        bytes: Of the files of ticks, all of the year.
        bars: Rows of kept bars.
        keeping_seconds: To make those of the ticks.
    """

    ticks: int
    bytes: int
    bars: int
    keeping_seconds: float


def year(home: Path, ticks_a_day: int) -> Iterator[Measure]:
    """A year of bars, a month of ticks and a year of them, each beside bare pyarrow."""
    written = _write_year(home / "data" / "lake", max(ticks_a_day, SESSION_MINUTES))
    with running(home) as service:
        yield _bars(home, service, written)
        yield from _ticks(home, service, written)


def _write_year(lake: Path, ticks_a_day: int) -> Year:
    """Write ticks as an import does, and the bars as the rollover does."""
    disk = SystemDisk()
    tables = []
    for dataset in (TICKS, BARS):
        disk.make_directory(layout.table_root(lake, dataset))
        tables.append(LakeTable(layout.table_root(lake, dataset), dataset, disk))
        tables[-1].refresh()
    table, bars = tables
    market = ticks("bench", BATCH_ROWS, 0, symbols=1)
    days = range(FIRST_DAY, FIRST_DAY + DAYS)
    files = [_write_day(table, day, _taken(market, ticks_a_day)) for day in days]
    table.commit_part(1, 0, 0, 0, files)
    began = time.perf_counter()
    BarsKeeper(table, bars, Lake(lake), disk, lambda _: None, Event()).catch_up()
    return Year(
        ticks=sum(file.rows for file in files),
        bytes=sum(file.bytes for file in files),
        bars=sum(file.rows for file in bars.index),
        keeping_seconds=time.perf_counter() - began,
    )


def _taken(market: Iterator[pa.RecordBatch], count: int) -> pa.Table:
    batches = islice(market, -(-count // BATCH_ROWS))
    return pa.Table.from_batches(batches).slice(0, count)


def _write_day(table: LakeTable, day: int, rows: pa.Table) -> WrittenFile:
    count = rows.num_rows
    steps = np.arange(count) * (SESSION_MINUTES * 60 * MICROSECONDS) // count
    instants = day * DAY_US + steps.astype(np.int64)
    for name in ("ts_event", "ts_recv", "sequence"):
        at = rows.schema.get_field_index(name)
        column = pa.array(instants).cast(rows.schema.field(at).type)
        rows = rows.set_column(at, rows.schema.field(at), column)
    file = FileName(FileKind.BULK, 0, 1, f"d{day}")
    date = layout.partition_date(TICKS, day)
    return write_file(table.root, TICKS, SYMBOL, date, rows, file, SystemDisk())


def _bars(home: Path, service: Service, written: Year) -> Measure:
    ticket = {"op": "bars", "symbols": [SYMBOL], "interval": "1m", **_span(DAYS)}
    ours = Caller(service.uri, service.key, ticket)
    began = time.perf_counter()
    table = ours.read()
    first = time.perf_counter() - began
    daily = Caller(service.uri, service.key, {**ticket, "interval": "1d"})
    parquet = home / "bars.parquet"
    pq.write_table(table, parquet, compression="zstd")
    with bare_server(1, parquet) as bare:
        floor = Caller(bare, "none", b"parquet")
        calls = [(ours.call(), floor.call(), daily.call()) for _ in range(CALLS)]
    assert all(mine[1] == theirs[1] == written.bars for mine, theirs, _ in calls), calls
    seconds = np.array([[took for took, _ in call] for call in calls]) * 1_000
    mine, theirs, days = np.median(seconds, axis=0).tolist()
    return Measure(
        name=f"bars, {written.bars:,} of a minute, a year of one symbol",
        value=mine,
        unit="ms p50",
        floor=theirs,
        floor_is="pq.read_table + bare Flight",
        details={
            "max": float(seconds[:, 0].max()),
            "first_call": first * 1_000,
            "of_days_ms": days,
            "ticks_a_second_when_made": written.ticks / written.keeping_seconds,
        },
    )


def _ticks(home: Path, service: Service, written: Year) -> Iterator[Measure]:
    month = {"op": "range", "dataset": "ticks", "symbols": [SYMBOL], **_span(MONTH_DAYS)}
    ours = Caller(service.uri, service.key, month)
    parquet = home / "month.parquet"
    pq.write_table(ours.read(), parquet, compression="zstd")
    with bare_server(1, parquet) as bare:
        floor = Caller(bare, "none", b"parquet")
        calls = [(ours.drain(), floor.drain()) for _ in range(REPEATS)]
    rates = np.median([[rows / seconds for seconds, rows in call] for call in calls], axis=0)
    of_month, of_floor = rates.tolist()
    yield Measure(
        name=f"range, {calls[0][0][1]:,} ticks, a month of one symbol, from the lake",
        value=of_month,
        unit="ticks/s",
        floor=of_floor,
        floor_is="pq.read_table + bare Flight",
        details={"mib_of_files": written.bytes / (1 << 20)},
    )
    before = _peak_mib(service)
    seconds, rows = Caller(service.uri, service.key, {**month, **_span(DAYS)}).drain()
    assert rows == written.ticks, rows
    yield Measure(
        name=f"range, {rows:,} ticks, a year of one symbol, from the lake",
        value=rows / seconds,
        unit="ticks/s",
        floor=of_floor,
        floor_is="the same of a month",
        details={"seconds": seconds, "peak_mib_more": _peak_mib(service) - before},
    )


def _span(days: int) -> dict[str, str]:
    start = dt.datetime.fromtimestamp(FIRST_DAY * 86_400, tz=dt.UTC)
    return {"start": start.isoformat(), "end": (start + dt.timedelta(days=days)).isoformat()}


def _peak_mib(service: Service) -> float:
    """Return the most memory that the server has had so far."""
    status = Path(f"/proc/{service.process.roles()['flight']}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None, status
    return int(found[1]) / 1024
