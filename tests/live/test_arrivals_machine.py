"""Readers of arrivals against a plain list, while rows leave memory and lives of the store end."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage.arrival_blocks import Wanted
from storage.arrivals import Cursor
from storage.store import Store
from tests.storage.conftest import Lab, send, ticks, until

SYMBOLS = ("MNQ", "NQ", "SPY")


class Reader:
    """One reader, and what it has got."""

    def __init__(self, symbols: frozenset[str] | None, position: int) -> None:
        self.wanted = Wanted("ticks", ("sequence",), symbols)
        self.begins = position
        self.position = position
        self.got: list[int] = []
        self.cursor: Cursor | None = None


class ArrivalsMachine(RuleBasedStateMachine):
    """Rows are numbered as they come, so a row's position is its sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab(Path(tempfile.mkdtemp()))
        self.store: Store = self.lab.open()
        self.symbols: list[str] = []
        self.readers: list[Reader] = []
        self.sealed = [0]

    @initialize()
    def begin(self) -> None:
        self.readers.append(Reader(None, 0))

    @rule(symbols=st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=40))
    def append(self, symbols: list[str]) -> None:
        first = len(self.symbols)
        sequence = list(range(first, first + len(symbols)))
        send(self.store, ticks(len(symbols), symbol=symbols, sequence=sequence))
        self.symbols += symbols

    @rule(symbols=st.none() | st.frozensets(st.sampled_from(SYMBOLS), min_size=1), data=st.data())
    def come(self, symbols: frozenset[str] | None, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, len(self.symbols)))
        self.readers.append(Reader(symbols, position))

    @rule(data=st.data(), blocks=st.integers(1, 4))
    def read(self, data: st.DataObject, blocks: int) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        cursor = reader.cursor
        if cursor is None:
            cursor = self.store.arrivals.cursor(reader.wanted, reader.position)
            reader.cursor = cursor
        for _ in range(blocks):
            while cursor.position < len(self.symbols) and (block := cursor.read()) is None:
                cursor.wait(1.0)
            if cursor.position > reader.position:
                assert block is not None
                assert (block.start, block.stop) == (reader.position, cursor.position)
                reader.got += block.rows["sequence"].to_pylist()
                reader.position = cursor.position

    @rule()
    def seal(self) -> None:
        number = self.store._journal.roll()
        until(lambda: self.store._segments.newest >= number)
        self.sealed.append(self.store._journal.durable("ticks"))

    @precondition(lambda self: len(self.sealed) > 1)
    @rule(data=st.data())
    def leave_memory(self, data: st.DataObject) -> None:
        base = data.draw(st.sampled_from(self.sealed))
        publication = self.store._publication
        self.store._appender.between_appends(lambda: publication.flip({"ticks": base}))

    @rule()
    def open_anew(self) -> None:
        epoch = self.store.epoch
        self.store = self.lab.reopen(self.store)
        for reader in self.readers:
            reader.cursor = None
            reader.position = self.store.arrivals.resumed("ticks", epoch, reader.position)

    @invariant()
    def each_has_its_rows_once_and_in_order(self) -> None:
        for reader in self.readers:
            wanted = reader.wanted.symbols
            assert reader.got == [
                number
                for number in range(reader.begins, reader.position)
                if wanted is None or self.symbols[number] in wanted
            ]

    def teardown(self) -> None:
        self.lab.close_all()
        assert self.lab.failures == []
        shutil.rmtree(self.lab.directory)


TestArrivals: Any = ArrivalsMachine.TestCase
TestArrivals.settings = settings(deadline=None, max_examples=15, stateful_step_count=20)
TestArrivals = pytest.mark.slow(TestArrivals)
