"""The source, run as the service runs it, against a tastytrade of our own."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ingest.ports import Service
from ingest.restart import RestartPolicy
from ingest.runner import RunOptions, RunResult, run_source
from ingest.tastytrade import Account, FeedOptions, Patience, TastytradeSource
from tests.ingest.conftest import FakeService, client, server  # noqa: F401 - fixtures
from tests.tastytrade.venue import CLIENT_SECRET, PATIENCE_SECONDS, REFRESH_TOKEN, Venue

SYMBOLS = ("MNQ", "SPY", "VIX")
MNQ = "/MNQZ26:XCME"


class Heard(list[Any]):
    """A list that says when it grows."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def append(self, item: Any) -> None:
        with self.changed:
            super().append(item)
            self.changed.notify_all()


@dataclass
class Ledger(FakeService):
    """Keeps the rows it is given, and lets tests wait for them."""

    written: Heard = field(default_factory=Heard)

    def wait_for(self, dataset: str, count: int) -> list[dict[str, Any]]:
        def arrived() -> bool:
            return len(self.rows(dataset)) >= count

        with self.written.changed:
            assert self.written.changed.wait_for(arrived, PATIENCE_SECONDS), self.told()
        return self.rows(dataset)

    def wait_until_told(self, text: str) -> dict[str, Any]:
        def told() -> list[dict[str, Any]]:
            return [row for row in self.rows("service_events") if text in (row["detail"] or "")]

        with self.written.changed:
            assert self.written.changed.wait_for(lambda: bool(told()), PATIENCE_SECONDS), (
                self.told()
            )
        return told()[0]

    def told(self) -> list[str]:
        return [f"{row['event']}: {row['detail']}" for row in self.rows("service_events")]


def account(venue: Venue, **changes: str) -> Account:
    return replace(Account(CLIENT_SECRET, REFRESH_TOKEN, venue.url), **changes)


class Run:
    """A source that runs in a thread until it ends or is stopped."""

    def __init__(self, source: TastytradeSource, service: Service) -> None:
        self._source = source
        self._service = service
        self._result: RunResult | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._started.wait(PATIENCE_SECONDS)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        policy = RestartPolicy(first_delay_seconds=0.01, max_delay_seconds=0.05)
        self._result = await run_source(
            self._source, self._service, stop=self._stop, options=RunOptions(policy)
        )

    def ended(self) -> RunResult:
        """Wait for an end it comes to by itself."""
        self._thread.join(PATIENCE_SECONDS)
        assert self._result is not None
        return self._result

    def stop(self) -> RunResult:
        if self._thread.is_alive() and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        return self.ended()


@pytest.fixture
def venue() -> Iterator[Venue]:
    with Venue() as venue:
        yield venue


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


Start = Callable[..., Run]


@pytest.fixture
def start(venue: Venue, ledger: Ledger) -> Iterator[Start]:
    """Start a source against the venue, writing to the ledger."""
    runs: list[Run] = []

    def begin(
        *symbols: str,
        patience: Patience | None = None,
        options: FeedOptions | None = None,
        service: Service | None = None,
        **changes: str,
    ) -> Run:
        options = options or FeedOptions()
        if patience is not None:
            options = replace(options, patience=patience)
        source = TastytradeSource(symbols or SYMBOLS, account(venue, **changes), options)
        runs.append(Run(source, service or ledger))
        return runs[-1]

    yield begin
    for run in runs:
        run.stop()
