"""The supervisor's use of a spool: groups share an fsync, a failing disk is left alone a while."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Final

from tickflight.errors import SpoolError
from tickflight.outbox import Batch, Outbox
from tickflight.records import Title
from tickflight.rows import joined, pack
from tickflight.spool import Place, Spool

SPILL_BYTES: Final = 8 * 2**20
"""Spooled by one fsync."""
SPILL_LINGER_SECONDS: Final = 0.1
"""How long rows wait for company before they are spooled: ten fsyncs a second at most."""
DISK_RETRY_SECONDS: Final = 1.0
"""Between attempts to use a full or failing spool: disks are emptied by hand."""

logger = logging.getLogger("tickflight.writer")


class Spooler:
    """One spool; all methods but ``resting`` belong to one thread and may wait for the disk."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.failure: str | None = None
        """Why the spool took nothing, the last time that it didn't."""
        self.idle_until = 0.0
        """When a spool that took nothing is tried again, on the monotonic clock."""

    def resting(self, now: float) -> bool:
        """Whether the spool takes nothing for now."""
        return now < self.idle_until

    def spill(self, title: Title, batches: Sequence[Batch], *, durable: int) -> list[Place]:
        """Put batches on disk, oldest first; those that got a place are safe."""
        places: list[Place] = []
        try:
            try:
                # What is durable by now goes first, so that the files hold one run without a hole.
                self.spool.release(title, durable)
                for one in batches:
                    body = pack(joined(one.parts or ()))
                    places.append(self.spool.append(title, seq=one.seq, rows=one.rows, body=body))
            except SpoolError as error:
                self._rest(error)
            self.spool.sync()
        except SpoolError as error:
            self._rest(error)
            return []
        return places

    def has_done(self, lanes: Iterable[Outbox]) -> bool:
        """Whether ``release`` would make space."""
        return any(self.spool.has_done(lane.title, lane.durable) for lane in lanes)

    def release(self, marks: Iterable[tuple[Title, int]]) -> None:
        """Delete what is durable on the server, given the newest durable batch of each producer."""
        try:
            for title, durable in marks:
                self.spool.release(title, durable)
        except SpoolError as error:
            self._rest(error)
        else:
            self.idle_until = 0.0

    def _rest(self, failure: SpoolError) -> None:
        if str(failure) != self.failure:
            logger.warning("the spool takes nothing: %s", failure)
        self.failure = str(failure)
        self.idle_until = time.monotonic() + DISK_RETRY_SECONDS
