"""Upkeep that is killed at any moment leaves a table that goes on, with every row once."""

import random
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from storage.lake.scrub import ScrubTask, scrub
from tests.lake.lake_making import opened, tick_table, written
from tests.storage.conftest import NOON
from tests.upkeep import killed_upkeep
from tests.upkeep.conftest import DAY

DATES = 12
FILES = 3
ROWS = 50
KILLS = 6
LIFE_SECONDS_MAX = 0.6
"""About as long as all of it takes where nothing else runs."""
CUTOFF = NOON - 9 * DAY


def filled(root: Path) -> None:
    """Make a table with some files a date, the rows of each date numbered by themselves."""
    table = opened(root)
    for number in range(DATES * FILES):
        day, part = divmod(number, FILES)
        at = NOON - day * DAY
        date = time.strftime("%Y-%m-%d", time.gmtime(at / 1_000_000))
        first = number * ROWS + 1
        instants = [at + part + FILES * n for n in range(ROWS)]
        rows = tick_table(ROWS, first, ts_event=instants)
        end = table.position + ROWS
        file = written(table, rows, number + 1, end, date=date)
        table.commit_part(number + 1, table.position, end, 1, [file])


def sequences(root: Path) -> list[int]:
    return sorted(pl.scan_delta(str(root)).select("sequence").collect()["sequence"].to_list())


@pytest.mark.slow
def test_a_table_goes_on_wherever_its_upkeep_was_killed(tmp_path: Path) -> None:
    root = tmp_path / "ticks"
    filled(root)
    everything = list(range(1, DATES * FILES * ROWS + 1))
    kept = [n for n in everything if (n - 1) // ROWS // FILES <= 9]
    command = [sys.executable, "-m", killed_upkeep.__name__, str(root), str(CUTOFF)]
    chance = random.Random(7)
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(chance.uniform(0, LIFE_SECONDS_MAX))  # any moment will do
            process.kill()
        found = opened(root)
        assert sequences(root) in (everything, kept)
        assert sum(file.rows for file in found.index) == len(sequences(root))
        reports = list(scrub(ScrubTask(str(tmp_path), "ticks")))
        assert [report for report in reports if report.damage] == []
    killed_upkeep.main(root, CUTOFF)
    assert sequences(root) == kept
    assert len(opened(root).index) == 10
