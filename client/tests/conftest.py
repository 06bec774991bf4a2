"""Real servers, real rows, and waiting for facts instead of sleeping."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import tickflight
from tickflight.testing import API_KEY, FakeServer

TICKS = pa.schema(
    [
        pa.field("ts_event", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("price", pa.float64(), nullable=False),
        pa.field("size", pa.float64(), nullable=False),
        pa.field("bid", pa.float64()),
        pa.field("sequence", pa.int64(), nullable=False),
    ]
)
PATIENCE_SECONDS = 20.0


def pytest_report_header() -> str:
    return f"tickflight {tickflight.__version__}, pyarrow {pa.__version__}, {platform.platform()}"


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("TICKFLIGHT_") or name == "COLUMNS":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(datasets={"ticks": TICKS}) as server:
        yield server


@pytest.fixture
def client(server: FakeServer) -> Iterator[tickflight.Client]:
    with tickflight.connect(server.uri, server.api_key) as client:
        yield client


Ticks = Callable[..., pa.RecordBatch]


@pytest.fixture
def ticks() -> Ticks:
    """Makes ``rows`` ticks whose sequence begins at ``first``: rows that say where they belong."""

    def make(first: int, rows: int = 1, symbol: str = "MNQ") -> pa.RecordBatch:
        numbers = list(range(first, first + rows))
        return pa.RecordBatch.from_pydict(
            {
                "ts_event": [1_700_000_000_000_000 + one for one in numbers],
                "symbol": [symbol] * rows,
                "price": [20_000.0 + one for one in numbers],
                "size": [1.0] * rows,
                "bid": [None] * rows,
                "sequence": numbers,
            },
            schema=TICKS,
        )

    return make


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds, generously."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.005)

    return wait


class ServerProcess:
    """A ``FakeServer`` in a process of its own, to be killed and started again on its port."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self.api_key = API_KEY

    @property
    def uri(self) -> str:
        return f"grpc://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "tickflight.testing", "--journal", str(self._journal)]
        self._process = subprocess.Popen(
            [*command, "--port", str(self._port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline().rpartition(":")[2])

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path / "journal")
    process.start()
    yield process
    process.kill()
