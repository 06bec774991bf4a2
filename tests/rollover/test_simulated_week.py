"""A week of market, late rows, full disks and power cuts: every row is visible exactly once."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.rollover.week import DAY, Market, PowerCutError, Trap, broken, no_space
from tests.storage.conftest import HOUR

ENDINGS: list[Callable[[], BaseException]] = [no_space, broken, PowerCutError]

Work = Callable[[Market], None]
WORK: st.SearchStrategy[Work] = st.sampled_from(
    [Market.step, Market.step, Market.join_files, Market.drop_old, Market.clean_up]
)


class Week(RuleBasedStateMachine):
    """Whatever happens between two looks, memory and lake together are the rows that were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="week-"))
        self.market = Market(self.directory)

    @rule(count=st.integers(1, 40), lateness=st.sampled_from([0, HOUR, 3 * DAY]))
    def trade(self, count: int, lateness: int) -> None:
        self.market.trade(count, lateness)

    @rule(hours=st.sampled_from([0.1, 0.9, 1, 2, 25, 50]))
    def time_passes(self, hours: float) -> None:
        self.market.clock.instant += int(hours * HOUR)

    @rule()
    def the_file_ends(self) -> None:
        self.market.end_file()

    @rule(work=WORK)
    def it_is_kept_up(self, work: Work) -> None:
        work(self.market)

    @rule(
        work=WORK,
        trap=st.builds(Trap, st.integers(1, 60), st.sampled_from(ENDINGS), st.booleans()),
    )
    def it_is_kept_up_on_a_bad_disk(self, work: Work, trap: Trap) -> None:
        self.market.disk.trap = replace(trap)  # it counts down, and examples are shown again
        work(self.market)

    @precondition(lambda self: len(self.market.kept) < 3)
    @rule()
    def somebody_keeps_a_snapshot(self) -> None:
        self.market.keep_a_snapshot()

    @rule()
    def it_restarts(self) -> None:
        self.market.restart()

    @invariant()
    def every_row_is_visible_once(self) -> None:
        self.market.check()

    def teardown(self) -> None:
        self.market.close()
        shutil.rmtree(self.directory)


SHORT = settings(max_examples=5, stateful_step_count=20, deadline=None)
LONG = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
def test_whatever_happens_every_row_is_visible_once() -> None:
    run_state_machine_as_test(Week, settings=SHORT)


@pytest.mark.hard
def test_whatever_happens_for_long_every_row_is_visible_once() -> None:
    run_state_machine_as_test(Week, settings=LONG)


@pytest.mark.parametrize(
    "hours",
    [pytest.param(8, marks=pytest.mark.slow), pytest.param(7 * 24, marks=pytest.mark.hard)],
)
def test_hours_with_a_fault_in_each_lose_nothing(tmp_path: Path, hours: int) -> None:
    market = Market(tmp_path, seed=1)
    for hour in range(hours):
        market.trade(6, lateness=(0, HOUR, 2 * DAY)[hour % 3])
        market.clock.instant += HOUR
        market.end_file()
        # A different call each hour, in a different way: the week walks through them all.
        market.disk.trap = Trap(1 + hour % 37, ENDINGS[hour % len(ENDINGS)], after=hour % 2 == 0)
        market.step()
        market.step()
        if hour % 24 == 5:
            for work in (Market.drop_old, Market.join_files, Market.clean_up):
                market.disk.trap = Trap(1 + hour % 11, ENDINGS[hour % len(ENDINGS)])
                work(market)
        if hour % 4 == 0:
            market.check()
    market.join_files()
    market.check()
    assert market.store.rollover.status.unrolled == 0
    assert len(market.store.published.lake["ticks"])
    market.close()


def changes_of_a_rollover(directory: Path) -> int:
    market = prepared(directory)
    before = market.disk.calls
    market.step()
    market.close()
    return market.disk.calls - before


def prepared(directory: Path) -> Market:
    market = Market(directory, seed=2)
    market.trade(10, lateness=DAY)
    market.end_file()
    market.step()
    market.trade(10, lateness=DAY)
    market.clock.instant += 2 * HOUR
    market.end_file()
    return market


@pytest.mark.hard
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("ending", ENDINGS, ids=["full", "broken", "cut"])
def test_a_rollover_may_end_at_any_change_of_the_disk(
    tmp_path: Path, ending: Callable[[], BaseException], *, after: bool
) -> None:
    for call in range(1, changes_of_a_rollover(tmp_path / "count") + 1):
        market = prepared(tmp_path / str(call))
        market.disk.trap = Trap(call, ending, after)
        market.step()
        assert market.disk.trap is None
        market.check()
        market.step()
        market.check()
        assert market.store.rollover.status.unrolled == 0
        market.close()
