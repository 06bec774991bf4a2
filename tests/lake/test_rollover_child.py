"""One finished journal file, written into the lake by a process of its own."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from storage import child_process, rollover_child
from storage.errors import JournalCorruptError, LakeCorruptError, LakeError, StoreClosedError
from storage.lake import layout
from storage.lake.layout import FilePath
from storage.lake.row_hash import combine, row_hash
from storage.lake.writer import verified_rows
from storage.ports import SystemDisk
from storage.rollover_task import PartResult, PartTask, RolloverResult, RolloverTask
from storage.schemas import DATASETS, GEX, SERVICE_EVENTS, TICKS, Dataset
from storage.segment_rows import read_segment
from tests.lake.lake_making import DAY, FailingDisk
from tests.storage.conftest import NOON, Lab, gamma, rows_of, ticks

SYMBOLS = ("MNQ", "NQ", "SPY")


def mixed_ticks(count: int, first: int = 1) -> pa.RecordBatch:
    """Return ticks of several symbols, sources and days, not in order."""
    numbers = range(first, first + count)
    return ticks(
        count,
        ts_event=[NOON + (n % 3) * DAY - n % 7 for n in numbers],
        symbol=[SYMBOLS[n % 3] for n in numbers],
        contract=[f"/{SYMBOLS[n % 3]}" for n in numbers],
        source=["demo" if n % 2 else "sierra" for n in numbers],
        flags=[321 if n % 2 else 65 for n in numbers],  # BACKFILLED: their days are not the clock's
        bid=[None if n % 5 else float(n) for n in numbers],
        exchange=[None if n % 4 else "CME" for n in numbers],
        sequence=list(numbers),
    )


def snapshot_of_gamma(n: int) -> pa.RecordBatch:
    strike = {"strike": 20_000.0 + n, "gex_vol": 1.0, "gex_oi": None}
    strikes = pa.array([[strike] * n], GEX.schema.field("strikes").type)
    return gamma(ts_event=NOON - n, strikes=strikes)


def event(n: int) -> pa.RecordBatch:
    columns = {"ts_event": NOON + n, "ts_recv": NOON, "service": "flight", "level": "info"}
    return rows_of(SERVICE_EVENTS, 1, {**columns, "event": f"number {n}"})


SENT = {
    "ticks": [mixed_ticks(700), mixed_ticks(500, 701)],
    "gex": [snapshot_of_gamma(n) for n in range(4)],
    "service_events": [event(2), event(1)],
}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A finished journal file that holds all of ``SENT``."""
    lab = Lab(tmp_path / "data")
    store = lab.open()
    for name, batches in SENT.items():
        stream = store.open_stream(name, batches[0].schema)
        for seq, batch in enumerate(batches, start=1):
            stream.push(batch, name, seq)
        stream.end()
        while stream.next_ack() is not None:
            pass
    lab.close_all()
    assert lab.failures == []
    (path,) = (tmp_path / "data" / "journal").glob("*.journal")
    return path


def sent(name: str) -> pa.Table:
    dataset = DATASETS[name]
    return pa.Table.from_batches([batch.cast(dataset.schema) for batch in SENT[name]])


def task_of(journal: Path, *names: str, without_synthetic: tuple[str, ...] = ()) -> RolloverTask:
    parts = tuple(
        PartTask(name, 1, 0, sent(name).num_rows, without_synthetic) for name in names or SENT
    )
    return RolloverTask(str(journal), str(journal.parents[1] / "lake"), "5a", parts)


def rows_of_part(task: RolloverTask, part: PartResult) -> pa.Table:
    dataset = DATASETS[part.dataset]
    root = layout.table_root(Path(task.lake), dataset)
    tables = []
    for file in part.files:
        symbol = FilePath.parse(file.path).symbol
        stored = pa.concat_tables(verified_rows(root / file.path, dataset))
        tables.append(layout.from_lake(stored, dataset, symbol).cast(dataset.schema))
    return pa.concat_tables(tables) if tables else dataset.schema.empty_table()


def in_order(rows: pa.Table, dataset: Dataset) -> pa.Table:
    return rows.sort_by([(name, "ascending") for name in ("symbol", *dataset.order)])


def test_the_child_writes_every_row_of_the_file_once(journal: Path) -> None:
    task = task_of(journal)
    result = child_process.roll_over(task, threading.Event())
    assert [part.dataset for part in result.parts] == list(SENT)
    for part in result.parts:
        dataset, expected = DATASETS[part.dataset], sent(part.dataset)
        found = rows_of_part(task, part)
        assert in_order(found, dataset).equals(in_order(expected, dataset))
        assert (part.rows, part.skipped) == (expected.num_rows, 0)
        assert part.row_hash == row_hash(expected, dataset)
        assert part.row_hash == combine(file.row_hash for file in part.files)


def test_a_file_has_one_symbol_one_date_and_one_source(journal: Path) -> None:
    task = task_of(journal, "ticks")
    (part,) = rollover_child.roll_over(task, SystemDisk()).parts
    expected = sent("ticks")
    days = pc.strftime(expected["ts_event"], "%Y-%m-%d").to_pylist()
    groups = set(
        zip(expected["symbol"].to_pylist(), days, expected["source"].to_pylist(), strict=True)
    )
    found = [
        (place.symbol, place.date, file.source)
        for file in part.files
        for place in [FilePath.parse(file.path)]
    ]
    assert sorted(found) == sorted(groups)
    assert len({file.path for file in part.files}) == len(part.files)


def test_synthetic_rows_of_the_symbols_named_are_left_out(journal: Path) -> None:
    task = task_of(journal, "ticks", without_synthetic=("MNQ", "SPY"))
    (part,) = rollover_child.roll_over(task, SystemDisk()).parts
    expected = sent("ticks")
    synthetic = pc.and_(
        pc.is_in(expected["symbol"], pa.array(["MNQ", "SPY"])), pc.greater(expected["flags"], 256)
    )
    kept = expected.filter(pc.invert(synthetic))
    assert in_order(rows_of_part(task, part), TICKS).equals(in_order(kept, TICKS))
    assert part.skipped == expected.num_rows - kept.num_rows > 0
    assert part.row_hash == row_hash(kept, TICKS)


def test_rows_that_the_file_has_not_are_missed(journal: Path) -> None:
    count = sent("ticks").num_rows
    for span in ((0, count + 1), (1, count), (0, count - 1)):
        with pytest.raises(JournalCorruptError):
            read_segment(journal, {"ticks": span})


def test_a_dataset_without_rows_in_the_file_has_none(journal: Path) -> None:
    task = RolloverTask(str(journal), "lake", "5a", (PartTask("quotes", 1, 7, 7),))
    (part,) = rollover_child.roll_over(task, SystemDisk()).parts
    assert (part.files, part.rows, part.end) == ((), 0, 7)


def test_rows_that_get_lost_on_the_way_are_noticed(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rollover_child._groups
    monkeypatch.setattr(rollover_child, "_groups", lambda rows: list(whole(rows))[1:])
    with pytest.raises(LakeCorruptError, match="not what the journal holds"):
        rollover_child.roll_over(task_of(journal, "ticks"), SystemDisk())


def test_a_disk_that_fails_at_any_call_fails_the_whole_task(journal: Path) -> None:
    task = task_of(journal, "gex")
    counting = FailingDisk()
    rollover_child.roll_over(task, counting)
    for failing in range(1, counting.calls + 1):
        elsewhere = replace(task, lake=f"{task.lake}{failing}")
        with pytest.raises(LakeError):
            rollover_child.roll_over(elsewhere, FailingDisk(failing=failing))


def test_the_child_tells_what_went_wrong(journal: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a directory")
    task = RolloverTask(str(journal), str(tmp_path / "file"), "5a", task_of(journal).parts)
    with pytest.raises(LakeError, match="Not a directory"):
        child_process.roll_over(task, threading.Event())


def test_a_damaged_journal_is_told_by_name(journal: Path) -> None:
    content = bytearray(journal.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    journal.write_bytes(content)
    with pytest.raises(LakeError, match=journal.name):
        child_process.roll_over(task_of(journal), threading.Event())


def test_a_journal_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    absent = tmp_path / "absent.journal"
    task = RolloverTask(str(absent), "lake", "5a", (PartTask("ticks", 1, 0, 1),))
    with pytest.raises(LakeError, match="is not there"):
        child_process.roll_over(task, threading.Event())
    assert not absent.exists()


def test_a_child_that_dies_is_told_with_its_last_words(journal: Path) -> None:
    task = RolloverTask(str(journal), "lake", "5a", (PartTask("no such dataset", 1, 0, 1),))
    with pytest.raises(LakeError, match=r"died.*no such dataset"):
        child_process.roll_over(task, threading.Event())


def test_the_child_ends_when_the_store_stops(journal: Path) -> None:
    stop = threading.Event()
    stop.set()
    began = time.monotonic()
    with pytest.raises(StoreClosedError):
        child_process.roll_over(task_of(journal), stop)
    assert time.monotonic() - began < 30


def test_the_child_does_not_outlive_its_parent() -> None:
    """The child waits for its task for ever; the parent is killed."""
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'storage.rollover_child',"
        " str(os.getpid())], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until_it_will_die(child)
        parent.kill()
    deadline = time.monotonic() + 30
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_it_will_die(process: int) -> None:
    """Wait until a child has asked the kernel to be killed; it lowers its priority after that."""
    deadline = time.monotonic() + 30
    while os.getpriority(os.PRIO_PROCESS, process) < 19:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def test_tasks_and_results_come_through_json_as_they_were(journal: Path) -> None:
    task = task_of(journal, "ticks", without_synthetic=("MNQ",))
    assert RolloverTask.from_json(task.to_json()) == task
    result = rollover_child.roll_over(task, SystemDisk())
    assert RolloverResult.from_json(result.to_json()) == result
    assert "\n" not in result.to_json()
    assert json.loads(result.to_json())["parts"][0]["dataset"] == "ticks"
