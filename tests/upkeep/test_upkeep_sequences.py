"""Whatever is done to the lake in whatever order: every row is there once, or gone for its age.

A model keeps the rows in plain sets. It knows which are in memory alone, which are in the lake and
in memory still, and which have left memory; so it can say what retention may take.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import duckdb
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import store as store_module
from storage.errors import LakeError
from storage.lake import retention, vacuum
from storage.lake import table as table_module
from storage.lake.compaction import JoinTask, join
from storage.lake.table import LakeTable
from storage.lake.writer import WrittenFile
from storage.ports import SystemDisk
from storage.selection import SourcePolicy
from storage.store import Store, StoreConfig
from tests.lake.lake_making import FailingDisk, opened, tick_table, with_parts, written
from tests.storage.conftest import HOUR, NOON, send, until
from tests.upkeep.conftest import DAY, KEPT, LakeLab, dated, sequences

MINUTE = HOUR // 60


class MoodyDisk(SystemDisk):
    """A disk that fails at one call of whoever has asked for that."""

    def __init__(self) -> None:
        self._left = 0
        self._thread = 0

    @contextmanager
    def failing(self, call: int) -> Iterator[None]:
        """Fail at this call of this thread, counted from 1; 0 is none."""
        self._left, self._thread = call, threading.get_ident()
        try:
            yield
        finally:
            self._left = 0

    def _call(self) -> None:
        if self._left and threading.get_ident() == self._thread:
            self._left -= 1
            if not self._left:
                raise OSError(5, "it was to fail")

    def make_directory(self, path: Path) -> None:
        self._call()
        super().make_directory(path)

    def sync(self, path: Path) -> None:
        self._call()
        super().sync(path)

    def sync_directory(self, path: Path) -> None:
        self._call()
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._call()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._call()
        super().remove(path)


@dataclass(frozen=True)
class Row:
    """A row of the model."""

    sequence: int
    date: int
    symbol: str

    @property
    def partition(self) -> tuple[int, str]:
        """What goes as a whole."""
        return self.date, self.symbol


@dataclass
class Life:
    """A store, and what has to be in it."""

    lab: LakeLab
    disk: MoodyDisk
    store: Store
    journal: set[Row] = field(default_factory=set)
    rolled: dict[Row, int] = field(default_factory=dict)  # with when their segment ended, µs
    came: dict[Row, int] = field(default_factory=dict)  # into the lake, µs
    left: set[Row] = field(default_factory=set)
    sent: int = 0
    arrival: int = 0

    def send(self, days: int, rows: int) -> None:
        symbol = ("MNQ", "SPY")[rows % 2]
        numbers = range(self.sent + 1, self.sent + rows + 1)
        at = self.lab.midnight - days * DAY
        send(self.store, dated(at, *numbers, symbol=symbol))
        self.journal |= {Row(number, at // DAY, symbol) for number in numbers}
        self.sent += rows
        self.arrival = self.lab.clock.instant

    def roll(self) -> None:
        number = self.store._journal.roll()
        until(lambda: self.store._segments.newest >= number)
        self.store.rollover.step()
        self.rolled |= dict.fromkeys(self.journal, self.arrival)
        self.came |= dict.fromkeys(self.journal, self.lab.clock.instant)
        self.journal.clear()

    def wait(self, minutes: int) -> None:
        self.roll()  # the hour ends, and all hours that follow
        self.lab.clock.instant += minutes * MINUTE
        self.store.rollover.step()
        over = self.lab.clock.instant - HOUR
        self.left |= {row for row, arrival in self.rolled.items() if arrival <= over}
        self.rolled = {row: at for row, at in self.rolled.items() if row not in self.left}

    def compact(self) -> None:
        self.store.upkeep.compact("ticks")

    def retain(self) -> None:
        self.store.upkeep.retain("ticks")
        cutoff = self.lab.clock.instant - KEPT
        late = {row.partition for row in {*self.rolled} | self.left if self.came[row] >= cutoff}
        self.left = {row for row in self.left if row.date >= cutoff // DAY or row.partition in late}

    def vacuum(self) -> None:
        self.store.upkeep.vacuum("ticks")

    def verify(self) -> None:
        found = self.store.upkeep.verify()
        assert [report for report in found.reports if report.damage] == []

    def reopen(self) -> None:
        self.lab.close(self.store)
        self.store = opened_store(self.lab, self.disk)
        base = self.store._stores["ticks"].base
        self.left |= {row for row in self.rolled if row.sequence <= base}
        self.rolled = {row: at for row, at in self.rolled.items() if row not in self.left}

    def check(self) -> None:
        everything = sorted(row.sequence for row in self.journal | {*self.rolled} | self.left)
        assert sequences(self.store) == everything
        in_lake = sorted(row.sequence for row in {*self.rolled} | self.left)
        assert read_by_others(self.store) == [in_lake] * 3


def opened_store(lab: LakeLab, disk: MoodyDisk) -> Store:
    policy = SourcePolicy(("demo",), fresh_us=HOUR)
    config = StoreConfig(lab.directory, 1 << 40, policy, retention_us=KEPT)
    store = Store(config, clock=lab.clock, disk=disk, on_failure=lab.failures.append)
    lab.stores.append(store)
    return store


def read_by_others(store: Store) -> list[list[int]]:
    """Sequences of all ticks of the lake, as Polars, delta-rs and DuckDB read them."""
    root = store.lake_directory / "ticks"
    if not (root / "_delta_log").exists():
        return [[]] * 3
    table = DeltaTable(root)
    frames = pl.scan_delta(str(root)).select("sequence").collect()["sequence"].to_list()
    arrow = table.to_pyarrow_table(columns=["sequence"])["sequence"].to_pylist()
    paths = table.file_uris()
    with duckdb.connect() as connection:
        query = "SELECT sequence FROM read_parquet(?)"
        ducks = connection.execute(query, [paths]).fetchall() if paths else []
    return [sorted(frames), sorted(arrow), sorted(number for (number,) in ducks)]


Step = tuple[str, tuple[int, ...], int]
"""What is done, with what, and at which call the disk fails; 0 is never."""

DONE_BY_UPKEEP = ("compact", "retain", "vacuum")
DAYS = (0, 1, 2, 40)
"""How old rows are that are sent: of today, of yesterday, or too old to stay for long."""
PAUSES = (30, 60, 24 * 60, 31 * 24 * 60)
"""Minutes: half the hot window, all of it, a day, and longer than rows are kept."""
steps = st.one_of(
    st.tuples(st.just("send"), st.tuples(st.sampled_from(DAYS), st.integers(1, 5)), st.just(0)),
    st.tuples(st.just("roll"), st.just(()), st.just(0)),
    st.tuples(st.just("wait"), st.tuples(st.sampled_from(PAUSES)), st.just(0)),
    st.tuples(st.sampled_from(DONE_BY_UPKEEP), st.just(()), st.integers(0, 9)),
    st.tuples(st.sampled_from(("reopen", "verify")), st.just(()), st.just(0)),
)
EVERYTHING: tuple[Step, ...] = (
    # Of two parts one has left memory: they are not to be joined.
    ("send", (1, 2), 0),
    ("roll", (), 0),
    ("wait", (30,), 0),
    ("send", (1, 4), 0),
    ("roll", (), 0),
    ("compact", (), 0),
    ("wait", (30,), 0),
    ("compact", (), 0),
    ("wait", (60,), 0),
    ("compact", (), 3),
    ("reopen", (), 0),
    ("wait", (24 * 60,), 0),
    ("vacuum", (), 1),
    ("send", (2, 2), 0),
    ("wait", (31 * 24 * 60,), 0),
    # Of an old date one part came lately: none of the date is to go, nor what is in memory.
    ("send", (40, 2), 0),
    ("wait", (60,), 0),
    ("retain", (), 0),
    ("wait", (31 * 24 * 60,), 0),
    ("send", (71, 2), 0),
    ("roll", (), 0),
    ("retain", (), 1),
    ("vacuum", (), 0),
    ("reopen", (), 0),
    ("wait", (31 * 24 * 60,), 0),
    ("retain", (), 1),
    ("vacuum", (), 0),
    ("verify", (), 0),
    ("reopen", (), 0),
)


def lived(directory: Path, todo: Sequence[Step]) -> None:
    """Do some steps to a new store, and look after each whether all is right."""
    lab, disk = LakeLab(directory), MoodyDisk()

    def join_there(task: JoinTask, _: threading.Event) -> WrittenFile:
        return join(task, disk)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_module, "join", join_there)
        clock = SimpleNamespace(time_ns=lambda: 1_000 * lab.clock.instant)
        patched.setattr(table_module, "time", clock)
        life = Life(lab, disk, opened_store(lab, disk))
        for name, args, call in todo:
            with disk.failing(call):
                failed = has_failed(getattr(life, name), args)
            assert not failed or call
            if failed:
                getattr(life, name)(*args)
            life.check()
        lab.close_all()
    assert lab.failures == []


def has_failed(do: Callable[..., None], args: tuple[int, ...]) -> bool:
    try:
        do(*args)
    except LakeError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_every_row_is_there_once_or_gone_for_its_age(tmp_path: Path) -> None:
    lived(tmp_path, EVERYTHING)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(todo=st.lists(steps, min_size=3, max_size=12))
def test_so_it_is_in_any_order(todo: list[Step]) -> None:
    with TemporaryDirectory() as directory:
        lived(Path(directory), todo)


class TestFailingDisk:
    """At each call in turn: the table is as it was or as it should be, and goes on."""

    def table(self, root: Path) -> LakeTable:
        """Return a table with a file of an old date, one of now, and one that was replaced."""
        with_parts(root, [tick_table(3), tick_table(3, 4)])
        table = opened(root)
        old = written(table, tick_table(2, 7, ts_event=[NOON - 40 * DAY] * 2), 3, 8, date=OLD)
        table.commit_part(3, 6, 8, 1, [old])
        table.replace([file for file in table.index if file.part == 1], [])
        return table

    def test_dropping_a_date_is_all_or_nothing(self, tmp_path: Path) -> None:
        cutoff = NOON - 30 * DAY

        def life(table: LakeTable, disk: FailingDisk) -> None:
            table._disk = table._log._disk = disk
            table.came = lambda file: 0  # type: ignore[method-assign]  # noqa: ARG005
            retention.drop(table, retention.expired(table, table.position, cutoff), cutoff)

        counting = FailingDisk()
        life(self.table(tmp_path / "whole" / "ticks"), counting)
        assert counting.calls > 0
        for failing in range(1, counting.calls + 1):
            root = tmp_path / str(failing) / "ticks"
            table = self.table(root)
            with pytest.raises(LakeError):
                life(table, FailingDisk(failing=failing))
            found = opened(root)
            assert (len(found.index), found.index.retained_from > 0) in ((2, False), (1, True))
            if len(found.index) == 2:
                life(found, FailingDisk())
            assert [file.date for file in opened(root).index] != [OLD]

    def test_cleaning_up_goes_on_where_it_was_cut_off(self, tmp_path: Path) -> None:
        before = time.time_ns() // 1_000 + HOUR

        def life(table: LakeTable, disk: FailingDisk) -> int:
            files = vacuum.left_over(table, (), before)
            return len(list(vacuum.remove(table.root, files, disk)))

        root = tmp_path / "ticks"
        table = self.table(root)
        with pytest.raises(LakeError):
            life(table, FailingDisk(failing=1))
        assert life(table, FailingDisk()) == 0  # it was gone, only its directory was not synced
        assert len(list(root.rglob("*.parquet"))) == len(table.index) == 2


OLD = "2026-08-12"
