"""The ticket `bars` over a real socket: its shape, its rights, and what it refuses."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server.identity import Scope
from flight_server.tickets import BarsTicket, record_of
from storage.schemas import BARS
from tests.bars.conftest import MIDNIGHT, MINUTE
from tests.flight_server.conftest import Caller, House, serving, ticks, told

SYMBOLS = ["MNQ", "NQ", "SECRET"]
ASKED = {"op": "bars", "symbols": ["MNQ"], "interval": "1m", "start": 0, "end": "now"}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service with ten minutes of ticks, a tick a second, of three symbols."""
    with serving(tmp_path_factory.mktemp("market")) as house:
        caller = house.caller()
        instants = [MIDNIGHT + second * 1_000_000 for second in range(600)]
        prices = [20_000.0 + second % 60 for second in range(600)]
        for symbol in SYMBOLS:
            columns = {"ts_event": instants, "ts_recv": instants, "price": prices, "side": 1}
            caller.put(ticks(600, symbol=symbol, **columns))
        yield house


@pytest.fixture(scope="module")
def reader(market: House) -> Caller:
    return market.caller(Scope.READ_HISTORY)


def test_bars_have_the_schema_and_the_numbers(reader: Caller) -> None:
    table = reader.get(ASKED)
    assert table.schema.remove_metadata().equals(BARS.wire_schema)
    first = table.slice(0, 1).to_pylist()[0]
    instants = [first.pop(name).timestamp() * 1e6 for name in ("ts_event", "ts_recv")]
    assert instants == [MIDNIGHT, MIDNIGHT + MINUTE]
    assert first == {
        "symbol": "MNQ",
        "interval": "1m",
        "open": 20_000.0,
        "high": 20_059.0,
        "low": 20_000.0,
        "close": 20_059.0,
        "volume": 60.0,
        "vwap": 20_029.5,
        "trades": 60,
        "buy_volume": 60.0,
        "sell_volume": 0.0,
        "flags": 1,
        "source": "demo",
    }
    assert table.num_rows == 10


def test_coverage_is_that_of_the_ticks(reader: Caller) -> None:
    metadata = reader.get(ASKED).schema.metadata[b"tickflight.coverage"]
    covered = json.loads(metadata)["symbols"]["MNQ"]
    assert covered["available"] == [MIDNIGHT, MIDNIGHT + 599_000_001]


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"interval": "1s"}, 600),
        ({"interval": "5m"}, 2),
        ({"interval": "1d", "session": "cme"}, 1),
        ({"symbols": []}, 30),
        ({"symbols": ["MNQ", "MNQ", "NQ"]}, 20),
        ({"symbols": ["NONE"]}, 0),
        ({"end": 1}, 0),
        ({"source": "nobody"}, 0),
        ({"source": "all"}, 10),
        ({"start": MIDNIGHT + 1, "end": MIDNIGHT + 5 * MINUTE}, 4),
    ],
    ids=str,
)
def test_every_field_of_the_ticket_counts(
    reader: Caller, changes: dict[str, Any], rows: int
) -> None:
    table = reader.get({**ASKED, **changes})
    assert table.num_rows == rows
    assert table.schema.remove_metadata().equals(BARS.wire_schema)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"interval": "7m"}, "interval"),
        ({"interval": "tick"}, "interval"),
        ({"interval": 60}, "interval"),
        ({"session": "mars"}, "session"),
        ({"dataset": "ticks"}, "dataset"),
        ({"columns": ["open"]}, "columns"),
        ({"start": "yesterday"}, "start"),
        ({"start": 2, "end": 1}, "end"),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_refused_by_field(
    reader: Caller, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(flight.FlightServerError) as refused:
        reader.get({**ASKED, **changes})
    assert told(refused.value) == {"code": "invalid_argument", "field": field}


class TestRights:
    def test_bars_are_history(self, market: House) -> None:
        with pytest.raises(flight.FlightUnauthorizedError):
            market.caller(Scope.READ_REALTIME).get(ASKED)

    def test_a_foreign_symbol_is_refused_and_left_out_of_all(self, market: House) -> None:
        limited = market.caller(Scope.READ_HISTORY, symbols=["MNQ", "NQ"])
        with pytest.raises(flight.FlightUnauthorizedError):
            limited.get({**ASKED, "symbols": ["SECRET"]})
        table = limited.get({**ASKED, "symbols": []})
        assert set(table["symbol"].to_pylist()) == {"MNQ", "NQ"}
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        assert b"SECRET" not in sink.getvalue().to_pybytes()


def test_a_description_leads_to_the_bars(reader: Caller) -> None:
    descriptor = flight.FlightDescriptor.for_command(json.dumps(ASKED).encode())
    info = reader.client.get_flight_info(descriptor, reader.options)
    assert info.schema.remove_metadata().equals(BARS.wire_schema)
    assert reader.get(info.endpoints[0].ticket.ticket).num_rows == 10
    result = reader.client.get_schema(descriptor, reader.options)
    assert result.schema.equals(BARS.wire_schema)


def test_the_history_keeps_no_text_that_could_be_a_secret() -> None:
    ticket = BarsTicket(op="bars", interval="tf_5ecret", start="tf_5ecret", end=1)
    kept = json.loads(record_of(ticket))
    assert kept["interval"] == kept["start"] == "?"
    assert kept["session"] == "utc"
