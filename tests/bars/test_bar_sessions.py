"""Bars begin and end where the calendar of the venue says, on the days clocks change too."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.bar_sessions import DAY, HOUR, MINUTE, Grid, Interval, Session, parse_interval
from storage.errors import InvalidDataError

CHICAGO = ZoneInfo("America/Chicago")
SHORT = ["1s", "5s", "10s", "15s", "30s", "1m", "2m", "3m", "5m", "10m", "15m", "30m"]
INTERVALS = [*SHORT, "1h", "2h", "4h", "1d"]
GRIDS = [Grid(parse_interval(text), session) for text in INTERVALS for session in Session]
INSTANTS = st.integers(0, 2**52)
"""To the year 2112."""


def chicago(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=CHICAGO).timestamp()) * 1_000_000


def told(instant: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant)).strftime(
        "%Y-%m-%d %H:%M"
    )


def one(values: np.ndarray) -> int:
    (value,) = values.tolist()
    return int(value)


def bar_at(grid: Grid, instant: int, last: int | None = None) -> tuple[int, int]:
    """Return the start and end of the bar an instant belongs to."""
    starts = grid.starts(np.array([instant]))
    ends = grid.ends(starts, np.array([instant if last is None else last]))
    return one(starts), one(ends)


def day_of(text: str) -> tuple[str, str]:
    """Return the start and end of the trade date, UTC, at a time in Chicago."""
    start, end = bar_at(Grid(parse_interval("1d"), Session.CME), chicago(text))
    return told(start), told(end)


class TestIntervals:
    @pytest.mark.parametrize("text", INTERVALS)
    def test_the_usual_ones_keep_their_names(self, text: str) -> None:
        assert parse_interval(text).text == text

    @pytest.mark.parametrize(
        ("text", "interval"),
        [
            ("60s", Interval("1m", MINUTE)),
            ("90s", Interval("90s", 90_000_000)),
            ("1440m", Interval("1d", DAY)),
            ("24h", Interval("1d", DAY)),
        ],
    )
    def test_others_are_named_in_their_largest_unit(self, text: str, interval: Interval) -> None:
        assert parse_interval(text) == interval

    @pytest.mark.parametrize(
        "text", ["", "m", "1", "0m", "-1m", "7m", "2d", "1.5m", "1M", "1w", "1m ", "01m", "1m\n"]
    )
    def test_what_does_not_divide_a_day_is_refused_by_name(self, text: str) -> None:
        with pytest.raises(InvalidDataError, match="does not divide a day") as refused:
            parse_interval(text)
        assert refused.value.field == "interval"

    @pytest.mark.parametrize(
        ("text", "base"), [("1s", 1), ("15s", 15), ("90s", 30), ("1m", 60), ("4h", 60)]
    )
    def test_the_base_makes_up_the_interval_and_minutes(self, text: str, base: int) -> None:
        assert parse_interval(text).base == base * 1_000_000


class TestTradeDates:
    def test_a_trade_date_lasts_from_five_in_the_evening_to_four(self) -> None:
        expected = ("2026-11-19 23:00", "2026-11-20 22:00")
        assert day_of("2026-11-19 17:00") == expected
        assert day_of("2026-11-20 15:59") == expected

    def test_the_week_begins_on_sunday_evening(self) -> None:
        assert day_of("2026-11-22 17:00") == ("2026-11-22 23:00", "2026-11-23 22:00")

    def test_in_summer_it_begins_an_hour_earlier(self) -> None:
        assert day_of("2026-07-01 12:00") == ("2026-06-30 22:00", "2026-07-01 21:00")

    def test_the_weekends_on_which_clocks_change_leave_no_trade_date_short(self) -> None:
        assert day_of("2026-03-06 12:00") == ("2026-03-05 23:00", "2026-03-06 22:00")
        assert day_of("2026-03-08 18:00") == ("2026-03-08 22:00", "2026-03-09 21:00")
        assert day_of("2026-10-30 12:00") == ("2026-10-29 22:00", "2026-10-30 21:00")
        assert day_of("2026-11-01 18:00") == ("2026-11-01 23:00", "2026-11-02 22:00")

    def test_the_nights_of_the_change_itself_have_one_bar_each(self) -> None:
        assert day_of("2026-03-08 12:00") == ("2026-03-07 23:00", "2026-03-08 21:00")
        assert day_of("2026-11-01 16:30") == ("2026-10-31 22:00", "2026-11-01 23:00")

    def test_what_is_printed_in_maintenance_makes_the_bar_end_with_it(self) -> None:
        start, end = bar_at(Grid(parse_interval("1d"), Session.CME), chicago("2026-11-20 16:15"))
        assert (told(start), told(end)) == ("2026-11-19 23:00", "2026-11-20 23:00")

    def test_hours_count_from_the_opening(self) -> None:
        four = Grid(parse_interval("4h"), Session.CME)
        start, end = bar_at(four, chicago("2026-11-19 18:30"))
        assert (start, end) == (chicago("2026-11-19 17:00"), chicago("2026-11-19 21:00"))
        start, end = bar_at(four, chicago("2026-11-20 14:00"))
        assert (start, end) == (chicago("2026-11-20 13:00"), chicago("2026-11-20 16:00"))


@given(st.sampled_from(GRIDS), INSTANTS)
def test_every_instant_lies_in_its_bar(grid: Grid, instant: int) -> None:
    start, end = bar_at(grid, instant)
    assert start <= instant < end
    assert end - start <= grid.interval.step + HOUR
    assert bar_at(grid, start, instant) == (start, end)


@given(st.sampled_from(GRIDS), INSTANTS)
def test_a_border_is_the_next_start_of_a_bar(grid: Grid, instant: int) -> None:
    border = grid.border(instant)
    assert border >= instant
    assert bar_at(grid, border)[0] == border
    if border > instant:
        assert bar_at(grid, border - 1)[0] == bar_at(grid, instant)[0] < instant


@given(st.sampled_from(GRIDS), st.lists(INSTANTS, min_size=2, max_size=5))
def test_many_instants_are_placed_as_each_alone(grid: Grid, instants: list[int]) -> None:
    starts = grid.starts(np.array(instants)).tolist()
    assert starts == [bar_at(grid, instant)[0] for instant in instants]
