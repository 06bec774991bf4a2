"""The order of the tests: the longest first, so that no core ends up alone with them."""

from collections import Counter
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with many slow tests first; within a file nothing changes."""
    slow: Counter[Path] = Counter()
    for item in items:
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])
