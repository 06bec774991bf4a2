"""Exactly once, whatever happens; see ``campaign.py``."""

from pathlib import Path

import pytest

from tests.live.campaign import Plan, run


@pytest.mark.slow
def test_every_subscriber_ends_with_the_rows_of_range(tmp_path: Path) -> None:
    plan = Plan(seconds=12, rows_per_second=3_000, subscribers=8, kill_every=5.0, roll_every=2.5)
    seen = run(tmp_path, plan)
    assert seen["reconnects"] >= plan.subscribers


@pytest.mark.hard
def test_it_does_for_ten_minutes_too(tmp_path: Path) -> None:
    plan = Plan(
        seconds=600, rows_per_second=10_000, subscribers=20, kill_every=20.0, roll_every=7.0
    )
    seen = run(tmp_path, plan)
    assert seen["rows"] >= plan.seconds * plan.rows_per_second * 0.5
