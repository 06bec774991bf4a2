"""Bars that the lake keeps are answered where, and only where, they are those of the ticks."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import bars_making
from storage import store as store_module
from storage.bar_sessions import Grid, Session, parse_interval
from storage.bars_view import BarsRequest, bars
from storage.errors import LakeError, LakeFullError, RetentionError
from storage.lake.files import FileIndex, FileKind, LakeFile
from storage.lake.layout import FileName, partition_date
from storage.lake.table import RETENTION, LakeTable
from storage.lake.writer import write_file
from storage.ports import SystemDisk
from storage.schemas import BARS, GAPS, TICKS, Flag, Kind
from storage.selection import ALL_SOURCES, Selection
from storage.store import Store
from tests.bars.bar_lake import batch_of
from tests.bars.conftest import DAY, MIDNIGHT, MINUTE, Tick
from tests.bars.conftest import TICKS as TICK_ROWS
from tests.rollover.conftest import in_memory, write_here
from tests.storage.conftest import FOREVER, HOUR, Lab, rows_of, send, until

GRIDS = [
    Grid(parse_interval(interval), session)
    for interval in ("30s", "1m", "5m", "4h", "1d")
    for session in Session
]
MINUTES = Grid(parse_interval("1m"))
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True, scope="module")
def here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "roll_over", write_here)
        yield


@pytest.fixture
def house(tmp_path: Path) -> Iterator["House"]:
    house = House(tmp_path)
    yield house
    house.close()


class House:
    """A store whose rows become parts, and leave memory, when a test says so."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(directory)
        self.open()

    def open(self) -> None:
        self.store: Store = self.lab.open(None, "best", "good")

    def close(self) -> None:
        self.lab.close_all()
        assert self.lab.failures == []

    def put(self, rows: list[Tick]) -> None:
        if rows:
            send(self.store, batch_of(rows))

    def roll(self, *, leave: bool = True) -> None:
        """Bring all rows into the lake, and have them leave memory."""
        number = self.store._journal.roll()
        until(lambda: self.store._segments.newest >= number)
        self.store.rollover.step()
        if leave:
            self.lab.clock.instant += HOUR
            self.store.rollover.step()

    def reopen(self) -> None:
        self.lab.close(self.store)
        self.open()

    def bulk(self, rows: list[Tick]) -> None:
        """Bring rows into the lake past memory; bars don't follow by themselves."""
        table = self.store.tables["ticks"]
        part = table.part + 1
        files = []
        for number, row in enumerate(rows):
            name = FileName(FileKind.BULK, 0, part, f"b{number}")
            one = pa.Table.from_batches([batch_of([row])])
            date = partition_date(TICKS, row.ts // DAY)
            files.append(write_file(table.root, TICKS, row.symbol, date, one, name, SystemDisk()))
        table.commit_part(part, table.position, table.position, 1, files)
        self.store._publication.show({"ticks": table.index})

    def gap(self, source: str, start: int, end: int) -> None:
        columns = {
            "ts_event": start,
            "ts_recv": start,
            "symbol": None,
            "gap_id": f"{source}{start}",
            "revision": 1,
            "dataset": "ticks",
            "source": source,
            "start": start,
            "end": end,
            "reason": "disconnect",
            "state": "open",
            "rows_recovered": 0,
        }
        send(self.store, rows_of(GAPS, 1, columns), dataset="gaps")

    def candle(self, symbol: str, start: int) -> None:
        columns = {
            "ts_event": start,
            "ts_recv": start + MINUTE,
            "symbol": symbol,
            "interval": "1m",
            **dict.fromkeys(("open", "high", "low", "close", "vwap"), 77.0),
            **dict.fromkeys(("volume", "buy_volume", "sell_volume"), 7.0),
            "trades": 7,
            "flags": int(Flag.BACKFILLED),
            "source": "candles",
        }
        send(self.store, rows_of(BARS, 1, columns), dataset="bars")

    def ask(
        self, grid: Grid = MINUTES, span: tuple[int, int] = (0, FOREVER), **selection: Any
    ) -> pa.Table:
        chosen = {"symbols": ("A",), **selection}
        answer = bars(self.store.snapshot(), BarsRequest(Selection(**chosen), grid, *span))
        return pa.Table.from_batches(answer.batches, answer.schema)

    def ask_ticks(self, *asked: Any, **selection: Any) -> pa.Table:
        """Ask as if no bars were kept."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FileIndex, "built", property(lambda _: FileIndex(-1)))
            return self.ask(*asked, **selection)

    def kept(self) -> list[LakeFile]:
        return [file for file in self.store.tables["bars"].index if file.kind is FileKind.BARS]

    def lose_ticks(self) -> None:
        """Make every answer that reads ticks of the lake fail."""
        shutil.rmtree(self.store.lake_directory / "ticks" / "symbol=A")


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    for name in BARS.schema.names:
        if name == "vwap":
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)
        else:
            assert found[name].to_pylist() == expected[name].to_pylist(), name


def tick(second: float, **fields: Any) -> Tick:
    plain = Tick(0, "A", "best", "Z6", 1, Kind.NEW, 10.0, 1.0, 0, int(Flag.VALID_TICK))
    return replace(plain, **{"ts": MIDNIGHT + int(second * 1e6), **fields})


# Any history

SPANS = st.tuples(st.integers(-120, 1500), st.integers(-120, 1500)).map(
    lambda minutes: (MIDNIGHT + min(minutes) * MINUTE, MIDNIGHT + max(minutes) * MINUTE)
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(TICK_ROWS, min_size=1, max_size=8)),
        st.tuples(st.sampled_from(["roll", "commit", "reopen"]), st.none()),
        st.tuples(st.just("bulk"), st.lists(TICK_ROWS, min_size=1, max_size=2)),
        st.tuples(
            st.just("gap"),
            st.tuples(st.sampled_from(["best", "good"]), SPANS, st.integers(0, 59_999_999)),
        ),
        st.tuples(st.just("candle"), st.integers(0, 1440)),
    ),
    min_size=2,
    max_size=9,
)
ASKED = st.lists(
    st.tuples(
        st.sampled_from(GRIDS),
        st.one_of(st.just((0, FOREVER)), SPANS),
        st.sampled_from([("A",), ("B",), ("A", "B"), None]),
        st.sampled_from([None, None, "best", "good", ALL_SOURCES]),
    ),
    min_size=1,
    max_size=6,
)


def do(house: House, step: str, what: Any) -> None:
    steps: dict[str, Callable[[], None]] = {
        "put": lambda: house.put(what),
        "roll": house.roll,
        "commit": lambda: house.roll(leave=False),
        "reopen": house.reopen,
        "bulk": lambda: house.bulk(what),
        "gap": lambda: house.gap(what[0], what[1][0] + what[2], what[1][1] + what[2]),
        "candle": lambda: house.candle("A", MIDNIGHT + what * MINUTE),
    }
    steps[step]()


@given(st.lists(TICK_ROWS, min_size=5, max_size=20), STEPS, ASKED)
@settings(max_examples=25)
@pytest.mark.slow
def test_kept_bars_are_answered_as_if_all_were_computed(
    directory: Path, rows: list[Tick], steps: list[tuple[str, Any]], asked: list[tuple[Any, ...]]
) -> None:
    house = House(directory / str(next(NUMBERS)))
    house.put(rows)
    house.roll()
    for step, what in steps:
        do(house, step, what)
        for grid, span, symbols, source in asked:
            given_ = {"symbols": symbols, "source": source}
            assert_same(house.ask(grid, span, **given_), house.ask_ticks(grid, span, **given_))
    house.close()


# Whether they are read at all


@pytest.mark.parametrize("interval", ["1m", "5m", "1h", "1d"])
@pytest.mark.parametrize("session", Session)
def test_what_has_left_memory_is_answered_without_its_ticks(
    house: House, interval: str, session: Session
) -> None:
    grid = Grid(parse_interval(interval), session)
    house.put([tick(7 * n, sequence=n) for n in range(400)])
    expected = house.ask(grid)
    house.roll()
    house.lose_ticks()
    assert_same(house.ask(grid), expected)
    with pytest.raises(LakeError):
        house.ask_ticks(grid)


def test_only_minutes_with_rows_in_memory_are_computed(house: House) -> None:
    house.put([tick(0), tick(3600, sequence=2), tick(7200, sequence=3)])
    house.roll()
    (path,) = (house.store.lake_directory / "ticks").glob("symbol=A/*/*.parquet")
    house.put([tick(3630, sequence=4, price=20.0)])
    assert house.ask()["high"].to_pylist() == [10.0, 20.0, 10.0]
    path.unlink()
    span = (MIDNIGHT + 7200_000_000, FOREVER)
    assert house.ask(span=span)["trades"].to_pylist() == [1]
    with pytest.raises(LakeError):
        house.ask()


def test_each_source_has_its_own_and_the_best_one_speaks(house: House) -> None:
    later = tick(90_000, source="good", sequence=2)
    house.put([tick(0), tick(1, source="good", price=20.0), later])
    house.roll()
    house.lose_ticks()
    assert house.ask()["source"].to_pylist() == ["best", "good"]
    assert house.ask(source="good")["open"].to_pylist() == [20.0, 10.0]
    assert house.ask(source=ALL_SOURCES)["source"].to_pylist() == ["best", "good", "good"]
    assert [file.source for file in house.kept()] == ["best", "good"]


def test_inside_a_hole_bars_are_computed_of_both_sources(house: House) -> None:
    house.put([tick(0), tick(200, sequence=2), tick(90, source="good", price=20.0)])
    house.roll()
    assert house.ask()["open"].to_pylist() == [10.0, 10.0]
    house.gap("best", MIDNIGHT + 80_000_000, MIDNIGHT + 100_000_000)
    assert house.ask()["open"].to_pylist() == [10.0, 20.0, 10.0]


def test_imports_that_bars_do_not_follow_yet_are_answered_from_ticks(house: House) -> None:
    house.put([tick(0), tick(600, sequence=2)])
    house.roll()
    house.bulk([tick(1, sequence=3, price=30.0)])
    assert house.ask()["high"].to_pylist() == [30.0, 10.0]
    assert house.store.published.lake["bars"].follows == 1
    house.reopen()
    house.store.rollover.step()
    assert house.store.published.lake["bars"].follows == 2
    house.lose_ticks()
    assert house.ask()["high"].to_pylist() == [30.0, 10.0]


def test_a_minute_of_two_parts_has_the_bar_of_both(house: House) -> None:
    house.put([tick(0)])
    house.roll()
    house.put([tick(1, sequence=2), tick(70, sequence=3)])
    house.roll()
    expected = house.ask_ticks()
    house.lose_ticks()
    assert_same(house.ask(), expected)


# When they are made


def test_rows_stay_in_memory_until_their_bars_are_kept(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise LakeFullError(Path("bars"), "there is no room")

    house.put([tick(0)])
    with monkeypatch.context() as patch:
        patch.setattr(bars_making, "write_file", full)
        with pytest.raises(LakeFullError):
            house.roll()
        house.lab.clock.instant += 2 * HOUR
        with pytest.raises(LakeFullError):
            house.store.rollover.step()
    assert in_memory(house.store) == [1]
    assert house.ask()["trades"].to_pylist() == [1]
    house.store.rollover.step()
    assert in_memory(house.store) == []
    assert len(house.kept()) == 1


def test_bars_that_a_life_left_undone_are_made_by_the_next(house: House) -> None:
    house.bulk([tick(0)])
    house.reopen()
    assert house.kept() == []
    assert house.ask()["trades"].to_pylist() == [1]
    house.store.rollover.step()
    assert [file.rows for file in house.kept()] == [1]


def test_candles_beside_kept_bars_fill_minutes_without_ticks(house: House) -> None:
    house.put([tick(0), tick(180, sequence=2)])
    for minute in (0, 1):
        house.candle("A", MIDNIGHT + minute * MINUTE)
    house.roll()
    house.lose_ticks()
    assert house.ask()["source"].to_pylist() == ["best", "candles", "best"]
    assert house.ask(Grid(parse_interval("5m")))["trades"].to_pylist() == [9]


def test_dropped_ticks_take_their_bars_along(house: House) -> None:
    house.put([tick(0), tick(90_000, sequence=2)])
    house.roll()
    drop_first_day(house.store.tables["ticks"])
    house.store._publication.show({"ticks": house.store.tables["ticks"].index})
    assert house.ask()["ts_event"].cast(pa.int64()).to_pylist() == [MIDNIGHT + DAY + HOUR]
    with pytest.raises(RetentionError):
        house.ask(span=(1, FOREVER))


def test_bars_that_were_dropped_before_their_ticks_are_computed(house: House) -> None:
    house.put([tick(0), tick(40 * 86_400, sequence=2)])
    house.roll()
    bars_table = house.store.tables["bars"]
    oldest = [file for file in bars_table.index if file.date == "2024-10"]
    bars_table.replace(oldest, [], transactions={RETENTION: MIDNIGHT // DAY + 30})
    house.store._publication.show({"bars": bars_table.index})
    assert house.ask()["trades"].to_pylist() == [1, 1]


def drop_first_day(table: LakeTable) -> None:
    oldest = [file for file in table.index if file.first < MIDNIGHT + DAY]
    table.replace(oldest, [], transactions={RETENTION: (MIDNIGHT + DAY) // DAY})
