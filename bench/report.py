"""The report: a table for the terminal, and a page for the documentation."""

import datetime as dt
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from bench.disturbance import Disturbance
from bench.measure import Measure
from tickflightd.machine import memory_bytes

COLUMNS = ("measured", "ours", "floor", "ours / floor", "details")
PAGE = """\
# Benchmarks

Written by `{command}` on {date}; run it again to see how your machine does.

| | |
|---|---|
| cores | {cores} |
| memory | {memory:.0f} GiB |
| load average before, and a minute after | {before:.1f} and {after:.1f} |
| processor time that the host gave to others | {stolen:.1%} |
| kernel | {kernel} |
| Python | {python} |
| pyarrow | {pyarrow} |

{table}

## How to read it

Every figure is the running service — `tickflightd up`, authentication and journal on, the full
schema of ticks, six symbols mixed unless a line says otherwise — and stands beside a **floor**: the
least that the same machine needs for the same work without us, measured in the same run. Absolute
figures say something about the machine; the ratio says something about tickflight. For rates
(`ticks/s`) more is better, so a ratio below 1 is what safety costs; for times (`ms`) less is
better, so it is a ratio above 1.

Nothing else should be busy: a load near the number of cores before the run, or processors that the
host has given to others, mean that the figures are those of a disturbed machine, ratios included.

Clients run on the same machine and take their share of its cores: where there are few, producers
compete with the server.

- **ingest**: acknowledged rows only; a row is acknowledged after its commit is on disk. The floor,
  a server that counts and forgets, keeps nothing.
- **latest**: calls take turns with the floor's, so both see the same disturbances.
- **live**: from the moment a batch is handed to Flight by the feed to the moment a subscriber has
  it, over all rows and all subscribers, which share one process. The floor hands on what it has
  been sent, all that waits at once; the service validates, gives positions, journals and selects.
  `batches s` is what one subscriber was sent a second: the more there are, the larger they get.
- **range**: the floor reads a zstd Parquet file of the same rows and streams it.
- **year**: 252 sessions, no two alike: ticks come at random, most of them while New York trades,
  the price walks at random on its grid, and each tick is received 1 to 50 ms later. A file a day,
  as compaction leaves them. For bars and ranges the floor reads one zstd Parquet file of the same
  rows and streams it; the service reads its own files and checks every page. `peak mib` is the most
  memory that the server has had, `peak mib more` what that grew by while a year of ticks went out.
  Disk: the floor is a day as `pq.write_table` writes it; `with dxfeed indices` is that day with
  sequences that hold its time. The further apart ticks are, the more each takes.
- **from anywhere**: spans of a thousand ticks at random instants, each asked for once before; the
  floor is told which file to look into.
- **DuckDB and Polars** read the files of the lake in a process of their own, without a network,
  told which dates to look at (`read_parquet`, `scan_delta`): what the lake gives to those who go
  past the service. A year of bars is one run of each.
- **restart**: from the start of the command to `ready`; the floor is a start without any rows plus
  the time SQLite takes to hand out the same records. `lost` counts acknowledged rows that are not
  there: anything but 0 is a bug.
- **rollover**: from the first row in until all have left memory, which is a minute after they came;
  calls take turns with the floor's. Bars are made of the rows meanwhile.
- **burst**: rows over the limit go to the lake before their time, and what finds no room waits in
  memory and spool of its writer. `lost` likewise.
"""


def print_table(measures: Sequence[Measure]) -> None:
    """Show the report on the terminal."""
    table = Table(title=f"{platform.system()}, {os.cpu_count()} cores, {_python()}")
    for column in COLUMNS:
        left = column in ("measured", "details")
        table.add_column(column, justify="left" if left else "right")
    for measure in measures:
        table.add_row(*_cells(measure))
    Console(file=sys.stderr).print(table)


def write_page(path: Path, measures: Sequence[Measure], command: str, seen: Disturbance) -> None:
    """Write the page; it names no host, no user and no place.

    Args:
        path: The page.
        measures: What was measured.
        command: What was typed.
        seen: What else the machine did.
    """
    rows = [COLUMNS, ("---", "---:", "---:", "---:", "---"), *map(_cells, measures)]
    page = PAGE.format(
        command=command,
        date=f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
        cores=os.cpu_count(),
        before=seen.load_before,
        after=seen.load_after,
        stolen=seen.stolen,
        memory=memory_bytes() / (1 << 30),
        kernel=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        python=platform.python_version(),
        pyarrow=pa.__version__,
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
    )
    path.write_text(page, encoding="utf-8")


def _python() -> str:
    return f"Python {platform.python_version()}, pyarrow {pa.__version__}"


def _cells(measure: Measure) -> tuple[str, ...]:
    told = measure.details.items()
    details = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in told]
    return (
        measure.name,
        f"{_number(measure.value)} {measure.unit}",
        f"{_number(measure.floor)} ({measure.floor_is})",
        f"{measure.ratio:.2f}",
        ", ".join(details),
    )


def _number(value: float) -> str:
    whole = abs(value) >= 1_000 or value == int(value)
    return f"{value:,.0f}" if whole else f"{value:,.2f}"
