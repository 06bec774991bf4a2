"""Datasets of lists and text come from both sides, be their files of one symbol or of several."""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.batched import BatchDecoder, BatchedStore
from storage.batched_view import BatchedView
from storage.schemas import GEX, SERVICE_EVENTS, Dataset
from storage.selection import Order, Selection
from storage.snapshot import Snapshot
from storage.speakers import DAY
from storage.where import Where
from tests.lake_queries.conftest import Pool
from tests.storage.conftest import NOON, gamma

FOREVER = 1 << 62
STEP = DAY // 3
SIDES = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(["NQ_NDX", "SPY", None]), st.integers(0, 2)),
    max_size=15,
    unique_by=lambda row: row[0:2],
)
SOME = settings(max_examples=25)


def events(rows: list[tuple[int, str | None]]) -> pa.RecordBatch:
    instants = [NOON + step * STEP for step, _ in rows]
    names = [f"{symbol}@{step}" for step, symbol in rows]
    columns: dict[str, Any] = {
        "ts_event": instants,
        "ts_recv": instants,
        "symbol": [symbol for _, symbol in rows],
        "service": ["x"] * len(rows),
        "level": ["info"] * len(rows),
        "event": names,
        "detail": names,
    }
    schema = SERVICE_EVENTS.schema
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def gammas(rows: list[tuple[int, str | None]]) -> pa.RecordBatch:
    made = [
        gamma(ts_event=NOON + step * STEP, symbol=symbol or "MNQ", spot=float(step))
        for step, symbol in rows
    ]
    return pa.concat_batches(made)


def pooled(directory: str, dataset: Dataset, made: Any, rows: list[Any]) -> Snapshot:
    pool = Pool(Path(directory), dataset)
    store = BatchedStore(dataset)
    for side in range(3):
        own = [(step, symbol) for step, symbol, at in rows if at == side]
        if not own:
            continue
        batch = made(own)
        decoded, rejected = BatchDecoder(dataset, batch.schema).decode(batch)
        assert rejected == []
        if side == 0:
            store.append(decoded)
        else:
            pool.roll(decoded)
    pool.hot = lambda: BatchedView(store.state)
    return pool.snapshot()


def told(batches: Any) -> list[tuple[int, str | None]]:
    table = pa.Table.from_batches(batches)
    instants = table["ts_event"].cast(pa.int64()).to_pylist()
    steps = [(instant - NOON) // STEP for instant in instants]
    return list(zip(steps, table["symbol"].to_pylist(), strict=True))


def in_order(row: tuple[int, str | None]) -> tuple[int, bool, str]:
    return (row[0], row[1] is None, row[1] or "")


class TestMixedFiles:
    """Operational datasets have their symbols in one file, one after another."""

    @SOME
    @given(SIDES, st.integers(0, 8))
    def test_all_rows_come_in_order_of_time(self, rows: list[Any], since: int) -> None:
        expected = sorted([(s, n) for s, n, _ in rows if s >= since], key=in_order)
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, SERVICE_EVENTS, events, rows)
            start = NOON + since * STEP
            answer = snapshot.range("service_events", Selection(), start, FOREVER)
            assert told(list(answer.batches) or [events([])]) == expected
            assert snapshot.days("service_events", Selection(), 0, FOREVER) == sorted(
                {(NOON + s * STEP) // DAY for s, _, _ in rows}
            )

    @SOME
    @given(SIDES, st.integers(1, 3))
    def test_latest_is_the_end_of_each_symbol(self, rows: list[Any], limit: int) -> None:
        expected: list[tuple[int, str | None]] = []
        for symbol in ("NQ_NDX", "SPY", None):
            expected += sorted((s, n) for s, n, _ in rows if n == symbol)[-limit:]
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, SERVICE_EVENTS, events, rows)
            found = told(snapshot.latest("service_events", Selection(), limit).batches)
            assert found == sorted(expected, key=in_order)
            extents = snapshot.symbols("service_events")
            assert sorted(extents) == sorted({n for _, n, _ in rows if n})

    @SOME
    @given(SIDES)
    def test_symbols_follow_each_other_and_rows_without_one_come_last(
        self, rows: list[Any]
    ) -> None:
        expected = sorted([(s, n) for s, n, _ in rows], key=lambda r: (r[1] is None, r[1] or "", r))
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, SERVICE_EVENTS, events, rows)
            answer = snapshot.range("service_events", Selection(), 0, FOREVER, Order.SYMBOL)
            assert told(list(answer.batches) or [events([])]) == expected

    @SOME
    @given(SIDES)
    def test_one_symbol_is_told_apart(self, rows: list[Any]) -> None:
        where = Where.parse("detail like 'SPY%'", SERVICE_EVENTS)
        expected = sorted((s, n) for s, n, _ in rows if n == "SPY")
        with tempfile.TemporaryDirectory() as directory:
            snapshot = pooled(directory, SERVICE_EVENTS, events, rows)
            for selection, chosen in ((Selection(symbols=("SPY",)), None), (Selection(), where)):
                answer = snapshot.range("service_events", selection, 0, FOREVER, where=chosen)
                assert told(list(answer.batches) or [events([])]) == expected


@SOME
@given(SIDES)
def test_gamma_comes_from_both_sides_with_its_lists(rows: list[Any]) -> None:
    expected = sorted((s, n or "MNQ") for s, n, _ in rows)
    with tempfile.TemporaryDirectory() as directory:
        snapshot = pooled(directory, GEX, gammas, rows)
        batches = list(snapshot.range("gex", Selection(), 0, FOREVER).batches)
        assert told(batches or [gamma().slice(0, 0)]) == expected
        newest = snapshot.latest("gex", Selection(), 1)
        assert sorted(str(n) for _, n in told(newest.batches)) == sorted({n for _, n in expected})
        assert all(batch.schema == GEX.wire_schema for batch in batches)
