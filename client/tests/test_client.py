"""Questions and answers over a real socket."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import flight

import tickflight
from tickflight import connection, tickets
from tickflight.coverage import Coverage, CoverageState, Gap, Span
from tickflight.errors import from_foreign
from tickflight.testing import FakeServer

Ticks = Callable[..., pa.RecordBatch]


@pytest.fixture
def filled(client: tickflight.Client, ticks: Ticks) -> tickflight.Client:
    with client.writer("ticks") as writer:
        for first in range(0, 300, 3):
            for offset, symbol in enumerate(["MNQ", "NQ", "SPY"]):
                writer.write(ticks(first + offset, 1, symbol))
    return client


class TestQuestions:
    def test_latest_gives_the_newest_rows_of_each_symbol(self, filled: tickflight.Client) -> None:
        rows = filled.latest(["MNQ", "SPY"], limit=2).arrow()
        assert rows["symbol"].to_pylist() == ["MNQ", "MNQ", "SPY", "SPY"]
        assert rows["sequence"].to_pylist() == [294, 297, 296, 299]

    def test_one_symbol_needs_no_list(self, filled: tickflight.Client) -> None:
        assert len(filled.latest("MNQ", limit=5)) == 5

    def test_ticks_is_range_on_ticks(self, filled: tickflight.Client) -> None:
        ranged = filled.range("ticks", "MNQ", "-15m", "now").arrow()
        assert filled.ticks("MNQ", "-15m").arrow().equals(ranged)
        assert ranged.num_rows == 100

    def test_columns_are_chosen_by_the_server(self, filled: tickflight.Client) -> None:
        result = filled.latest("MNQ", columns=["price", "symbol"])
        assert result.schema.names == ["price", "symbol"]

    def test_symbols_tells_what_is_held(self, filled: tickflight.Client) -> None:
        held = filled.symbols()
        assert [(one.dataset, one.symbol, one.rows) for one in held] == [
            ("ticks", "MNQ", 100),
            ("ticks", "NQ", 100),
            ("ticks", "SPY", 100),
        ]
        assert held[0].first == datetime.fromtimestamp(1_700_000_000, UTC)
        assert filled.symbols("quotes") == ()

    def test_status_is_typed_and_keeps_what_it_does_not_know(
        self, filled: tickflight.Client
    ) -> None:
        status = filled.status()
        assert [(one.name, one.state) for one in status.services] == [("flight", "running")]
        assert [(one.name, one.rows) for one in status.datasets] == [("ticks", 300)]
        assert status.raw["epoch"] == status.epoch == 1

    def test_a_datasets_schema_has_plain_strings(self, filled: tickflight.Client) -> None:
        assert filled.schema("ticks").field("symbol").type == pa.string()
        with pytest.raises(tickflight.NotFoundError, match="there is no dataset nonsense"):
            filled.schema("nonsense")

    def test_threads_may_share_a_client(self, filled: tickflight.Client) -> None:
        with ThreadPoolExecutor(8) as pool:
            counts = pool.map(lambda _: len(filled.latest("MNQ", limit=7)), range(64))
        assert set(counts) == {7}


class TestResults:
    def test_strings_are_plain_unless_categories_are_asked_for(
        self, filled: tickflight.Client
    ) -> None:
        result = filled.latest("MNQ")
        assert result.arrow().schema.field("symbol").type == pa.string()
        assert pa.types.is_dictionary(result.arrow(categorical=True).schema.field("symbol").type)
        assert result.polars().schema["symbol"] == pl.String
        assert result.polars(categorical=True).schema["symbol"] == pl.Categorical
        assert isinstance(result.pandas(categorical=True)["symbol"].dtype, pd.CategoricalDtype)
        assert not isinstance(result.pandas()["symbol"].dtype, pd.CategoricalDtype)

    def test_nothing_is_read_before_it_is_asked_for(self, filled: tickflight.Client) -> None:
        result = filled.latest("MNQ", limit=1)
        assert repr(result) == "<Result unread x 6 columns, unverified>"
        assert len(result) == 1
        assert repr(result) == "<Result 1 rows x 6 columns, unverified>"

    def test_a_stream_can_be_read_once(self, filled: tickflight.Client) -> None:
        result = filled.ticks("MNQ", 0)
        reader = result.reader()
        assert reader.schema.field("symbol").type == pa.string()
        assert reader.read_all().num_rows == 100
        with pytest.raises(tickflight.InvalidRequestError, match="already streamed"):
            result.arrow()

    def test_the_whole_can_be_taken_again_and_again(self, filled: tickflight.Client) -> None:
        result = filled.ticks("MNQ", 0)
        assert result.arrow().equals(result.arrow())
        assert result.reader().read_all().equals(result.arrow())
        assert sum(batch.num_rows for batch in result) == 100

    def test_other_libraries_take_a_result_as_it_is(self, filled: tickflight.Client) -> None:
        assert pl.DataFrame(filled.latest("MNQ", limit=3)).height == 3
        assert pa.table(filled.latest("MNQ", limit=3)).num_rows == 3

    def test_a_closed_result_keeps_what_was_read(self, filled: tickflight.Client) -> None:
        result = filled.latest("MNQ", limit=3)
        result.close()
        with pytest.raises(tickflight.InvalidRequestError):
            result.arrow()
        result = filled.latest("MNQ", limit=3)
        result.arrow()
        result.close()
        assert len(result) == 3


class TestCoverage:
    def test_it_comes_with_the_answer(self, server: FakeServer, filled: tickflight.Client) -> None:
        server.coverage = {
            "snapshot": "7.12",
            "symbols": {
                "MNQ": {
                    "requested": [0, 10],
                    "available": [2, 10],
                    "state": "gap",
                    "gaps": [[3, 4], {"start": 8, "end": None, "reason": "outage"}],
                    "gap_count": 40,
                    "quarantined": 2,
                },
                "NQ": {"requested": [0, 10], "available": None, "state": "unverified", "gaps": []},
            },
        }
        coverage = filled.latest("MNQ").coverage
        assert coverage.snapshot == "7.12"
        assert coverage.state is CoverageState.GAP
        assert coverage["MNQ"].available == Span(2, 10)
        assert coverage["MNQ"].gaps == (Gap(3, 4), Gap(8, None, "outage"))
        assert (coverage["MNQ"].gap_count, coverage["MNQ"].quarantined) == (40, 2)
        assert coverage["NQ"].available is None
        assert "MNQ NQ, gap" in repr(filled.latest("MNQ"))

    def test_instants_can_be_had_as_datetimes(self) -> None:
        span = Span(0, 2**63 - 1)
        assert span.start == datetime(1970, 1, 1, tzinfo=UTC)
        assert span.end.year == 9999
        assert Gap(1, None).end is None
        assert Gap(1, 1_000_000).end == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"snapshot":"","symbols":{"A":{}}}'])
    def test_what_cannot_be_read_is_the_servers_fault(self, body: bytes) -> None:
        with pytest.raises(tickflight.ServerError, match="coverage"):
            Coverage.from_metadata({b"tickflight.coverage": body})

    def test_only_all_verified_is_verified(self) -> None:
        one = {"requested": None, "state": "verified"}
        both = {"snapshot": "", "symbols": {"A": one, "B": one | {"state": "unverified"}}}
        body = json.dumps(both).encode()
        assert Coverage.from_metadata({b"tickflight.coverage": body}).state == "unverified"
        assert Coverage.from_metadata(None).state is CoverageState.UNVERIFIED


class TestTickets:
    def test_aware_datetimes_become_microseconds(self) -> None:
        moment = datetime(2025, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
        assert tickets.instant(moment, "start") == 1_735_689_600_000_000
        assert tickets.instant("-15m", "start") == "-15m"
        assert tickets.instant(5, "start") == 5

    @pytest.mark.parametrize("value", [datetime(2025, 1, 1), True, 1.5, None])  # noqa: DTZ001
    def test_an_instant_that_is_none_is_refused(self, value: Any) -> None:
        with pytest.raises(tickflight.InvalidRequestError) as caught:
            tickets.instant(value, "start")
        assert caught.value.field == "start"

    def test_symbols_are_one_or_many(self) -> None:
        assert tickets.symbol_list("MNQ") == ["MNQ"]
        assert tickets.symbol_list(iter(["A", "B"])) == ["A", "B"]
        assert tickets.symbol_list([]) == []
        with pytest.raises(tickflight.InvalidRequestError):
            tickets.symbol_list([""])

    def test_what_was_not_given_is_not_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[Any] = []

        def get(_self: object, ticket: object, *, timeout: float | None) -> None:
            sent.append((ticket, timeout))
            raise tickflight.NotFoundError("enough")

        monkeypatch.setattr(connection.Connection, "get", get)
        client = tickflight.connect("grpc://127.0.0.1:1", "tf_a_b", timeout=7)
        with pytest.raises(tickflight.NotFoundError):
            client.latest("A")
        with pytest.raises(tickflight.NotFoundError):
            client.range("bars", "A", 1, 2, order="symbol", compression="zstd", timeout=3)
        assert sent == [
            ({"op": "latest", "dataset": "ticks", "symbols": ["A"], "limit": 100}, 7),
            (
                {
                    "op": "range",
                    "dataset": "bars",
                    "symbols": ["A"],
                    "start": 1,
                    "end": 2,
                    "order": "symbol",
                    "compression": "zstd",
                },
                3,
            ),
        ]


class Failing(flight.FlightServerBase):  # type: ignore[misc] # pyarrow ships no types
    """Fails as its ticket says."""

    def do_get(self, _context: object, ticket: flight.Ticket) -> flight.RecordBatchStream:
        asked = json.loads(ticket.ticket)
        if asked["symbols"] == ["LATE"]:
            return flight.GeneratorStream(pa.schema({"a": pa.int64()}), self.fail_late())
        raise flight.FlightServerError("no such thing", b'{"code":"not_found","field":"dataset"}')

    def fail_late(self) -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"a": [1]})
        raise flight.FlightUnavailableError("draining")

    def do_action(self, _context: object, action: flight.Action) -> Iterator[flight.Result]:
        bodies = {"empty": [], "text": [b"hello"], "list": [b"[]"], "symbols": [b"{}"]}
        return iter([flight.Result(pa.py_buffer(one)) for one in bodies.get(action.type, [])])


class TestErrors:
    @pytest.fixture
    def failing(self) -> Iterator[tickflight.Client]:
        with Failing("grpc://127.0.0.1:0") as server:
            yield tickflight.connect(f"grpc://127.0.0.1:{server.port}", "tf_a_hush")

    def test_a_refusal_comes_with_the_call(self, failing: tickflight.Client) -> None:
        with pytest.raises(tickflight.NotFoundError, match=r"^no such thing$") as caught:
            failing.latest("A")
        assert caught.value.field == "dataset"
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("read", ["arrow", "polars", "pandas", "reader"])
    def test_a_stream_that_fails_late_fails_with_our_error(
        self, failing: tickflight.Client, read: str
    ) -> None:
        result = failing.latest("LATE")
        with pytest.raises(tickflight.UnavailableError, match="draining"):
            list(getattr(result, read)())

    def test_answers_that_are_none_are_the_servers_fault(self, failing: tickflight.Client) -> None:
        assert failing.action("empty") == {}
        for name in ("text", "list"):
            with pytest.raises(tickflight.ServerError, match="not a JSON object"):
                failing.action(name)
        with pytest.raises(tickflight.ServerError, match="update tickflight"):
            failing.symbols()
        with pytest.raises(tickflight.ServerError, match="update tickflight"):
            failing.status()

    def test_nobody_there_is_unavailable(self) -> None:
        with pytest.raises(tickflight.UnavailableError, match=r"127\.0\.0\.1:1"):
            tickflight.connect("grpc://127.0.0.1:1", "tf_a_b").status()

    def test_a_wrong_key_is_said_so_in_every_call(self, server: FakeServer) -> None:
        client = tickflight.connect(server.uri, "tf_a_hush")
        calls: list[Callable[[], object]] = [
            client.status,
            client.symbols,
            partial(client.latest, "A"),
            partial(client.schema, "ticks"),
        ]
        for call in calls:
            with pytest.raises(tickflight.AuthenticationError) as caught:
                call()
            assert "hush" not in str(caught.value)

    def test_a_timeout_must_make_sense(self, client: tickflight.Client) -> None:
        with pytest.raises(tickflight.InvalidRequestError):
            client.latest("A", timeout=0)

    @pytest.mark.parametrize(
        ("foreign", "ours"),
        [
            (flight.FlightUnauthorizedError("no"), tickflight.PermissionDeniedError),
            (flight.FlightTimedOutError("slow"), tickflight.DeadlineError),
            (flight.FlightCancelledError("gone"), tickflight.UnavailableError),
            (flight.FlightInternalError("torn"), tickflight.UnavailableError),
            (flight.FlightServerError("?"), tickflight.ServerError),
            (flight.FlightServerError("?", b"[1]"), tickflight.ServerError),
            (flight.FlightServerError("?", b'{"code":"internal"}'), tickflight.ServerError),
            (flight.FlightServerError("?", b'{"code":"limit"}'), tickflight.LimitError),
            (flight.FlightServerError("?", b'{"code":"too_old"}'), tickflight.TooOldError),
            (pa.ArrowInvalid("odd"), tickflight.ServerError),
        ],
    )
    def test_every_foreign_error_becomes_one_of_ours(
        self, foreign: Exception, ours: type[Exception]
    ) -> None:
        assert type(from_foreign(foreign)) is ours

    def test_details_of_the_error_are_kept(self) -> None:
        error = flight.FlightServerError("gone", b'{"code":"retention","oldest":5}')
        retention = from_foreign(error)
        assert isinstance(retention, tickflight.RetentionError)
        assert retention.oldest == 5
        error = flight.FlightServerError("jump", b'{"code":"sequence","expected":9}')
        sequence = from_foreign(error)
        assert isinstance(sequence, tickflight.SequenceError)
        assert sequence.expected == 9
