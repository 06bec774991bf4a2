"""The demo keeps pace with the wall clock, whatever that clock does."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ingest.demo.source import BURST_MAX_US, DemoSource
from ingest.source import Continuity

SECOND = 1_000_000


class EnoughError(Exception):
    """Ends a source that would go on for ever."""


@dataclass
class Keeper:
    """Keeps batches, does something to the world before some of them, and ends after the last."""

    last: int
    before: dict[int, Any] = field(default_factory=dict)
    ticks: list[pa.RecordBatch] = field(default_factory=list)

    async def write(self, dataset: str, rows: pa.RecordBatch | pa.Table) -> None:
        assert isinstance(rows, pa.RecordBatch)
        if dataset == "ticks":
            self.ticks.append(rows)
            self.before.get(len(self.ticks), lambda: None)()
        elif len(self.ticks) >= self.last:
            raise EnoughError

    async def alive(self, heard: int | None = None) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def missed(self, dataset: str, symbol: str, start: int, end: int) -> None:
        raise AssertionError((dataset, symbol, start, end))

    async def remark(self, detail: str) -> None:
        raise AssertionError(detail)

    @property
    def sequences(self) -> np.ndarray:
        return np.concatenate([batch["sequence"].to_numpy() for batch in self.ticks])


def play(source: DemoSource, keeper: Keeper) -> Keeper:
    with suppress(EnoughError):
        asyncio.run(source.run(keeper))
    return keeper


@pytest.fixture
def source(clock: Any) -> DemoSource:
    return DemoSource(("MNQ",), rate=1_000, clock=clock)


def test_every_tick_comes_once_and_not_before_it_happened(source: DemoSource, clock: Any) -> None:
    keeper = play(source, Keeper(last=100))
    assert (np.diff(keeper.sequences) > 0).all()
    assert len(keeper.sequences) == pytest.approx(1_000 * clock.time, abs=2)
    for batch in keeper.ticks:
        received = batch["ts_recv"].cast(pa.int64()).to_numpy()
        assert (received > batch["ts_event"].cast(pa.int64()).to_numpy()).all()


def test_slow_writes_cost_no_ticks(source: DemoSource, clock: Any) -> None:
    def stall() -> None:
        clock.time += 0.7

    keeper = play(source, Keeper(last=20, before={5: stall, 9: stall}))
    assert len(keeper.sequences) == pytest.approx(1_000 * clock.time, abs=2)


def test_a_long_pause_is_skipped_and_not_made_up_for(source: DemoSource, clock: Any) -> None:
    def suspend() -> None:
        clock.time += 3_600

    keeper = play(source, Keeper(last=20, before={5: suspend}))
    assert max(len(batch) for batch in keeper.ticks) <= 1_000 * BURST_MAX_US / SECOND + 1
    assert (np.diff(keeper.sequences) > 0).all()
    assert np.diff(keeper.sequences).max() > 3_500 * SECOND


def test_nothing_is_repeated_when_the_clock_goes_back(source: DemoSource, clock: Any) -> None:
    def step_back() -> None:
        clock.offset -= 5 * SECOND

    keeper = play(source, Keeper(last=20, before={5: step_back}))
    sequences = keeper.sequences
    assert (np.diff(sequences) > 0).all()
    # It waits for the clock, and then goes on without a hole.
    assert clock.time > 5
    assert np.diff(sequences).max() < 0.1 * SECOND


def test_a_second_run_of_the_same_source_goes_on_where_the_first_ended(
    source: DemoSource,
) -> None:
    first, second = play(source, Keeper(last=5)), play(source, Keeper(last=5))
    both = np.concatenate([first.sequences, second.sequences])
    assert (np.diff(both) > 0).all()


def test_a_restarted_process_tells_the_same_market(clock: Any) -> None:
    first = play(DemoSource(("MNQ",), rate=1_000, clock=clock), Keeper(last=50))
    clock.time -= 0.5
    again = play(DemoSource(("MNQ",), rate=1_000, clock=clock), Keeper(last=50))
    known = {row["sequence"]: row | {"ts_recv": None} for b in first.ticks for row in b.to_pylist()}
    repeated = [row for b in again.ticks for row in b.to_pylist() if row["sequence"] in known]
    assert len(repeated) > 400
    assert all(row | {"ts_recv": None} == known[row["sequence"]] for row in repeated)


def test_the_demo_says_that_it_is_synthetic(source: DemoSource) -> None:
    assert source.profile.continuity is Continuity.SYNTHETIC
    assert source.profile.name == "demo"
    assert source.profile.datasets == ("ticks", "quotes")
