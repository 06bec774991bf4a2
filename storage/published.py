"""What readers see: for each dataset the rows in memory, and the files of the lake beside them.

``Publication.current`` is one object, replaced as a whole. Within it every row is on exactly one
side: memory has the rows from a dataset's ``base`` on, and a file of the lake counts only where all
of its rows lie below (``end <= base``). So a part that is committed shows nowhere until its rows
leave memory, and both happen by one assignment.
"""

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.batched import BatchedState, BatchedStore
from storage.columnar import ColumnarStore
from storage.columnar_state import ColumnarState
from storage.lake.files import FileIndex

HotState = ColumnarState | BatchedState
HotStore = ColumnarStore | BatchedStore


@dataclass(frozen=True, slots=True)
class Published:
    """Both sides of every dataset, taken at once.

    Attributes:
        hot: Rows in memory, by dataset; they go on growing until they are replaced.
        lake: Files whose rows all lie below the ``base`` of ``hot``, by dataset.
    """

    hot: Mapping[str, HotState]
    lake: Mapping[str, FileIndex]


class Publication:
    """Holds the current ``Published``; any thread reads it, without a lock.

    Args:
        stores: Every dataset's hot store.
        indexes: All files of each dataset's table, visible yet or not.
    """

    def __init__(self, stores: Mapping[str, HotStore], indexes: Mapping[str, FileIndex]) -> None:
        self._stores = stores
        self._indexes = {name: indexes.get(name, FileIndex(-1)) for name in stores}
        self._changing = threading.Lock()
        # Every index that a reader may still hold: they live as long as their readers.
        self._shown: dict[str, weakref.WeakSet[FileIndex]] = {
            name: weakref.WeakSet() for name in stores
        }
        self.current = self._published()

    def flip(self, bases: Mapping[str, int]) -> list[Any]:
        """Let rows below new bases leave memory for the lake; called by the appending thread alone.

        Args:
            bases: New base of each dataset: the border of a segment that the lake has, never below
                the present one.

        Returns:
            What has held the rows. Memory is free once it is dropped, a piece at a time so that
            nobody waits for all of it.
        """
        with self._changing:
            held: list[Any] = []
            for name, base in bases.items():
                store = self._stores[name]
                if base > store.base:
                    held.extend(_pieces(store.state))
                    store.trim(base)
            self.current = self._published()
        return held

    def show(self, indexes: Mapping[str, FileIndex]) -> None:
        """Take newer versions of tables; called by whoever has committed to them."""
        with self._changing:
            for name, index in indexes.items():
                if index.version > self._indexes[name].version:  # another may have been quicker
                    self._indexes[name] = index
            self.current = self._published()

    def in_use(self, dataset: str) -> set[str]:
        """Return the paths of the files that the snapshots of this moment, or older ones, see."""
        with self._changing:
            return {file.path for index in self._shown[dataset] for file in index}

    def _published(self) -> Published:
        hot = {name: store.state for name, store in self._stores.items()}
        files = {name: self._indexes[name].visible(state.base) for name, state in hot.items()}
        for name, index in files.items():
            self._shown[name].add(index)
        return Published(hot, files)


def _pieces(state: HotState) -> Sequence[Any]:
    if isinstance(state, ColumnarState):
        return list(state.chunks)
    return list(state.held[1])
