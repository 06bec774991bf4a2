"""Live streams as any Arrow Flight client meets them."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server.identity import Scope
from storage.schemas import GEX, TICKS
from tests.flight_server.conftest import House, serving, ticks, told, until
from tests.live.conftest import Listener, listen, own
from tests.quality.conftest import gap
from tests.storage.conftest import gamma

MINUTE = 60_000_000


def now() -> int:
    return time.time_ns() // 1_000


class TestArrivals:
    def test_come_as_they_are_written_and_say_where_they_are(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["LIVE1"])
        caller.put(ticks(3, symbol="LIVE1"))
        listener.wait(3)
        caller.put(ticks(2, symbol="LIVE1", sequence=[4, 5]))
        listener.wait(5)
        listener.cancel()
        assert listener.sequences == [1, 2, 3, 4, 5]
        hello, *_, last = [message.about for message in listener.messages]
        assert last["pos"] == hello["pos"] + 5
        assert last["epoch"] == own(house).epoch
        assert hello["pos"] <= last["durable"]

    def test_come_in_the_order_they_came_whatever_their_time(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["LIVE2"])
        at = now() - 10 * MINUTE
        for sequence in (3, 1, 2):
            caller.put(ticks(1, symbol="LIVE2", sequence=[sequence], ts_event=[at + sequence]))
        listener.wait(3)
        listener.cancel()
        assert listener.sequences == [3, 1, 2]

    def test_have_plain_strings_and_the_columns_asked_for(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["LIVE3"], columns=["price", "symbol", "exchange", "bid"])
        caller.put(ticks(2, symbol="LIVE3", exchange=["Q", None], bid=[None, 2.5]))
        listener.wait(2)
        listener.cancel()
        assert listener.stream.schema.types == [
            pa.float64(),
            pa.string(),
            pa.string(),
            pa.float64(),
        ]
        assert listener.rows == [
            {"price": 20_000.0, "symbol": "LIVE3", "exchange": "Q", "bid": None},
            {"price": 20_000.0, "symbol": "LIVE3", "exchange": None, "bid": 2.5},
        ]

    def test_of_other_symbols_are_passed_over(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["LIVE4", "LIVE5"])
        symbols = ["LIVE4", "OTHER", "LIVE5", "OTHER", "LIVE4"]
        caller.put(ticks(5, symbol=symbols))
        listener.wait(3)
        listener.cancel()
        assert [row["symbol"] for row in listener.rows] == ["LIVE4", "LIVE5", "LIVE4"]

    def test_of_datasets_with_lists_come_too(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, dataset="gex", symbols=["NQ_NDX"])
        strikes = [[{"strike": 1.0, "gex_vol": 2.0, "gex_oi": 3.0}]]
        caller.put(gamma(strikes=strikes), dataset="gex")
        listener.wait(1)
        listener.cancel()
        assert listener.rows[0]["strikes"] == strikes[0]
        assert listener.stream.schema.equals(GEX.schema)


class TestHistory:
    def test_ends_where_the_arrivals_begin(self, house: House) -> None:
        """Somebody writes all the while: nothing is missing, nothing comes twice."""
        caller, start = house.caller(), now()
        stopping = threading.Event()

        def write() -> None:
            writer, sequence = house.caller(), 0
            while not stopping.is_set():
                batch = ticks(5, symbol="PAST1", sequence=list(range(sequence + 1, sequence + 6)))
                writer.put(batch)
                sequence += 5

        thread = threading.Thread(target=write)
        thread.start()
        listeners = []
        try:
            for _ in range(5):
                time.sleep(0.1)
                listeners.append(listen(caller, symbols=["PAST1"], start=start))
        finally:
            stopping.set()
            thread.join()
        ticket = {"op": "range", "dataset": "ticks", "symbols": ["PAST1"], "start": start}
        sequences = caller.get({**ticket, "end": "now", "source": "all"})["sequence"].to_pylist()
        for listener in listeners:
            listener.wait(len(sequences))
            listener.cancel()
            assert listener.sequences == sequences

    def test_is_in_total_order_and_says_so(self, house: House) -> None:
        caller, at = house.caller(), now()
        for sequence in (3, 1, 2):
            caller.put(ticks(1, symbol="PAST2", sequence=[sequence], ts_event=[at + sequence]))
        listener = listen(caller, symbols=["PAST2"], start=at - MINUTE)
        listener.cancel()
        assert listener.sequences == [1, 2, 3]
        (rows,) = [message for message in listener.messages if message.rows]
        assert rows.about["history"]
        assert rows.about["key"] == [at + 3, "demo", "PAST2", "PAST2", 3, 0]
        coverage = json.loads(listener.stream.schema.metadata[b"tickflight.coverage"])
        assert coverage["symbols"]["PAST2"]["requested"][0] == at - MINUTE

    def test_leaves_out_late_rows_of_before_its_start(self, house: House) -> None:
        caller, start = house.caller(), now()
        listener = listen(caller, symbols=["PAST3"], start=start)
        instants = [start - 1, start, start - MINUTE, start + 1]
        caller.put(ticks(4, symbol="PAST3", ts_event=instants))
        listener.wait(2)
        listener.cancel()
        assert listener.sequences == [2, 4]

    def test_shows_all_sources(self, house: House) -> None:
        caller, start = house.caller(), now() - 1
        for source in ("demo", "tastytrade"):
            caller.put(ticks(2, symbol="PAST4", source=source))
        listener = listen(caller, symbols=["PAST4"], start=start - MINUTE)
        listener.cancel()
        assert sorted(row["source"] for row in listener.rows) == ["demo"] * 2 + ["tastytrade"] * 2

    @pytest.mark.usefixtures("quick")
    def test_begins_only_once_it_is_durable(self, house: House) -> None:
        caller, arrivals = house.caller(), own(house).arrivals
        caller.put(ticks(3, symbol="PAST5"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arrivals, "_origin", replace(arrivals._origin, durable=lambda _: 0))
            stream = caller.stream({"op": "live", "symbols": ["PAST5"], "start": now() - MINUTE})
            listener = Listener(stream)
            until(lambda: len(listener.messages) == 2)  # a greeting and a heartbeat
            assert listener.rows == []
        listener.wait(3)
        listener.cancel()
        assert listener.sequences == [1, 2, 3]


class TestEnds:
    def test_with_an_end_in_the_past_it_is_the_range(self, house: House) -> None:
        caller, at = house.caller(), now() - MINUTE
        caller.put(ticks(6, symbol="END1", ts_event=[at + i for i in range(6)]))
        listener = listen(caller, symbols=["END1"], start=at + 1, end=at + 4)
        until(lambda: listener.has_ended)
        assert (listener.sequences, listener.error) == ([2, 3, 4], None)

    def test_with_an_end_in_the_future_it_ends_by_itself(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["END2"], end="+1s")
        caller.put(ticks(1, symbol="END2"))
        until(lambda: listener.has_ended)
        assert (listener.sequences, listener.error) == ([1], None)
        assert now() >= listener.messages[0].about["end"]

    def test_a_pause_between_batches_is_kept(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["END3"], min_interval_ms=400)
        began = time.monotonic()
        sequence = 0
        while time.monotonic() < began + 1.2:
            sequence += 1
            caller.put(ticks(1, symbol="END3", sequence=[sequence]))
        listener.wait(sequence)
        took = time.monotonic() - began
        listener.cancel()
        batches = [message for message in listener.messages if message.rows]
        assert listener.sequences == list(range(1, sequence + 1))
        assert len(batches) <= 2 + took / 0.4

    @pytest.mark.usefixtures("quick")
    def test_silence_is_broken_by_heartbeats(self, house: House) -> None:
        listener = listen(house.caller(), symbols=["END4"])
        until(lambda: len(listener.messages) >= 5)
        listener.cancel()
        assert listener.rows == []
        assert listener.messages[-1].about["caught_up"]

    def test_one_that_is_cancelled_is_gone_soon(self, house: House) -> None:
        before = house.streams
        listeners = [listen(house.caller(), symbols=["END5"]) for _ in range(5)]
        assert house.streams == before + 5
        for listener in listeners:
            listener.cancel()
        until(lambda: house.streams == before)

    @pytest.mark.usefixtures("quick")
    def test_a_revoked_key_ends_it(self, house: House) -> None:
        key = house.keys.create("leaving", scopes=list(Scope))
        headers = [(b"authorization", f"Bearer {key.key}".encode())]
        client = flight.connect(house.service.uri)
        ticket = flight.Ticket(b'{"op": "live", "symbols": ["END6"]}')
        stream = client.do_get(ticket, flight.FlightCallOptions(headers=headers, timeout=30))
        stream.read_chunk()
        house.keys.revoke(key.id)
        with pytest.raises(flight.FlightUnauthenticatedError):
            stream.read_all()

    def test_shutting_down_ends_it_at_once(self, tmp_path: Path) -> None:
        with serving(tmp_path) as house:
            listener = listen(house.caller(), symbols=["END7"])
            began = time.monotonic()
            house.service.stop(3.0)
            assert time.monotonic() - began < 3.0
            until(lambda: listener.has_ended)
            assert isinstance(listener.error, flight.FlightUnavailableError)

    def test_the_history_of_calls_has_a_row_of_it(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["END8"])
        caller.put(ticks(4, symbol="END8"))
        listener.wait(4)
        listener.cancel()
        ticket = {"op": "latest", "dataset": "queries", "limit": 10_000}

        def row() -> list[dict[str, Any]]:
            rows = caller.get(ticket).to_pylist()
            return [row for row in rows if row["operation"] == "live" and "END8" in row["ticket"]]

        until(lambda: len(row()) == 1)
        assert (row()[0]["rows"], row()[0]["outcome"]) == (4, "cancelled")


class TestRights:
    def test_it_takes_the_scope_for_now(self, house: House) -> None:
        with pytest.raises(flight.FlightUnauthorizedError, match="read:realtime"):
            house.caller(Scope.READ_HISTORY).stream({"op": "live"})

    def test_and_for_a_start_beyond_memory_the_one_for_history(self, house: House) -> None:
        caller = house.caller(Scope.READ_REALTIME)
        listen(caller, symbols=["WHO1"], start="-10m").cancel()
        with pytest.raises(flight.FlightUnauthorizedError, match="60 minutes ago") as caught:
            caller.stream({"op": "live", "symbols": ["WHO1"], "start": "-2h"})
        assert told(caught.value)["scope"] == "read:history"

    def test_a_key_for_some_symbols_sees_no_others(self, house: House) -> None:
        narrow, wide = house.caller(symbols=["WHO2"]), house.caller()
        listener = listen(narrow, start=now() - MINUTE)
        wide.put(ticks(3, symbol=["WHO2", "WHO3", "WHO2"]))
        listener.wait(2)
        listener.cancel()
        assert {row["symbol"] for row in listener.rows} == {"WHO2"}
        with pytest.raises(flight.FlightUnauthorizedError):
            narrow.stream({"op": "live", "symbols": ["WHO3"]})

    def test_what_admins_alone_read_is_theirs_alone(self, house: House) -> None:
        with pytest.raises(flight.FlightUnauthorizedError, match="admin"):
            house.caller(Scope.READ_REALTIME).stream({"op": "live", "dataset": "queries"})


class TestGoingOn:
    def test_after_a_position_the_next_rows_come(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["ON1"])
        for sequence in range(1, 6):
            caller.put(ticks(1, symbol="ON1", sequence=[sequence]))
        listener.wait(5)
        listener.cancel()
        for message in listener.messages:
            after = {"epoch": message.about["epoch"], "pos": message.about["pos"]}
            again = listen(caller, symbols=["ON1"], after=after)
            again.wait(5 - message.sequences[-1] if message.rows else 5)
            again.cancel()
            first = message.sequences[-1] + 1 if message.rows else again.sequences[0]
            assert again.sequences == list(range(first, 6))

    @pytest.mark.parametrize(
        "after",
        [
            {"epoch": 1, "pos": 1 << 40},
            {"epoch": 9, "pos": 0},
            {"epoch": 1, "pos": 0, "key": [1]},
            {"epoch": 1, "pos": 0, "key": [1, "a", "b", "c", "d", 0]},
        ],
        ids=["position", "epoch", "short key", "wrong key"],
    )
    def test_after_what_has_never_been_is_refused(self, house: House, after: Any) -> None:
        with pytest.raises(flight.FlightServerError) as caught:
            house.caller().stream({"op": "live", "start": 0, "after": after})
        assert told(caught.value) == {"code": "invalid_argument", "field": "after"}

    def test_a_history_goes_on_behind_its_key(self, house: House) -> None:
        """Rows that came meanwhile and belong before the key come too, and nothing comes twice."""
        caller, at = house.caller(), now() - MINUTE
        first = ticks(10, symbol="ON2", ts_event=[at + 10 * i for i in range(10)])
        caller.put(first)
        listener = listen(caller, symbols=["ON2"], start=at)
        (past,) = [message for message in listener.messages if message.rows]
        listener.cancel()
        late = ticks(2, symbol="ON2", sequence=[11, 12], ts_event=[at + 15, at + 55])
        caller.put(late)
        key = [at + 40, "demo", "ON2", "ON2", 5, 0]
        after = {"epoch": past.about["epoch"], "pos": past.about["pos"], "key": key}
        again = listen(caller, symbols=["ON2"], start=at, after=after)
        caller.put(ticks(1, symbol="ON2", sequence=[13], ts_event=[at + 1]))
        again.wait(8)
        again.cancel()
        assert again.sequences == [11, 6, 12, 7, 8, 9, 10, 13]

    def test_long_histories_survive_being_cut_off_anywhere(self, house: House) -> None:
        caller, at = house.caller(), now() - 10 * MINUTE
        rows = 150_000
        instants = [at + i // 3 for i in range(rows)]  # three rows share each instant
        caller.put(ticks(rows, symbol="ON3", ts_event=instants))
        got: list[int] = []
        after: dict[str, Any] | None = None
        for _ in range(10):
            fields = {"symbols": ["ON3"], "start": at, "columns": ["sequence"]}
            stream = caller.stream({"op": "live", **fields, **({"after": after} if after else {})})
            while True:  # until a batch with rows
                chunk = stream.read_chunk()
                about = json.loads(chunk.app_metadata.to_pybytes())
                if (chunk.data is not None and chunk.data.num_rows) or about["caught_up"]:
                    break
            stream.cancel()
            got += [] if chunk.data is None else chunk.data["sequence"].to_pylist()
            after = {name: about[name] for name in ("epoch", "pos", "key") if name in about}
            if about["caught_up"]:
                break
        assert got == list(range(1, rows + 1))


class TestNotices:
    def test_a_gap_of_a_symbol_is_told_when_it_opens_and_when_it_closes(self, house: House) -> None:
        caller = house.caller()
        listener = listen(caller, symbols=["GAP1"])
        caller.put(gap("g1", 0, None, symbol="GAP1"), dataset="gaps")
        caller.put(gap("g2", 0, None, symbol="OTHER"), dataset="gaps")
        caller.put(gap("g3", 0, None, symbol="GAP1", dataset="quotes"), dataset="gaps")
        closed = gap("g1", 0, 5, symbol="GAP1", revision=2, state="filled")
        caller.put(closed, dataset="gaps")
        caller.put(gap("g4", 0, None, symbol=None), dataset="gaps")

        def notices() -> list[dict[str, Any]]:
            abouts = [message.about for message in tuple(listener.messages)]
            return [about["gap"] for about in abouts if "gap" in about]

        until(lambda: len(notices()) == 3)
        listener.cancel()
        told = [(one["gap_id"], one["state"], one["end"] is None) for one in notices()]
        assert told == [("g1", "open", True), ("g1", "filled", False), ("g4", "open", True)]
        assert notices()[0]["symbol"] == "GAP1"
        assert listener.rows == []


class TestAbout:
    def test_the_schema_is_told_without_a_stream(self, house: House) -> None:
        caller = house.caller()
        ticket = json.dumps({"op": "live", "symbols": ["MNQ"], "start": "-5m"}).encode()
        descriptor = flight.FlightDescriptor.for_command(ticket)
        info = caller.client.get_flight_info(descriptor, caller.options)
        assert info.schema.equals(TICKS.schema)
        assert json.loads(info.endpoints[0].ticket.ticket)["op"] == "live"
        schema = caller.client.get_schema(descriptor, caller.options).schema
        assert schema.equals(TICKS.schema)

    def test_too_many_streams_of_a_key_are_turned_away(self, house: House) -> None:
        assert house.service._door is not None
        live = house.service._door.live
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(live, "_per_key", 2)
            caller = house.caller()
            listeners = [listen(caller, symbols=["MANY"]) for _ in range(2)]
            with pytest.raises(flight.FlightUnavailableError, match="2 streams of this key"):
                caller.stream({"op": "live", "symbols": ["MANY"]})
        for listener in listeners:
            listener.cancel()
