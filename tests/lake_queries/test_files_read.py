"""Files of the lake are found without opening one, read piece by piece, and never half believed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import LakeCorruptError, RetentionError
from storage.lake import reader
from storage.lake.files import FileIndex, FileKind, LakeFile
from storage.lake.reader import LakeReader, Part
from storage.schemas import TICKS
from storage.selection import Bound, Comparison, Selection
from storage.speakers import DAY
from storage.streams import Stream, merged_streams
from storage.where import Where
from tests.lake_queries.conftest import Pool, Row, batch_of, rows_in
from tests.storage.conftest import NOON, ticks

FOREVER = 1 << 62
GROUP_ROWS = 122_880


def day_of(rows: int, start: int = NOON // DAY * DAY) -> pa.RecordBatch:
    """A day of one symbol, its rows a fifth of a second apart."""
    instants = pa.array(start + np.arange(rows) * 200_000, pa.timestamp("us", "UTC"))
    sequences = pa.array(np.arange(rows))
    prices = pa.array(np.arange(rows) / 4)
    return ticks(rows, ts_event=instants, ts_recv=instants, sequence=sequences, price=prices)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = Pool(tmp_path)
    pool.remember([])
    return pool


@pytest.fixture
def groups_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []

    class Watched(pq.ParquetFile):  # type: ignore[misc]
        def iter_batches(self, *args: Any, row_groups: list[int], **options: Any) -> Any:
            read.extend(row_groups)
            return super().iter_batches(*args, row_groups=row_groups, **options)

    monkeypatch.setattr("storage.lake.reader.pq.ParquetFile", Watched)
    return read


@pytest.fixture
def rows_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []

    class Watched(pq.ParquetFile):  # type: ignore[misc]
        def iter_batches(self, *args: Any, **options: Any) -> Any:
            for batch in super().iter_batches(*args, **options):
                read.append(batch.num_rows)
                yield batch

    monkeypatch.setattr("storage.lake.reader.pq.ParquetFile", Watched)
    return read


def sequences(batches: Iterator[pa.RecordBatch]) -> list[int]:
    return [n for batch in batches for n in batch["sequence"].to_pylist()]


class TestReading:
    def test_only_row_groups_of_the_time_asked_for_are_read(
        self, pool: Pool, groups_read: list[int]
    ) -> None:
        pool.roll(day_of(3 * GROUP_ROWS))
        start = NOON // DAY * DAY + (GROUP_ROWS + 5) * 200_000
        answer = pool.snapshot().range("ticks", Selection(), start, start + 600_000)
        assert sequences(answer.batches) == [GROUP_ROWS + 5, GROUP_ROWS + 6, GROUP_ROWS + 7]
        assert groups_read == [1]

    def test_only_row_groups_that_may_fulfil_an_expression_are_read(
        self, pool: Pool, groups_read: list[int]
    ) -> None:
        pool.roll(day_of(3 * GROUP_ROWS))
        price = (GROUP_ROWS * 2 + 1) / 4
        where = Where.parse(f"price = {price} and size > 0", TICKS)
        answer = pool.snapshot().range("ticks", Selection(), 0, FOREVER, where=where)
        assert sequences(answer.batches) == [GROUP_ROWS * 2 + 1]
        assert groups_read == [2]

    def test_what_follows_the_last_row_wanted_is_not_decoded(
        self, pool: Pool, rows_decoded: list[int]
    ) -> None:
        pool.roll(day_of(2 * reader.PARTIAL_BATCH_ROWS))
        start = NOON // DAY * DAY
        answer = pool.snapshot().range("ticks", Selection(), start, start + 3 * 200_000)
        assert sequences(answer.batches) == [0, 1, 2]
        assert sum(rows_decoded) == reader.PARTIAL_BATCH_ROWS

    def test_a_row_at_the_border_of_a_batch_is_read(self, pool: Pool) -> None:
        pool.roll(day_of(2 * reader.PARTIAL_BATCH_ROWS))
        border, start = reader.PARTIAL_BATCH_ROWS, NOON // DAY * DAY
        for first, end in ((border - 1, border), (border - 1, border + 1), (border, border + 1)):
            span = start + first * 200_000, start + end * 200_000
            answer = pool.snapshot().range("ticks", Selection(), *span)
            assert sequences(answer.batches) == list(range(first, end))

    def test_latest_reads_the_end_of_the_newest_file_alone(
        self, pool: Pool, groups_read: list[int]
    ) -> None:
        rows = 2 * GROUP_ROWS
        pool.roll(day_of(rows))
        pool.roll(day_of(rows, NOON // DAY * DAY + DAY))
        answer = pool.snapshot().latest("ticks", Selection(), 3)
        assert sequences(answer.batches) == [rows - 3, rows - 2, rows - 1]
        assert groups_read == [1]

    def test_one_file_passes_as_it_is_and_never_as_a_whole(self, pool: Pool) -> None:
        pool.roll(day_of(2 * GROUP_ROWS + 7))
        batches = list(pool.snapshot().range("ticks", Selection(), 0, FOREVER).batches)
        assert sequences(iter(batches)) == list(range(2 * GROUP_ROWS + 7))
        assert max(batch.num_rows for batch in batches) == reader.BATCH_ROWS
        assert all(batch.schema == TICKS.wire_schema for batch in batches)

    def test_columns_that_a_file_is_older_than_are_null(self, pool: Pool) -> None:
        pool.roll(day_of(3))
        (file,) = pool.files
        path = pool.root / "ticks" / file.path
        pq.write_table(pq.read_table(path, partitioning=None).drop(["exchange"]), path)
        (batch,) = pool.snapshot().range("ticks", Selection(), 0, FOREVER).batches
        assert batch["exchange"].to_pylist() == [None, None, None]

    def test_bounds_leave_out_groups_and_never_rows_of_others(self, pool: Pool) -> None:
        pool.roll(day_of(10))
        (file,) = pool.files
        lake = LakeReader(pool.root)
        for value, expected in ((100.0, 0), (1.0, 10)):
            bounds = (Bound("price", Comparison.ABOVE, value),)
            part = Part(("sequence",), 0, FOREVER, bounds)
            found = lake.batches(TICKS, file, part)
            assert sum(batch.num_rows for batch in found) == expected


class TestDamage:
    def test_a_missing_file_is_named_with_what_to_do(self, pool: Pool) -> None:
        pool.roll(day_of(3))
        (file,) = pool.files
        (pool.root / "ticks" / file.path).unlink()
        answer = pool.snapshot().range("ticks", Selection(), 0, FOREVER)
        with pytest.raises(LakeCorruptError, match="tickflightd lake verify") as raised:
            list(answer.batches)
        assert str(raised.value.path).endswith(file.path)

    @pytest.mark.parametrize("place", [0.1, 0.4, 0.7])
    def test_a_flipped_bit_is_noticed(self, pool: Pool, place: float) -> None:
        pool.roll(day_of(2_000))
        (file,) = pool.files
        path = pool.root / "ticks" / file.path
        content = bytearray(path.read_bytes())
        content[int(len(content) * place)] ^= 0x10
        path.write_bytes(content)
        answer = pool.snapshot().range("ticks", Selection(), 0, FOREVER)
        with pytest.raises(LakeCorruptError):
            list(answer.batches)

    def test_a_file_that_is_put_back_from_a_backup_is_read_again(self, pool: Pool) -> None:
        pool.roll(day_of(2_000))
        (file,) = pool.files
        path, lake = pool.root / "ticks" / file.path, LakeReader(pool.root)
        whole = path.read_bytes()
        pq.write_table(pq.ParquetFile(path).read(["ts_event"]), path)  # as somebody has left it
        assert rows_of(lake, file) == [None] * 2_000
        path.write_bytes(whole)
        assert rows_of(lake, file) == list(range(2_000))


def rows_of(lake: LakeReader, file: LakeFile) -> list[int | None]:
    batches = lake.batches(TICKS, file, Part(("sequence",), 0, FOREVER))
    return [value for batch in batches for value in batch["sequence"].to_pylist()]


class TestMerging:
    def test_a_stream_is_opened_when_the_merge_has_come_to_it(self) -> None:
        opened: list[int] = []

        def stream(number: int, first: int, last: int) -> Stream:
            rows = [Row(first, "best", "A1", 2 * number), Row(last, "best", "A1", 2 * number + 1)]

            def read(names: tuple[str, ...], _: int) -> Iterator[pa.RecordBatch]:
                opened.append(number)
                batch = batch_of(rows)
                table = pa.Table.from_batches([batch]).cast(TICKS.wire_schema)
                yield from table.select(list(names)).to_batches()

            return Stream(first, last, read)

        whole = [stream(0, 0, 100), stream(1, 10, 20), stream(2, 30, 40), stream(3, 200, 300)]
        names = tuple(TICKS.schema.names)
        merged = merged_streams(whole, TICKS, names)
        seen = [(rows_in([batch])[0].ts, list(opened)) for batch in merged]
        assert seen[0] == (0, [0])
        assert next(known for ts, known in seen if ts == 10) == [0, 1]
        assert seen[-1] == (200, [0, 1, 2, 3])

    def test_streams_apart_are_never_sorted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(*_: object) -> None:
            raise AssertionError("sorted what was sorted")

        monkeypatch.setattr("storage.streams.in_order", forbidden)
        batches = [batch_of([Row(at, "best", "A1", at)]) for at in range(5)]
        wire = [pa.Table.from_batches([b]).cast(TICKS.wire_schema).to_batches() for b in batches]
        whole = [Stream(at, at, lambda *_, rows=rows: iter(rows)) for at, rows in enumerate(wire)]
        found = merged_streams(whole[::-1], TICKS, tuple(TICKS.schema.names))
        assert [row.ts for row in rows_in(found)] == [0, 1, 2, 3, 4]

    def test_rows_that_take_turns_come_in_blocks(self) -> None:
        def stream(first: int) -> Stream:
            rows = [Row(at, "best", "A1", at) for at in range(first, 4_000, 2)]
            wire = pa.Table.from_batches([batch_of(rows)]).cast(TICKS.wire_schema)

            def read(names: tuple[str, ...], most: int) -> Iterator[pa.RecordBatch]:
                yield from wire.select(list(names)).to_batches(most)

            return Stream(first, 3_998 + first, read)

        both = [stream(0), stream(1)]
        merged = list(merged_streams(both, TICKS, tuple(TICKS.schema.names)))
        assert [row.ts for row in rows_in(merged)] == list(range(4_000))
        assert len(merged) < 10


class TestIndex:
    def test_a_file_is_seen_once_all_its_rows_have_left_memory(self) -> None:
        ends = (0, 5, 10)
        files = [_file(str(end), end=end) for end in ends]
        index = FileIndex(3, files, retained_from=7)
        assert [file.end for file in index.visible(9)] == [0, 5]
        assert index.visible(9).retained_from == 7
        assert index.visible(10) is index

    def test_files_of_a_time_are_found_among_those_that_overlap(self) -> None:
        spans = [(0, 100), (10, 20), (30, 40), (50, 60)]
        index = FileIndex(1, [_file(str(at), first=a, last=b) for at, (a, b) in enumerate(spans)])
        assert [file.path for file in index.of("A", 35, 55)] == ["0", "2", "3"]
        assert [file.path for file in index.of("A", 21, 30)] == ["0"]
        assert index.of("B", 0, 100) == ()


class TestRetention:
    def test_a_range_from_before_the_watermark_is_refused(self, pool: Pool) -> None:
        today = NOON // DAY * DAY
        pool.roll(day_of(5, today))
        pool.retained_from = today - 3 * DAY
        snapshot = pool.snapshot()
        with pytest.raises(RetentionError) as refused:
            snapshot.range("ticks", Selection(), today - 9 * DAY, FOREVER)
        assert refused.value.oldest == today - 3 * DAY
        for start in (0, today - 3 * DAY, today):
            answer = snapshot.range("ticks", Selection(), start, FOREVER)
            assert len(sequences(answer.batches)) == 5

    def test_rows_below_the_watermark_that_are_there_are_answered(self, pool: Pool) -> None:
        today = NOON // DAY * DAY
        pool.roll(day_of(5, today - 9 * DAY))
        pool.retained_from = today
        answer = pool.snapshot().range("ticks", Selection(), today - 9 * DAY, FOREVER)
        assert len(sequences(answer.batches)) == 5


def _file(path: str, *, first: int = 0, last: int = 1, end: int = 0) -> LakeFile:
    return LakeFile(path, FileKind.PART, "A", "2026-11-20", "s", 1, 1, first, last, 1, end)
