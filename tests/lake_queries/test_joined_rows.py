"""Wherever its rows lie, a dataset reads as one list of them in total order would."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage import merge, streams
from storage.lake import reader
from storage.ledger import Gap
from storage.schemas import TICKS
from storage.selection import Order, Selection
from storage.snapshot import Snapshot
from storage.speakers import DAY
from storage.where import Where
from tests.lake_queries.conftest import PRIORITY, Pool, Row, batch_of, gap, rows_in
from tests.storage.conftest import HOUR, NOON

STEP = DAY // 5
FOREVER = 1 << 62
ROWS = st.builds(
    Row,
    ts=st.integers(0, 14).map(lambda step: NOON + step * STEP),
    source=st.sampled_from(["worst", "good", "best"]),
    contract=st.sampled_from(["A1", "A2", "B1"]),
    sequence=st.integers(0, 9),
    kind=st.integers(0, 1),
)
INSTANTS = st.integers(-1, 15).map(lambda step: NOON + step * STEP)
GAPS = st.lists(
    st.builds(
        lambda source, instants, state: gap(source, min(instants), max(instants), state),
        st.sampled_from(["good", "best"]),
        st.tuples(INSTANTS, INSTANTS),
        st.sampled_from(["open", "filled", "unfillable"]),
    ),
    max_size=4,
)


@dataclass(frozen=True)
class Spread:
    """Rows in memory, and in the parts of a lake."""

    hot: list[Row]
    parts: list[list[Row]]

    @property
    def rows(self) -> list[Row]:
        return [*self.hot, *(row for part in self.parts for row in part)]


@st.composite
def spreads(draw: st.DrawFn) -> Spread:
    rows = draw(st.lists(ROWS, max_size=25, unique_by=lambda row: replace(row, ts=0)))
    sides = draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    groups = [[row for row, at in zip(rows, sides, strict=True) if at == n] for n in range(4)]
    return Spread(groups[0], [part for part in groups[1:] if part])


def pooled(directory: str, spread: Spread, gaps: Sequence[Gap] = ()) -> Snapshot:
    pool = Pool(Path(directory), gaps=list(gaps))
    pool.remember(spread.hot)
    for part in spread.parts:
        pool.roll(batch_of(part))
    return pool.snapshot(NOON + 15 * STEP)


def spoken(rows: Sequence[Row], gaps: Sequence[Gap]) -> list[Row]:
    """The rows of the best source of each symbol and date, and of the next in its holes."""

    def in_hole(source: str, instant: int) -> bool:
        return any(
            one.source == source and one.state != "filled" and one.start <= instant < (one.end or 0)
            for one in gaps
        )

    def is_shown(row: Row) -> bool:
        lane = [r for r in rows if (r.symbol, r.ts // DAY) == (row.symbol, row.ts // DAY)]
        sources = {r.source for r in lane}
        ranked = [*(s for s in PRIORITY if s in sources), *sorted(sources - set(PRIORITY))]
        better = ranked[: ranked.index(row.source)]
        return all(in_hole(source, row.ts) for source in better)

    return sorted(row for row in rows if is_shown(row))


EXAMPLES = settings(max_examples=30)


class TestRange:
    @EXAMPLES
    @given(spreads(), INSTANTS, INSTANTS)
    def test_every_row_of_a_span_comes_once_and_in_order(
        self, spread: Spread, first: int, last: int
    ) -> None:
        start, end = sorted((first, last))
        expected = sorted(row for row in spread.rows if start <= row.ts < end)
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, spread)
            chosen = Selection(source="all")
            assert rows_in(snapshot.range("ticks", chosen, start, end).batches) == expected
            assert snapshot.count("ticks", chosen, start, end) in (None, len(expected))

    @EXAMPLES
    @given(spreads(), GAPS, INSTANTS)
    def test_the_next_source_speaks_inside_the_holes_of_the_best(
        self, spread: Spread, gaps: list[Gap], middle: int
    ) -> None:
        expected = spoken(spread.rows, gaps)
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, spread, gaps)
            found = rows_in(snapshot.range("ticks", Selection(), 0, FOREVER).batches)
            assert found == expected
            halves = [
                row
                for span in ((0, middle), (middle, FOREVER))
                for row in rows_in(snapshot.range("ticks", Selection(), *span).batches)
            ]
            assert halves == expected

    @EXAMPLES
    @given(spreads(), st.sampled_from(["good", "worst"]))
    def test_a_source_by_name_is_that_source_alone(self, spread: Spread, source: str) -> None:
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, spread)
            chosen = Selection(source=source)
            found = rows_in(snapshot.range("ticks", chosen, 0, FOREVER).batches)
            assert found == sorted(row for row in spread.rows if row.source == source)

    @EXAMPLES
    @given(spreads())
    def test_symbols_come_one_after_another_when_asked_for_so(self, spread: Spread) -> None:
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, spread)
            chosen = Selection(source="all")
            answer = snapshot.range("ticks", chosen, 0, FOREVER, Order.SYMBOL)
            expected = sorted(spread.rows, key=lambda row: (row.symbol, row))
            assert rows_in(answer.batches) == expected

    @EXAMPLES
    @given(spreads(), st.integers(1, 4))
    def test_batches_of_any_size_hold_the_same_rows(self, spread: Spread, size: int) -> None:
        with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
            patch.setattr(merge, "BLOCK_ROWS_TARGET", size)
            patch.setattr(streams, "BLOCK_ROWS_TARGET", size)
            patch.setattr(streams, "BATCH_ROWS_MIN", size)
            patch.setattr(streams, "MERGED_ROWS_MAX", size)
            patch.setattr(reader, "BATCH_ROWS", size)
            snapshot = pooled(directory, spread)
            batches = list(snapshot.range("ticks", Selection(source="all"), 0, FOREVER).batches)
            assert rows_in(batches) == sorted(spread.rows)
            assert all(batch.num_rows for batch in batches)

    @EXAMPLES
    @given(spreads())
    def test_the_days_of_a_range_are_those_with_rows(self, spread: Spread) -> None:
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, spread)
            days = snapshot.days("ticks", Selection(), 0, FOREVER)
            assert days == sorted({row.ts // DAY for row in spread.rows})

    @EXAMPLES
    @given(spreads(), st.integers(0, 9), st.integers(0, 14))
    def test_an_expression_keeps_the_rows_it_is_true_for(
        self, spread: Spread, price: int, step: int
    ) -> None:
        since = NOON + step * STEP
        where = Where.parse(
            f"price >= {price} and ts_event > make_timestamp({since})::timestamptz", TICKS
        )
        expected = sorted(row for row in spread.rows if row.price >= price and row.ts > since)
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, spread)
            chosen = Selection(columns=("sequence", "symbol"), source="all")
            answer = snapshot.range("ticks", chosen, 0, FOREVER, where=where)
            batches = list(answer.batches)
            assert all(batch.schema.names == ["sequence", "symbol"] for batch in batches)
            found = [n for batch in batches for n in batch["sequence"].to_pylist()]
            assert found == [row.sequence for row in expected]


ENDED_TOGETHER = [Row(NOON, source, "B1", 0) for source in ("good", "worst")]
OLD_AND_NEW_CONTRACT = [Row(NOON, "good", "A1", 0), Row(NOON + 15 * STEP, "good", "A2", 1)]


class TestLatest:
    @example(spread=Spread(ENDED_TOGETHER, []), limit=1, source=None)
    @example(spread=Spread(OLD_AND_NEW_CONTRACT, []), limit=6, source=None)
    @settings(max_examples=60)
    @given(spreads(), st.integers(1, 6), st.sampled_from([None, "all", "good"]))
    def test_latest_is_the_end_of_the_total_order_of_each_symbol(
        self, spread: Spread, limit: int, source: str | None
    ) -> None:
        now = NOON + 15 * STEP
        expected = []
        for symbol in "AB":
            rows = sorted(row for row in spread.rows if row.symbol == symbol)
            if source == "good":
                rows = [row for row in rows if row.source == source]
            elif source is None and rows:
                newest = {row.source: row.ts for row in rows}
                live = {name for name, ts in newest.items() if ts >= now - HOUR}
                last = {name for name, ts in newest.items() if ts == max(newest.values())}
                rows = [row for row in rows if row.source in (live or last)]
            expected += rows[-limit:]
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, spread)
            answer = snapshot.latest("ticks", Selection(source=source), limit)
            assert rows_in(answer.batches) == sorted(expected)

    @EXAMPLES
    @given(spreads())
    def test_extents_join_both_sides(self, spread: Spread) -> None:
        with tempfile.TemporaryDirectory() as directory:
            found = pooled(directory, spread).symbols("ticks")
        assert sorted(found) == sorted({row.symbol for row in spread.rows})
        for symbol, extent in found.items():
            own = sorted(row for row in spread.rows if row.symbol == symbol)
            assert (extent.rows, extent.first, extent.last) == (len(own), own[0].ts, own[-1].ts)
            assert extent.sources == {row.source for row in own}
