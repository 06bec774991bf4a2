"""One SQL expression filters a range, and nothing else can be said in its place."""

import pyarrow as pa
import pytest

from storage.errors import InvalidDataError
from storage.schemas import GEX, TICKS
from storage.selection import Bound, Comparison
from storage.where import WHERE_CHARS_MAX, Where
from tests.storage.conftest import NOON, gamma, ticks

TRUE_OF_SOME = [
    ("price > 2", [3.0, 4.0]),
    ("PRICE > 2 -- a remark", [3.0, 4.0]),
    ("bid is null or price < 2", [1.0, 2.0]),
    ("price in (1, 4) and not size > 100", [1.0, 4.0]),
    ("price between 2 and 3", [2.0, 3.0]),
    ("case when price > 3 then true else price < 2 end", [1.0, 4.0]),
    ("contract like 'E%' and abs(-price) = 3", [3.0]),
    ("ts_event >= '2026-09-21 14:13:20Z'", []),
    ("ts_event < timestamp '2100-01-01' - interval 5 minutes", [1.0, 2.0, 3.0, 4.0]),
    ("symbol = 'MNQ' and flags & 1 = 1", [1.0, 2.0, 3.0, 4.0]),
    ("null", None),
    ("price > ask", []),
    ("true", [1.0, 2.0, 3.0, 4.0]),
]
REFUSED = [
    "",
    "price",
    "price >",
    "nothing > 1",
    "rows.price > 1",
    "exists (select 1)",
    "price > (select 1)",
    "price in (select 1)",
    "price > 1; select 2",
    "price > 1) or (true",
    "price > 1 order by price",
    "price > 1 limit 1",
    "price > 1 group by price",
    "true union select true",
    "sum(price) > 1",
    "row_number() over () > 1",
    "price > $1",
    "columns(*) > 1",
    "repeat('x', 2000000000) = ''",
    "lpad('x', 2000000000, 'y') = ''",
    "range(1000000000)[1] = 1",
    "list_transform([1], x -> x)[1] = 1",
    "read_text('/etc/passwd') = ''",
    "getenv('HOME') = ''",
    "current_setting('temp_directory') = ''",
    "price > random()",
    "price = 'abc'",
    "price::json is null",
    "contract ~ '(a+)+$'",
    "not " * 1_000 + "true",
    "price > 1 or " * WHERE_CHARS_MAX + "true",
]


def sample() -> pa.RecordBatch:
    return ticks(
        4,
        price=[1.0, 2.0, 3.0, 4.0],
        bid=[0.5, None, 2.5, 3.5],
        ask=[9.0, 9.0, 9.0, None],
        contract=["MNQZ6", "MNQZ6", "ESZ6", "ESZ6"],
        flags=[1, 1, 1, 1],
    )


def kept(text: str) -> list[float]:
    found = Where.parse(text, TICKS).kept(iter([sample()]), ("price",))
    return [price for batch in found for price in batch["price"].to_pylist()]


@pytest.mark.parametrize(("text", "expected"), TRUE_OF_SOME)
def test_rows_are_kept_where_the_expression_is_true(
    text: str, expected: list[float] | None
) -> None:
    if expected is None:
        with pytest.raises(InvalidDataError):
            kept(text)
    else:
        assert kept(text) == expected


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:40])
def test_what_is_no_plain_expression_is_refused(text: str) -> None:
    with pytest.raises(InvalidDataError, match=r"^where: ") as refused:
        kept(text)
    assert refused.value.field == "where"
    assert "/" not in str(refused.value)


def test_an_expression_reads_only_the_columns_it_names() -> None:
    where = Where.parse("Price > 1 and bid is null", TICKS)
    assert sorted(where.columns) == ["bid", "price"]


def test_numbers_and_instants_narrow_what_is_read() -> None:
    where = Where.parse(
        "price > 2 and 9 >= size and sequence = 7 and (bid > 1 or ask > 1)"
        " and ts_event >= '2026-11-20' and ts_event < '2026-11-21T00:00:00Z'",
        TICKS,
    )
    assert set(where.bounds) == {
        Bound("price", Comparison.ABOVE, 2.0),
        Bound("size", Comparison.AT_MOST, 9.0),
        Bound("sequence", Comparison.EQUAL, 7.0),
    }
    day = 86_400_000_000
    assert where.span(0, 1 << 60) == (20_777 * day, 20_778 * day)
    assert where.span(1 << 59, 1 << 60) == (1 << 59, 1 << 59)


@pytest.mark.parametrize(
    "text", ["not price > 2", "price > 2 or true", "price > 'nan'", "symbol > 'A'", "price > size"]
)
def test_nothing_is_left_unread_on_less_than_certainty(text: str) -> None:
    where = Where.parse(text, TICKS)
    assert where.bounds == ()
    assert where.span(3, 5) == (3, 5)


def test_lists_of_rows_can_be_looked_into() -> None:
    batch = pa.concat_batches([gamma(ts_event=NOON, spot=1.0), gamma(ts_event=NOON + 1, spot=2.0)])
    where = Where.parse("len(strikes) >= 0 and spot > 1", GEX)
    found = [spot for rows in where.kept(iter([batch]), ("spot",)) for spot in rows["spot"]]
    assert [spot.as_py() for spot in found] == [2.0] or batch["strikes"].null_count


def test_rows_keep_their_dictionaries() -> None:
    batch = pa.RecordBatch.from_arrays(
        [sample()["price"], sample()["contract"].dictionary_encode()], ["price", "contract"]
    )
    (rows,) = Where.parse("price > 3", TICKS).kept(iter([batch]), ("contract",))
    assert rows["contract"].to_pylist() == ["ESZ6"]
    assert pa.types.is_dictionary(rows["contract"].type)


def test_a_row_that_can_not_be_evaluated_ends_the_answer() -> None:
    where = Where.parse("contract::integer > 1", TICKS)
    with pytest.raises(InvalidDataError, match="MNQZ6"):
        list(where.kept(iter([sample()]), ("price",)))
