"""Rows in the order they came: out of memory, out of the journal, over lives of the server."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import arrival_blocks
from storage.arrival_blocks import Block, Wanted
from storage.errors import InvalidDataError, JournalCorruptError, TooOldError
from storage.journal_arrivals import segment_blocks
from storage.ordering import key_at, order_key, reading_order, rows_after
from storage.schemas import GEX, QUOTES, TICKS
from storage.segments import Segment
from storage.store import Store
from tests.storage.conftest import NOON, Lab, gamma, send, ticks, until

ALL = Wanted("ticks", tuple(TICKS.schema.names))
NUMBERS = Wanted("ticks", ("sequence",))


def arrived(store: Store, wanted: Wanted, position: int = 0) -> list[Block]:
    """Read all that has come so far."""
    cursor = store.arrivals.cursor(wanted, position)
    end = store.arrivals.end(wanted.dataset)
    blocks = []
    while cursor.position < end:
        block = cursor.read()
        if block is None:
            cursor.wait(1.0)
        else:
            blocks.append(block)
    return blocks


def sequences(blocks: Iterable[Block]) -> list[int]:
    return [number for block in blocks for number in block.rows["sequence"].to_pylist()]


def sealed(store: Store) -> Segment:
    """End the journal's file, and return it once it is finished."""
    number = store._journal.roll()
    until(lambda: any(segment.number == number for segment in store._segments))
    return next(segment for segment in store._segments if segment.number == number)


def send_some(store: Store, count: int = 10, first: int = 1, **columns: Any) -> None:
    send(store, ticks(count, sequence=list(range(first, first + count)), **columns))


class TestFromMemory:
    def test_rows_come_in_the_order_they_came(self, store: Store) -> None:
        send(store, ticks(3, sequence=[7, 5, 6], ts_event=[NOON + 9, NOON, NOON + 4]))
        assert sequences(arrived(store, ALL)) == [7, 5, 6]

    def test_blocks_are_what_was_sent_with_plain_strings(self, store: Store) -> None:
        batch = ticks(3, exchange=["Q", None, "N"], bid=[1.0, None, 3.0], side=[1, -1, 0])
        send(store, batch)
        (block,) = arrived(store, ALL)
        assert block.rows.schema.equals(TICKS.schema)
        assert block.rows.to_pylist() == batch.to_pylist()
        assert block.instants.tolist() == [NOON, NOON + 1, NOON + 2]

    def test_blocks_span_chunks_and_keep_to_a_size(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arrival_blocks, "BLOCK_ROWS_TARGET", 30_000)
        send_some(store, 200_000)
        blocks = arrived(store, NUMBERS)
        assert max(block.rows.num_rows for block in blocks) == 30_000
        assert sequences(blocks) == list(range(1, 200_001))

    def test_rows_of_rare_symbols_are_found_in_long_stretches(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arrival_blocks, "SCAN_ROWS_MAX", 1_000)
        symbols = ["NQ" if i % 997 == 0 else "MNQ" for i in range(5_000)]
        send_some(store, 5_000, symbol=symbols)
        wanted = Wanted("ticks", ("sequence",), frozenset({"NQ", "NEVER"}))
        blocks = arrived(store, wanted)
        assert sequences(blocks) == [i + 1 for i in range(5_000) if i % 997 == 0]
        assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]

    def test_more_wanted_rows_than_a_block_takes_come_in_the_next(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arrival_blocks, "BLOCK_ROWS_TARGET", 100)
        send_some(store, 1_000, symbol=["NQ", "MNQ"] * 500)
        blocks = arrived(store, Wanted("ticks", ("sequence",), frozenset({"NQ"})))
        assert {block.rows.num_rows for block in blocks} == {100}
        assert sequences(blocks) == list(range(1, 1_001, 2))

    def test_a_symbol_that_comes_later_is_seen(self, store: Store) -> None:
        wanted = Wanted("ticks", ("sequence",), frozenset({"LATER"}))
        cursor = store.arrivals.cursor(wanted, 0)
        send_some(store, 3)
        send(store, ticks(1, sequence=[9], symbol="LATER"))
        found: list[int] = []
        while cursor.position < 4:
            block = cursor.read()
            found += [] if block is None else sequences([block])
            cursor.wait(0.01)
        assert found == [9]

    def test_readers_of_the_same_rows_share_blocks(self, store: Store) -> None:
        send_some(store)
        first, second = (store.arrivals.cursor(NUMBERS, 0) for _ in range(2))
        while first.is_caught_up:
            first.wait(0.01)
        assert first.read() is second.read()

    def test_lists_are_cut_into_blocks_by_their_bytes(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(arrival_blocks, "BLOCK_BYTES_MAX", 10_000)
        strikes = [[{"strike": float(i), "gex_vol": 1.0, "gex_oi": 2.0} for i in range(100)]]
        rows = [gamma(ts_event=NOON + i, strikes=strikes) for i in range(50)]
        send(store, *rows, dataset="gex")
        blocks = arrived(store, Wanted("gex", tuple(GEX.schema.names), frozenset({"NQ_NDX"})))
        assert len(blocks) > 10
        table = pa.Table.from_batches([block.rows for block in blocks])
        assert table.equals(pa.Table.from_batches(rows).cast(table.schema))

    def test_a_span_of_time_is_cut_out_of_a_block(self, store: Store) -> None:
        send_some(store)
        (block,) = arrived(store, NUMBERS)
        assert block.within(0, 1 << 60) is block.rows
        assert block.within(NOON + 2, NOON + 5)["sequence"].to_pylist() == [3, 4, 5]

    def test_a_limit_is_not_passed(self, store: Store) -> None:
        send_some(store)
        cursor = store.arrivals.cursor(NUMBERS, 2)
        arrived(store, NUMBERS)  # announced by then
        assert sequences([block for block in [cursor.read(5)] if block]) == [3, 4, 5]
        assert cursor.read(5) is None


class TestFromTheJournal:
    def test_a_file_gives_the_same_blocks_as_memory(self, store: Store) -> None:
        exchanges = ["Q", None, "N", "Q"]
        send(store, ticks(4, exchange=exchanges, bid=[None, 1.0, None, 2.0], symbol=list("ABCB")))
        send(store, gamma(), dataset="gex")
        segment = sealed(store)
        (block,) = segment_blocks(segment, ALL, 0)
        (same,) = arrived(store, ALL)
        assert block.rows.equals(same.rows)
        assert (block.start, block.stop, block.instants.tolist()) == (0, 4, same.instants.tolist())

    @pytest.mark.parametrize("position", [0, 1, 5, 9, 10, 15, 19])
    def test_a_file_is_read_from_any_position(self, store: Store, position: int) -> None:
        send_some(store)
        send_some(store, first=11)
        (block,) = segment_blocks(sealed(store), NUMBERS, position)
        assert (block.start, block.stop) == (position, 20)
        assert sequences([block]) == list(range(position + 1, 21))

    def test_rows_that_left_memory_come_from_there(self, lab: Lab) -> None:
        store = lab.open()
        for first in (1, 11, 21):
            send_some(store, first=first)
            sealed(store)
        wanted = Wanted("ticks", ("sequence", "symbol"), frozenset({"MNQ"}))
        before = arrived(store, wanted)
        store._appender.between_appends(lambda: store._publication.flip({"ticks": 20}))
        blocks = arrived(store, wanted)
        assert sequences(blocks) == sequences(before) == list(range(1, 31))
        assert [block.start for block in blocks] == [0, 10, 20]

    def test_what_is_in_no_file_any_more_is_too_old(self, lab: Lab) -> None:
        store = lab.open()
        for first in (1, 11):
            send_some(store, first=first)
            sealed(store)
        store._appender.between_appends(lambda: store._publication.flip({"ticks": 20}))
        store._segments.remove_oldest()
        with pytest.raises(TooOldError) as caught:
            arrived(store, NUMBERS, 9)
        assert (caught.value.oldest, caught.value.epoch) == (10, 1)
        assert sequences(arrived(store, NUMBERS, 10)) == list(range(11, 21))

    def test_a_file_that_goes_while_it_is_read_is_too_old_as_well(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = lab.open()
        send_some(store)
        segment = sealed(store)
        store._appender.between_appends(lambda: store._publication.flip({"ticks": 10}))
        found = store.arrivals._segment("ticks", 0)
        store._segments.remove_oldest()
        segment.path.unlink()
        monkeypatch.setattr(store.arrivals, "_segment", lambda *_: found)
        with pytest.raises(TooOldError):
            arrived(store, NUMBERS)

    def test_a_damaged_record_is_never_given_out(self, store: Store) -> None:
        send_some(store, 500)
        segment = sealed(store)
        content = bytearray(segment.path.read_bytes())
        at = content.rindex(b"\x00" * 4, 0, len(content) - 4_000)
        content[at] ^= 1
        middle = len(content) // 2
        content[middle] ^= 0x40
        segment.path.write_bytes(bytes(content))
        with pytest.raises(JournalCorruptError):
            list(segment_blocks(segment, NUMBERS, 0))


class TestGoingOn:
    def test_in_the_same_life_it_goes_on_where_it_was(self, store: Store) -> None:
        send_some(store)
        assert store.arrivals.resumed("ticks", store.epoch, 7) == 7

    @pytest.mark.parametrize(("epoch", "position"), [(1, 11), (2, 0), (9, 9)])
    def test_what_has_never_been_is_refused(self, store: Store, epoch: int, position: int) -> None:
        send_some(store)
        with pytest.raises(InvalidDataError, match="the server is at epoch 1, position 10"):
            store.arrivals.resumed("ticks", epoch, position)

    def test_of_an_older_life_the_durable_rows_count(self, lab: Lab) -> None:
        """The middle life has no ticks at all."""
        store = lab.open()
        send_some(store)
        store = lab.reopen(store)
        send(store, gamma(), dataset="gex")
        store = lab.reopen(store)
        send_some(store, first=11)
        store = lab.reopen(store)
        assert store.epoch == 4
        assert [store.arrivals.resumed("ticks", epoch, 500) for epoch in (1, 2, 3)] == [10, 10, 20]
        assert store.arrivals.resumed("ticks", 1, 3) == 3

    def test_a_life_that_nothing_is_left_of_is_too_old(self, lab: Lab) -> None:
        store = lab.open()
        for first in (1, 11, 21):
            send_some(store, first=first)
            store = lab.reopen(store)
        store._segments.remove_oldest()
        store._segments.remove_oldest()
        with pytest.raises(TooOldError):
            store.arrivals.resumed("ticks", 1, 10)
        assert store.arrivals.resumed("ticks", 3, 500) == 30

    def test_the_durable_position_follows_the_rows(self, store: Store) -> None:
        assert store.arrivals.durable("ticks") == 0
        send_some(store)
        assert store.arrivals.durable("ticks") == store.arrivals.end("ticks") == 10


keys = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["a", "b", "é"]),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["S", "T"]),
    st.integers(0, 2),
    st.integers(0, 1),
)


class TestOrder:
    @given(st.lists(keys, min_size=1, max_size=30), keys)
    def test_rows_after_a_key_are_those_that_compare_so(
        self, rows: list[tuple[Any, ...]], key: tuple[Any, ...]
    ) -> None:
        names = reading_order(TICKS)
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        batch = ticks(len(rows), **{name: list(values) for name, values in columns.items()})
        assert rows_after(batch, names, key).to_pylist() == [row > key for row in rows]
        assert key_at(batch, names, -1) == rows[-1]
        assert order_key(TICKS, list(rows[0])) == rows[0]

    def test_rows_without_a_symbol_come_behind_all_others(self) -> None:
        names = ("symbol",)
        batch = pa.record_batch([pa.array(["a", None, "b"])], names)
        assert rows_after(batch, names, ("b",)).to_pylist() == [False, True, False]
        assert rows_after(batch, names, (None,)).to_pylist() == [False, False, False]

    @pytest.mark.parametrize(
        "values", [[], [1], [None, "a", "b", "c", 1], [1, "a", 2, "c", 1], [1, "a", "b", "c", "1"]]
    )
    def test_a_key_of_another_shape_is_refused(self, values: list[Any]) -> None:
        with pytest.raises(InvalidDataError):
            order_key(QUOTES, values)
