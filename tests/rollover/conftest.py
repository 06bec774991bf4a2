"""A store beside a lake, in a directory of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.store import Store
from tests.storage.conftest import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close_all()
    assert lab.failures == []


@pytest.fixture
def store(lab: Lab) -> Store:
    return lab.open()
