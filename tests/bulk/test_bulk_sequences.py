"""Whatever is sent by whichever way, cut off wherever: every row is visible exactly once."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from storage import store as store_module
from storage.errors import LakeError
from storage.lake.table import LakeTable
from tests.bulk.conftest import load, opened
from tests.bulk.test_bulk_loading import old
from tests.rollover.conftest import visible, write_here
from tests.storage.conftest import NOON, Lab, send, stored, ticks, until

JOBS = ("one", "two")
BATCH_ROWS = 3


class Loading(RuleBasedStateMachine):
    """Jobs and ordinary rows into one store, beside sets of what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self._home = TemporaryDirectory()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(store_module, "roll_over", write_here)
        self._lab = Lab(Path(self._home.name))
        self._store = opened(self._lab)
        self._next = 1_000_000
        self._model: set[int] = set()
        self._done = dict.fromkeys(JOBS, 0)

    def teardown(self) -> None:
        self._lab.close_all()
        assert self._lab.failures == []
        self._patch.undo()
        self._home.cleanup()

    def _batches(self, job: str, upto: int) -> Sequence[pa.RecordBatch]:
        base = 1 + 1_000 * JOBS.index(job)
        return [old(BATCH_ROWS, first=base + number * BATCH_ROWS) for number in range(upto)]

    @rule(job=st.sampled_from(JOBS), upto=st.integers(1, 6))
    def send_a_job(self, job: str, upto: int) -> None:
        load(self._store, *self._batches(job, upto), job=job)
        self._note(job, upto)

    @rule(job=st.sampled_from(JOBS), more=st.integers(1, 3))
    def go_on_with_a_job(self, job: str, more: int) -> None:
        done = self._done[job]
        rest = self._batches(job, done + more)[done:]
        load(self._store, *rest, job=job, first=done + 1)
        self._note(job, done + more)

    @rule(job=st.sampled_from(JOBS), upto=st.integers(1, 6))
    def cut_a_job_off(self, job: str, upto: int) -> None:
        stream = self._store.open_bulk("ticks", job, old().schema)
        for batch in self._batches(job, upto):
            stream.push(batch)
        stream.close()

    @rule(job=st.sampled_from(JOBS), upto=st.integers(1, 6), is_committed=st.booleans())
    def fail_at_the_commit(self, job: str, upto: int, *, is_committed: bool) -> None:
        """The table may have the part all the same, as after an error of a disk."""
        commit = LakeTable.commit_part

        def failing(table: LakeTable, *args: object) -> None:
            if is_committed:
                commit(table, *args)  # type: ignore[arg-type]
            raise LakeError("it was to fail")

        stream = self._store.open_bulk("ticks", job, old().schema)
        for batch in self._batches(job, upto):
            stream.push(batch)
        self._patch.setattr(LakeTable, "commit_part", failing)
        try:
            stream.commit()
        except LakeError:
            if is_committed:
                self._note(job, upto)
        finally:
            self._patch.setattr(LakeTable, "commit_part", commit)
            stream.close()

    @rule(rows=st.integers(1, 5))
    def send_new_rows(self, rows: int) -> None:
        numbers = list(range(self._next, self._next + rows))
        instants = [NOON + number for number in numbers]
        send(self._store, ticks(rows, sequence=numbers, ts_event=instants))
        self._model.update(numbers)
        self._next += rows

    @rule()
    def roll_over(self) -> None:
        last = self._store.rollover.begin(everything=True)
        until(lambda: self._store.rollover.status.through >= last)

    @rule()
    def compact(self) -> None:
        self._store.upkeep.compact()

    @rule()
    def restart(self) -> None:
        self._lab.close(self._store)
        self._store = opened(self._lab)

    @invariant()
    def every_row_is_visible_once(self) -> None:
        assert visible(self._store) == sorted(self._model)

    @invariant()
    def a_reader_gets_them_in_order(self) -> None:
        rows = stored(self._store)
        assert [row["sequence"] for row in rows] == sorted(self._model)

    def _note(self, job: str, upto: int) -> None:
        self._done[job] = max(self._done[job], upto)
        base = 1 + 1_000 * JOBS.index(job)
        self._model.update(range(base, base + self._done[job] * BATCH_ROWS))


Loading.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestJobsAndRows = pytest.mark.slow(Loading.TestCase)
