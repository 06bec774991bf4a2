"""A year of one symbol out of the lake: bars, ticks, a few of them from anywhere, and a restart.

Each stands beside bare pyarrow, and beside Polars and DuckDB straight on the same files.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.caller import Caller
from bench.engines import Span, Task, Timings, measured
from bench.lake import Year, plain_bytes, write_day, write_year
from bench.measure import Measure
from bench.processes import bare_server
from bench.service import Service, running, seconds_to_start
from bench.sessions import FIRST_DAY, SYMBOL, Numbering
from storage.lake.layout import DAY_US, table_root
from storage.schemas import TICKS

MONTH_DAYS: Final = 30
YEAR_DAYS: Final = 365
BUSY_TICKS: Final = 1_000_000
"""A day of MNQ."""
POINT_ROWS: Final = 1_000
POINTS: Final = 200
CALLS: Final = 20
REPEATS: Final = 3
RESTARTS: Final = 3


@dataclass(frozen=True, slots=True)
class _Point:
    """A few rows: when, and which file has them."""

    span: Span
    path: Path


def year(home: Path, ticks_a_day: int) -> Iterator[Measure]:
    """Bars, a month of ticks, a year of them and points, beside pyarrow, Polars and DuckDB."""
    written = write_year(home / "data" / "lake", max(ticks_a_day, 2 * POINT_ROWS))
    yield _disk(home, written)
    points = _points(written)
    ticks = str(table_root(written.lake, TICKS))
    spans = [point.span for point in points]
    engines = measured(Task(ticks, SYMBOL, _span(MONTH_DAYS), _span(YEAR_DAYS), spans))
    with running(home) as service:
        yield _bars(home, service, written)
        yield _month_of_bars(service, engines)
        yield from _ticks(home, service, written, engines)
        yield _few(service, points, engines)
    yield _restart(home)


def _disk(home: Path, written: Year) -> Measure:
    """Measure a busy day, whatever the year's are like: of ticks far apart each takes more."""
    ours, plain = {}, {}
    for numbering in Numbering:
        file = write_day(home / numbering.name, BUSY_TICKS, FIRST_DAY, numbering)
        ours[numbering] = file.bytes / BUSY_TICKS
        path = home / "plain.parquet"
        plain[numbering] = plain_bytes(path, BUSY_TICKS, FIRST_DAY, numbering) / BUSY_TICKS
    return Measure(
        name=f"disk, {BUSY_TICKS:,} ticks, a day of one symbol",
        value=ours[Numbering.FILE],
        unit="bytes/tick",
        floor=plain[Numbering.FILE],
        floor_is="pq.write_table, zstd",
        details={
            "with_dxfeed_indices": ours[Numbering.DXFEED],
            "floor_with_them": plain[Numbering.DXFEED],
            "bytes_a_tick_of_the_year": written.bytes / written.ticks,
            "mib_of_the_year": written.bytes / (1 << 20),
            "written_ticks_s": written.ticks / written.writing_seconds,
            "writer_peak_mib": written.peak_mib,
        },
    )


def _points(written: Year) -> list[_Point]:
    """Return spans of some rows each, at random instants of the year."""
    random = np.random.default_rng(1)
    points = []
    for at in random.integers(0, len(written.files), POINTS):
        path = written.path(written.files[at])
        column = pq.read_table(path, columns=["ts_event"])["ts_event"]
        instants = column.cast(pa.int64()).to_numpy()
        first = int(random.integers(0, len(instants) - POINT_ROWS))
        span = (int(instants[first]), int(instants[first + POINT_ROWS]))
        points.append(_Point(span, path))
    return points


def _bars(home: Path, service: Service, written: Year) -> Measure:
    ticket = _ticket("bars", _span(YEAR_DAYS), interval="1m")
    ours = Caller(service.uri, service.key, ticket)
    first, _ = ours.call()
    daily = Caller(service.uri, service.key, {**ticket, "interval": "1d"})
    parquet = home / "bars.parquet"
    pq.write_table(ours.read(), parquet, compression="zstd")
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


def _month_of_bars(service: Service, engines: dict[str, Timings]) -> Measure:
    ours = Caller(service.uri, service.key, _ticket("bars", _span(MONTH_DAYS), interval="1m"))
    _, count = ours.call()
    milliseconds = [ours.call()[0] * 1_000 for _ in range(CALLS)]
    return Measure(
        name=f"bars, {count:,} of a minute, a month of one symbol",
        value=float(np.median(milliseconds)),
        unit="ms p50",
        floor=engines["duckdb"].month_bars_ms,
        floor_is="DuckDB on the ticks",
        details={
            "polars_ms": engines["polars"].month_bars_ms,
            "a_year_duckdb_ms": engines["duckdb"].year_bars_ms,
            "a_year_polars_ms": engines["polars"].year_bars_ms,
        },
    )


def _ticks(
    home: Path, service: Service, written: Year, engines: dict[str, Timings]
) -> Iterator[Measure]:
    month = _ticket("range", _span(MONTH_DAYS), dataset="ticks")
    ours = Caller(service.uri, service.key, month)
    parquet = home / "month.parquet"
    ours.save(parquet)
    with bare_server(1, parquet) as bare:
        floor = Caller(bare, "none", b"parquet")
        calls = [(ours.drain(), floor.drain()) for _ in range(REPEATS)]
    assert all(mine[1] == theirs[1] for mine, theirs in calls), calls
    rates = np.median([[rows / seconds for seconds, rows in call] for call in calls], axis=0)
    of_month, of_floor = rates.tolist()
    yield Measure(
        name=f"range, {calls[0][0][1]:,} ticks, a month of one symbol, from the lake",
        value=of_month,
        unit="ticks/s",
        floor=of_floor,
        floor_is="pq.read_table + bare Flight",
        details={f"{name}_ticks_s": engine.month_ticks_s for name, engine in engines.items()},
    )
    before = _peak_mib(service)
    ticket = _ticket("range", _span(YEAR_DAYS), dataset="ticks")
    seconds, rows = Caller(service.uri, service.key, ticket).drain()
    assert rows == written.ticks, rows
    peak = _peak_mib(service)
    yield Measure(
        name=f"range, {rows:,} ticks, a year of one symbol, from the lake",
        value=rows / seconds,
        unit="ticks/s",
        floor=of_floor,
        floor_is="the same of a month",
        details={"seconds": seconds, "peak_mib": peak, "peak_mib_more": peak - before},
    )


def _few(service: Service, points: list[_Point], engines: dict[str, Timings]) -> Measure:
    with bare_server(1) as bare:
        calls = _calls(Caller(service.uri, service.key, b""), Caller(bare, "none", b""), points)
    assert all(mine[1] == theirs[1] >= POINT_ROWS for mine, theirs in calls), calls
    seconds = np.array([[took for took, _ in call] for call in calls]) * 1_000
    (p50, floor_p50), (p99, floor_p99) = np.percentile(seconds, (50, 99), axis=0).tolist()
    details = {"p99": p99, "floor_p99": floor_p99}
    for name, engine in engines.items():
        details |= {f"{name}_p50": engine.point_ms_p50, f"{name}_p99": engine.point_ms_p99}
    return Measure(
        name=f"range, {POINT_ROWS:,} ticks from anywhere in the year, from the lake",
        value=p50,
        unit="ms p50",
        floor=floor_p50,
        floor_is="pq.read_table of the one file + bare Flight",
        details=details,
    )


def _calls(
    ours: Caller, floor: Caller, points: list[_Point]
) -> list[tuple[tuple[float, int], tuple[float, int]]]:
    """Ask for each point on both sides, in turns; each once before, for what is read but once."""
    tickets = [
        (
            _ticket("range", point.span, dataset="ticks"),
            {"path": str(point.path), "start": point.span[0], "end": point.span[1]},
        )
        for point in points
    ]
    for mine, theirs in tickets:
        ours.call(mine)
        floor.call(theirs)
    return [(ours.call(mine), floor.call(theirs)) for mine, theirs in tickets]


def _restart(home: Path) -> Measure:
    seconds = [
        (seconds_to_start(home), seconds_to_start(home / f"empty{n}")) for n in range(RESTARTS)
    ]
    with_lake, empty = np.median(seconds, axis=0).tolist()
    return Measure(
        name="start with that lake",
        value=with_lake,
        unit="s to ready",
        floor=empty,
        floor_is="an empty start",
    )


def _ticket(op: str, span: Span, **fields: str) -> dict[str, object]:
    return {"op": op, "symbols": [SYMBOL], "start": span[0], "end": span[1], **fields}


def _span(days: int) -> Span:
    return FIRST_DAY * DAY_US, (FIRST_DAY + days) * DAY_US


def _peak_mib(service: Service) -> float:
    """Return the most memory that the server has had so far."""
    status = Path(f"/proc/{service.process.roles()['flight']}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None, status
    return int(found[1]) / 1024
