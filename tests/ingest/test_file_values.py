"""Values of files become ours exactly, or the row that can't is named."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import BadValueError
from ingest.files.values import InstantColumn, numbers, sides, texts
from storage.schemas import TIMESTAMP

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
instants = st.datetimes(datetime(1974, 1, 1), datetime(2199, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
zones = st.sampled_from(["America/New_York", "Europe/Berlin", "Asia/Kolkata", "UTC"])


def micros(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


def read(values: pa.Array, timezone: str | None = None) -> list[int | None]:
    column = InstantColumn(timezone).read(values)
    assert column.type == TIMESTAMP
    return list(column.cast(pa.int64()).to_pylist())


@given(at=st.lists(instants, min_size=1), unit=st.sampled_from(["s", "ms", "us", "ns"]))
def test_timestamps_of_every_unit_and_zone_keep_their_instant(
    at: list[datetime], unit: str
) -> None:
    step = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1}[unit]
    expected = [micros(one) // step * step for one in at]
    for zone in ("UTC", "Asia/Tokyo", "+05:30"):
        values = pa.array(expected, TIMESTAMP).cast(pa.timestamp(unit, zone))
        assert read(values) == expected


@given(at=st.lists(instants, min_size=1), unit=st.sampled_from([10**6, 10**3, 1]))
def test_integers_mean_the_unit_that_their_magnitude_says(at: list[datetime], unit: int) -> None:
    expected = [micros(one) // unit * unit for one in at]
    for kind in (pa.int64(), pa.uint64()):
        assert read(pa.array([one // unit for one in expected], kind)) == expected
    assert read(pa.array([str(one // unit) for one in expected])) == expected


@given(at=instants, digits=st.integers(0, 999))
def test_what_is_finer_than_a_microsecond_is_cut_and_counted(at: datetime, digits: int) -> None:
    nanos = micros(at) * 1_000 + digits
    for values in (
        pa.array([nanos]),
        pa.array([nanos], pa.timestamp("ns", "UTC")),
        pa.array([f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond:06d}{digits:03d}Z"]),
    ):
        column = InstantColumn(None)
        assert column.read(values).cast(pa.int64()).to_pylist() == [micros(at)]
        assert column.truncated_rows == (digits > 0)


@given(at=st.lists(instants, min_size=1), hours=st.integers(-12, 14))
def test_iso_text_with_a_zone_keeps_its_instant(at: list[datetime], hours: int) -> None:
    zone = timezone(timedelta(hours=hours))
    for separator in ("T", " "):
        texts = [one.astimezone(zone).isoformat(sep=separator) for one in at]
        # The first value settles whether there are fractions; Arrow takes both in one column.
        assert read(pa.array(texts)) == [micros(one) for one in at]


@given(at=instants.filter(lambda at: at.year < 2037), zone=zones)
def test_naive_instants_are_read_in_the_zone_that_is_given(at: datetime, zone: str) -> None:
    # Arrow knows no summer time after 2037, which no tick has seen yet.
    local = at.astimezone(ZoneInfo(zone))
    naive = local.replace(tzinfo=None, fold=0)
    other = naive.replace(fold=1)
    if (
        naive.replace(tzinfo=ZoneInfo(zone)).utcoffset()
        != other.replace(tzinfo=ZoneInfo(zone)).utcoffset()
    ):
        return  # an hour that was there twice; refused, see below
    assert read(pa.array([naive]), zone) == [micros(at)]
    assert read(pa.array([naive.isoformat(sep=" ")]), zone) == [micros(at)]


def test_naive_instants_without_a_zone_are_refused() -> None:
    for values in (pa.array([datetime(2013, 10, 7)]), pa.array(["2013-10-07 08:00:00"])):  # noqa: DTZ001
        with pytest.raises(BadValueError, match="--tz America/New_York"):
            read(values)


def test_an_hour_that_was_there_twice_is_refused_at_its_row() -> None:
    values = pa.array(["2013-11-02 01:30:00", "2013-11-03 01:30:00"])
    with pytest.raises(BadValueError, match="clocks were set") as refused:
        read(values, "America/New_York")
    assert refused.value.row == 1


@pytest.mark.parametrize("strange", [1_381_132_800, 0, -5, 1_381_132_800_000_000])
@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_a_second_unit_in_one_file_is_refused_at_its_row(strange: int, kind: pa.DataType) -> None:
    column = InstantColumn(None)
    column.read(pa.array([1_381_132_800_000]).cast(kind))
    with pytest.raises(BadValueError, match="milliseconds") as refused:
        column.read(pa.array([1_381_132_800_001, strange]).cast(kind))
    assert refused.value.row == 1


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["2013-10-07T08:00:00Z", "yesterday"]),
        pa.array(["2013-10-07T08:00:00Z", "2013-10-07 08:00:00"]),
        pa.array(["1381132800", "2013-10-07T08:00:00Z"]),
    ],
)
def test_text_that_is_no_instant_is_refused_at_its_row(values: pa.Array) -> None:
    with pytest.raises(BadValueError) as refused:
        read(values)
    assert refused.value.row == 1


@pytest.mark.parametrize("values", [pa.array([1.5]), pa.array([True]), pa.array([[1]])])
def test_columns_that_hold_no_instants_are_refused(values: pa.Array) -> None:
    with pytest.raises(BadValueError):
        read(values)


def test_missing_instants_stay_missing() -> None:
    assert read(pa.array([None, "", "NA", "2013-10-07T08:00:00Z"]))[:3] == [None] * 3
    assert read(pa.array([None, 1_381_132_800]))[0] is None
    assert read(pa.nulls(2, pa.int64())) == [None, None]
    assert read(pa.nulls(2, pa.string())) == [None, None]


@given(values=st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1))
def test_numbers_keep_every_bit(values: list[float | None]) -> None:
    assert numbers(pa.array(values, pa.float64())).to_pylist() == values
    spelled = [None if value is None else f" {value!r} " for value in values]
    assert numbers(pa.array(spelled, pa.string())).to_pylist() == values


def test_a_number_that_would_lose_digits_is_refused_at_its_row() -> None:
    with pytest.raises(BadValueError) as refused:
        numbers(pa.array([1, 2**53 + 1]))
    assert refused.value.row == 1


@given(rows=st.lists(st.just("1.5"), max_size=200), at=st.integers(0, 200))
def test_the_one_bad_number_is_found_among_any(rows: list[str], at: int) -> None:
    at = min(at, len(rows))
    with pytest.raises(BadValueError, match="'1,5' is not a number") as refused:
        numbers(pa.array([*rows[:at], "1,5", *rows[at:]]))
    assert refused.value.row == at


WORDS = {"buy": 1, "Sell": -1, "B": 1, "s": -1, " 1 ": 1, "-1": -1, "": 0, None: 0, "N": 0}


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        (pa.array(WORDS.keys()), list(WORDS.values())),
        (pa.array([1, -1, 0, None], pa.int8()), [1, -1, 0, 0]),
        (pa.array([1.0, -1.0]), [1, -1]),
        (pa.array([1, 0], pa.uint8()), [1, 0]),
    ],
)
def test_sides_are_understood_in_their_usual_spellings(
    given_values: pa.Array, expected: list[int]
) -> None:
    assert sides(given_values).to_pylist() == expected


@pytest.mark.parametrize("bad", [pa.array(["buy", "X"]), pa.array([1, 2]), pa.array([1.0, 0.5])])
def test_a_side_that_is_none_is_refused_at_its_row(bad: pa.Array) -> None:
    with pytest.raises(BadValueError) as refused:
        sides(bad)
    assert refused.value.row == 1


@given(codes=st.lists(st.one_of(st.none(), st.text())))
def test_codes_stay_as_they_are(codes: list[str | None]) -> None:
    for kind in (pa.string(), pa.large_string()):
        assert texts(pa.array(codes, kind)).to_pylist() == codes


@pytest.mark.parametrize("convert", [numbers, sides, InstantColumn("UTC").read])
@pytest.mark.parametrize(
    "odd", [pa.array([b"\xff"]), pa.array([[1]]), pa.array([{"a": 1}]), pa.array([b"x"])]
)
def test_types_that_mean_nothing_are_refused_as_values(
    convert: Callable[[pa.Array], pa.Array], odd: pa.Array
) -> None:
    with pytest.raises(BadValueError):
        convert(odd)
