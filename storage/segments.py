"""Segments: what one finished journal file holds, on its way into the lake."""

from collections.abc import Mapping
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
