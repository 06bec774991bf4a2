"""Producers, subscribers and a server that is killed, rolled over and started again, for a while.

Every subscriber ends with exactly the rows that ``range`` has of its span, each once: first a
history in total order, then what arrived, each source's rows in the order that source sent them.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import flight

import tickflight
from storage.ordering import key_at, reading_order
from storage.schemas import TICKS
from tests.flight_server.conftest import Caller, Server, caller_at, new_key
from tickflight.errors import TickflightError

SYMBOLS = ("MES", "MNQ", "NQ", "SPY")
BATCH_ROWS = 100
LATE_US = 30_000_000
"""How late a late row comes, at most."""
HOT_WINDOW_US = 2_000_000
COMMIT_SECONDS = 0.3
"""How far commits are apart: a kill must take back rows that subscribers have."""
PATIENCE_SECONDS = 60
"""How long a subscriber may take nothing before it counts as having all it ever gets."""
EVERY_SYMBOL: tuple[str, ...] = ()

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and how often something happens."""

    seconds: float
    rows_per_second: int
    subscribers: int
    kill_every: float
    roll_every: float
    seed: int = 7
    producers: int = 3


class House:
    """A server that can be killed and comes back at the same address."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.key = new_key(directory)
        self._server = Server(directory, "grpc://127.0.0.1:0", HOT_WINDOW_US, COMMIT_SECONDS)
        self.uri = self._server.uri

    def kill(self) -> None:
        self._server.kill()
        self._server = Server(self._directory, self.uri, HOT_WINDOW_US, COMMIT_SECONDS)

    def stop(self) -> None:
        self._server.stop()

    def caller(self) -> Caller:
        return caller_at(self.uri, self.key)

    def roll(self) -> None:
        """Bring all there is into the lake; a server that is away has nothing to."""
        with suppress(flight.FlightError, OSError), self.caller().client as client:
            headers = [(b"authorization", f"Bearer {self.key}".encode())]
            options = flight.FlightCallOptions(headers=headers, timeout=5)
            list(client.do_action(("rollover", b'{"all": true}'), options))


def identity(source: Numbers, sequence: Numbers) -> Numbers:
    """Return a number that tells a row of these tests from all others."""
    result: Numbers = source << 40 | sequence
    return result


def numbers_of(rows: pa.RecordBatch | pa.Table) -> Numbers:
    coded = rows["source"].dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    numbers = np.array([int(name[1:]) for name in coded.dictionary.to_pylist()], np.int64)
    return identity(numbers[coded.indices.to_numpy()], rows["sequence"].to_numpy())


class Producer:
    """Sends rows of one source, most of them in time and some of them late."""

    def __init__(self, number: int, house: House, plan: Plan) -> None:
        self.source = f"s{number}"
        self.sent = 0
        self._rate = plan.rows_per_second / plan.producers
        self._random = np.random.default_rng(plan.seed + number)
        self._client = tickflight.connect(house.uri, house.key)
        self._writer = self._client.writer("ticks", name=self.source)

    def run(self, stopping: threading.Event) -> None:
        began = time.monotonic()
        while not stopping.wait(max(0.0, began + self.sent / self._rate - time.monotonic())):
            self._writer.write(self._batch())
            self.sent += BATCH_ROWS

    def close(self) -> None:
        self._writer.close(timeout=120)
        self._client.close()

    def _batch(self) -> pa.RecordBatch:
        now = time.time_ns() // 1_000
        instants = np.sort(now - self._random.integers(0, 10_000, BATCH_ROWS))
        late = self._random.random(BATCH_ROWS) < 0.03
        instants -= late * self._random.integers(0, LATE_US, BATCH_ROWS)
        symbols = self._random.choice(SYMBOLS, BATCH_ROWS)
        columns: dict[str, Any] = {
            "ts_event": instants,
            "ts_recv": np.full(BATCH_ROWS, now),
            "symbol": symbols,
            "contract": symbols,
            "price": self._random.random(BATCH_ROWS),
            "size": np.ones(BATCH_ROWS),
            "side": np.zeros(BATCH_ROWS, np.int8),
            "kind": np.zeros(BATCH_ROWS, np.int8),
            "flags": np.ones(BATCH_ROWS, np.uint16),
            "sequence": np.arange(self.sent + 1, self.sent + 1 + BATCH_ROWS),
            "source": np.repeat(self.source, BATCH_ROWS),
        }
        arrays = [
            pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(BATCH_ROWS, field.type)
            for field in TICKS.schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=TICKS.schema)


@dataclass
class Subscriber:
    """Takes rows, stalls now and then, and loses its connection."""

    number: int
    house: House
    start: int | None
    symbols: tuple[str, ...]
    seed: int
    since: dict[str, int] = field(default_factory=dict)
    """What each source had sent when the stream began."""
    rows: list[Numbers] = field(default_factory=list)
    arrived: list[Numbers] = field(default_factory=list)
    """Those that came behind the history."""
    last_key: tuple[Any, ...] | None = None
    disorder: list[str] = field(default_factory=list)
    failure: BaseException | None = None
    reconnects: int = 0

    def run(self) -> None:
        """Follow the stream until it is closed."""
        try:
            self._follow()
        except BaseException as error:  # noqa: BLE001 - told by whoever waits for us
            self.failure = error

    def open(self) -> None:
        self._client = tickflight.connect(self.house.uri, self.house.key)
        self._live = self._client.live(self.symbols, start=self.start)
        self._random = random.Random(self.seed)

    def close(self) -> None:
        self._live.close()
        self._client.close()

    def cut(self) -> None:
        """Lose the connection, as a network does."""
        self._live._stream.cancel()

    @property
    def count(self) -> int:
        return sum(map(len, self.rows))

    def _follow(self) -> None:
        for batch in self._live:
            self.rows.append(numbers_of(batch))
            if self._live._progress.in_history:
                self._check_history(batch)
            else:
                self.arrived.append(self.rows[-1])
            if self._random.random() < 0.002:
                time.sleep(self._random.random() * 4)
        self.reconnects = self._live.reconnects

    def _check_history(self, batch: pa.RecordBatch) -> None:
        order = reading_order(TICKS)
        told = tuple(self._live._progress._key or ())
        if key_at(batch, order, -1) != told:
            return  # rows that came while the connection was lost, and belong before it
        if self.last_key is not None and key_at(batch, order, 0) <= self.last_key:
            self.disorder.append(f"{key_at(batch, order, 0)} after {self.last_key}")
        instants = batch["ts_event"].cast(pa.int64()).to_numpy()
        if (np.diff(instants) < 0).any():
            self.disorder.append("a batch of the history is out of order")
        self.last_key = told


def run(directory: Path, plan: Plan) -> dict[str, float]:
    """Run a campaign and check what became of it; returns what was seen."""
    house = House(directory)
    try:
        producers = [Producer(number, house, plan) for number in range(plan.producers)]
        stopping = threading.Event()
        threads = [_thread(producer.run, stopping) for producer in producers]
        subscribers = _disturbed(house, plan, producers)
        stopping.set()
        for thread in threads:
            thread.join()
        for producer in producers:
            producer.close()
        stored = Stored.of(house)
        assert len(stored.numbers) == sum(producer.sent for producer in producers)
        for subscriber in subscribers:
            _check(subscriber, stored, producers)
        return {
            "rows": len(stored.numbers),
            "delivered": sum(subscriber.count for subscriber in subscribers),
            "reconnects": sum(subscriber.reconnects for subscriber in subscribers),
        }
    finally:
        house.stop()


def _thread(target: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _disturbed(house: House, plan: Plan, producers: list[Producer]) -> list[Subscriber]:
    """Let subscribers come one after the other while the server is disturbed."""
    chance = random.Random(plan.seed)
    began = time.monotonic()
    subscribers: list[Subscriber] = []
    kill_at, roll_at = began + plan.kill_every, began + plan.roll_every
    starts = _starts(began, plan, chance)
    come_at = next(starts)
    while (now := time.monotonic()) < began + plan.seconds:
        if now >= come_at:
            with suppress(TickflightError):  # it is away just now: try again
                subscribers.append(_subscriber(len(subscribers), house, chance, producers))
                come_at = next(starts)
        if now >= kill_at:
            house.kill()
            kill_at = time.monotonic() + plan.kill_every * (0.5 + chance.random())
        if now >= roll_at:
            house.roll()
            roll_at = now + plan.roll_every
        if subscribers and chance.random() < 0.02:
            chance.choice(subscribers).cut()
        time.sleep(0.02)
    assert len(subscribers) == plan.subscribers, "the campaign is too short for all subscribers"
    return subscribers


def _starts(began: float, plan: Plan, chance: random.Random) -> Iterator[float]:
    """Yield when subscribers come: most of them early, and the last by two thirds of the time."""
    at = [began + 0.3 + chance.random() ** 2 * plan.seconds * 0.6 for _ in range(plan.subscribers)]
    yield from sorted(at)
    yield float("inf")


def _subscriber(
    number: int, house: House, chance: random.Random, producers: list[Producer]
) -> Subscriber:
    now = time.time_ns() // 1_000
    start = (0, None, now - 3_000_000, now - 20_000_000)[number % 4]
    symbols = chance.choice([EVERY_SYMBOL, EVERY_SYMBOL, ("MNQ",), ("NQ", "SPY")])
    subscriber = Subscriber(number, house, start, symbols, seed=number)
    subscriber.open()
    subscriber.since = {producer.source: producer.sent + BATCH_ROWS for producer in producers}
    _thread(subscriber.run)
    return subscriber


@dataclass(frozen=True)
class Stored:
    """All rows that are stored."""

    numbers: Numbers
    instants: Numbers
    symbols: npt.NDArray[np.str_]

    @classmethod
    def of(cls, house: House) -> "Stored":
        ticket = {"op": "range", "dataset": "ticks", "source": "all", "start": 0, "end": 1 << 57}
        names = ["ts_event", "symbol", "source", "sequence"]
        table = house.caller().get({**ticket, "columns": names})
        instants = table["ts_event"].cast(pa.int64()).to_numpy()
        symbols = table["symbol"].combine_chunks().dictionary_decode()
        return cls(numbers_of(table), instants, symbols.to_numpy(zero_copy_only=False).astype(str))

    def of_symbols(self, symbols: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        if not symbols:
            return np.ones(len(self.numbers), bool)
        return np.isin(self.symbols, symbols)


def _check(subscriber: Subscriber, stored: Stored, producers: list[Producer]) -> None:
    """Wait until a subscriber has its rows, and compare them."""
    mine = stored.of_symbols(subscriber.symbols)
    wanted = stored.numbers[mine & (stored.instants >= (subscriber.start or 0))]
    if subscriber.start is None:
        wanted = _surely_after(wanted, subscriber.since)
    got = _taken(subscriber, wanted)
    subscriber.close()
    if subscriber.failure is not None:
        raise subscriber.failure
    whose = f"subscriber {subscriber.number} from {subscriber.start}"
    repeats = len(got) - len(np.unique(got))
    assert repeats == 0, f"{whose}: {repeats} repeats"
    assert _has_all(got, wanted), f"{whose}: {np.setdiff1d(wanted, got)[:10]} missing"
    if subscriber.start is None:
        assert _has_all(stored.numbers[mine], got), f"{whose}: rows that are not stored"
    else:
        assert len(got) == len(wanted), f"{whose}: {np.setdiff1d(got, wanted)[:10]} too many"
    assert subscriber.disorder == [], whose
    arrived = np.concatenate([*subscriber.arrived, np.empty(0, np.int64)])
    for producer in producers:
        own = arrived[arrived >> 40 == int(producer.source[1:])]
        assert (np.diff(own) > 0).all(), f"{whose}: {producer.source} out of order"


def _taken(subscriber: Subscriber, wanted: Numbers) -> Numbers:
    """Wait for a subscriber as long as it makes progress; return what it has."""
    before, patience = -1, time.monotonic() + PATIENCE_SECONDS
    while subscriber.failure is None and time.monotonic() < patience:
        count = subscriber.count
        if count > before:
            before, patience = count, time.monotonic() + PATIENCE_SECONDS
        if count >= len(wanted):
            got = np.concatenate([*subscriber.rows, np.empty(0, np.int64)])
            if _has_all(got, wanted):
                return got
        time.sleep(0.5)
    return np.concatenate([*subscriber.rows, np.empty(0, np.int64)])


def _has_all(rows: Numbers, wanted: Numbers) -> bool:
    """Whether all of some rows are among others; rows of a source are numbered densely."""
    for source in np.unique(wanted >> 40).tolist():
        of = [part[part >> 40 == source] & ((1 << 40) - 1) for part in (rows, wanted)]
        seen = np.zeros(max(int(part.max(initial=0)) for part in of) + 1, bool)
        seen[of[0]] = True
        if not seen[of[1]].all():
            return False
    return True


def _surely_after(numbers: Numbers, since: dict[str, int]) -> Numbers:
    """Return the rows that were sent after a moment; some that were under way then came too."""
    borders = np.array([since[f"s{number}"] for number in range(len(since))], np.int64)
    after: Numbers = numbers[numbers & ((1 << 40) - 1) > borders[numbers >> 40]]
    return after
