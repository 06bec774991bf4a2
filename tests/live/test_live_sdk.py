"""Live streams as users of the SDK meet them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import tickflight
from flight_server.identity import Scope
from tests.flight_server.conftest import House, Server, new_key, ticks, until
from tests.live.conftest import own
from tests.quality.conftest import gap
from tickflight import live as live_module
from tickflight.errors import (
    AuthenticationError,
    InvalidRequestError,
    PermissionDeniedError,
    TooOldError,
)

MANY = 200


@pytest.fixture
def tf(house: House) -> Iterator[tickflight.Client]:
    with tickflight.connect(
        house.service.uri, house.keys.create("sdk", scopes=list(Scope)).key
    ) as tf:
        yield tf


class Reader:
    """Takes batches in a thread of its own."""

    def __init__(self, live: tickflight.Live) -> None:
        self.live = live
        self.sequences: list[int] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            self.live.each(lambda batch: self.sequences.extend(batch["sequence"].to_pylist()))
        except tickflight.TickflightError as error:
            self.error = error

    def close(self) -> None:
        self.live.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


class TestIterating:
    def test_gives_batches_with_rows_and_plain_strings(
        self, house: House, tf: tickflight.Client
    ) -> None:
        with tf.live("SDK1") as live:
            house.caller().put(ticks(3, symbol="SDK1"))
            batch = next(live)
        assert isinstance(batch, pa.RecordBatch)
        assert batch["symbol"].to_pylist() == ["SDK1"] * 3
        assert batch.schema.equals(live.schema)
        assert live.position is not None
        assert live.caught_up

    def test_gives_the_columns_asked_for_and_no_others(
        self, house: House, tf: tickflight.Client
    ) -> None:
        with tf.live(["SDK2"], columns=["price", "sequence"]) as live:
            house.caller().put(ticks(1, symbol="SDK2"))
            assert next(live).schema.names == live.schema.names == ["price", "sequence"]

    def test_ends_when_the_end_has_come(self, house: House, tf: tickflight.Client) -> None:
        house.caller().put(ticks(5, symbol="SDK3"))
        with tf.live("SDK3", start="-1m", end="now") as live:
            assert sum(batch.num_rows for batch in live) == 5
        assert live.coverage["SDK3"].requested is not None

    def test_ends_when_somebody_closes_it(self, tf: tickflight.Client) -> None:
        reader = Reader(tf.live("SDK4"))
        until(lambda: reader.live.caught_up)
        reader.close()
        assert reader.error is None

    def test_tells_of_gaps_and_of_having_caught_up(
        self, house: House, tf: tickflight.Client
    ) -> None:
        gaps: list[tickflight.Gap] = []
        caught_up = threading.Event()
        live = tf.live("SDK5", start="-1m", on_gap=gaps.append, on_caught_up=caught_up.set)
        reader = Reader(live)
        assert caught_up.wait(20)
        house.caller().put(gap("told", 0, None, symbol="SDK5"), dataset="gaps")
        until(lambda: len(gaps) == 1)
        reader.close()
        assert (gaps[0].gap_id, gaps[0].symbol, gaps[0].state) == ("told", "SDK5", "open")

    def test_another_stream_goes_on_where_one_has_ended(
        self, house: House, tf: tickflight.Client
    ) -> None:
        caller = house.caller()
        with tf.live("SDK6") as live:
            caller.put(ticks(2, symbol="SDK6"))
            next(live)
        caller.put(ticks(2, symbol="SDK6", sequence=[3, 4]))
        with tf.live("SDK6", after=live.position) as again:
            assert next(again)["sequence"].to_pylist() == [3, 4]


class TestErrors:
    def test_a_wrong_question_raises_at_once(self, tf: tickflight.Client) -> None:
        with pytest.raises(InvalidRequestError):
            tf.live("SDK7", start="soon")
        with pytest.raises(InvalidRequestError):
            tf.live("SDK7", dataset="nothing")

    def test_a_missing_scope_raises_at_once(self, house: House) -> None:
        key = house.keys.create("narrow", scopes=[Scope.WRITE]).key
        with tickflight.connect(house.service.uri, key) as tf, pytest.raises(PermissionDeniedError):
            tf.live("SDK8")

    def test_a_key_that_is_revoked_raises_while_it_reads(
        self,
        house: House,
        quick: None,  # noqa: ARG002 - has the server look soon
    ) -> None:
        key = house.keys.create("leaving", scopes=list(Scope))
        with tickflight.connect(house.service.uri, key.key) as tf:
            reader = Reader(tf.live("SDK9"))
            house.keys.revoke(key.id)
            until(lambda: isinstance(reader.error, AuthenticationError))
            reader.close()

    def test_an_absence_that_was_too_long_raises(
        self, house: House, tf: tickflight.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = own(house)
        with tf.live("SDK10", after=tickflight.Position(store.epoch, 0)) as live:
            monkeypatch.setattr(type(store.arrivals), "read", lambda *_: None)
            monkeypatch.setattr(store.arrivals, "_segments", [])
            house.caller().put(ticks(1, symbol="SDK10"))
            with pytest.raises(TooOldError) as caught:
                next(live)
        assert caught.value.oldest is not None


class TestConnections:
    def test_one_that_is_cut_is_made_again(self, house: House, tf: tickflight.Client) -> None:
        reader = Reader(tf.live("SDK11"))
        caller = house.caller()
        for sequence in range(1, 31):
            caller.put(ticks(1, symbol="SDK11", sequence=[sequence]))
            if sequence % 10 == 0:
                reader.live._stream.cancel()
        until(lambda: len(reader.sequences) >= 30)
        reader.close()
        assert reader.sequences == list(range(1, 31))
        assert 1 <= reader.live.reconnects <= 3

    def test_one_on_which_nothing_comes_counts_as_lost(
        self, house: House, tf: tickflight.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(live_module, "SILENCE_SECONDS", 0.2)  # heartbeats are further apart
        reader = Reader(tf.live("SDK12"))
        until(lambda: reader.live.reconnects >= 1)
        monkeypatch.undo()
        house.caller().put(ticks(1, symbol="SDK12"))
        until(lambda: reader.sequences == [1])
        reader.close()

    @pytest.mark.slow
    def test_a_server_that_was_killed_is_waited_for(self, tmp_path: Path) -> None:
        key, server = new_key(tmp_path), Server(tmp_path)
        with tickflight.connect(server.uri, key) as tf:
            reader = Reader(tf.live("MNQ", start="-1h"))
            writer = tf.writer("ticks")
            for life in range(3):
                rows = list(range(100 * life + 1, 100 * life + 101))
                writer.write(ticks(100, sequence=rows))
                until(lambda: len(reader.sequences) >= rows[-1])  # noqa: B023 - asked at once
                server.kill()
                server = Server(tmp_path, server.uri)
            writer.close(timeout=60)
            whole = tf.range("ticks", "MNQ", 0, source="all").arrow()["sequence"].to_pylist()
            reader.close()
        server.stop()
        assert sorted(reader.sequences) == sorted(whole) == list(range(1, 301))


@pytest.mark.slow
def test_two_hundred_subscribers_lose_nothing_beside_one_that_stalls(house: House) -> None:
    keys = [house.keys.create("many", scopes=list(Scope)).key for _ in range(2)]
    clients = [tickflight.connect(house.service.uri, key) for key in keys]
    stalled = clients[0].live("SDK13")  # nobody ever reads it
    readers = [Reader(clients[number % 2].live("SDK13")) for number in range(MANY)]
    caller, batches, rows = house.caller(), 100, 100
    latencies = []
    for number in range(batches):
        first = number * rows + 1
        began = time.monotonic()
        caller.put(ticks(rows, symbol="SDK13", sequence=list(range(first, first + rows))))
        latencies.append(time.monotonic() - began)
    until(lambda: all(len(r.sequences) == batches * rows for r in readers), seconds=60)
    for reader in readers:
        reader.close()
        assert reader.error is None
        assert reader.sequences == list(range(1, batches * rows + 1))
    stalled.close()
    assert sorted(latencies)[batches // 2] < 1.0
    for client in clients:
        client.close()
