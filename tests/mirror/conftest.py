"""A real Redis that can be killed, stopped and filled, and a service beside it."""

import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

import tickflight
from flight_server.identity import Scope
from ingest.mirror import Mirror, RedisHashes
from ingest.ports import SystemClock
from tests.flight_server.conftest import House, serving

PATIENCE_SECONDS = 30.0


class RedisServer:
    """A Redis on a socket of its own, which keeps nothing over its end."""

    def __init__(self, directory: Path, *options: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail(
                "redis-server is missing: `apt install redis-server`, or `make test` as root"
            )
        self._socket = directory / "redis.sock"
        self._command = [program, "--port", "0", "--unixsocket", str(self._socket)]
        self._command += ["--save", "", "--dir", str(directory), *options]
        self.url = f"unix://{self._socket}"
        self.start()

    def start(self) -> None:
        """Start it, as empty as ever; returns once it answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        try:
            until(self._answers)
        except BaseException:
            self.kill()
            raise

    def client(self, password: str | None = None) -> redis.Redis:
        path = str(self._socket)
        return redis.Redis(unix_socket_path=path, password=password, decode_responses=True)

    def hash(self, key: str) -> dict[str, str]:
        """Read a hash; empty when there is none."""
        with self.client() as client:
            found: Any = client.hgetall(key)
        return dict(found)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def stand_still(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False


def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
    """Wait for something; returns how many seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never came"
        time.sleep(0.005)
    return time.monotonic() - began


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    # Not in pytest's directory: the name of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="redis") as directory:
        server = RedisServer(Path(directory), *options)
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
def store() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service for all tests of a module: each keeps to symbols of its own."""
    with serving(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[tickflight.Client]:
    # Named as `up` names the mirror's: status knows by it whether the mirror is there.
    key = house.keys.create("tickflightd:mirror", scopes=list(Scope)).key
    with tickflight.connect(house.service.uri, key) as client:
        yield client


@contextmanager
def mirroring(client: tickflight.Client, url: str) -> Iterator[Mirror]:
    """Run a mirror until the end of the block; what it fails with is raised there."""
    ready = threading.Event()
    mirror = Mirror(client, RedisHashes(url), now=SystemClock().now, on_ready=ready.set)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            mirror.run()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(PATIENCE_SECONDS)
        yield mirror
    finally:
        mirror.stop()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


@pytest.fixture
def mirror(client: tickflight.Client, store: RedisServer) -> Iterator[Mirror]:
    with mirroring(client, store.url) as mirror:
        yield mirror
