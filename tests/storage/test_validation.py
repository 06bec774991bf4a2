"""The door: refused, quarantined, flagged or stored."""

import json
from typing import Any

import pyarrow as pa
import pytest

from storage.errors import InvalidDataError, SchemaMismatchError
from storage.schemas import DATASETS, TICKS, Flag
from storage.store import Store
from storage.validation import check_schema
from tests.storage.conftest import NOON, Lab, gamma, rows_of, send, stored, ticks

SECOND = 1_000_000
GOOD_SEQUENCE = 99


def with_column(name: str, data_type: pa.DataType) -> pa.Schema:
    at = TICKS.schema.get_field_index(name)
    return TICKS.schema.set(at, pa.field(name, data_type))


class TestSchemaRefusals:
    @pytest.mark.parametrize(
        ("schema", "column"),
        [
            (TICKS.schema.append(pa.field("venue", pa.string())), "venue"),
            (TICKS.schema.append(TICKS.schema.field("price")), "price"),
            (TICKS.schema.remove(TICKS.schema.get_field_index("price")), "price"),
            (with_column("price", pa.float32()), "price"),
            (with_column("price", pa.string()), "price"),
            (with_column("side", pa.int64()), "side"),
            (with_column("symbol", pa.binary()), "symbol"),
            (with_column("symbol", pa.dictionary(pa.int32(), pa.int64())), "symbol"),
            (with_column("symbol", pa.dictionary(pa.int32(), pa.string_view())), "symbol"),
            (with_column("ts_event", pa.timestamp("ns", tz="UTC")), "ts_event"),
            (with_column("ts_event", pa.timestamp("us")), "ts_event"),
        ],
    )
    def test_a_wrong_schema_is_refused_naming_the_column(
        self, schema: pa.Schema, column: str
    ) -> None:
        with pytest.raises(SchemaMismatchError, match=column) as caught:
            check_schema(TICKS, schema)
        assert caught.value.field == column

    @pytest.mark.parametrize("name", ["bid", "ask", "exchange", "condition"])
    def test_a_nullable_column_may_be_missing(self, store: Store, name: str) -> None:
        assert send(store, ticks(2).drop_columns([name])).rows == 2
        assert [row[name] for row in stored(store)] == [None, None]

    def test_columns_may_come_in_any_order(self, store: Store) -> None:
        batch = ticks(2, price=[1.25, 2.25])
        assert send(store, batch.select(batch.schema.names[::-1])).rows == 2
        assert [row["price"] for row in stored(store)] == [1.25, 2.25]

    def test_an_unknown_dataset_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidDataError, match="the datasets are ticks") as caught:
            store.open_stream("trades", TICKS.schema)
        assert caught.value.field == "dataset"


class TestStrings:
    @pytest.mark.parametrize(
        "array",
        [
            pa.array(["MNQ", "ES", "MNQ"]),
            pa.array(["MNQ", "ES", "MNQ"], pa.large_string()),
            pa.array(["MNQ", "ES", "MNQ"], pa.string_view()),
            pa.array(["MNQ", "ES", "MNQ"]).dictionary_encode(),
            pa.array(["MNQ", "ES", "MNQ"], pa.large_string()).dictionary_encode(),
            pa.DictionaryArray.from_arrays(pa.array([2, 0, 2], pa.uint8()), ["ES", "?", "MNQ"]),
            pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], pa.int64()), ["ES", "MNQ"]),
            pa.array(["XX", "MNQ", "ES", "MNQ", "XX"]).slice(1, 3),
            pa.array(["XX", "MNQ", "ES", "MNQ", "XX"]).dictionary_encode().slice(1, 3),
        ],
        ids=range(9),
    )
    def test_strings_come_in_any_encoding(self, store: Store, array: pa.Array) -> None:
        assert send(store, ticks(3, symbol=array)).rows == 3
        assert [row["symbol"] for row in stored(store)] == ["MNQ", "ES", "MNQ"]

    @pytest.mark.parametrize(
        "data_type",
        [
            pa.large_string(),
            pa.string_view(),
            pa.dictionary(pa.int8(), pa.string()),
            pa.dictionary(pa.int32(), pa.large_string()),
        ],
        ids=str,
    )
    def test_strings_come_in_any_encoding_into_batches_too(
        self, store: Store, data_type: pa.DataType
    ) -> None:
        names = {name: pa.array(["x"]).cast(data_type) for name in ("endpoint", "source")}
        assert send(store, gamma(**names), dataset="gex").rows == 1
        assert [row["endpoint"] for row in stored(store, "gex")] == ["x"]

    def test_an_index_beyond_its_dictionary_is_refused(self, store: Store) -> None:
        indices = pa.array([0, 7], pa.int32())
        bad = pa.DictionaryArray.from_arrays(indices, pa.array(["MNQ"]), safe=False)
        with pytest.raises(InvalidDataError, match="not valid Arrow data"):
            send(store, ticks(2, symbol=bad))

    def test_a_null_hidden_in_a_dictionary_is_a_missing_value(self, store: Store) -> None:
        names = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), [None, "MNQ"])
        assert send(store, ticks(2, symbol=names)).quarantined == 1
        assert [row["symbol"] for row in stored(store)] == ["MNQ"]
        assert store.snapshot().symbols("ticks").keys() == {"MNQ"}

    def test_a_null_hidden_in_a_dictionary_is_null_where_it_may_be(self, store: Store) -> None:
        names = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), [None, "NASDAQ"])
        assert send(store, ticks(2, exchange=names)).rows == 2
        assert [row["exchange"] for row in stored(store)] == [None, "NASDAQ"]

    def test_dictionaries_that_can_not_be_joined_are_taken_one_by_one(self, store: Store) -> None:
        def batch(number: int, spare: str | None) -> pa.RecordBatch:
            names = [*(f"C{number}.{i}" for i in range(90)), spare]
            contract = pa.DictionaryArray.from_arrays(pa.array(range(90), pa.int8()), names)
            sequences = list(range(number * 90, number * 90 + 90))
            return ticks(90, contract=contract, sequence=sequences)

        taken = send(store, *(batch(n, None if n % 2 else "spare") for n in range(20)))
        assert taken.rows == 20 * 90


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({name: None}, f"{name} is missing") for name in TICKS.required
]
IMPOSSIBLE += [
    ({"price": float("nan")}, "price is not a finite number"),
    ({"price": float("inf")}, "price is not a finite number"),
    ({"size": float("-inf")}, "size is not a finite number"),
    ({"bid": float("inf")}, "bid is not a finite number"),
    ({"size": -1.0}, "size is negative"),
    ({"side": 2}, "side is not in -1…1"),
    ({"kind": 3}, "kind is not in 0…2"),
    ({"symbol": "mnq"}, "symbol is not a name we can keep"),
    ({"symbol": ""}, "symbol is not a name we can keep"),
    ({"contract": "x" * 257}, "contract is not a name we can keep"),
    ({"ts_event": -1}, "ts_event lies outside 1970 to 2200"),
    ({"ts_event": NOON * 1000}, "ts_event lies outside 1970 to 2200"),
    ({"ts_recv": NOON * 1000}, "ts_recv lies outside 1970 to 2200"),
]
REASONS = [f"{number} {reason}" for number, (_, reason) in enumerate(IMPOSSIBLE)]


class TestImpossibleRows:
    @pytest.mark.parametrize(("bad", "reason"), IMPOSSIBLE, ids=REASONS)
    def test_an_impossible_row_goes_to_quarantine_with_its_reason(
        self, store: Store, bad: dict[str, Any], reason: str
    ) -> None:
        good = ticks(1, sequence=[GOOD_SEQUENCE])
        batch = pa.concat_batches([good, ticks(1, **{k: [v] for k, v in bad.items()})])
        taken = send(store, batch)
        assert (taken.rows, taken.quarantined, taken.duplicates) == (1, 1, 0)
        assert [row["sequence"] for row in stored(store)] == [GOOD_SEQUENCE]
        (put_aside,) = stored(store, "quarantine")
        assert (put_aside["dataset"], put_aside["reason"]) == ("ticks", reason)
        assert put_aside["ts_event"] == NOON

    @pytest.mark.parametrize(("bad", "reason"), IMPOSSIBLE, ids=REASONS)
    def test_the_payload_is_the_row_as_strict_json(
        self, store: Store, bad: dict[str, Any], reason: str
    ) -> None:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        send(store, ticks(1, **{name: [value] for name, value in bad.items()}))
        (put_aside,) = stored(store, "quarantine")
        payload = json.loads(put_aside["payload"], parse_constant=refuse)
        assert payload.keys() == set(TICKS.schema.names), reason
        for name, value in bad.items():
            assert payload[name] in (value, str(value))

    def test_a_row_that_is_wrong_twice_is_put_aside_once(self, store: Store) -> None:
        taken = send(store, ticks(1, price=float("nan"), size=-1.0, symbol=["?"]))
        assert (taken.rows, taken.quarantined) == (0, 1)
        assert len(stored(store, "quarantine")) == 1

    def test_only_a_good_symbol_names_the_row_in_quarantine(self, store: Store) -> None:
        batch = ticks(3, symbol=["MNQ", "?", None], size=-1.0, ts_event=[NOON] * 3)
        send(store, batch)
        symbols = [row["symbol"] for row in stored(store, "quarantine")]
        assert sorted(symbols, key=str) == ["MNQ", None, None]

    def test_rows_and_rejects_of_a_batch_are_durable_together(self, lab: Lab) -> None:
        store = lab.open()
        send(store, ticks(4, size=[1.0, -1.0, 1.0, -1.0]))
        store = lab.reopen(store)
        assert len(stored(store)) == 2
        assert len(stored(store, "quarantine")) == 2

    def test_a_batch_without_rows_is_fine(self, store: Store) -> None:
        taken = send(store, ticks(0), producer="p")
        assert (taken.seq, taken.rows) == (1, 0)

    def test_nan_in_a_nullable_number_is_absence(self, store: Store) -> None:
        taken = send(store, ticks(2, bid=[float("nan"), 1.0], ask=[None, 2.0]))
        assert (taken.rows, taken.quarantined) == (2, 0)
        assert [(row["bid"], row["ask"]) for row in stored(store)] == [(None, None), (1.0, 2.0)]

    def test_nan_is_absence_in_datasets_of_batches_too(self, store: Store) -> None:
        taken = send(store, gamma(spot=float("nan"), zero_gamma=5.0), dataset="gex")
        assert (taken.rows, taken.quarantined) == (1, 0)
        (row,) = stored(store, "gex")
        assert (row["spot"], row["zero_gamma"]) == (None, 5.0)

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"ts_event": NOON * 1000}, "ts_event lies outside 1970 to 2200"),
            ({"spot": float("inf")}, "spot is not a finite number"),
            ({"symbol": "nq"}, "symbol is not a name we can keep"),
            ({"endpoint": None}, "endpoint is missing"),
        ],
    )
    def test_datasets_of_batches_have_impossible_rows_too(
        self, store: Store, bad: dict[str, Any], reason: str
    ) -> None:
        assert send(store, gamma(**bad), dataset="gex").quarantined == 1
        (put_aside,) = stored(store, "quarantine")
        assert (put_aside["dataset"], put_aside["reason"]) == ("gex", reason)
        assert put_aside["symbol"] == (None if "symbol" in bad else "NQ_NDX")
        assert stored(store, "gex") == []


def suspicious(store: Store, dataset: str = "ticks") -> list[bool]:
    return [bool(row["flags"] & Flag.SUSPICIOUS) for row in stored(store, dataset)]


class TestImprobableRows:
    @pytest.mark.parametrize(
        "odd",
        [
            {"bid": 2.0, "ask": 1.0},
            {"price": 20_000.1},
            {"price": 0.0},
            {"price": -5.0},
            {"ts_event": NOON + 3 * SECOND},
            {"symbol": "SPY", "contract": "SPY", "price": 0.0},
        ],
        ids=str,
    )
    def test_an_improbable_row_is_stored_and_flagged(
        self, store: Store, odd: dict[str, Any]
    ) -> None:
        taken = send(store, ticks(1, **{name: [value] for name, value in odd.items()}))
        assert (taken.rows, taken.quarantined) == (1, 0)
        assert suspicious(store) == [True]
        assert stored(store)[0]["flags"] == Flag.VALID_TICK | Flag.SUSPICIOUS

    @pytest.mark.parametrize(
        "fine",
        [
            {"bid": 2.0, "ask": 2.0},
            {"bid": 2.0},
            {"price": 20_000.75},
            {"ts_event": NOON + SECOND},
            {"symbol": "SPY", "contract": "SPY", "price": 432.3391},
        ],
        ids=str,
    )
    def test_a_probable_row_is_not(self, store: Store, fine: dict[str, Any]) -> None:
        send(store, ticks(1, **{name: [value] for name, value in fine.items()}))
        assert suspicious(store) == [False]

    def test_a_price_far_from_the_last_of_its_feed_is_suspicious(self, store: Store) -> None:
        for sequence, price in enumerate([100.0, 119.0, 143.0, 143.0], start=1):
            instant = NOON + sequence
            send(store, ticks(1, price=price, sequence=[sequence], ts_event=[instant]))
        assert suspicious(store) == [False, False, True, False]

    def test_another_feed_has_prices_of_its_own(self, store: Store) -> None:
        send(store, ticks(1, price=100.0))
        send(store, ticks(1, price=500.0, contract="/MNQH27:XCME"))
        send(store, ticks(1, price=900.0, source="other"))
        assert suspicious(store) == [False, False, False]

    def test_backfilled_rows_are_spared_the_clock_and_the_last_price(self, store: Store) -> None:
        flags = Flag.VALID_TICK | Flag.BACKFILLED
        send(store, ticks(1, price=100.0))
        later = NOON + 3 * SECOND
        send(store, ticks(1, price=500.0, flags=flags, ts_event=[later], sequence=[2]))
        send(store, ticks(1, price=101.0, sequence=[3]))
        assert suspicious(store) == [False, False, False]

    def test_backfilled_rows_are_not_spared_the_grid(self, store: Store) -> None:
        send(store, ticks(1, price=100.1, flags=int(Flag.BACKFILLED)))
        assert suspicious(store) == [True]

    def test_prices_at_the_end_of_the_floats_are_only_suspicious(self, store: Store) -> None:
        send(store, ticks(1, price=1e308))
        send(store, ticks(1, price=-1e308, sequence=[2]))
        assert send(store, ticks(1, sequence=[3])).rows == 1

    def test_a_book_is_cleared_without_suspicion(self, store: Store) -> None:
        shared = {
            "ts_event": NOON,
            "ts_recv": NOON,
            "symbol": "MNQ",
            "contract": "/MNQZ26:XCME",
            "side": 1,
            "size": 1.0,
            "orders": 1,
            "flags": 1,
            "source": "sierra",
        }
        batch = rows_of(
            DATASETS["depth"],
            3,
            shared,
            action=[0, 1, 1],
            price=[0.0, 5.0, 0.0],
            sequence=[1, 2, 3],
        )
        send(store, batch, dataset="depth")
        assert suspicious(store, "depth") == [False, False, True]
