"""Polars and DuckDB straight on the files of the lake, without the service and its network.

A process of its own, so that their memory and threads disturb no other measurement. It reads one
task as JSON from stdin and prints one line of JSON.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import duckdb
import numpy as np
import polars as pl

from storage.lake.layout import DAY_US

REPEATS: Final = 3
BATCH_ROWS: Final = 61_440
"""What the service sends at a time."""

Span = tuple[int, int]
"""µs since 1970, end excluded."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure.

    Attributes:
        ticks: Root of the table of ticks.
        symbol: Whose.
        month: To make bars of, and to read whole.
        year: To make bars of.
        points: To read, one after another.
    """

    ticks: str
    symbol: str
    month: Span
    year: Span
    points: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Timings:
    """What one engine took.

    Attributes:
        month_bars_ms: Bars of a minute, made of the ticks of the month; so is ``year_bars_ms``.
        month_ticks_s: Ticks a second of the month's rows, all columns.
        point_ms_p50: Of one point.
        point_ms_p99: Likewise.
    """

    month_bars_ms: float
    year_bars_ms: float
    month_ticks_s: float
    point_ms_p50: float
    point_ms_p99: float


class DuckFiles:
    """``read_parquet`` of all files, told which dates to look at."""

    def __init__(self, task: Task) -> None:
        self._connection = duckdb.connect()
        # What it has read of a footer it keeps, as the service does.
        self._connection.execute("SET parquet_metadata_cache = true")
        self._rows = (
            f"read_parquet('{task.ticks}/**/*.parquet', hive_partitioning = true)"
            f" WHERE symbol = '{task.symbol}'"
        )

    def bars(self, span: Span) -> int:
        """Make bars of a minute; return how many trades they have."""
        made = self._connection.sql(
            "SELECT time_bucket(INTERVAL 1 minute, ts_event) AS start,"
            " arg_min(price, ts_event) AS open, max(price) AS high, min(price) AS low,"
            " arg_max(price, ts_event) AS close, sum(size) AS volume, count(*) AS trades,"
            " sum(price * size) / sum(size) AS vwap,"
            " sum(size) FILTER (side = 1) AS buy_volume,"
            " sum(size) FILTER (side = -1) AS sell_volume"
            f" FROM {self._rows} AND {_within(span)} GROUP BY 1 ORDER BY 1"
        ).to_arrow_table()
        return int(np.sum(made["trades"].to_numpy()))

    def read(self, span: Span) -> int:
        """Read rows, a batch at a time; return how many."""
        reader = self._connection.sql(
            f"SELECT * FROM {self._rows} AND {_within(span)}"
        ).to_arrow_reader(BATCH_ROWS)
        return sum(batch.num_rows for batch in reader)

    def point(self, span: Span) -> int:
        """Read some rows; return how many."""
        found = self._connection.sql(f"SELECT * FROM {self._rows} AND {_within(span)}")
        return int(found.to_arrow_table().num_rows)


class PolarsDelta:
    """``scan_delta``, told which dates to look at."""

    def __init__(self, task: Task) -> None:
        self._rows = pl.scan_delta(task.ticks).filter(pl.col("symbol") == task.symbol)

    def bars(self, span: Span) -> int:
        """Make bars of a minute; return how many trades they have."""
        price, size, side = pl.col("price"), pl.col("size"), pl.col("side")
        made = (
            self._within(span)
            .group_by(start=pl.col("ts_event").dt.truncate("1m"))
            .agg(
                open=price.first(),
                high=price.max(),
                low=price.min(),
                close=price.last(),
                volume=size.sum(),
                trades=pl.len(),
                vwap=(price * size).sum() / size.sum(),
                buy_volume=size.filter(side == 1).sum(),
                sell_volume=size.filter(side == -1).sum(),
            )
            .sort("start")
            .collect(engine="streaming")
        )
        return int(made["trades"].sum())

    def read(self, span: Span) -> int:
        """Read rows; return how many."""
        return self._within(span).collect().height

    point = read

    def _within(self, span: Span) -> pl.LazyFrame:
        start, end = (pl.lit(at).cast(pl.Datetime("us", "UTC")) for at in span)
        first, last = (pl.lit(day, pl.Int32).cast(pl.Date) for day in _days(span))
        return self._rows.filter(
            pl.col("date").is_between(first, last),
            pl.col("ts_event") >= start,
            pl.col("ts_event") < end,
        )


def measured(task: Task) -> dict[str, Timings]:
    """Return what each engine took, by name; runs them in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.engines"],
        input=json.dumps(asdict(task)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Timings(**timings) for name, timings in found.items()}


def _timed(engine: DuckFiles | PolarsDelta, task: Task) -> Timings:
    month, rows = _median_seconds(lambda: engine.bars(task.month))
    reading, read = _median_seconds(lambda: engine.read(task.month))
    assert rows == read, (rows, read)
    began = time.perf_counter()
    engine.bars(task.year)
    year = time.perf_counter() - began
    engine.point(task.points[0])
    points = np.array([_seconds(partial(engine.point, span)) for span in task.points])
    p50, p99 = (np.percentile(points, (50, 99)) * 1_000).tolist()
    return Timings(month * 1_000, year * 1_000, read / reading, p50, p99)


def _median_seconds(do: Callable[[], int]) -> tuple[float, int]:
    """Return how long something takes in the middle of some runs, and what it returned."""
    found = do()
    return float(np.median([_seconds(do) for _ in range(REPEATS)])), found


def _seconds(do: Callable[[], int]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _within(span: Span) -> str:
    """Return the condition on dates and instants; dates leave whole files out."""
    first, last = _days(span)
    return (
        f"date BETWEEN DATE '1970-01-01' + {first} AND DATE '1970-01-01' + {last}"
        f" AND ts_event >= make_timestamptz({span[0]}) AND ts_event < make_timestamptz({span[1]})"
    )


def _days(span: Span) -> Span:
    return span[0] // DAY_US, (span[1] - 1) // DAY_US


def main() -> None:
    """Do the task on standard input."""
    content: Mapping[str, Any] = json.loads(sys.stdin.read())
    task = Task(**content)
    engines: dict[str, DuckFiles | PolarsDelta]
    engines = {"duckdb": DuckFiles(task), "polars": PolarsDelta(task)}
    print(json.dumps({name: asdict(_timed(engine, task)) for name, engine in engines.items()}))


if __name__ == "__main__":
    main()
