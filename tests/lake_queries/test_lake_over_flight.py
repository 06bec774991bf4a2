"""Clients read the lake and memory over real sockets as one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

import tickflight
from flight_server.identity import Scope
from storage.lake.files import FileKind
from storage.lake.layout import FileName, partition_date, table_root
from storage.lake.table import LakeTable
from storage.lake.writer import write_file
from storage.schemas import TICKS
from storage.speakers import DAY
from tests.flight_server.conftest import Caller, House, serving
from tests.lake_queries.conftest import Row, UnsyncedDisk, batch_of, rows_in
from tests.storage.conftest import NOON

ROWS = [
    Row(NOON + day * DAY + at, "demo", "A1", 100 * day + at) for day in range(3) for at in (1, 9)
]
OTHER = [Row(NOON + DAY + 5, "demo", "B1", 7_000)]
HOT = [Row(NOON + 2 * DAY + 5, "demo", "A1", 205), Row(NOON + 3 * DAY, "demo", "A1", 300)]
ALL = sorted([*ROWS, *OTHER, *HOT])
RANGE = {"op": "range", "dataset": "ticks", "symbols": [], "start": 0, "end": "2100-01-01"}


def import_rows(lake: Path, rows: list[Row]) -> None:
    """Put rows into a table of the lake as a bulk import would."""
    table = LakeTable(table_root(lake, TICKS), TICKS, UnsyncedDisk())
    table.refresh()
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.symbol, row.ts // DAY), []).append(row)
    files = [
        write_file(
            table.root,
            TICKS,
            symbol,
            partition_date(TICKS, day),
            pa.Table.from_batches([batch_of(own)]),
            FileName(FileKind.BULK, 0, 1, f"t{number}"),
            UnsyncedDisk(),
        )
        for number, ((symbol, day), own) in enumerate(groups.items())
    ]
    table.commit_part(1, 0, 0, 0, files)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    import_rows(tmp_path / "lake", [*ROWS, *OTHER])
    with serving(tmp_path) as house:
        house.caller().put(batch_of(HOT))
        yield house


@pytest.fixture
def caller(house: House) -> Caller:
    return house.caller()


def read(caller: Caller, **ticket: Any) -> list[Row]:
    return rows_in(caller.get({**RANGE, **ticket}).to_batches())


def described(caller: Caller, **ticket: Any) -> flight.FlightInfo:
    command = flight.FlightDescriptor.for_command(json.dumps({**RANGE, **ticket}).encode())
    return caller.client.get_flight_info(command, caller.options)


def told(error: flight.FlightError) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(error.extra_info)
    return about


def test_a_range_joins_the_lake_and_memory(caller: Caller) -> None:
    assert read(caller) == ALL
    assert read(caller, symbols=["B"]) == OTHER


def test_latest_reaches_into_the_lake_for_what_memory_lacks(caller: Caller) -> None:
    table = caller.get({"op": "latest", "symbols": ["A"], "limit": 4})
    assert rows_in(table.to_batches()) == sorted([*ROWS, *HOT])[-4:]


@pytest.mark.parametrize("order", ["time", "symbol"])
def test_endpoints_read_in_turn_are_the_whole_range(caller: Caller, order: str) -> None:
    info = described(caller, order=order)
    parts = [caller.get(endpoint.ticket.ticket) for endpoint in info.endpoints]
    whole = caller.get({**RANGE, "order": order})
    assert rows_in(pa.concat_tables(parts).to_batches()) == rows_in(whole.to_batches())
    assert len(info.endpoints) == (4 if order == "time" else 5)
    assert info.total_records == len(ALL)
    assert info.schema.remove_metadata().equals(whole.schema.remove_metadata())


def test_a_range_without_rows_has_one_endpoint_still(caller: Caller) -> None:
    info = described(caller, start=0, end=5)
    (endpoint,) = info.endpoints
    assert caller.get(endpoint.ticket.ticket).num_rows == info.total_records == 0


def test_an_expression_filters_both_sides(caller: Caller, house: House) -> None:
    where = "sequence >= 200 and sequence < 7000"
    expected = [row for row in ALL if 200 <= row.sequence < 7_000]
    assert read(caller, where=where) == expected
    info = described(caller, where=where)
    parts = [caller.get(endpoint.ticket.ticket) for endpoint in info.endpoints]
    assert rows_in(pa.concat_tables(parts).to_batches()) == expected
    assert info.total_records == -1
    key = house.keys.create("model", scopes=[Scope.READ_HISTORY]).key
    with tickflight.connect(house.service.uri, key) as client:
        found = client.range("ticks", "A", 0, where=where, columns=["price"]).arrow()
        assert found.column_names == ["price"]
        assert found["price"].to_pylist() == [row.price for row in expected]


@pytest.mark.parametrize(
    "where", ["", "nothing > 1", "price", "price > (select 1)", "1=1; select 2"]
)
def test_a_bad_expression_names_its_field(caller: Caller, where: str) -> None:
    with pytest.raises(flight.FlightServerError) as caught:
        read(caller, where=where)
    assert told(caught.value) == {"code": "invalid_argument", "field": "where"}


def test_damage_names_the_file_and_no_path(caller: Caller, tmp_path: Path) -> None:
    (path,) = tmp_path.glob("lake/ticks/symbol=B/*/*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(flight.FlightServerError, match="tickflightd lake verify") as caught:
        read(caller, symbols=["B"])
    assert path.name in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert read(caller, symbols=["A"]) == sorted([*ROWS, *HOT])


def test_lists_and_symbols_count_both_sides_once(caller: Caller) -> None:
    about = caller.act("symbols")["datasets"]["ticks"]["A"]
    assert about["rows"] == len(ROWS) + len(HOT)
    assert (about["first"], about["last"]) == (ROWS[0].ts, HOT[-1].ts)
    assert about["sources"] == ["demo"]
    listed = {i.descriptor.path[1]: i for i in caller.client.list_flights(b"", caller.options)}
    assert listed[b"A"].total_records == len(ROWS) + len(HOT)
