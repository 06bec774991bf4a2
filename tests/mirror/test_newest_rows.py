"""The newest row of each symbol is kept, and nothing else."""

import json
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ingest.mirror.newest import Newest, fields_of, keys_of
from storage.schemas import GEX, TICKS
from tests.storage.conftest import NOON, gamma, ticks

ROWS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["MNQ", "SPY", "VIX"]),
        st.sampled_from(["demo", "import"]),
        st.integers(0, 3),
    ),
    max_size=8,
)


def batch(rows: list[tuple[int, str, str, int]], first: int = 0) -> pa.RecordBatch:
    return ticks(
        len(rows),
        ts_event=[NOON + at for at, *_ in rows],
        symbol=[symbol for _, symbol, *_ in rows],
        source=[source for *_, source, _ in rows],
        sequence=[sequence for *_, sequence in rows],
        price=[float(first + number) for number in range(len(rows))],
    )


@given(parts=st.lists(ROWS, max_size=6))
def test_the_last_in_total_order_is_kept_however_rows_come(
    parts: list[list[tuple[int, str, str, int]]],
) -> None:
    newest = Newest()
    best: dict[str, tuple[Any, ...]] = {}
    count = 0
    written: dict[str, dict[str, str]] = {}
    for part in parts:
        newest.take("ticks", batch(part, count))
        for number, (at, symbol, source, sequence) in enumerate(part):
            rank = (at, source, sequence)
            if symbol not in best or rank > best[symbol][0]:
                best[symbol] = (rank, float(count + number))
        count += len(part)
        written |= newest.unwritten()
    expected = {f"tickflight:ticks:{symbol}": str(price) for symbol, (_, price) in best.items()}
    assert {key: fields["price"] for key, fields in written.items()} == expected


def test_what_was_written_is_not_written_again_until_it_changes() -> None:
    newest = Newest()
    newest.take("ticks", ticks(3))
    assert newest.wait(0)
    assert list(newest.unwritten()) == ["tickflight:ticks:MNQ"]
    assert not newest.wait(0)
    newest.take("ticks", ticks(2))  # older than what is known
    assert newest.unwritten() == {}
    newest.all_again()
    assert list(newest.unwritten()) == ["tickflight:ticks:MNQ"]


def test_rows_that_come_fast_are_one_row_to_write() -> None:
    newest = Newest()
    for at in range(1_000):
        newest.take("ticks", ticks(1, ts_event=[NOON + at]))
    (fields,) = newest.unwritten().values()
    assert fields["ts_event"] == str(NOON + 999)
    assert len(newest) == 1


def test_gamma_is_kept_by_symbol_and_by_endpoint() -> None:
    newest = Newest()
    newest.take("gex", gamma(endpoint="gex_zero"))
    newest.take("gex", gamma(endpoint="gex_full", ts_event=NOON + 1))
    written = newest.unwritten()
    assert {key: fields["endpoint"] for key, fields in written.items()} == {
        "tickflight:gex:NQ_NDX": "gex_full",
        "tickflight:gex:NQ_NDX:gex_full": "gex_full",
        "tickflight:gex:NQ_NDX:gex_zero": "gex_zero",
    }


def test_a_row_is_text_that_reads_back() -> None:
    strikes = [{"strike": 20_000.0, "gex_vol": 1.5, "gex_oi": -2.0}]
    (row,) = gamma(strikes=[strikes], spot=20_001.25).to_pylist()
    fields = fields_of({**row, "ts_event": NOON})
    assert set(fields) == set(GEX.schema.names)
    assert fields["ts_event"] == str(NOON)
    assert float(fields["spot"]) == 20_001.25
    assert json.loads(fields["strikes"]) == strikes
    assert fields["zero_gamma"] == ""


def test_keys_say_dataset_and_symbol() -> None:
    assert keys_of("quotes", {"symbol": "BRK.B"}) == ["tickflight:quotes:BRK.B"]


def test_no_rows_change_nothing() -> None:
    newest = Newest()
    newest.take("ticks", TICKS.schema.empty_table())
    assert newest.unwritten() == {}
