"""A small life of the store, told step by step, to be recorded, killed, starved or cut off.

    python -m tests.crash.workload SCENARIO ROOT [--hold PHASE] [--acks FILE] [--bug BUG]

The data goes to ``ROOT/data``. Every acknowledgement is written to ``ROOT/acks`` the moment it is
given, so whoever watches the system calls knows what was promised when. What a producer's n-th
batch holds follows from its name and n alone, so whoever checks knows what should be there.

With ``--hold PHASE`` the process says ``held PID`` on stdout before that phase and waits for a line
on stdin: time to attach something to it.
"""

import argparse
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import pyarrow as pa

import storage.journal
from storage.ports import SystemClock, SystemDisk
from storage.producers import AppendStream
from storage.schemas import GEX, QUOTES, TICKS, Dataset
from storage.selection import SourcePolicy
from storage.store import Store, StoreConfig
from tests.crash.bugs import BUGS

NOON: Final = 1_790_000_000_000_000 // 86_400_000_000 * 86_400_000_000 + 43_200_000_000
HOUR: Final = 3_600_000_000
SEQUENCES_A_BATCH: Final = 1_000
FAILED: Final = 1
"""Exit code of a process whose store could not go on."""


@dataclass
class SetClock(SystemClock):
    """A wall clock that stands where the scenario has put it."""

    instant: int = NOON

    def now(self) -> int:
        return self.instant


@dataclass(frozen=True)
class Sender:
    """A producer: what it sends, and how much.

    Attributes:
        name: Of the producer; names its contract too, so that its rows can be told apart.
        dataset: Where its rows go.
        batches: How many it has in all.
        rows: How many rows a batch has at most.
        bad: Every how manieth batch has an impossible row, 0 for never.
        repeats: Every how manieth batch repeats the one before, so that only its mark is new.
    """

    name: str
    dataset: Dataset = TICKS
    batches: int = 12
    rows: int = 6
    bad: int = 0
    repeats: int = 0

    def content(self, seq: int) -> int:
        """Return the number of the batch whose rows batch ``seq`` carries."""
        return seq - 1 if self.repeats and seq % self.repeats == 0 else seq

    def batch(self, seq: int) -> pa.RecordBatch:
        """Return batch ``seq``, always the same."""
        number = self.content(seq)
        chance = random.Random(f"{self.name} {number}")
        rows = chance.randint(1, self.rows)
        sequence = [number * SEQUENCES_A_BATCH + i for i in range(rows)]
        price = [chance.randrange(60_000, 60_500) / 100 for _ in range(rows)]
        if self.bad and number % self.bad == 0:
            price[0] = float("nan")
        known: dict[str, Any] = {
            "ts_event": [NOON - HOUR + one for one in sequence],
            "ts_recv": NOON,
            "symbol": "SPY",
            "contract": self.name,
            "price": price,
            "size": price,
            "bid": price,
            "side": 0,
            "kind": 0,
            "flags": 1,
            "sequence": sequence,
            "source": f"by {chance.randrange(3)}",
            "endpoint": self.name,
            "net_gex": price,
            "priority": "LOW",
        }
        return made(self.dataset, rows, known)


def made(dataset: Dataset, rows: int, known: Mapping[str, Any]) -> pa.RecordBatch:
    """Build a batch; a value that is no list stands in every row."""
    columns = []
    for column in dataset.schema:
        value = known.get(column.name)
        values = value if isinstance(value, list) else [value] * rows
        columns.append(pa.array(values, column.type))
    return pa.RecordBatch.from_arrays(columns, names=dataset.schema.names)


@dataclass
class Life:
    """One process, or one of several lives within it."""

    root: Path
    senders: Sequence[Sender]
    hold: str = ""
    acks: Path | None = None
    clock: SetClock = field(default_factory=SetClock)
    sent: dict[str, int] = field(default_factory=dict)
    store: Store | None = None

    def __post_init__(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._acks = os.open(self.acks or self.root / "acks", flags, 0o644)
        self._streams: dict[str, AppendStream] = {}

    def phase(self, name: str) -> None:
        """Wait here when told to."""
        if name == self.hold:
            sys.stdout.write(f"held {os.getpid()}\n")
            sys.stdout.flush()
            sys.stdin.readline()

    def open(self) -> None:
        """Open the store and go on after what is durable, with a little of it sent again."""
        self.phase("open")
        policy = SourcePolicy(("demo",), fresh_us=HOUR)
        config = StoreConfig(self.root / "data", 1 << 40, policy)
        self.store = Store(config, clock=self.clock, disk=SystemDisk(), on_failure=fail)
        for sender in self.senders:
            durable = self.store.producers.durable(sender.name)
            self.sent[sender.name] = max(0, durable - 2)
            schema = sender.batch(1).schema
            self._streams[sender.name] = self.store.open_stream(sender.dataset.name, schema)
        self.phase("opened")

    def send(self, batches: int, *, together: bool = True) -> None:
        """Send the next batches of every sender, all of them before any ack or one by one."""
        for size in [batches] if together else [1] * batches:
            for sender in self.senders:
                self._push(sender, size)
            for sender in self.senders:
                self._await_acks(sender)

    def _push(self, sender: Sender, batches: int) -> None:
        first = self.sent[sender.name] + 1
        for seq in range(first, min(first + batches, sender.batches + 1)):
            self._streams[sender.name].push(sender.batch(seq), sender.name, seq)
            self.sent[sender.name] = seq

    def _await_acks(self, sender: Sender) -> None:
        assert self.store is not None
        while self.store.producers.durable(sender.name) < self.sent[sender.name]:
            ack = self._streams[sender.name].next_ack()
            assert ack is not None
            self._promise(sender.name, ack.seq)
        self._promise(sender.name, self.sent[sender.name])

    def _promise(self, name: str, seq: int) -> None:
        os.write(self._acks, f"ack {name} {seq}\n".encode())

    def later(self) -> None:
        """Let an hour pass."""
        self.phase("later")
        self.clock.instant += HOUR

    def close(self) -> None:
        """Stop in good order."""
        assert self.store is not None
        self.phase("close")
        self.store.close()
        self.store = None


def fail(error: BaseException) -> NoReturn:
    """End as the server does when its store can't go on."""
    sys.stderr.write(f"failed: {error}\n")
    sys.stderr.flush()
    os._exit(FAILED)


def many_small(life: Life) -> None:
    life.open()
    life.send(4, together=False)
    life.send(8)
    life.close()


def hours(life: Life) -> None:
    life.open()
    for _ in range(3):
        life.send(2, together=False)
        life.later()
    life.send(6)
    life.close()


def lives(life: Life) -> None:
    for _ in range(3):
        life.open()
        life.send(3)
        life.close()
        life.later()
    life.open()
    life.send(12)
    life.close()


def folding(life: Life) -> None:
    """Fold the log into the file again and again, while commits go on."""
    storage.journal.CHECKPOINT_BYTES = 40_000  # type: ignore[misc]
    storage.journal.HOUSEKEEPING_SECONDS = 0.002  # type: ignore[misc]
    life.open()
    life.send(8, together=False)
    life.later()
    life.send(4, together=False)
    life.close()


def straight(life: Life) -> None:
    """All there is to send, in one life that another may have begun."""
    life.open()
    life.send(4, together=False)
    life.later()
    life.send(12)
    life.close()


def whole(life: Life) -> None:
    """A little of everything."""
    life.open()
    life.send(2, together=False)
    life.close()
    folding(life)


def endless(life: Life) -> None:
    """Send until something ends it; an hour passes now and then."""
    storage.journal.CHECKPOINT_BYTES = 1_000_000  # type: ignore[misc]
    storage.journal.HOUSEKEEPING_SECONDS = 0.02  # type: ignore[misc]
    life.open()
    while True:
        life.send(20)
        life.send(20, together=False)
        life.later()


def brief(life: Life) -> None:
    """As little as has everything in it: an hour that ends, a log that is folded, a stop."""
    life.open()
    life.send(2, together=False)
    life.later()
    life.send(2, together=False)
    life.close()


@dataclass(frozen=True)
class Scenario:
    """Who sends what, and in which steps."""

    senders: tuple[Sender, ...]
    steps: Callable[[Life], None]


THREE: Final = (Sender("one"), Sender("two", QUOTES), Sender("gamma", GEX, rows=3))
FOUR: Final = (
    Sender("one", bad=4, rows=40),
    Sender("two", repeats=3),
    Sender("three", QUOTES),
    Sender("gamma", GEX, rows=3),
)
ENDLESS: Final = tuple(replace(sender, batches=1 << 30) for sender in FOUR)
SCENARIOS: Final = {
    "whole": Scenario(FOUR, whole),
    "small": Scenario(THREE, many_small),
    "hours": Scenario(THREE, hours),
    "lives": Scenario(THREE, lives),
    "folding": Scenario((Sender("one", rows=200), Sender("two", rows=90)), folding),
    "marks": Scenario((Sender("one", repeats=2), Sender("two", repeats=3)), hours),
    "quarantine": Scenario((Sender("one", bad=2), Sender("two", QUOTES)), many_small),
    "endless": Scenario(ENDLESS, endless),
    "brief": Scenario((Sender("one", bad=2, batches=4), Sender("two", QUOTES, batches=4)), brief),
    "straight": Scenario((Sender("one", bad=5), Sender("two", repeats=4)), straight),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("root", type=Path)
    parser.add_argument("--hold", default="")
    parser.add_argument("--acks", type=Path)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args(words)
    if args.bug:
        BUGS[args.bug](setattr)
    scenario = SCENARIOS[args.scenario]
    storage.journal.RETRY_SECONDS = 0.01  # type: ignore[misc]
    for sender in scenario.senders:
        sender.batch(1)  # the first one imports modules, whose files are none of the store's
    life = Life(args.root, scenario.senders, args.hold, args.acks)
    try:
        scenario.steps(life)
    except Exception as error:  # noqa: BLE001 - whatever it is, the process ends here
        fail(error)


if __name__ == "__main__":
    main()
