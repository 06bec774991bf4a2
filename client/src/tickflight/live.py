"""Live streams: rows as they come, once each, whatever happens to the connection."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa

from tickflight.coverage import Coverage, gap_of
from tickflight.errors import ServerError, UnavailableError
from tickflight.lasting import PROBE_SECONDS, LastingStream
from tickflight.progress import TELLING, Position, Progress
from tickflight.result import plain_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pyarrow import flight

    from tickflight.connection import Connection
    from tickflight.coverage import Gap

SILENCE_SECONDS: Final = 10.0
"""Silence after which a connection counts as lost: five heartbeats of the server."""
HISTORY_SILENCE_SECONDS: Final = 120.0
"""The same while a history is read: the server may have much to sort before it says anything."""


class Live:
    """Record batches of rows as they come; made by ``Client.live``.

    Iterate over it: each batch has at least one row and plain strings. A lost connection, a server
    that restarts: it connects again by itself and goes on where it was, each row once. What can't
    be mended raises: a key that was revoked, or ``TooOldError`` after an absence so long that the
    server no longer knows in which order rows came.

    Read it from one thread; ``close`` may be called from any.
    """

    def __init__(
        self,
        connection: Connection,
        dataset: str,
        asked: Mapping[str, Any],
        *,
        columns: Sequence[str] | None = None,
        after: Position | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_caught_up: Callable[[], None] | None = None,
    ) -> None:
        self._base = connection
        self._dataset = dataset
        self._asked = dict(asked)
        self._columns = None if columns is None else list(columns)
        self._on_gap = on_gap
        self._on_caught_up = on_caught_up
        self._is_catching_up = True
        self._progress = Progress(dataset, after)
        self._closing = threading.Event()
        if self._columns is not None:
            self._ask_for_telling_columns(self._columns)
        self._stream = LastingStream(
            connection,
            self._ticket,
            patience=self._patience,
            again=self._note_connected,
            closing=self._closing,
        )
        self.schema = self._schema()
        """Schema of every batch; its metadata has the coverage of the history."""

    def __repr__(self) -> str:
        state = "closed" if self._closing.is_set() else "caught up" if self.caught_up else "behind"
        return f"<Live {self._dataset} {state} {self.position}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        while True:
            self._tell_caught_up()
            chunk = self._read()
            rows = None if chunk.data is None or not chunk.data.num_rows else chunk.data
            about = _about(chunk.app_metadata)
            fresh = self._progress.take(about, rows)
            if "gap" in about and self._on_gap is not None:
                self._on_gap(gap_of(about["gap"]))
            if fresh is not None:
                return fresh if self._columns is None else fresh.select(self._columns)

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and made again."""
        return self._stream.reconnects

    @property
    def caught_up(self) -> bool:
        """Whether nothing newer waited when the last batch was sent."""
        return self._progress.caught_up

    @property
    def position(self) -> Position | None:
        """Where the stream is: behind the last batch that was given out."""
        return self._progress.position

    @property
    def coverage(self) -> Coverage:
        """How complete the history is that the stream began with."""
        return Coverage.from_metadata(self.schema.metadata)

    def each(self, callback: Callable[[pa.RecordBatch], None]) -> None:
        """Call ``callback`` with each batch until the stream ends or is closed."""
        for batch in self:
            callback(batch)

    def close(self) -> None:
        """End the stream; whoever waits for a batch is told that there are no more."""
        self._stream.close()

    # The connection

    def _read(self) -> flight.FlightStreamChunk:
        """Return the next message.

        Raises:
            StopIteration: The stream is over.
        """
        while True:
            try:
                return self._stream.read()
            except StopIteration:
                if self._closing.is_set() or "end" in self._asked:
                    self.close()
                    raise
                self._stream.reconnect(UnavailableError("the server has ended the stream"))

    def _ticket(self) -> Mapping[str, object]:
        return {**self._asked, "dataset": self._dataset, **self._progress.resumption}

    def _patience(self) -> float:
        return HISTORY_SILENCE_SECONDS if self._progress.in_history else SILENCE_SECONDS

    def _note_connected(self) -> None:
        self._is_catching_up = True

    # What comes

    def _ask_for_telling_columns(self, columns: list[str]) -> None:
        with self._base.again() as connection:
            asked = {"op": "live", "dataset": self._dataset, "symbols": []}
            known = connection.schema(asked, timeout=PROBE_SECONDS).names
        telling = [name for name in TELLING if name in known]
        self._asked["columns"] = list(dict.fromkeys((*columns, *telling)))

    def _schema(self) -> pa.Schema:
        schema = plain_schema(self._stream.schema)
        if self._columns is None:
            return schema
        fields = [schema.field(name) for name in self._columns]
        return pa.schema(fields, schema.metadata)

    def _tell_caught_up(self) -> None:
        """Tell, once a connection, that what is given out next is news."""
        if self._is_catching_up and self.caught_up:
            self._is_catching_up = False
            if self._on_caught_up is not None:
                self._on_caught_up()


def _about(metadata: pa.Buffer | None) -> dict[str, Any]:
    try:
        about = json.loads(b"" if metadata is None else metadata.to_pybytes())
    except ValueError:
        about = None
    if not isinstance(about, dict) or not {"epoch", "pos", "durable", "caught_up"} <= about.keys():
        raise ServerError("the server's live stream can't be read: update tickflight")
    return about
