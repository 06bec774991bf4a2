"""Whatever batch comes in: its rows are stored as they were, put aside, or refused in words.

A batch of good ticks is bent in one to three ways, of which some leave it good, and sent. Buffers
that lie are built by hand, because no library makes them on purpose.
"""

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import flight

from storage.schemas import DATASETS, TICKS
from tests.flight_server.conftest import Caller, House, ticks

NUMBERS = itertools.count(1)
ROWS = st.integers(0, 5)
COLUMNS = TICKS.schema.names
REQUIRED = [field.name for field in TICKS.schema if not field.nullable]
TEXT = [field.name for field in TICKS.schema if pa.types.is_string(field.type)]
FLOATS = [field.name for field in TICKS.schema if pa.types.is_floating(field.type)]
COMPARED = [name for name in COLUMNS if name not in ("flags", "ts_recv")]
"""The server sets flags; all else must come back as it was sent."""
REFUSALS = {"invalid_argument", "limit"}

TYPES = [
    pa.null(),
    pa.bool_(),
    pa.int8(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.decimal128(20, 3),
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.binary(4),
    pa.date32(),
    pa.time64("us"),
    pa.duration("us"),
    pa.timestamp("ns", "UTC"),
    pa.timestamp("us"),
    pa.timestamp("us", "America/New_York"),
    pa.list_(pa.float64()),
    pa.list_(pa.list_(pa.string())),
    pa.struct([("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.string())])))]),
    pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int16(), pa.large_string()),
    pa.dictionary(pa.uint32(), pa.string()),
    pa.dictionary(pa.int64(), pa.string(), ordered=True),
    pa.dictionary(pa.int32(), pa.string_view()),
    pa.dictionary(pa.int32(), pa.float64()),
    pa.dictionary(pa.int32(), pa.timestamp("us", "UTC")),
    pa.run_end_encoded(pa.int32(), pa.float64()),
]

Draw = Callable[[st.SearchStrategy[Any]], Any]
Bend = Callable[[pa.RecordBatch, Draw], pa.RecordBatch]


def replaced(
    batch: pa.RecordBatch, name: str, values: pa.Array, *, nullable: bool = True
) -> pa.RecordBatch:
    """Return ``batch`` with another column of that name, at its place."""
    at = batch.schema.names.index(name)
    schema = batch.schema.set(at, pa.field(name, values.type, nullable))
    arrays = [values if n == at else batch.column(n) for n in range(batch.num_columns)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def chosen(batch: pa.RecordBatch, names: list[str], draw: Draw) -> str | None:
    there = [name for name in names if batch.schema.names.count(name) == 1]
    return draw(st.sampled_from(there)) if there else None


def shuffled(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    order = draw(st.permutations(range(batch.num_columns)))
    fields = [batch.schema.field(n) for n in order]
    return pa.RecordBatch.from_arrays([batch.column(n) for n in order], schema=pa.schema(fields))


def without_a_column(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    if batch.num_columns < 2:
        return batch
    gone = draw(st.integers(0, batch.num_columns - 1))
    return batch.select([n for n in range(batch.num_columns) if n != gone])


def with_a_column_twice(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    again = draw(st.integers(0, batch.num_columns - 1))
    schema = batch.schema.append(batch.schema.field(again))
    return pa.RecordBatch.from_arrays([*batch.columns, batch.column(again)], schema=schema)


def with_a_column_more(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    name = draw(st.text(max_size=20) | st.sampled_from(["pos", "arrival", "Price", " price"]))
    kind = draw(st.sampled_from(TYPES))
    return batch.append_column(pa.field(name, kind), pa.nulls(batch.num_rows, kind))


def of_another_type(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    name = chosen(batch, COLUMNS, draw)
    if name is None:
        return batch
    kind = draw(st.sampled_from(TYPES))
    try:
        values = batch.column(name).cast(kind)
    except pa.ArrowException:
        values = pa.nulls(batch.num_rows, kind)
    return replaced(batch, name, values)


def with_nulls(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    name = chosen(batch, COLUMNS, draw)
    if name is None:
        return batch
    keep = draw(st.lists(st.booleans(), min_size=batch.num_rows, max_size=batch.num_rows))
    values = pa.compute.if_else(
        pa.array(keep, pa.bool_()),
        batch.column(name),
        pa.nulls(batch.num_rows, batch.column(name).type),
    )
    return replaced(batch, name, values, nullable=draw(st.booleans()))


def with_odd_numbers(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    name = chosen(batch, FLOATS, draw)
    if name is None or not pa.types.is_floating(batch.column(name).type):
        return batch
    values = draw(
        st.lists(
            st.floats(width=16) | st.sampled_from([math.nan, math.inf, -0.0, -1.0]),
            min_size=batch.num_rows,
            max_size=batch.num_rows,
        )
    )
    return replaced(batch, name, pa.array(values, batch.column(name).type))


def with_odd_text(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    name = chosen(batch, TEXT, draw)
    if name is None:
        return batch
    text = st.text(max_size=40) | st.sampled_from(["", " MNQ", "mnq", "x" * 5_000, "\x00"])
    values = draw(st.lists(text, min_size=batch.num_rows, max_size=batch.num_rows))
    return replaced(batch, name, pa.array(values, pa.string()))


def cut_out_of_a_larger_one(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    before, after = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    around = [batch.slice(0, min(before, batch.num_rows)), batch, batch.slice(0, min(after, 1))]
    return pa.concat_batches(around).slice(around[0].num_rows, batch.num_rows)


def with_text_that_is_none(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    name = chosen(batch, TEXT, draw)
    if name is None or not batch.num_rows:
        return batch
    length = 4 * batch.num_rows
    raw = draw(st.binary(min_size=length, max_size=length))
    offsets = pa.array(range(0, length + 1, 4), pa.int32()).buffers()[1]
    values = pa.StringArray.from_buffers(batch.num_rows, offsets, pa.py_buffer(raw))
    return replaced(batch, name, values)


def with_offsets_that_lie(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    name = chosen(batch, TEXT, draw)
    if name is None or batch.num_rows < 2:
        return batch
    # The first and last are true: the client's own library looks at those.
    inner = draw(
        st.lists(
            st.integers(-(2**31), 2**31 - 1),
            min_size=batch.num_rows - 1,
            max_size=batch.num_rows - 1,
        )
    )
    offsets = pa.array([0, *inner, 8], pa.int32()).buffers()[1]
    values = pa.StringArray.from_buffers(batch.num_rows, offsets, pa.py_buffer(b"MNQMNQMN"))
    return replaced(batch, name, values)


def with_indices_that_lie(batch: pa.RecordBatch, draw: Draw) -> pa.RecordBatch:
    name = chosen(batch, TEXT, draw)
    if name is None or not batch.num_rows:
        return batch
    kind = draw(st.sampled_from([pa.int8(), pa.int32(), pa.int64(), pa.uint16()]))
    top = 2 ** (kind.bit_width - 1) - 1
    indices = draw(st.lists(st.integers(0, top), min_size=batch.num_rows, max_size=batch.num_rows))
    words = pa.array(["MNQ", None, "NQ"])
    values = pa.DictionaryArray.from_arrays(pa.array(indices, kind), words, safe=False)
    return replaced(batch, name, values)


HONEST: list[Bend] = [
    shuffled,
    without_a_column,
    with_a_column_twice,
    with_a_column_more,
    of_another_type,
    with_nulls,
    with_odd_numbers,
    with_odd_text,
    cut_out_of_a_larger_one,
]
LIES: list[Bend] = [with_text_that_is_none, with_offsets_that_lie, with_indices_that_lie]


@st.composite
def bent(draw: Draw) -> tuple[str, pa.RecordBatch]:
    """A batch of ticks of a symbol of their own, and what became of it."""
    symbol = f"BENT.{next(NUMBERS)}"
    batch = ticks(draw(ROWS), symbol=symbol)
    for bend in draw(st.lists(st.sampled_from(HONEST), max_size=3)):
        batch = bend(batch, draw)
    for bend in draw(st.lists(st.sampled_from(LIES), max_size=1)):  # last: none here believes them
        batch = bend(batch, draw)
    return symbol, batch


def outcome(caller: Caller, batch: pa.RecordBatch, dataset: str = "ticks") -> dict[str, int] | str:
    """Send a batch; return the acks as one, or the code it was refused with."""
    try:
        return caller.put(batch, dataset=dataset)
    except flight.FlightServerError as error:
        code: str = json.loads(error.extra_info)["code"]
        return "leak" if "Traceback" in str(error) else code


def kept(caller: Caller, symbol: str) -> list[dict[str, Any]]:
    ticket = {"op": "range", "dataset": "ticks", "symbols": [symbol], "start": 0}
    ticket |= {"end": 4_000_000_000_000_000, "source": "all", "columns": COMPARED}
    rows: list[dict[str, Any]] = caller.get(ticket).to_pylist()
    return sorted(rows, key=lambda row: int(row["sequence"]))


def meant(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return what a batch says, in the words of the dataset; NaN is how some say nothing."""
    columns = {}
    for name in COMPARED:
        field = TICKS.schema.field(name)
        there = name in batch.schema.names
        values = batch.column(name) if there else pa.nulls(batch.num_rows, field.type)
        columns[name] = values.cast(field.type)
    rows = pa.table(columns).to_pylist()
    for row in rows:
        for name in FLOATS:
            if row[name] is not None and math.isnan(row[name]):
                row[name] = None
    return sorted(rows, key=lambda row: int(row["sequence"]))


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(made=bent())
def test_any_batch_is_stored_as_it_was_put_aside_or_refused(
    house: House, anyone: Caller, made: tuple[str, pa.RecordBatch]
) -> None:
    symbol, batch = made
    became = outcome(anyone, batch)
    assert house.failures == []
    if isinstance(became, str):
        assert became in REFUSALS
        assert kept(anyone, symbol) == []
        return
    assert became["rows"] + became["quarantined"] + became["duplicates"] == batch.num_rows
    if became["rows"] == batch.num_rows:
        stored = [row for name in symbols(batch) for row in kept(anyone, name)]
        assert all(row in stored for row in meant(batch))


def symbols(batch: pa.RecordBatch) -> set[str]:
    return set(batch.column("symbol").cast(pa.string()).to_pylist())


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_column_of_any_type_in_any_dataset_harms_nothing(
    house: House, anyone: Caller, name: str, kind: pa.DataType
) -> None:
    schema = DATASETS[name].schema
    for at, field in enumerate(schema):
        bent_schema = schema.set(at, pa.field(field.name, kind))
        arrays = [pa.nulls(2, one.type) for one in bent_schema]
        became = outcome(anyone, pa.RecordBatch.from_arrays(arrays, schema=bent_schema), name)
        if isinstance(became, str):
            assert became in REFUSALS
        else:
            assert (became["rows"], became["quarantined"]) == (0, 2)
    assert house.failures == []
    assert anyone.put(ticks(1, symbol=f"AFTER.{next(NUMBERS)}"))["rows"] == 1
