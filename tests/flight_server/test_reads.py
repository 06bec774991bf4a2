"""DoGet and what leads to it: the same rows for every reader, and nobody else's."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import flight

from flight_server.identity import Scope
from storage.schemas import DATASETS, DICTIONARY, QUARANTINE, TICKS
from tests.flight_server.conftest import Caller, House, serving, ticks, told

SYMBOLS = ["MES", "MNQ", "SECRET"]
LATEST = {"op": "latest", "symbols": ["MNQ"]}
RANGE = {"op": "range", "dataset": "ticks", "symbols": ["MNQ"], "start": 0, "end": "now"}
BLOCK_ROWS = 70_000
"""More than one block on the wire."""


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service with ticks of three symbols, one of them in bulk, and a reject of each."""
    with serving(tmp_path_factory.mktemp("market")) as house:
        caller = house.caller()
        for symbol in SYMBOLS:
            caller.put(ticks(5, symbol=symbol, size=[1.0, 1.0, 1.0, 1.0, -1.0]))
        caller.put(ticks(BLOCK_ROWS, symbol="BULK", exchange="Q"))
        yield house


@pytest.fixture(scope="module")
def reader(market: House) -> Caller:
    return market.caller(Scope.READ_REALTIME, Scope.READ_HISTORY)


@pytest.fixture(scope="module")
def limited(market: House) -> Caller:
    scopes = (Scope.READ_REALTIME, Scope.READ_HISTORY, Scope.WRITE)
    return market.caller(*scopes, symbols=["MNQ", "BULK"])


class TestShapes:
    @pytest.mark.parametrize("ticket", [LATEST, RANGE], ids=["latest", "range"])
    def test_low_cardinality_strings_travel_as_dictionaries(
        self, reader: Caller, ticket: dict[str, Any]
    ) -> None:
        table = reader.get(ticket)
        assert table.num_rows == 4
        assert table.schema.remove_metadata().equals(TICKS.wire_schema)
        assert table.schema.field("symbol").type == DICTIONARY

    @pytest.mark.parametrize("ticket", [LATEST, RANGE], ids=["latest", "range"])
    def test_pyarrow_polars_and_pandas_see_the_same_rows(
        self, reader: Caller, ticket: dict[str, Any]
    ) -> None:
        table = reader.get(ticket)
        frame, pandas = pl.from_arrow(table), table.to_pandas()
        assert isinstance(frame, pl.DataFrame)
        assert frame["ts_event"].dtype == pl.Datetime("us", "UTC")
        assert isinstance(pandas["ts_event"].dtype, pd.DatetimeTZDtype)
        for name in ("symbol", "price", "sequence", "bid"):
            values = table[name].to_pylist()
            assert frame[name].to_list() == values
            assert [None if pd.isna(v) else v for v in pandas[name]] == values

    @pytest.mark.parametrize("symbols", [["BULK"], [*SYMBOLS, "BULK"]])
    def test_an_answer_of_several_blocks_reads_as_one_table(
        self, reader: Caller, symbols: list[str]
    ) -> None:
        table = reader.get({**RANGE, "symbols": symbols})
        assert table.num_rows == BLOCK_ROWS + 4 * (len(symbols) - 1)
        assert table["ts_event"].num_chunks > 1
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        assert frame["exchange"].drop_nulls().unique().to_list() == ["Q"]
        assert table.to_pandas()["symbol"].nunique() == len(symbols)

    @pytest.mark.parametrize("compression", ["lz4", "zstd"])
    def test_compression_changes_bytes_and_no_rows(self, reader: Caller, compression: str) -> None:
        asked = {**RANGE, "symbols": ["BULK"]}
        assert reader.get({**asked, "compression": compression}).equals(reader.get(asked))

    @pytest.mark.parametrize(
        "ticket",
        [
            {**LATEST, "symbols": ["NONE"]},
            {**RANGE, "symbols": ["NONE"]},
            {**RANGE, "end": 1},
            {**RANGE, "source": "nobody"},
            {**LATEST, "source": "nobody"},
        ],
        ids=range(5),
    )
    def test_an_answer_without_rows_has_the_schema(
        self, reader: Caller, ticket: dict[str, Any]
    ) -> None:
        table = reader.get(ticket)
        assert table.num_rows == 0
        assert table.schema.remove_metadata().equals(TICKS.wire_schema)
        assert table.to_pandas().shape == (0, len(TICKS.schema))

    @pytest.mark.parametrize("name", DATASETS)
    def test_every_dataset_answers_with_its_schema(self, market: House, name: str) -> None:
        caller = market.caller()
        for ticket in ({**RANGE, "dataset": name}, {"op": "latest", "dataset": name}):
            table = caller.get(ticket)
            assert table.schema.remove_metadata().equals(DATASETS[name].wire_schema)

    def test_columns_come_in_the_order_asked_for(self, reader: Caller) -> None:
        for ticket in (LATEST, RANGE):
            table = reader.get({**ticket, "columns": ["price", "symbol"]})
            assert table.schema.names == ["price", "symbol"]
            assert table.num_rows == 4

    def test_a_symbol_named_twice_comes_once(self, reader: Caller) -> None:
        for ticket in (LATEST, RANGE):
            assert reader.get({**ticket, "symbols": ["MNQ", "MNQ"]}).num_rows == 4

    def test_no_symbol_means_all(self, reader: Caller) -> None:
        table = reader.get({"op": "latest", "limit": 2})
        assert set(table["symbol"].to_pylist()) == {*SYMBOLS, "BULK"}
        assert table.num_rows == 2 * 4

    def test_symbols_come_one_after_another_when_asked_for_so(self, reader: Caller) -> None:
        table = reader.get({**RANGE, "symbols": ["SECRET", "MES"], "order": "symbol"})
        assert table["symbol"].to_pylist() == ["MES"] * 4 + ["SECRET"] * 4

    @pytest.mark.parametrize("ticket", [LATEST, RANGE], ids=["latest", "range"])
    def test_coverage_travels_in_the_metadata(self, reader: Caller, ticket: dict[str, Any]) -> None:
        table = reader.get(ticket)
        coverage = json.loads(table.schema.metadata[b"tickflight.coverage"])
        about = coverage["symbols"]["MNQ"]
        assert (about["state"], about["quarantined"], about["gap_count"]) == ("unverified", 1, 0)
        first, last = about["available"]
        instants = table["ts_event"].cast(pa.int64()).to_pylist()
        assert (first, last) == (instants[0], instants[-1] + 1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("ticket", "code", "field"),
        [
            ({"op": "nope"}, "invalid_argument", "op"),
            ({**LATEST, "dataset": "trades"}, "invalid_argument", "dataset"),
            ({**LATEST, "columns": ["nope"]}, "invalid_argument", "columns"),
            ({**LATEST, "columns": ["price", "price"]}, "invalid_argument", "columns"),
            ({**LATEST, "limit": 0}, "invalid_argument", "limit"),
            ({**LATEST, "symbols": ["?"]}, "invalid_argument", "symbols"),
            ({**RANGE, "start": "soon"}, "invalid_argument", "start"),
            ({**RANGE, "end": "2026-11-20T14:30:00"}, "invalid_argument", "end"),
            ({**RANGE, "start": 2, "end": 1}, "invalid_argument", "end"),
            ({**RANGE, "compression": "gzip"}, "invalid_argument", "compression"),
            ({**RANGE, "x" * 90_000: 1}, "invalid_argument", None),
            ({**RANGE, "end": "z" * 90_000}, "invalid_argument", "end"),
        ],
        ids=range(12),
    )
    def test_a_wrong_ticket_gets_a_code_and_the_field(
        self, reader: Caller, ticket: dict[str, Any], code: str, field: str | None
    ) -> None:
        with pytest.raises(flight.FlightServerError) as caught:
            reader.get(ticket)
        extra = told(caught.value)
        assert extra["code"] == code
        assert field is None or extra["field"] == field

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.binary(max_size=60)
        | st.dictionaries(
            st.sampled_from(["op", "dataset", "symbols", "start", "end", "limit", "columns"]),
            st.sampled_from(["latest", "range", "ticks", "gex", "now", "-5m", 0, 7, None])
            | st.lists(st.sampled_from(["MNQ", "price", "?"])),
        ).map(lambda ticket: json.dumps(ticket).encode())
    )
    def test_any_ticket_is_answered_or_refused_with_a_flight_error(
        self, reader: Caller, data: bytes
    ) -> None:
        descriptor = flight.FlightDescriptor.for_command(data)
        asking: tuple[Callable[[], object], ...] = (
            lambda: reader.get(data),
            lambda: reader.client.get_flight_info(descriptor, reader.options),
            lambda: reader.client.get_schema(descriptor, reader.options),
        )
        for ask in asking:
            try:
                ask()
            except flight.FlightError as error:
                message = str(error)
                assert "Traceback" not in message
                assert "internal error" not in message

    @pytest.mark.parametrize(
        "descriptor",
        [
            flight.FlightDescriptor.for_command(b"junk"),
            flight.FlightDescriptor.for_path("nope"),
            flight.FlightDescriptor.for_path("x" * 100_000),
            flight.FlightDescriptor.for_path(),
        ],
        ids=range(4),
    )
    def test_get_schema_never_raises(
        self, reader: Caller, descriptor: flight.FlightDescriptor
    ) -> None:
        schema = reader.client.get_schema(descriptor, reader.options).schema
        assert len(schema) == 0
        assert b"tickflight.error" in schema.metadata

    def test_there_is_no_exchange_and_it_says_so(self, reader: Caller) -> None:
        descriptor = flight.FlightDescriptor.for_path("ticks")
        _, answers = reader.client.do_exchange(descriptor, reader.options)
        with pytest.raises(flight.FlightError) as caught:
            answers.read_chunk()
        assert "Traceback" not in str(caught.value)


class TestRights:
    """A key may read its symbols, and learns of no other."""

    @pytest.mark.parametrize(
        ("scope", "ticket", "needed"),
        [
            (Scope.READ_HISTORY, LATEST, "read:realtime"),
            (Scope.READ_REALTIME, RANGE, "read:history"),
            (Scope.READ_HISTORY, {**RANGE, "dataset": "quarantine"}, "admin"),
        ],
    )
    def test_an_op_needs_its_scope(
        self, market: House, scope: Scope, ticket: dict[str, Any], needed: str
    ) -> None:
        caller = market.caller(scope)
        with pytest.raises(flight.FlightUnauthorizedError) as caught:
            caller.get(ticket)
        assert told(caught.value)["scope"] == needed
        command = flight.FlightDescriptor.for_command(json.dumps(ticket).encode())
        with pytest.raises(flight.FlightUnauthorizedError):
            caller.client.get_flight_info(command, caller.options)

    @pytest.mark.parametrize("ticket", [LATEST, RANGE], ids=["latest", "range"])
    def test_a_foreign_symbol_is_refused(self, limited: Caller, ticket: dict[str, Any]) -> None:
        with pytest.raises(flight.FlightUnauthorizedError) as caught:
            limited.get({**ticket, "symbols": ["MNQ", "SECRET"]})
        assert told(caught.value)["symbol"] == "SECRET"

    @pytest.mark.parametrize("ticket", [LATEST, RANGE], ids=["latest", "range"])
    def test_no_byte_of_an_answer_names_a_foreign_symbol(
        self, limited: Caller, ticket: dict[str, Any]
    ) -> None:
        for symbols in ([], ["MNQ"]):
            sent = written([chunk.data for chunk in limited.stream({**ticket, "symbols": symbols})])
            assert b"MNQ" in sent
            assert b"SECRET" not in sent
            assert b"MES" not in sent
            schema = limited.stream({**ticket, "symbols": symbols}).schema
            assert b"SECRET" not in schema.serialize().to_pybytes()

    def test_lists_of_symbols_leave_out_foreign_ones(self, limited: Caller) -> None:
        assert set(limited.act("symbols")["datasets"]["ticks"]) == {"MNQ", "BULK"}
        listed = [
            info.descriptor.path for info in limited.client.list_flights(b"", limited.options)
        ]
        assert listed == [[b"ticks", b"BULK"], [b"ticks", b"MNQ"]]

    def test_a_description_names_no_foreign_symbol(self, limited: Caller) -> None:
        descriptor = flight.FlightDescriptor.for_path("ticks")
        info = limited.client.get_flight_info(descriptor, limited.options)
        assert b"SECRET" not in info.serialize()
        assert info.total_records == BLOCK_ROWS + 4

    def test_what_admins_read_is_hidden_from_others(self, market: House, reader: Caller) -> None:
        names = {
            info.descriptor.path[0] for info in reader.client.list_flights(b"", reader.options)
        }
        assert names == {b"ticks"}
        assert "quarantine" not in reader.act("symbols")["datasets"]
        admin = market.caller()
        assert admin.get({**RANGE, "dataset": "quarantine"}).num_rows == 1
        assert QUARANTINE.name in admin.act("symbols")["datasets"]


def written(batches: list[pa.RecordBatch]) -> bytes:
    """Return batches as the bytes of an IPC stream, dictionaries and all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


class TestDescriptions:
    def test_every_symbol_of_every_dataset_is_listed(self, reader: Caller) -> None:
        listed = {
            info.descriptor.path[1].decode(): info
            for info in reader.client.list_flights(b"", reader.options)
        }
        assert sorted(listed) == sorted([*SYMBOLS, "BULK"])
        about = json.loads(listed["MNQ"].app_metadata)
        assert about["dataset"] == "ticks"
        assert about["symbol"] == "MNQ"
        assert about["rows"] == listed["MNQ"].total_records == 4
        assert about["last"] - about["first"] == 3

    def test_a_flight_leads_to_its_rows(self, reader: Caller) -> None:
        descriptor = flight.FlightDescriptor.for_path("ticks", "MNQ")
        info = reader.client.get_flight_info(descriptor, reader.options)
        assert info.total_records == 4
        assert info.schema.remove_metadata().equals(TICKS.wire_schema)
        (endpoint,) = info.endpoints
        assert endpoint.locations == []
        assert reader.get(endpoint.ticket.ticket).num_rows == 4

    def test_a_command_leads_to_its_rows(self, reader: Caller) -> None:
        for ticket in (LATEST, RANGE):
            command = flight.FlightDescriptor.for_command(json.dumps(ticket).encode())
            info = reader.client.get_flight_info(command, reader.options)
            assert reader.get(info.endpoints[0].ticket.ticket).num_rows == 4
            schema = reader.client.get_schema(command, reader.options).schema
            assert schema.equals(TICKS.wire_schema)

    def test_symbols_tell_how_far_they_reach(self, reader: Caller) -> None:
        about = reader.act("symbols")["datasets"]["ticks"]["MNQ"]
        assert about["rows"] == 4
        assert about["last"] - about["first"] == 3


class TestStatus:
    def test_any_key_may_ask_how_the_service_is(self, market: House) -> None:
        status = market.caller(Scope.SQL).act("status")
        assert status["version"] == "1.2.3"
        assert status["epoch"] == 1
        assert status["datasets"]["ticks"]["rows"] == BLOCK_ROWS + 12
        assert status["datasets"]["ticks"]["bytes"] > BLOCK_ROWS * 80
        assert status["journal"]["waiting_rows"] == 0
        flights = [service for service in status["services"] if service["name"] == "flight"]
        assert [service["state"] for service in flights] == ["running"]
        assert {"name", "state", "since", "detail"} <= flights[0].keys()

    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"x": 1}', b"\xff"])
    def test_a_body_that_makes_no_sense_is_refused(self, reader: Caller, body: bytes) -> None:
        with pytest.raises(flight.FlightServerError) as caught:
            list(reader.client.do_action(("status", body), reader.options))
        assert told(caught.value)["code"] == "invalid_argument"

    def test_an_unknown_action_is_not_found(self, reader: Caller) -> None:
        with pytest.raises(flight.FlightServerError, match="there are status") as caught:
            reader.act("reboot")
        assert told(caught.value)["code"] == "not_found"

    def test_the_actions_are_listed_with_a_sentence_each(self, reader: Caller) -> None:
        actions = reader.client.list_actions(reader.options)
        assert {"status", "symbols", "files.register"} <= {action.type for action in actions}
        assert all(action.description.endswith(".") for action in actions)

    def test_a_file_is_registered_once_and_completed(self, market: House) -> None:
        caller = market.caller(Scope.WRITE)
        file = {"digest": "ab" * 20, "name": "a.csv", "dataset": "ticks", "producer": "ab" * 20}
        first = caller.act("files.register", **file, options={"map": "x"})
        assert (first["state"], first["durable_seq"]) == ("new", 0)
        caller.put(ticks(1, symbol="FILE"), producer="ab" * 20)
        again = caller.act("files.register", **file, options={"map": "y"})
        assert again["number"] == first["number"]
        assert (again["state"], again["durable_seq"]) == ("partial", 1)
        assert again["options"] == {"map": "x"}
        assert caller.act("files.complete", digest="ab" * 20, rows=1) == {}
        assert caller.act("files.register", **file)["state"] == "complete"

    def test_files_need_the_scope_to_write(self, reader: Caller) -> None:
        with pytest.raises(flight.FlightUnauthorizedError):
            reader.act("files.complete", digest="ab" * 20, rows=1)


def test_rows_are_the_same_after_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path) as house:
        house.caller().put(ticks(1_000), producer="p")
        before = house.caller().get(RANGE)
    with serving(tmp_path) as house:
        after = house.caller()
        assert after.get(RANGE).equals(before)
        assert after.act("status")["epoch"] == 2
        assert after.put(ticks(1_000), producer="p")["seq"] == 1
        assert after.put(ticks(1_000), producer="p", first=2)["duplicates"] == 1_000
