"""DoPut: batches in, durable acks out, whatever the client does."""

import json
import threading
import time
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import flight

from flight_server import batches
from flight_server.identity import Scope
from storage.schemas import TICKS
from tests.flight_server.conftest import Caller, House, Put, ticks, told, until


def rows(caller: Caller, symbol: str) -> list[dict[str, Any]]:
    ticket = {"op": "range", "dataset": "ticks", "symbols": [symbol], "start": 0, "end": "now"}
    found: list[dict[str, Any]] = caller.get({**ticket, "source": "all"}).to_pylist()
    return found


def sequences(caller: Caller, symbol: str) -> list[int]:
    return sorted(row["sequence"] for row in rows(caller, symbol))


def numbered(symbol: str, *wanted: int) -> pa.RecordBatch:
    return ticks(len(wanted), symbol=symbol, sequence=list(wanted))


class TestAcks:
    def test_an_ack_counts_what_became_of_the_rows(self, anyone: Caller) -> None:
        batch = ticks(4, symbol="ACK", size=[1.0, -1.0, 1.0, 1.0], sequence=[1, 2, 1, 3])
        found = anyone.put(batch, producer="ack")
        assert found == {"seq": 1, "rows": 2, "quarantined": 1, "duplicates": 1}

    def test_acks_name_the_newest_durable_batch_and_end_with_the_last(self, anyone: Caller) -> None:
        stream = anyone.open()
        for seq in range(1, 301):
            stream.write(numbered("SEQ", seq), "seq", seq)
        total = stream.finish()
        newest = [ack["seq"] for ack in stream.acks]
        assert newest == sorted(newest)
        assert (newest[-1], total["rows"]) == (300, 300)

    def test_an_acknowledged_row_is_visible(self, anyone: Caller) -> None:
        stream = anyone.open()
        for seq in range(1, 30):
            stream.write(numbered("VIS", seq), "vis", seq)
            ack = stream.next_ack()
            assert ack is not None
            assert sequences(anyone, "VIS") == list(range(1, seq + 1))
        stream.finish()

    def test_a_resent_batch_is_acknowledged_and_not_taken_twice(self, anyone: Caller) -> None:
        first = anyone.put(numbered("RES", 1), numbered("RES", 2), producer="res")
        again = anyone.put(numbered("RES", 7), numbered("RES", 8), producer="res")
        assert (first["seq"], again) == (
            2,
            {"seq": 2, "rows": 0, "quarantined": 0, "duplicates": 0},
        )
        assert sequences(anyone, "RES") == [1, 2]

    def test_without_numbers_batches_are_taken_each_time(self, anyone: Caller) -> None:
        assert anyone.put(numbered("PLAIN", 1), numbered("PLAIN", 2))["rows"] == 2
        assert anyone.put(numbered("PLAIN", 2), numbered("PLAIN", 3))["duplicates"] == 1
        assert sequences(anyone, "PLAIN") == [1, 2, 3]

    def test_a_stream_without_batches_ends_without_an_ack(self, anyone: Caller) -> None:
        assert anyone.open().finish()["seq"] == 0


class TestShapes:
    @pytest.mark.parametrize(
        "data_type",
        [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
        ids=str,
    )
    def test_columns_come_in_any_order_and_encoding(
        self, anyone: Caller, data_type: pa.DataType
    ) -> None:
        symbol = f"ENC{data_type.id}"
        table = pa.Table.from_batches([ticks(2, symbol=symbol)])
        names = table.schema.names[::-1]
        fields = [table.schema.field(name) for name in names]
        schema = pa.schema(
            [f.with_type(data_type) if pa.types.is_string(f.type) else f for f in fields]
        )
        (batch,) = table.select(names).cast(schema).to_batches()
        assert anyone.put(batch)["rows"] == 2
        assert rows(anyone, symbol)[0]["contract"] == symbol

    def test_nullable_columns_may_be_missing(self, anyone: Caller) -> None:
        batch = ticks(1, symbol="FEW").drop_columns(["bid", "ask", "exchange", "condition"])
        assert anyone.put(batch)["rows"] == 1
        assert rows(anyone, "FEW")[0]["bid"] is None

    @pytest.mark.parametrize(
        ("schema", "field"),
        [
            (TICKS.schema.append(pa.field("venue", pa.string())), "venue"),
            (TICKS.schema.remove(TICKS.schema.get_field_index("price")), "price"),
            (TICKS.schema.set(4, pa.field("price", pa.float32())), "price"),
        ],
    )
    def test_a_wrong_schema_is_refused_before_the_first_row(
        self, anyone: Caller, schema: pa.Schema, field: str
    ) -> None:
        with pytest.raises(flight.FlightServerError) as caught:
            anyone.open(schema).finish()
        assert told(caught.value) == {"code": "invalid_argument", "field": field}

    @pytest.mark.parametrize("path", [("trades",), ("ticks", "MNQ"), ("\ud7ff" * 100_000,)])
    def test_a_wrong_path_is_refused(self, anyone: Caller, path: tuple[str, ...]) -> None:
        with pytest.raises(flight.FlightServerError) as caught:
            anyone.open(TICKS.schema, *path).finish()
        assert told(caught.value)["code"] == "invalid_argument"

    def test_a_command_is_no_place_to_write_to(self, anyone: Caller) -> None:
        descriptor = flight.FlightDescriptor.for_command(b"ticks")
        stream = Put(*anyone.client.do_put(descriptor, TICKS.schema, anyone.options))
        with pytest.raises(flight.FlightServerError) as caught:
            stream.finish()
        assert told(caught.value) == {"code": "invalid_argument", "field": "path"}

    @pytest.mark.parametrize(
        ("mark", "field"),
        [
            (b"junk", "app_metadata"),
            (b"\xff\x00", "app_metadata"),
            (b'{"producer": "p"}', "seq"),
            (b'{"producer": "", "seq": 1}', "producer"),
            (b'{"producer": "p", "seq": "1"}', "seq"),
            (b'{"producer": "p", "seq": 0}', "seq"),
            (b'{"producer": "p", "seq": 1, "x": 1}', "x"),
            (json.dumps({"producer": "p" * 9_000, "seq": 1}).encode(), "producer"),
        ],
        ids=range(8),
    )
    def test_a_mark_that_can_not_be_read_names_its_field(
        self, anyone: Caller, mark: bytes, field: str
    ) -> None:
        stream = anyone.open()
        stream.writer.write_with_metadata(numbered("MARK", 1), mark)
        with pytest.raises(flight.FlightServerError) as caught:
            stream.finish()
        assert told(caught.value) == {"code": "invalid_argument", "field": field}
        assert rows(anyone, "MARK") == []

    @pytest.mark.parametrize("limit", ["BATCH_ROWS_MAX", "BATCH_BYTES_MAX"])
    def test_a_batch_beyond_the_limits_is_refused(
        self, anyone: Caller, monkeypatch: pytest.MonkeyPatch, limit: str
    ) -> None:
        monkeypatch.setattr(batches, limit, 10)
        with pytest.raises(flight.FlightServerError, match="split it") as caught:
            anyone.put(ticks(11, symbol="BIG"))
        assert told(caught.value)["code"] == "limit"
        assert rows(anyone, "BIG") == []

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(mark=st.binary(max_size=40), path=st.lists(st.text(max_size=8), max_size=3))
    def test_garbage_is_answered_with_a_flight_error_and_no_traceback(
        self, anyone: Caller, mark: bytes, path: list[str]
    ) -> None:
        def write() -> None:
            descriptor = flight.FlightDescriptor.for_path(*path)
            stream = Put(*anyone.client.do_put(descriptor, TICKS.schema, anyone.options))
            stream.writer.write_with_metadata(numbered("JUNK", 1), b"!" + mark)
            stream.finish()

        with pytest.raises(flight.FlightError) as caught:
            write()
        assert "Traceback" not in str(caught.value)
        assert told(caught.value)["code"] == "invalid_argument"

    def test_writing_needs_its_scope(self, house: House) -> None:
        reader = house.caller(Scope.READ_REALTIME, Scope.ADMIN)
        with pytest.raises(flight.FlightUnauthorizedError) as caught:
            reader.put(ticks())
        assert told(caught.value)["scope"] == "write"


class TestSequence:
    def test_a_jump_ends_the_stream_and_says_what_was_expected(self, anyone: Caller) -> None:
        stream = anyone.open()
        stream.write(numbered("JUMP", 1), "jump", 1)
        stream.write(numbered("JUMP", 3), "jump", 3)
        with pytest.raises(flight.FlightServerError) as caught:
            stream.finish()
        assert told(caught.value) == {"code": "sequence", "expected": 2}
        assert stream.acks[-1]["seq"] == 1
        assert sequences(anyone, "JUMP") == [1]

    def test_a_second_stream_of_a_producer_ends_the_first(self, anyone: Caller) -> None:
        older, newer = anyone.open(), anyone.open()
        older.write(numbered("TWO", 1), "two", 1)
        assert older.next_ack() is not None
        newer.write(numbered("TWO", 2), "two", 2)
        assert newer.next_ack() is not None
        older.write(numbered("TWO", 3), "two", 3)
        with pytest.raises(flight.FlightServerError, match="has taken over") as caught:
            older.finish()
        assert told(caught.value)["code"] == "sequence"
        newer.write(numbered("TWO", 3), "two", 3)
        assert newer.finish()["seq"] == 3
        assert sequences(anyone, "TWO") == [1, 2, 3]

    def test_a_stream_that_was_taken_over_does_not_end_as_if_all_was_well(
        self, anyone: Caller
    ) -> None:
        older, newer = anyone.open(), anyone.open()
        older.write(numbered("END", 1), "end", 1)
        assert older.next_ack() is not None
        newer.write(numbered("END", 2), "end", 2)
        assert newer.next_ack() is not None
        with pytest.raises(flight.FlightServerError, match="has taken over"):
            older.finish()
        newer.finish()


class TestClientsThatMisbehave:
    def test_a_client_that_dies_leaves_nothing_behind(self, house: House) -> None:
        threads = threading.active_count()
        for _ in range(20):
            caller = house.caller()
            stream = caller.open()
            stream.write(ticks(symbol="DEAD"))
            assert stream.next_ack() is not None
            # The reader holds the call: without it and the client, the connection is gone.
            stream.writer, stream.reader = None, None
            caller.client.close()
        anyone = house.caller()
        until(lambda: house.streams == 0)
        until(lambda: threading.active_count() <= threads)
        assert len(rows(anyone, "DEAD")) == 1

    def test_a_client_that_reads_no_acks_does_not_hold_up_the_others(self, house: House) -> None:
        deaf, other = house.caller(), house.caller()
        stream = deaf.open()
        for seq in range(1, 3_000):
            stream.write(numbered("DEAF", seq), "deaf", seq)
        began = time.monotonic()
        assert other.put(*(numbered("HEARS", n) for n in range(1, 50)))["rows"] == 49
        assert time.monotonic() - began < 10
        assert stream.finish()["rows"] == 2_999
