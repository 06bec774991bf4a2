"""Segments: what one finished journal file holds, on its way into the lake."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one finished journal file.

    Attributes:
        path: The file.
        number: Its place in the chain of files.
        epoch: Life of the server that wrote it.
        first: Position of the first row of each dataset.
        end: Position after the last row of each dataset; where that is ``first``, it has none.
        arrival: When its last row arrived, µs.
    """

    path: Path
    number: int
    epoch: int
    first: Mapping[str, int]
    end: Mapping[str, int]
    arrival: int

    def span(self, dataset: str) -> tuple[int, int]:
        """Return the positions of a dataset's rows, the end excluded."""
        return self.first.get(dataset, 0), self.end.get(dataset, 0)

    @property
    def rows(self) -> int:
        """Rows of all datasets."""
        return sum(stop - start for start, stop in map(self.span, self.end))


class SegmentLine:
    """The segments whose journal files are still there, oldest first; safe to share.

    Args:
        begins_after: Number of the newest segment that is over and done with.
        segments: Those of earlier lives.
    """

    def __init__(self, begins_after: int = 0, segments: Iterable[Segment] = ()) -> None:
        self.begins_after = begins_after
        self._lock = threading.Lock()
        self._segments = deque(segments)

    def __iter__(self) -> Iterator[Segment]:
        with self._lock:
            return iter(tuple(self._segments))

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def newest(self) -> int:
        """Number of the newest segment there ever was, 0 without one."""
        with self._lock:
            return self._segments[-1].number if self._segments else self.begins_after

    def add(self, segment: Segment) -> None:
        """Append a segment, the newest."""
        with self._lock:
            self._segments.append(segment)

    def remove_oldest(self) -> None:
        """Drop the oldest segment: its file is gone."""
        with self._lock:
            self.begins_after = self._segments.popleft().number
