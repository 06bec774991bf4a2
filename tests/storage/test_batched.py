"""Datasets of lists and free text: the batches as they came."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.batched import COALESCE_BATCHES, COALESCE_ROWS, BatchDecoder, BatchedStore
from storage.schemas import GEX, JOBS
from storage.selection import Order, Selection
from tests.storage.conftest import NOON, Alone, gamma, rows_of

ALL = Selection()
SYMBOLS = st.sampled_from(["NQ_NDX", "ES_SPX", "SPY"])


def snapshots(minutes: list[int], symbols: list[str] | None = None) -> pa.RecordBatch:
    batches = [
        gamma(ts_event=NOON + minute, spot=float(minute), symbol=symbol)
        for minute, symbol in zip(minutes, symbols or ["NQ_NDX"] * len(minutes), strict=True)
    ]
    return pa.concat_batches(batches) if batches else gamma().slice(0, 0)


def append(store: BatchedStore, batch: pa.RecordBatch) -> int:
    conformed, rejected = BatchDecoder(store.dataset, batch.schema).decode(batch)
    assert rejected == []
    return store.append(conformed)


def spots(store: BatchedStore, view: Alone | None = None) -> list[float]:
    batches = (view or Alone(store.state)).range(ALL, 0, 1 << 62, Order.TIME)
    return [spot for batch in batches for spot in batch["spot"].to_pylist()]


@given(st.lists(st.lists(st.integers(0, 30), max_size=5), max_size=2 * COALESCE_BATCHES))
def test_the_first_of_each_identity_stays_and_views_never_change(batches: list[list[int]]) -> None:
    store, model, views = BatchedStore(GEX), list[int](), []
    for minutes in batches:
        views.append((Alone(store.state), sorted(model)))
        fresh = [m for m in dict.fromkeys(minutes) if m not in model]
        assert append(store, snapshots(minutes)) == len(minutes) - len(fresh)
        model += fresh
    for view, expected in views:
        assert spots(store, view) == expected


def test_small_batches_are_joined_and_views_of_before_still_read() -> None:
    store = BatchedStore(GEX)
    views = []
    for minute in range(3 * COALESCE_BATCHES):
        append(store, snapshots([minute]))
        views.append(Alone(store.state))
    assert len(store.state.held[1]) == 3
    for count, view in enumerate(views, start=1):
        assert len(spots(store, view)) == count


def test_large_batches_stay_as_they_are() -> None:
    store = BatchedStore(JOBS)
    job = {"job_id": "1", "kind": "k", "payload": "{}", "state": "done", "priority": "low"}
    large = rows_of(JOBS, COALESCE_ROWS, {**job, "ts_event": NOON, "ts_recv": NOON})
    for _ in range(COALESCE_BATCHES + 1):
        append(store, large)
    assert len(store.state.held[1]) == COALESCE_BATCHES + 1


@pytest.mark.parametrize("span", [(0, 1), (5, 70), (63, 65), (64, 128), (0, 130), (7, 7)])
def test_the_journal_reads_any_span_of_positions(span: tuple[int, int]) -> None:
    store = BatchedStore(GEX, first=1000)
    for minute in range(130):
        append(store, snapshots([minute]))
    batches = store.journal_batches(1000 + span[0], 1000 + span[1])
    assert [spot for b in batches for spot in b["spot"].to_pylist()] == list(range(*span))


@given(st.lists(st.tuples(st.integers(0, 9), SYMBOLS), unique=True), st.integers(1, 4))
def test_latest_is_the_end_of_each_symbol(rows: list[tuple[int, str]], limit: int) -> None:
    store = BatchedStore(GEX)
    append(store, snapshots([minute for minute, _ in rows], [symbol for _, symbol in rows]))
    found = Alone(store.state).latest(ALL, limit, NOON).select(["spot", "symbol"]).to_pylist()
    expected = [
        (minute, symbol)
        for symbol in ("NQ_NDX", "ES_SPX", "SPY")
        for minute, symbol in sorted(row for row in rows if row[1] == symbol)[-limit:]
    ]
    assert sorted((row["spot"], row["symbol"]) for row in found) == sorted(expected)
    assert [row["spot"] for row in found] == sorted(row["spot"] for row in found)


def test_a_symbol_order_groups_by_symbol() -> None:
    store = BatchedStore(GEX)
    append(store, snapshots([1, 2, 3], ["SPY", "NQ_NDX", "SPY"]))
    batches = Alone(store.state).range(ALL, 0, 1 << 62, Order.SYMBOL)
    found = [symbol for batch in batches for symbol in batch["symbol"].to_pylist()]
    assert found == ["NQ_NDX", "SPY", "SPY"]


def test_an_answer_without_rows_has_the_wire_schema() -> None:
    batch = Alone(BatchedStore(GEX).state).latest(ALL, 10, NOON)
    assert batch.num_rows == 0
    assert batch.schema.equals(GEX.wire_schema)


def test_extents_and_symbols_are_those_of_the_rows() -> None:
    store = BatchedStore(GEX)
    append(store, snapshots([4, 2, 9], ["SPY", "NQ_NDX", "SPY"]))
    view = Alone(store.state)
    assert view.symbols() == ["NQ_NDX", "SPY"]
    extent = view.extent("SPY")
    assert extent is not None
    assert (extent.rows, extent.first, extent.last) == (2, NOON + 4, NOON + 9)
    assert view.extent("VIX") is None
