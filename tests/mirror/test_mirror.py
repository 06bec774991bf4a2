"""Redis has what the service has newest: while all is well, and two seconds after it was not."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

import tickflight
from flight_server.identity import Scope
from ingest.errors import ConfigurationError, MirrorError
from ingest.mirror import Mirror, RedisHashes
from ingest.mirror import mirror as mirror_module
from storage.schemas import DATASETS
from tests.flight_server.conftest import House, Server, new_key, ticks
from tests.mirror.conftest import RedisServer, mirroring, redis_server, until
from tests.storage.conftest import gamma

RETURN_SECONDS = 2.0
"""How long after its return Redis may lack anything."""
SLOW_MACHINE_SECONDS = 10.0
"""What a test that runs beside others adds to that."""


def send(client: tickflight.Client, symbol: str, price: float, count: int = 1) -> None:
    """Write ticks of now, and wait until they are durable."""
    with client.writer("ticks") as writer:
        rows = ticks(count, symbol=symbol, price=price, sequence=[time.monotonic_ns()] * count)
        sequences = pa.array(range(time.monotonic_ns(), time.monotonic_ns() + 10**9)[:count])
        at = rows.schema.get_field_index("sequence")
        writer.write(rows.set_column(at, "sequence", sequences))


def is_newest(store: RedisServer, client: tickflight.Client, symbol: str) -> Callable[[], bool]:
    """Return a question: whether Redis has the newest tick of a symbol."""

    def ask() -> bool:
        rows = client.latest(symbol, limit=1).arrow()
        times = [f.with_type(pa.int64()) if f.name[:3] == "ts_" else f for f in rows.schema]
        (row,) = rows.cast(pa.schema(times)).to_pylist()
        wanted = {name: "" if value is None else str(value) for name, value in row.items()}
        return store.hash(f"tickflight:ticks:{symbol}") == wanted

    return ask


def told(client: tickflight.Client) -> tickflight.ServiceStatus | None:
    """Return what status says of the mirror."""
    return next((one for one in client.status().services if one.name == "mirror"), None)


def says(client: tickflight.Client, state: str) -> Callable[[], bool]:
    def ask() -> bool:
        found = told(client)
        return found is not None and found.state == state

    return ask


@pytest.mark.usefixtures("mirror")
def test_what_comes_is_in_redis_a_moment_later(
    client: tickflight.Client, store: RedisServer
) -> None:
    for price in (1.0, 2.0, 3.0):
        send(client, "M.COMES", price)
        until(is_newest(store, client, "M.COMES"))
        assert store.hash("tickflight:ticks:M.COMES")["price"] == str(price)


@pytest.mark.usefixtures("mirror")
def test_quotes_and_gamma_are_mirrored_too(client: tickflight.Client, store: RedisServer) -> None:
    now = time.time_ns() // 1_000
    with client.writer("gex") as writer:
        writer.write(gamma(symbol="M_GEX", ts_event=now, ts_recv=now, net_gex=5.0))
    quote = {"ts_event": now, "ts_recv": now, "symbol": "M.QUOTE", "contract": "M.QUOTE"}
    quote |= {"bid": 1.0, "ask": 2.0, "flags": 1, "sequence": now, "source": "demo"}
    with client.writer("quotes") as writer:
        writer.write(pa.Table.from_pylist([quote], DATASETS["quotes"].schema))
    until(lambda: store.hash("tickflight:quotes:M.QUOTE").get("ask") == "2.0")
    until(lambda: store.hash("tickflight:gex:M_GEX:gex_zero").get("net_gex") == "5.0")
    assert store.hash("tickflight:gex:M_GEX")["endpoint"] == "gex_zero"


def test_what_was_there_before_is_mirrored_at_the_start(
    client: tickflight.Client, store: RedisServer
) -> None:
    send(client, "M.BEFORE", 7.0)
    with mirroring(client, store.url):
        until(is_newest(store, client, "M.BEFORE"))


@pytest.mark.slow
@pytest.mark.usefixtures("mirror")
def test_rows_go_on_while_redis_stands_still_and_it_is_right_again_soon(
    client: tickflight.Client, store: RedisServer
) -> None:
    send(client, "M.STILL", 1.0)
    until(is_newest(store, client, "M.STILL"))
    store.stand_still()
    try:
        until(says(client, "degraded"))
        for price in range(2, 30):
            send(client, "M.STILL", float(price), count=1_000)  # returns once they are durable
        found = told(client)
        assert found is not None
        assert "does not answer" in found.detail
    finally:
        store.go_on()
    seconds = until(is_newest(store, client, "M.STILL"))
    assert seconds < RETURN_SECONDS + SLOW_MACHINE_SECONDS
    until(says(client, "running"))


@pytest.mark.slow
@pytest.mark.usefixtures("mirror")
def test_a_redis_that_was_killed_has_everything_again_soon(
    client: tickflight.Client, store: RedisServer
) -> None:
    for symbol in ("M.QUIET", "M.KILLED"):
        send(client, symbol, 1.0)
        until(is_newest(store, client, symbol))
    store.kill()
    send(client, "M.KILLED", 2.0)
    until(says(client, "degraded"))
    store.start()
    # Also that of which nothing new has come: Redis has forgotten all.
    for symbol in ("M.QUIET", "M.KILLED"):
        seconds = until(is_newest(store, client, symbol))
        assert seconds < RETURN_SECONDS + SLOW_MACHINE_SECONDS
    until(says(client, "running"))


@pytest.mark.usefixtures("mirror")
def test_a_restart_between_two_writes_is_noticed(
    client: tickflight.Client, store: RedisServer
) -> None:
    send(client, "M.BLINK", 1.0)
    until(is_newest(store, client, "M.BLINK"))
    store.kill()
    store.start()
    until(is_newest(store, client, "M.BLINK"))


@pytest.mark.slow
@pytest.mark.usefixtures("mirror")
def test_a_full_redis_is_told_of_and_right_again_once_there_is_room(
    client: tickflight.Client, store: RedisServer
) -> None:
    send(client, "M.FULL", 1.0)
    until(is_newest(store, client, "M.FULL"))
    with store.client() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")
        send(client, "M.FULL", 2.0)
        until(says(client, "degraded"))
        found = told(client)
        assert found is not None
        assert "its memory is full" in found.detail
        assert store.hash("tickflight:ticks:M.FULL")["price"] == "1.0"
        admin.config_set("maxmemory", "0")
    seconds = until(is_newest(store, client, "M.FULL"))
    assert seconds < RETURN_SECONDS + SLOW_MACHINE_SECONDS
    until(says(client, "running"))


def test_what_somebody_deletes_comes_back(
    client: tickflight.Client, store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "REFRESH_SECONDS", 0.2)
    send(client, "M.GONE", 1.0)
    with mirroring(client, store.url), store.client() as admin:
        until(is_newest(store, client, "M.GONE"))
        admin.flushall()
        until(is_newest(store, client, "M.GONE"))


def test_it_starts_without_redis_and_says_so(client: tickflight.Client, tmp_path: Path) -> None:
    with mirroring(client, f"unix://{tmp_path}/nothing.sock"):
        until(says(client, "degraded"))
        found = told(client)
        assert found is not None
        assert found.detail == f"Redis at {tmp_path}/nothing.sock: it can't be reached"
    until(says(client, "stopped"))


def test_a_wrong_password_is_told_and_never_shown(client: tickflight.Client) -> None:
    with redis_server("--requirepass", "right") as store:
        url = store.url.replace("unix://", "unix://:wr0ngsecret@")
        with mirroring(client, url):
            until(says(client, "degraded"))
            found = told(client)
    assert found is not None
    assert "refuses" in found.detail
    assert "wr0ngsecret" not in found.detail


def test_a_mirror_that_follows_and_has_nothing_to_write_counts_as_there(
    house: House, store: RedisServer
) -> None:
    key = house.keys.create("tickflightd:mirror", scopes=[Scope.WRITE, Scope.READ_REALTIME])
    with tickflight.connect(house.service.uri, key.key) as client, mirroring(client, store.url):
        until(says(client, "running"))
        assert house.service._door is not None
        assert "tickflightd:mirror" in house.service._door.live.owners


def test_a_service_that_restarts_is_followed_again(store: RedisServer, tmp_path: Path) -> None:
    server = Server(tmp_path)
    location = server.uri
    key = new_key(tmp_path)
    with tickflight.connect(location, key) as client, mirroring(client, store.url):
        send(client, "M.LIFE", 1.0)
        until(is_newest(store, client, "M.LIFE"))
        server.kill()
        server = Server(tmp_path, location)
        send(client, "M.LIFE", 2.0)
        until(is_newest(store, client, "M.LIFE"), 60)
    server.stop()


def test_a_key_that_is_refused_ends_the_mirror(house: House, store: RedisServer) -> None:
    with tickflight.connect(house.service.uri, "tf_aaaaaaaaaaaaaaaa_wrong") as client:
        mirror = Mirror(client, RedisHashes(store.url), now=lambda: 0)
        with pytest.raises(tickflight.AuthenticationError):
            mirror.run()


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1/0?nonsense=1", "redis://:s3cret@127.0.0.1/0?socket_timeout=x"]
)
def test_a_url_that_can_t_be_used_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisHashes(url)
    assert "s3cret" not in str(caught.value)
    assert "nonsense" not in str(caught.value)


def test_nothing_is_sent_to_a_redis_that_has_not_answered(store: RedisServer) -> None:
    """What lies in the socket of one that stands still would be written long after."""
    store.stand_still()
    hashes = RedisHashes(store.url)
    with pytest.raises(MirrorError, match="does not answer"):
        hashes.connect()
    with pytest.raises(MirrorError):
        hashes.write({"key": {"price": "1.0"}})
    store.go_on()
    hashes.connect()
    assert store.hash("key") == {}
    assert hashes.write({"key": {"price": "2.0"}}) == {}
    assert store.hash("key") == {"price": "2.0"}
    hashes.close()


def test_a_key_of_another_kind_is_named_and_the_rest_written(store: RedisServer) -> None:
    with store.client() as admin:
        admin.set("taken", "text")
    hashes = RedisHashes(store.url)
    hashes.connect()
    refused = hashes.write({"taken": {"a": "1"}, "free": {"a": "1"}})
    assert list(refused) == ["taken"]
    assert "WRONGTYPE" in refused["taken"]
    assert store.hash("free") == {"a": "1"}
    hashes.close()


def test_threads_of_a_mirror_end_with_it(client: tickflight.Client, store: RedisServer) -> None:
    with mirroring(client, store.url):
        pass
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("mirror-") for name in names)


def test_the_redis_of_these_tests_is_real(store: RedisServer) -> None:
    with store.client() as admin:
        info: Any = admin.info("server")
    assert isinstance(info["redis_version"], str)
    assert isinstance(redis.__version__, str)
