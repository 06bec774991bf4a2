"""A store that takes jobs, with the child's work done in this process."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from storage import store as store_module
from storage.producers import Ack
from storage.store import Store
from tests.rollover.conftest import write_here
from tests.storage.conftest import Lab


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
    return opened(lab)


def opened(lab: Lab) -> Store:
    """Open the lab's store, its rollover running."""
    store = lab.open()
    store.rollover.start()
    return store


def load(
    store: Store, *batches: pa.RecordBatch, job: str = "job", dataset: str = "ticks", first: int = 0
) -> list[Ack]:
    """Send batches as one stream of a job, numbered from ``first`` if there is one.

    Returns its acks, the last of them that of its end.
    """
    stream = store.open_bulk(dataset, job, batches[0].schema)
    acks = []
    try:
        for number, batch in enumerate(batches, start=first):
            stream.push(batch, number if first else None)
            if stream.is_full:
                acks.append(stream.commit())
        acks.append(stream.commit())
    finally:
        stream.close()
    return acks
