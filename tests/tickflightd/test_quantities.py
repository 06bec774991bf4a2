"""Quantities as people write them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickflightd.quantities import parse_bytes, parse_duration, parse_list

GIBIBYTE = 1_024**3


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5m", 90), ("1h", 3_600), (" 2 d ", 172_800)]
)
def test_durations_are_microseconds(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds * 1_000_000


@pytest.mark.parametrize("text", ["", "1", "h", "1w", "-1h", "1h30m", "0s", "1e3s", "\u0661h"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="1h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4_096),
        ("4096B", 4_096),
        ("2kB", 2_000),
        ("2 KiB", 2_048),
        ("0.5GiB", GIBIBYTE // 2),
        ("25%", GIBIBYTE // 4),
        ("100%", GIBIBYTE),
    ],
)
def test_sizes_are_bytes_or_a_share_of_the_whole(text: str, size: int) -> None:
    assert parse_bytes(text, whole=GIBIBYTE) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1XB", "all", "1.2.3", "0%"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="2GiB"):
        parse_bytes(text, whole=GIBIBYTE)


@pytest.mark.parametrize("text", ["101%", "2GiB"])
def test_more_than_the_whole_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="more than there is"):
        parse_bytes(text, whole=GIBIBYTE)


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, lambda text: parse_bytes(text, whole=GIBIBYTE)):
        with suppress(ValueError):
            assert parse(text) > 0


def test_lists_keep_their_order_and_lose_repeats() -> None:
    assert parse_list(" b, a ,,b,") == ("b", "a")
    assert parse_list("") == ()
