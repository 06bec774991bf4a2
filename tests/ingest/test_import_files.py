"""Files in every format become the same ticks, once, whatever interrupts."""

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import (
    ColumnMappingError,
    ConfigurationError,
    ImportConflictError,
    ImportFileError,
)
from ingest.files import ImportOutcome, ImportProgress, ImportReport, import_ticks
from ingest.files.columns import OPTIONAL, REQUIRED, plan_columns
from ingest.files.importing import BATCH_ROWS, ImportStage
from ingest.files.reading import open_file, rebatch
from storage.schemas import TICKS, TIMESTAMP, Flag

FIRST = 1_381_132_800_000_000
ROWS = 2 * BATCH_ROWS + 100

FILE_SCHEMA = pa.schema(
    {
        "ts_event": TIMESTAMP,
        "price": pa.float64(),
        "size": pa.float64(),
        "exchange": pa.string(),
        "suspicious": pa.int8(),
    }
)


def trades(rows: int = ROWS) -> pa.Table:
    return pa.table(
        {
            "ts_event": pa.array(range(FIRST, FIRST + rows)).cast(TIMESTAMP),
            "price": [100 + row % 500 / 100 for row in range(rows)],
            "size": [float(1 + row % 7) for row in range(rows)],
            "exchange": [None if row % 5 == 0 else "PQZ"[row % 3] for row in range(rows)],
            "suspicious": [0] * rows,
        },
        schema=FILE_SCHEMA,
    )


def write_csv(table: pa.Table, path: Path, delimiter: str = ",") -> None:
    index = table.column_names.index("ts_event")
    plain = table.set_column(index, "ts_event", table["ts_event"].cast(pa.int64()))
    pacsv.write_csv(plain, path, pacsv.WriteOptions(delimiter=delimiter))


def write_gzip(table: pa.Table, path: Path) -> None:
    write_csv(table, path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_ipc(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=10_000)


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=10_000)


def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=9_000, write_page_checksum=True)


FORMATS: Mapping[str, Callable[[pa.Table, Path], None]] = {
    "parquet": write_parquet,
    "csv": write_csv,
    "csv.gz": write_gzip,
    "arrow": write_ipc,
    "arrows": write_stream,
    "feather": feather.write_feather,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trades.parquet"
    write_parquet(trades(), path)
    return path


def bring(service: Any, *paths: Path, **options: Any) -> ImportReport:
    return import_ticks(service, paths, symbol="SPY", **options)[-1]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_rows_of_the_file_in_their_order(
    tmp_path: Path, service: Any, name: str
) -> None:
    # The content says what it is, so no file needs its usual name.
    path = tmp_path / "download"
    FORMATS[name](trades(), path)
    report = bring(service, path)
    assert (report.outcome, report.rows) == (ImportOutcome.IMPORTED, ROWS)
    assert report.ignored == ("suspicious",)
    rows = pa.Table.from_pylist(service.rows("ticks"))
    expected = trades()
    assert rows["ts_event"].to_pylist() == list(range(FIRST, FIRST + ROWS))
    for column in ("price", "size", "exchange"):
        assert rows[column].to_pylist() == expected[column].to_pylist()


def test_a_tick_of_a_file_says_where_it_comes_from(file: Path, service: Any) -> None:
    bring(service, file)
    assert all(data.schema.types == TICKS.wire_schema.types for _, data in service.written)
    assert all(data.schema.names == TICKS.wire_schema.names for _, data in service.written)
    rows = service.rows("ticks")
    assert [row["sequence"] for row in rows] == [1 << 32 | row for row in range(ROWS)]
    expected = {
        "symbol": "SPY",
        "contract": "SPY",
        "source": "import",
        "kind": 0,
        "side": 0,
        "bid": None,
        "condition": None,
        "flags": Flag.VALID_TICK | Flag.BACKFILLED,
    }
    assert all(row[name] == value for row in rows for name, value in expected.items())
    assert all(row["ts_recv"] == row["ts_event"] for row in rows)


def test_a_receipt_time_in_the_file_is_kept_and_not_flagged(tmp_path: Path, service: Any) -> None:
    table = trades(3).append_column(
        "ts_recv", pa.array([FIRST + 50, None, FIRST + 70]).cast(TIMESTAMP)
    )
    pq.write_table(table, tmp_path / "a")
    bring(service, tmp_path / "a")
    flags = [Flag.VALID_TICK, Flag.VALID_TICK | Flag.BACKFILLED, Flag.VALID_TICK]
    assert [(row["ts_recv"], row["flags"]) for row in service.rows("ticks")] == [
        (FIRST + 50, flags[0]),
        (FIRST + 1, flags[1]),
        (FIRST + 70, flags[2]),
    ]


def test_batches_have_one_size_so_that_their_numbers_say_where_to_go_on(
    file: Path, service: Any
) -> None:
    bring(service, file)
    assert [data.num_rows for _, data in service.written] == [BATCH_ROWS, BATCH_ROWS, 100]


@pytest.mark.parametrize("durable", [1, 2, 3])
def test_a_half_import_goes_on_behind_the_last_durable_batch(
    file: Path, service: Any, durable: int
) -> None:
    whole = bring_whole(file, service)
    service.files.clear()
    service.written.clear()
    answer = service.action("files.register", registration(service, file))
    service.durable[answer["producer"]] = durable
    report = bring(service, file)
    assert report.outcome is ImportOutcome.RESUMED
    assert report.first_row == min(durable * BATCH_ROWS, ROWS)
    assert service.writers[-1].first_seq == durable + 1
    assert service.rows("ticks") == whole[report.first_row :]


def bring_whole(file: Path, service: Any) -> list[dict[str, Any]]:
    bring(service, file)
    rows: list[dict[str, Any]] = service.rows("ticks")
    return rows


def registration(service: Any, file: Path) -> dict[str, Any]:
    """What an import of the file registers, learnt from one that does nothing else."""
    bodies: list[dict[str, Any]] = []
    recorder = type(service)()
    action = recorder.action

    def record(name: str, body: dict[str, Any]) -> Any:
        bodies.append(body)
        return action(name, body)

    recorder.action = record
    bring(recorder, file)
    return bodies[0]


def test_a_file_that_is_in_is_not_sent_again_under_any_name(file: Path, service: Any) -> None:
    bring(service, file)
    copy = file.with_name("copy.bin")
    copy.write_bytes(file.read_bytes())
    sent = len(service.written)
    report = bring(service, copy)
    assert report.outcome is ImportOutcome.ALREADY_IMPORTED
    assert report.note is None
    assert len(service.written) == sent


def test_a_file_that_is_in_under_other_options_says_so(file: Path, service: Any) -> None:
    bring(service, file)
    report = import_ticks(service, [file], symbol="QQQ")[0]
    assert report.outcome is ImportOutcome.ALREADY_IMPORTED
    assert report.note is not None
    assert "symbol SPY instead of QQQ" in report.note


def test_a_half_import_under_other_options_is_refused(file: Path, service: Any) -> None:
    service.action("files.register", registration(service, file))
    with pytest.raises(ImportConflictError, match="contract SPY instead of ESZ6"):
        bring(service, file, contract="ESZ6")
    assert not service.written


def test_columns_are_mapped_by_name_and_by_wish(tmp_path: Path, service: Any) -> None:
    table = trades(10).rename_columns(["time", "px", "size", "exchange", "price"])
    pq.write_table(table, tmp_path / "a")
    report = bring(service, tmp_path / "a", mapping={"ts_event": "time", "price": "px"})
    assert dict(report.mapped) == {
        "ts_event": "time",
        "price": "px",
        "size": "size",
        "exchange": "exchange",
    }
    assert report.ignored == ("price",)
    assert [row["price"] for row in service.rows("ticks")] == table["px"].to_pylist()


def test_a_file_without_the_needed_columns_says_what_it_has(tmp_path: Path, service: Any) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    pq.write_table(trades(5), good)
    pq.write_table(trades(5).rename_columns(["time", "px", "size", "exchange", "x"]), bad)
    with pytest.raises(ColumnMappingError) as refused:
        bring(service, good, bad)
    message = str(refused.value)
    assert "bad: nothing to take ts_event, price from" in message
    assert "the file has time, px, size, exchange, x" in message
    assert "--map ts_event=COLUMN --map price=COLUMN" in message
    assert not service.files  # the good one was not begun either


columns = st.lists(
    st.one_of(st.sampled_from([*REQUIRED, *OPTIONAL]), st.text(min_size=1, max_size=3)),
    unique=True,
)


@given(others=columns, renamed=st.sets(st.sampled_from(REQUIRED)))
def test_every_column_is_either_mapped_or_named_as_ignored(
    others: list[str], renamed: set[str]
) -> None:
    mapping = {field: f"<{field}>" for field in renamed}
    names = [mapping.get(field, field) for field in REQUIRED]
    names += [name for name in others if name not in names]
    plan = plan_columns(Path("f"), names, mapping)
    assert {*plan.mapped.values(), *plan.ignored} == set(names)
    assert not set(plan.mapped.values()) & set(plan.ignored)
    assert all(plan.mapped[field] == mapping.get(field, field) for field in REQUIRED)


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [({"prize": "price"}, "no field"), ({"price": "px"}, "the file has ts_event, price")],
)
def test_a_mapping_of_what_is_not_there_is_refused(
    file: Path, service: Any, mapping: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ColumnMappingError, match=complaint):
        bring(service, file, mapping=mapping)


def test_a_column_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ColumnMappingError, match="2 times"):
        plan_columns(Path("f"), ["ts_event", "price", "size", "price"], {})


def test_rows_that_lack_something_are_sent_for_the_service_to_set_aside(
    tmp_path: Path, service: Any
) -> None:
    table = pa.table(
        {
            "ts_event": ["2013-10-07T08:00:00Z", "", "2013-10-07T08:00:01Z"],
            "price": ["1.5", "2", ""],
            "size": ["1", "NaN", "NA"],
        }
    )
    pacsv.write_csv(table, tmp_path / "a.csv")
    bring(service, tmp_path / "a.csv")
    rows = service.rows("ticks")
    assert [row["price"] for row in rows] == [1.5, 2.0, None]
    assert [row["ts_event"] is None for row in rows] == [False, True, False]


def test_a_bad_value_is_named_with_its_row_before_anything_is_sent(
    tmp_path: Path, service: Any
) -> None:
    table = trades(20_000)
    prices = [str(price) for price in table["price"].to_pylist()]
    prices[17_001] = "n.a."
    pq.write_table(table.set_column(1, "price", pa.array(prices)), tmp_path / "a")
    with pytest.raises(ImportFileError) as refused:
        bring(service, tmp_path / "a")
    assert refused.value.where == "row 17001 (counted from 0)"
    assert "price from column 'price': 'n.a.' is not a number" in str(refused.value)
    assert not service.files
    assert not service.written


def test_a_time_zone_makes_naive_instants_good(tmp_path: Path, service: Any) -> None:
    table = trades(5)
    naive = table["ts_event"].cast(pa.timestamp("us"))
    pq.write_table(table.set_column(0, "ts_event", naive), tmp_path / "a")
    with pytest.raises(ImportFileError, match="--tz"):
        bring(service, tmp_path / "a")
    bring(service, tmp_path / "a", timezone="America/New_York")
    assert service.rows("ticks")[0]["ts_event"] == FIRST + 4 * 3_600_000_000


def test_progress_is_told_of_both_passes_and_reaches_the_end(file: Path, service: Any) -> None:
    steps: list[ImportProgress] = []
    bring(service, file, progress=steps.append)
    for stage in ImportStage:
        mine = [step for step in steps if step.stage is stage]
        assert [step.rows for step in mine] == [BATCH_ROWS, 2 * BATCH_ROWS, ROWS]
        assert mine[-1].bytes_done == mine[-1].bytes_total == file.stat().st_size
        assert mine[-1].rows_total == ROWS


def test_a_csv_file_says_how_many_of_its_bytes_are_read(tmp_path: Path, service: Any) -> None:
    write_csv(trades(), tmp_path / "a.csv")
    steps: list[ImportProgress] = []
    bring(service, tmp_path / "a.csv", progress=steps.append)
    checking = [step for step in steps if step.stage is ImportStage.CHECKING]
    assert checking[-1].rows_total is None
    assert checking[-1].bytes_done == checking[-1].bytes_total


def test_other_delimiters_and_a_byte_order_mark_are_understood(
    tmp_path: Path, service: Any
) -> None:
    for number, delimiter in enumerate(";\t|"):
        path = tmp_path / f"{number}.csv"
        write_csv(trades(10 + number), path, delimiter)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert bring(service, path).rows == 10 + number


def test_dictionary_columns_are_read_as_what_they_stand_for(tmp_path: Path, service: Any) -> None:
    table = trades(30_000)
    encoded = table.set_column(3, "exchange", table["exchange"].dictionary_encode())
    for name, write in (("a", write_stream), ("b", write_parquet)):
        write(encoded.slice(len(name)), tmp_path / name)
        service.written.clear()
        bring(service, tmp_path / name)
        exchanges = [row["exchange"] for row in service.rows("ticks")]
        assert exchanges == table["exchange"].to_pylist()[len(name) :]


def damaged(content: bytes, how: str) -> bytes:
    if how == "cut":
        return content[: len(content) // 2]
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("parquet", "cut"),
        ("parquet", "flip"),
        ("csv.gz", "cut"),
        ("csv.gz", "flip"),
        ("arrow", "cut"),
        ("arrows", "cut"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_nothing_is_sent(
    tmp_path: Path, service: Any, name: str, how: str
) -> None:
    path = tmp_path / f"trades.{name}"
    FORMATS[name](trades(), path)
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(ImportFileError, match=f"trades.{name}"):
        bring(service, path)
    assert not service.files


def test_a_damaged_row_group_is_named(tmp_path: Path, service: Any) -> None:
    path = tmp_path / "a"
    write_parquet(trades(), path)
    path.write_bytes(damaged(path.read_bytes(), "flip"))
    with pytest.raises(ImportFileError) as refused:
        bring(service, path)
    assert refused.value.where is not None
    assert refused.value.where.startswith("row group ")


def test_a_line_of_a_csv_file_with_too_many_fields_is_named(tmp_path: Path, service: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text("ts_event,price,size\n1381132800,1,1\n1381132801,1,1,9\n")
    with pytest.raises(ImportFileError, match="Row #3"):
        bring(service, path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b"FEA1\0\0\0\0", "Feather"),
        (b"\x89PNG\r\n\x1a\n\0\0", "neither Parquet"),
        (b"PAR1", "Parquet"),
        (b"ts_event,price,size\n\xff,1,1\n", "UTF"),
        (gzip.compress(b"PAR1" + bytes(100), mtime=0), "decompress it first"),
    ],
)
def test_what_is_no_file_of_ticks_is_refused(
    tmp_path: Path, service: Any, content: bytes, complaint: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ImportFileError, match=complaint):
        bring(service, path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, service: Any) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ImportFileError):
            bring(service, path)


def test_a_file_with_a_head_alone_is_imported_as_nothing(tmp_path: Path, service: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text("ts_event,price,size\n")
    assert bring(service, path).rows == 0
    assert bring(service, path).outcome is ImportOutcome.ALREADY_IMPORTED


def test_a_file_that_is_written_to_meanwhile_is_refused(file: Path, service: Any) -> None:
    def grow(progress: ImportProgress) -> None:
        if progress.stage is ImportStage.SENDING:
            with file.open("ab") as more:
                more.write(b"x")

    with pytest.raises(ImportFileError, match="changed while"):
        bring(service, file, progress=grow)
    (known,) = service.files.values()
    assert known["state"] == "partial"
    assert service.writers[-1].closed


@pytest.mark.parametrize(
    ("symbol", "timezone"), [("spy", None), ("SPY", "Mars/X"), ("SPY", "/etc"), ("SPY", "America")]
)
def test_a_symbol_or_zone_that_is_none_is_refused(
    file: Path, service: Any, symbol: str, timezone: str | None
) -> None:
    with pytest.raises(ConfigurationError):
        import_ticks(service, [file], symbol=symbol, timezone=timezone)


@given(
    sizes=st.lists(st.integers(0, 50), max_size=12),
    wanted=st.integers(1, 40),
)
def test_cutting_batches_anew_keeps_every_row_in_its_place(sizes: list[int], wanted: int) -> None:
    numbers = iter(range(1_000))
    schema = pa.schema({"n": pa.int64()})
    batches = [
        pa.RecordBatch.from_pydict({"n": [next(numbers) for _ in range(size)]}, schema)
        for size in sizes
    ]
    cut = list(rebatch(iter(batches), wanted))
    assert [n for batch in cut for n in batch["n"].to_pylist()] == list(range(sum(sizes)))
    assert all(batch.num_rows == wanted for batch in cut[:-1])
    assert all(0 < batch.num_rows <= wanted for batch in cut[-1:])


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    rows = 3_000_000
    path = tmp_path / "a"
    noise = np.random.default_rng(1).random(rows)
    pq.write_table(pa.table({"price": noise}), path, row_group_size=rows, use_dictionary=False)
    before = pa.total_allocated_bytes()
    largest = 0
    for batch in open_file(path).batches(["price"]):
        largest = max(largest, pa.total_allocated_bytes() - before)
        assert batch.num_rows <= 65_536
    assert 0 < largest < noise.nbytes / 3
