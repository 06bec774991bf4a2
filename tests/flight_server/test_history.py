"""The history of calls, and the usage of keys, against a real store."""

import datetime as dt
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import flight

from flight_server.calls import CALLS_MAX, CALLS_PER_KEY_MAX, DENIED, HANDSHAKES_MAX, Call, Calls
from flight_server.errors import BusyError, Refusal
from flight_server.history import ROWS_A_FLUSH, QueryHistory
from flight_server.identity import Identity, Scope
from flight_server.tickets import RangeTicket, parse_ticket, record_of
from flight_server.usage import Usage, UsageTable
from storage.ports import SystemClock, SystemDisk
from storage.selection import Selection, SourcePolicy
from storage.store import Store, StoreConfig

GET = flight.FlightMethod.DO_GET


def key(key_id: str = "k1", model: str = "model") -> Identity:
    return Identity(key_id, model, frozenset(Scope), None, None)


def call(operation: str, *, outcome: str = "ok", caller: Identity | None = None) -> Call:
    made = Call(caller or key(), operation, 0.0)
    made.outcome = outcome
    made.sent(10, 800)
    made.end(0.002)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    def fail(error: BaseException) -> None:
        raise error

    config = StoreConfig(tmp_path, 1 << 30, SourcePolicy((), 3_600_000_000))
    store = Store(config, clock=SystemClock(), disk=SystemDisk(), on_failure=fail)
    yield store
    store.close()


@pytest.fixture
def refused() -> Counter[Refusal]:
    return Counter()


@pytest.fixture
def usage(tmp_path: Path) -> Iterator[UsageTable]:
    with UsageTable(tmp_path) as table:
        yield table


@pytest.fixture
def history(store: Store, usage: UsageTable, refused: Counter[Refusal]) -> QueryHistory:
    history = QueryHistory(store, usage, lambda: refused, SystemClock())
    history.start()
    return history


def written(store: Store, history: QueryHistory) -> list[dict[str, Any]]:
    """Everything in the dataset once the history has stopped."""
    history.stop()
    assert history._stream is not None
    history._stream.end()
    while history._stream.next_ack() is not None:
        pass
    answer = store.snapshot().latest("queries", Selection(), 10_000)
    return list(pa.Table.from_batches(answer.batches).to_pylist())


class TestRows:
    def test_each_range_is_a_row(self, store: Store, history: QueryHistory) -> None:
        for outcome in ("ok", "cancelled", "error:internal"):
            history.note(call("range", outcome=outcome))
        rows = written(store, history)
        assert [row["outcome"] for row in rows] == ["ok", "cancelled", "error:internal"]
        (row, *_) = rows
        assert (row["model_id"], row["operation"], row["calls"]) == ("model", "range", 1)
        assert (row["rows"], row["bytes"], row["duration_ms"]) == (10, 800, pytest.approx(2.0))
        assert row["symbol"] is None

    def test_latest_is_one_row_of_sums_a_model(self, store: Store, history: QueryHistory) -> None:
        for _ in range(500):
            history.note(call("latest"))
            history.note(call("latest", caller=key("k2", "other")))
        rows = written(store, history)
        assert {(row["model_id"], row["calls"], row["rows"]) for row in rows} == {
            ("model", 500, 5_000),
            ("other", 500, 5_000),
        }

    def test_each_denial_is_a_row_whatever_was_asked_for(
        self, store: Store, history: QueryHistory
    ) -> None:
        for operation in ("latest", "range", "put", "files.register"):
            history.note(call(operation, outcome=DENIED))
        rows = written(store, history)
        assert [row["operation"] for row in rows] == ["latest", "range", "put", "files.register"]
        assert {row["outcome"] for row in rows} == {"denied"}

    def test_small_talk_leaves_no_row(self, store: Store, history: QueryHistory) -> None:
        history.note(call("status"))
        history.note(call("range"))
        assert [row["operation"] for row in written(store, history)] == ["range"]

    def test_a_client_gone_wild_fills_no_memory_and_loses_no_count(
        self, store: Store, usage: UsageTable, refused: Counter[Refusal]
    ) -> None:
        history = QueryHistory(store, usage, lambda: refused, SystemClock())
        calls = ROWS_A_FLUSH * 3
        for _ in range(calls):
            history.note(call("range"))
        history.start()
        rows = written(store, history)
        assert len(rows) == ROWS_A_FLUSH + 1
        assert sum(row["calls"] for row in rows) == calls
        assert history.folded == calls - ROWS_A_FLUSH

    def test_refused_credentials_are_sums_by_cause(
        self, store: Store, history: QueryHistory, refused: Counter[Refusal]
    ) -> None:
        refused.update({Refusal.UNKNOWN: 3, Refusal.EXPIRED: 1})
        rows = written(store, history)
        assert {(json.loads(row["ticket"])["cause"], row["calls"]) for row in rows} == {
            ("unknown", 3),
            ("expired", 1),
        }
        assert {(row["operation"], row["outcome"]) for row in rows} == {("authenticate", "denied")}

    def test_the_writing_thread_writes_while_calls_go_on(
        self, store: Store, history: QueryHistory
    ) -> None:
        history.note(call("range"))
        appeared = threading.Event()
        for _ in range(2_000):
            if store.datasets()["queries"].rows:
                break
            appeared.wait(0.01)
        assert store.datasets()["queries"].rows == 1
        history.stop()


class TestUsage:
    def test_every_call_counts_for_its_key_and_day(
        self, history: QueryHistory, usage: UsageTable
    ) -> None:
        for operation in ("latest", "range", "status"):
            history.note(call(operation))
        history.note(call("latest", caller=key("k2")))
        history.stop()
        today = dt.datetime.now(tz=dt.UTC).date()
        assert set(usage.last_days()) == {"k1", "k2"}
        assert today - usage.last_days()["k1"] <= dt.timedelta(days=1)
        (total,) = usage.totals(usage.last_days()["k1"])
        assert (total.model_id, total.calls, total.rows) == ("model", 4, 40)

    def test_a_day_s_counts_add_up(self, usage: UsageTable) -> None:
        day = dt.date(2026, 11, 21)
        for _ in range(3):
            usage.add(day, [Usage("k1", "model", 2, 20, 200)])
        usage.add(day + dt.timedelta(days=1), [Usage("k1", "model", 1, 1, 1)])
        assert usage.totals(day) == (Usage("", "model", 6, 60, 600),)
        assert usage.last_days() == {"k1": day + dt.timedelta(days=1)}

    def test_old_days_are_forgotten(self, usage: UsageTable) -> None:
        usage.add(dt.date(2025, 1, 1), [Usage("old", "model", 1)])
        usage.add(dt.date(2026, 1, 1), [Usage("new", "model", 1)])
        usage.forget(dt.date(2026, 1, 1))
        assert set(usage.last_days()) == {"new"}


class TestRecord:
    """What is kept of a ticket."""

    def record(self, **fields: object) -> dict[str, Any]:
        asked = {"op": "range", "dataset": "ticks", "start": 0, "end": "now"} | fields
        ticket = parse_ticket(json.dumps(asked).encode())
        assert isinstance(ticket, RangeTicket)
        kept: dict[str, Any] = json.loads(record_of(ticket))
        return kept

    def test_it_says_what_was_asked_for(self) -> None:
        kept = self.record(symbols=["MNQ"], start="-15m", columns=["price"], source="demo")
        assert kept == {
            "op": "range",
            "dataset": "ticks",
            "symbols": ["MNQ"],
            "start": "-15m",
            "end": "now",
            "order": "time",
            "columns": ["price"],
            "source": "demo",
        }

    def test_a_key_pasted_into_the_wrong_field_is_not_kept(self) -> None:
        secret = "tf_0123456789ab_" + "Zz9" * 15
        for field in ("dataset", "start", "end", "source"):
            assert secret[:20] not in json.dumps(self.record(**{field: secret}))
        assert secret[:20] not in json.dumps(self.record(columns=[secret]))

    def test_many_symbols_are_counted_and_not_listed(self) -> None:
        kept = self.record(symbols=[f"S{n}" for n in range(5_000)])
        assert len(kept["symbols"]) == 20
        assert kept["symbol_count"] == 5_000


class TestCalls:
    def test_a_key_can_not_take_every_place(self) -> None:
        calls = Calls()
        for _ in range(CALLS_PER_KEY_MAX):
            calls.admit(key("greedy"), GET, calls.enter(GET))
        with pytest.raises(BusyError, match="calls of this key"):
            calls.admit(key("greedy"), GET, calls.enter(GET))
        calls.admit(key("other"), GET, calls.enter(GET))
        assert calls.turned_away == 1

    def test_a_full_house_is_busy_until_a_call_ends(self) -> None:
        calls = Calls()
        for _ in range(CALLS_MAX):
            calls.enter(GET)
        with pytest.raises(BusyError):
            calls.enter(GET)
        calls.leave(GET, None)
        calls.enter(GET)

    def test_handshakes_have_a_small_room_of_their_own(self) -> None:
        calls = Calls()
        handshake = flight.FlightMethod.HANDSHAKE
        for _ in range(HANDSHAKES_MAX):
            calls.enter(handshake)
        with pytest.raises(BusyError, match="handshakes"):
            calls.enter(handshake)
        calls.enter(GET)
        calls.leave(handshake, None)
        calls.enter(handshake)

    def test_answers_that_nobody_takes_fill_their_room_and_leave_it(self) -> None:
        calls = Calls()
        big = calls.admit(key(), GET, calls.enter(GET))
        calls.hold(big, 2 << 30)  # alone, any answer goes
        small = calls.admit(key(), GET, calls.enter(GET))
        with pytest.raises(BusyError, match="wait to be taken"):
            calls.hold(small, 1)
        calls.leave(GET, big)
        calls.hold(small, 1)

    def test_the_end_of_a_call_gives_back_what_it_held(self) -> None:
        ended: list[Call] = []
        given_back: list[bool] = []
        calls = Calls(ended.append)
        made = calls.admit(key(), GET, calls.enter(GET))
        made.release = lambda: given_back.append(True)
        calls.leave(GET, made)
        assert (ended, given_back, calls.running) == ([made], [True], 0)
        assert made.seconds >= 0
