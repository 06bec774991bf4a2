"""A store beside a lake, in a directory of their own, rolled over a step at a time."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import rollover_child
from storage import store as store_module
from storage.columnar_state import ColumnarState
from storage.lake.layout import table_root
from storage.ports import SystemDisk
from storage.rollover_task import RolloverResult, RolloverTask
from storage.schemas import DATASETS
from storage.store import Store
from tests.storage.conftest import Lab


def write_here(task: RolloverTask, stop: threading.Event) -> RolloverResult:
    """Do the child's work in this process: a process of its own takes a second to start."""
    assert not stop.is_set()
    return rollover_child.roll_over(task, SystemDisk())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "roll_over", write_here)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close_all()
    assert lab.failures == []


@pytest.fixture
def store(lab: Lab, here: None) -> Store:  # noqa: ARG001
    return lab.open()


def in_memory(store: Store, dataset: str = "ticks", column: str = "sequence") -> list[int]:
    """Values of the rows that a snapshot taken now would find in memory."""
    state = store.published.hot[dataset]
    if isinstance(state, ColumnarState):
        positions = pa.array(range(state.base, state.end), pa.int64()).to_numpy()
        return list(map(int, state.gather(positions, state.columns.at[column])))
    return list(state.table(state.end)[column].to_pylist())


def in_lake(store: Store, dataset: str = "ticks", column: str = "sequence") -> list[int]:
    """Values of the rows that a snapshot taken now would find in the lake."""
    root = table_root(store.lake_directory, DATASETS[dataset])
    return [
        value
        for file in store.published.lake[dataset]
        for value in pq.ParquetFile(root / file.path).read([column])[column].to_pylist()
    ]


def visible(store: Store, dataset: str = "ticks", column: str = "sequence") -> list[int]:
    """Values of all rows a snapshot taken now would find, sorted."""
    return sorted(in_memory(store, dataset, column) + in_lake(store, dataset, column))
