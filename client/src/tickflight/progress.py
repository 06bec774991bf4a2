"""How far a live stream has come, and which rows it must not be given twice. No I/O.

A server that was killed takes back what it had not made durable: its producers send those rows
again, and they come under other positions, some of them much later. So the rows beyond the durable
position are kept in mind; after such an end, each of them that comes again is left out. Everything
else is a matter of positions, which the server counts.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Mapping

UNSETTLED_ROWS_MAX: Final = 1 << 21
"""Rows kept in mind, as many as a server lets wait for its disk. Of more, a crash repeats some."""
IDENTITIES: Final[Mapping[str, tuple[str, ...]]] = {
    "ticks": ("source", "contract", "sequence", "kind")
}
"""What tells rows apart where a dataset has an identity; otherwise all of their columns do."""
TELLING: Final = (
    *("ts_event", "ts_recv", "symbol", "contract", "sequence", "kind", "source"),
    *("endpoint", "interval", "gap_id", "revision", "job_id"),
)
"""Columns that tell rows apart, as far as a dataset has them: they are asked for in any case."""
JUDGED: Final = "flags"
"""What the server thinks of a row; it may think otherwise when the row comes again."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the arrivals of a dataset.

    Attributes:
        epoch: Life of the server that counts.
        pos: Number of the next row.
    """

    epoch: int
    pos: int


class Progress:
    """The state of one live stream over all of its connections.

    Args:
        dataset: Whose rows come.
        position: Where to begin; None is the server's choice.
    """

    def __init__(self, dataset: str, position: Position | None = None) -> None:
        self.position = position
        self.caught_up = False
        self._identity = IDENTITIES.get(dataset)
        self._told: dict[str, Any] = {}  # instants, as the server has understood them
        self._in_history = False
        self._key: list[Any] | None = None
        self._unsettled: deque[tuple[int, pa.RecordBatch]] = deque()
        self._unsettled_rows = 0
        self._doubtful: Counter[str] = Counter()
        self._marks: pa.Array | None = None

    def __repr__(self) -> str:
        return f"<Progress {self.position}, {self._unsettled_rows} rows not durable>"

    @property
    def in_history(self) -> bool:
        """Whether what comes is older than the stream."""
        return self._in_history

    @property
    def resumption(self) -> dict[str, Any]:
        """What a ticket has to say to go on from here."""
        fields = dict(self._told)
        if self.position is not None and not (self._in_history and self._key is None):
            after = {"epoch": self.position.epoch, "pos": self.position.pos}
            fields["after"] = after | ({"key": self._key} if self._in_history else {})
        return fields

    def take(self, about: Mapping[str, Any], rows: pa.RecordBatch | None) -> pa.RecordBatch | None:
        """Note a message; return those of its rows that were not there before.

        Args:
            about: Its metadata.
            rows: Its rows; None where it has none.
        """
        epoch, pos = int(about["epoch"]), int(about["pos"])
        before = self.position
        if before is not None and epoch != before.epoch:
            # The first message of another life: where it goes on is where the old one was durable.
            self._begin_life(durable=None if pos >= before.pos else pos)
        self.position = Position(epoch, pos)
        self.caught_up = bool(about["caught_up"])
        self._told |= {name: about[name] for name in ("start", "end") if name in about}
        self._in_history = bool(about.get("history"))
        self._key = about.get("key")
        self._settle(int(about["durable"]))
        if rows is None or not rows.num_rows:
            return None
        if not self._in_history and pos > int(about["durable"]):
            self._unsettled.append((pos, rows))
            self._unsettled_rows += rows.num_rows
        fresh = self._without_known(rows)
        return fresh if fresh.num_rows else None

    def _settle(self, durable: int) -> None:
        """Forget what no crash can take back any more, and the oldest of too much."""
        kept = self._unsettled
        while kept and (kept[0][0] <= durable or self._unsettled_rows > UNSETTLED_ROWS_MAX):
            self._unsettled_rows -= kept.popleft()[1].num_rows

    def _begin_life(self, durable: int | None) -> None:
        """Doubt what was not durable; None: all of it was."""
        for pos, rows in self._unsettled:
            if durable is not None and pos > durable:
                self._doubtful.update(self._names(rows))
        while len(self._doubtful) > UNSETTLED_ROWS_MAX:
            del self._doubtful[next(iter(self._doubtful))]
        self._unsettled.clear()
        self._unsettled_rows = 0
        self._set_marks()

    def _without_known(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        if self._marks is None:
            return rows
        suspects = pc.is_in(rows.column(self._mark), value_set=self._marks)
        if not suspects.true_count:
            return rows
        keep = [True] * rows.num_rows
        at = pc.indices_nonzero(suspects)
        for row, name in zip(at.to_pylist(), self._names(rows.take(at)), strict=True):
            if self._doubtful[name] > 0:
                self._doubtful[name] -= 1
                keep[row] = False
        self._doubtful = +self._doubtful
        if not self._doubtful:
            self._marks = None
        return rows.filter(pa.array(keep))

    @property
    def _mark(self) -> str:
        """The column by which most rows are cleared of doubt at once."""
        return "sequence" if self._identity is not None else "ts_event"

    def _set_marks(self) -> None:
        marks = [name.partition("|")[0] for name in self._doubtful]
        self._marks = pa.array([int(mark) for mark in marks], pa.int64()) if marks else None

    def _names(self, rows: pa.RecordBatch) -> list[str]:
        """What each row is known by, its mark first."""
        columns = self._identity or [name for name in rows.schema.names if name != JUDGED]
        marks = rows.column(self._mark).cast(pa.int64()).to_pylist()
        told = rows.select(list(columns)).to_pylist()
        return [f"{mark}|{row!r}" for mark, row in zip(marks, told, strict=True)]
