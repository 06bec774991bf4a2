"""Bars through the SDK and its command."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

import tickflight
from tickflight import cli, connection
from tickflight.testing import FakeServer

START = 1_700_000_040_000_000
MINUTE = 60_000_000
BARS = pa.schema(
    [
        ("ts_event", pa.timestamp("us", "UTC")),
        ("ts_recv", pa.timestamp("us", "UTC")),
        ("symbol", pa.string()),
        ("interval", pa.string()),
        ("open", pa.float64()),
        ("close", pa.float64()),
        ("flags", pa.uint16()),
    ]
)


def bars(interval: str, *opens: float) -> pa.RecordBatch:
    count = len(opens)
    columns = {
        "ts_event": [START + one * MINUTE for one in range(count)],
        "ts_recv": [START + (one + 1) * MINUTE for one in range(count)],
        "symbol": ["MNQ"] * count,
        "interval": [interval] * count,
        "open": list(opens),
        "close": [one + 0.25 for one in opens],
        "flags": [1] * count,
    }
    return pa.RecordBatch.from_pydict(columns, schema=BARS)


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server with bars, and an environment that names it."""
    with (
        FakeServer(datasets={"bars": BARS}) as server,
        tickflight.connect(server.uri, server.api_key) as client,
    ):
        with client.writer("bars") as writer:
            writer.write(bars("1m", 10.0, 11.0, 12.0))
            writer.write(bars("5m", 10.0))
        monkeypatch.setenv("TICKFLIGHT_FLIGHT_URI", server.uri)
        monkeypatch.setenv("TICKFLIGHT_API_KEY", server.api_key)
        yield server


def test_bars_of_an_interval_come_with_plain_strings(market: FakeServer) -> None:
    with tickflight.connect(market.uri, market.api_key) as client:
        table = client.bars("MNQ", "1m", "-1h").arrow()
    assert table["open"].to_pylist() == [10.0, 11.0, 12.0]
    assert table.schema.field("interval").type == pa.string()


def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Catch tickets instead of sending them."""
    caught: list[Any] = []

    def get(_self: object, ticket: object, *, timeout: float | None) -> None:
        caught.append((ticket, timeout))
        raise tickflight.NotFoundError("enough")

    monkeypatch.setattr(connection.Connection, "get", get)
    return caught


def test_what_was_asked_for_is_sent_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    caught = sent(monkeypatch)
    client = tickflight.connect("grpc://127.0.0.1:1", "tf_a_b", timeout=7)
    with pytest.raises(tickflight.NotFoundError):
        client.bars("A", "1m", "-1d")
    with pytest.raises(tickflight.NotFoundError):
        client.bars(["A", "B"], "1d", datetime(1970, 1, 1, tzinfo=UTC), 5, session="cme", timeout=3)
    plain = {"op": "bars", "symbols": ["A"], "interval": "1m", "start": "-1d", "end": "now"}
    days = {"symbols": ["A", "B"], "interval": "1d", "start": 0, "end": 5, "session": "cme"}
    # A year of bars takes as long as it takes: a client's time limit is for short calls.
    assert caught == [(plain, None), ({"op": "bars", **days}, 3)]


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ([], {"interval": "1m", "start": "-1h", "end": "now"}),
        (["--start", "-2d", "--end", "-1d"], {"start": "-2d", "end": "-1d"}),
        (["--from", "-2d", "--to", "2026-11-20"], {"start": "-2d", "end": "2026-11-20"}),
        (
            ["--interval", "1d", "--session", "cme", "--source", "demo"],
            {"interval": "1d", "session": "cme", "source": "demo"},
        ),
    ],
    ids=["plain", "start", "from", "session"],
)
def test_the_options_of_the_command_are_sent(
    monkeypatch: pytest.MonkeyPatch, words: list[str], fields: dict[str, Any]
) -> None:
    caught = sent(monkeypatch)
    monkeypatch.setenv("TICKFLIGHT_API_KEY", "tf_a_b")
    assert cli.main(["bars", "MNQ", *words]) == 1
    ((ticket, _),) = caught
    assert {name: ticket[name] for name in fields} == fields


@pytest.mark.usefixtures("market")
class TestCommand:
    def test_people_see_times_and_prices(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["bars", "MNQ"]) == 0
        heading, *rows = capsys.readouterr().out.splitlines()
        assert heading.split() == ["ts_event", "symbol", "open", "close"]
        assert [row.split()[-2:] for row in rows] == [
            ["10", "10.25"],
            ["11", "11.25"],
            ["12", "12.25"],
        ]

    def test_programs_see_every_column(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["bars", "MNQ", "--interval", "5m", "--format", "csv"]) == 0
        (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert row["ts_recv"] == "2023-11-14 22:15:00.000000Z"
        assert list(row) == BARS.names
        assert cli.main(["bars", "MNQ", "--format", "json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [json.loads(line)["open"] for line in lines] == [10.0, 11.0, 12.0]

    def test_what_is_missing_is_said_below(
        self, market: FakeServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        symbol = {"requested": [0, 1], "state": "gap", "gap_count": 3, "quarantined": 0}
        market.coverage = {"snapshot": "1", "symbols": {"MNQ": symbol}}
        assert cli.main(["bars", "MNQ"]) == 0
        assert "MNQ: gap, 3 gaps" in capsys.readouterr().out

    def test_an_unknown_session_is_wrong_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as left:
            cli.main(["bars", "MNQ", "--session", "mars"])
        assert left.value.code == 2
        assert "--session" in capsys.readouterr().err
