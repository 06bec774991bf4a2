"""The hash of rows: what changes it, and what must not."""

import random
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from storage.lake.layout import from_lake, to_lake
from storage.lake.row_hash import as_text, combine, from_text, row_hash
from storage.schemas import GEX, QUARANTINE, TICKS
from tests.lake.lake_making import tick_table
from tests.storage.conftest import gamma

Row = dict[str, Any]
prices = st.one_of(st.none(), st.floats(allow_nan=False))
texts = st.one_of(st.none(), st.text(max_size=4))
rows_of_ticks = st.lists(
    st.fixed_dictionaries(
        {
            "ts_event": st.integers(0, 1 << 52),
            "price": st.floats(allow_nan=False),
            "bid": prices,
            "ask": prices,
            "side": st.integers(-1, 1),
            "flags": st.integers(0, 511),
            "condition": texts,
            "exchange": texts,
            "sequence": st.integers(-(1 << 63), (1 << 63) - 1),
        }
    ),
    min_size=1,
    max_size=20,
)


def as_ticks(rows: list[Row]) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return tick_table(len(rows), **columns)


@given(rows_of_ticks, st.randoms(use_true_random=False), st.integers(1, 7))
def test_neither_order_nor_batching_changes_a_hash(
    rows: list[Row], chance: random.Random, size: int
) -> None:
    table = as_ticks(rows)
    shuffled = table.take(chance.sample(range(len(rows)), len(rows)))
    pieces = [shuffled.slice(start, size) for start in range(0, len(rows), size)]
    assert combine(row_hash(piece, TICKS) for piece in pieces) == row_hash(table, TICKS)


@given(rows_of_ticks, st.data())
def test_any_other_value_anywhere_changes_a_hash(rows: list[Row], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(sorted(rows[0])))
    values = {"side": (-1, 0, 1), "exchange": (None, "", "X"), "condition": (None, "", "@")}
    other = data.draw(st.sampled_from(values.get(name, (0, 1, 2))))
    changed = [dict(row) for row in rows]
    changed[at][name] = other
    before, after = as_ticks(rows), as_ticks(changed)
    same = repr(before.to_pylist()) == repr(after.to_pylist())  # in which 0.0 is not -0.0
    assert (row_hash(after, TICKS) == row_hash(before, TICKS)) is same


def test_every_single_bit_of_a_number_counts() -> None:
    plain = row_hash(tick_table(3, sequence=[1, 2, 3]), TICKS)
    flipped = {row_hash(tick_table(3, sequence=[1, 2 ^ (1 << n), 3]), TICKS) for n in range(63)}
    assert len(flipped) == 63
    assert plain not in flipped


def test_values_that_change_places_change_a_hash() -> None:
    one = tick_table(2, bid=[1.0, 2.0], ask=[3.0, 4.0])
    columns_exchanged = tick_table(2, bid=[3.0, 4.0], ask=[1.0, 2.0])
    rows_exchanged = tick_table(2, bid=[2.0, 1.0], ask=[3.0, 4.0])
    assert len({row_hash(rows, TICKS) for rows in (one, columns_exchanged, rows_exchanged)}) == 3


def test_how_rows_are_encoded_does_not_change_a_hash() -> None:
    rows = tick_table(4, condition=["@", None, "", "@"], bid=[None, 1.0, -0.0, 0.0])
    stored = to_lake(rows, TICKS)
    expected = row_hash(rows, TICKS)
    assert row_hash(rows.cast(TICKS.wire_schema), TICKS) == expected
    assert row_hash(stored, TICKS, "MNQ") == expected
    assert row_hash(from_lake(stored, TICKS, "MNQ"), TICKS) == expected
    assert row_hash(stored, TICKS, "NQ") != expected


def test_what_is_no_number_is_missing() -> None:
    unknown = pa.array([float("nan"), float("nan")])
    missing = tick_table(2, bid=[None, None])
    assert row_hash(tick_table(2, bid=unknown), TICKS) == row_hash(missing, TICKS)


def test_rows_keep_their_hash_when_a_dataset_gains_a_column() -> None:
    rows = tick_table(3, exchange=None)
    assert row_hash(rows.drop_columns(["exchange"]), TICKS) == row_hash(rows, TICKS)


def test_what_a_list_holds_and_in_which_order_counts() -> None:
    def hash_of(strikes: list[Row] | None) -> int:
        column = pa.array([strikes], GEX.schema.field("strikes").type)
        return row_hash(gamma(strikes=column), GEX)

    low = {"strike": 1.0, "gex_vol": 2.0, "gex_oi": None}
    high = {"strike": 2.0, "gex_vol": 2.0, "gex_oi": 0.0}
    variants: list[list[Row] | None] = [None, [], [low], [high], [low, high], [high, low]]
    assert len({hash_of(strikes) for strikes in variants}) == len(variants)


def test_a_slice_of_lists_hashes_as_the_same_rows_alone() -> None:
    one, other = ([{"strike": float(n), "gex_vol": 1.0, "gex_oi": 1.0}] * n for n in (2, 3))
    kind = GEX.schema.field("strikes").type
    batches = [gamma(strikes=pa.array([strikes], kind)) for strikes in (one, None, other)]
    table = pa.Table.from_batches(batches).combine_chunks()
    for n, batch in enumerate(batches):
        assert row_hash(table.slice(n, 1), GEX) == row_hash(batch, GEX)


def test_a_hash_never_changes_with_a_version() -> None:
    """What a ledger holds today must be found again in years."""
    rows = tick_table(3, condition=["@", None, "é"], bid=[None, 1.5, -2.0])
    assert as_text(row_hash(rows, TICKS)) == "0ae5532dc5f14607"
    quarantined = pa.table(
        {"symbol": [None, "MNQ"], "payload": ["{}", "long " * 100], "reason": ["x", "y"]}
    )
    assert as_text(row_hash(quarantined, QUARANTINE)) == "8476a4cf73cd7953"


def test_the_text_of_a_hash_has_all_its_digits() -> None:
    assert as_text(10) == "000000000000000a"
    assert from_text(as_text((1 << 64) - 1)) == (1 << 64) - 1
