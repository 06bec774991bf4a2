"""Which rows a live stream gives out when the server has taken some of them back."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tickflight import progress
from tickflight.progress import Position, Progress


def rows(*sequences: int, flags: int = 1) -> pa.RecordBatch:
    count = len(sequences)
    columns: dict[str, Any] = {
        "ts_event": pa.array([number // 3 for number in sequences], pa.timestamp("us", "UTC")),
        "source": ["demo"] * count,
        "contract": ["MNQ"] * count,
        "sequence": pa.array(sequences, pa.int64()),
        "kind": pa.array([0] * count, pa.int8()),
        "flags": pa.array([flags] * count, pa.uint16()),
    }
    return pa.record_batch(columns)


def about(pos: int, durable: int, epoch: int = 1, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "pos": pos, "durable": durable, "caught_up": True, **more}


def sequences(batch: pa.RecordBatch | None) -> list[int]:
    return [] if batch is None else list(batch["sequence"].to_pylist())


def test_it_goes_on_behind_what_came() -> None:
    state = Progress("ticks")
    assert state.resumption == {}
    state.take(about(10, 10, start=5, end=9), None)
    state.take(about(12, 10), rows(1, 2))
    assert state.resumption == {"after": {"epoch": 1, "pos": 12}, "start": 5, "end": 9}
    assert state.position == Position(1, 12)


def test_a_history_that_has_sent_nothing_begins_again() -> None:
    state = Progress("ticks")
    state.take(about(10, 10, history=True, start=5), None)
    assert state.resumption == {"start": 5}
    state.take(about(10, 10, history=True, key=[5, "a"]), rows(1))
    after = {"epoch": 1, "pos": 10, "key": [5, "a"]}
    assert state.resumption == {"start": 5, "after": after}
    state.take(about(11, 10), rows(2))
    assert state.resumption == {"start": 5, "after": {"epoch": 1, "pos": 11}}


@pytest.mark.parametrize("dataset", ["ticks", "quotes"])
def test_what_was_not_durable_is_given_out_once(dataset: str) -> None:
    state = Progress(dataset)
    state.take(about(0, 0), None)
    assert sequences(state.take(about(3, 1), rows(1, 2, 3))) == [1, 2, 3]
    state.take(about(1, 1, epoch=2), None)
    assert sequences(state.take(about(4, 4, epoch=2), rows(9, 3, 4, flags=2))) == [9, 4]
    assert sequences(state.take(about(6, 6, epoch=2), rows(2, 5))) == [5]


def test_what_comes_again_and_is_lost_again_is_given_out_once() -> None:
    state = Progress("ticks")
    state.take(about(2, 0), rows(1, 2))
    state.take(about(0, 0, epoch=2), None)
    assert state.take(about(2, 0, epoch=2), rows(1, 2)) is None
    state.take(about(0, 0, epoch=3), None)
    assert sequences(state.take(about(3, 3, epoch=3), rows(1, 2, 3))) == [3]


def test_what_was_durable_after_all_is_not_doubted() -> None:
    """Rows of a dataset without identity may be equal, and both real."""
    state = Progress("quotes")
    state.take(about(2, 0), rows(1, 2))
    state.take(about(2, 2, epoch=2), None)
    assert sequences(state.take(about(3, 3, epoch=2), rows(1))) == [1]


def test_equal_rows_are_left_out_as_often_as_they_were_given_out() -> None:
    state = Progress("quotes")
    state.take(about(2, 0), rows(1, 1))
    state.take(about(0, 0, epoch=2), None)
    assert sequences(state.take(about(3, 3, epoch=2), rows(1, 1, 1))) == [1]


def test_no_more_rows_are_kept_in_mind_than_a_server_lets_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "UNSETTLED_ROWS_MAX", 10)
    state = Progress("ticks")
    for number in range(100):
        state.take(about(number + 1, 0), rows(number))
    assert state._unsettled_rows <= 11


class Restarts(RuleBasedStateMachine):
    """A server that numbers rows, loses what is not durable, and gets it again in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Progress("ticks")
        self.epoch = 1
        self.log: list[int] = []
        self.durable = self.sent = self.made = 0
        self.lost: list[int] = []
        self.got: list[int] = []
        self.state.take(about(0, 0), None)

    @rule(count=st.integers(1, 5))
    def append(self, count: int) -> None:
        self.log += range(self.made, self.made + count)
        self.made += count

    @rule(data=st.data())
    def append_again(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.lost)))
        self.log += self.lost[:count]
        self.lost = self.lost[count:]

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.durable = data.draw(st.integers(self.durable, len(self.log)))

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        end = data.draw(st.integers(self.sent, len(self.log)))
        batch = rows(*self.log[self.sent : end]) if end > self.sent else None
        self.sent = end
        self.got += sequences(self.state.take(about(end, self.durable, self.epoch), batch))

    @rule()
    def restart(self) -> None:
        self.epoch += 1
        self.lost = self.log[self.durable :] + self.lost
        self.log = self.log[: self.durable]
        self.sent = min(self.state.resumption["after"]["pos"], self.durable)
        self.state.take(about(self.sent, self.durable, self.epoch), None)

    @invariant()
    def nothing_comes_twice(self) -> None:
        assert len(set(self.got)) == len(self.got)

    def teardown(self) -> None:
        self.log += self.lost
        batch = rows(*self.log[self.sent :]) if self.log[self.sent :] else None
        end = about(len(self.log), len(self.log), self.epoch)
        self.got += sequences(self.state.take(end, batch))
        assert sorted(self.got) == list(range(self.made))


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
