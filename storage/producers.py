"""Producers and their streams: who sent what, how much of it is visible, how much durable.

A producer numbers its batches 1, 2, 3, …; the store keeps three marks of each:

    accepted ≥ visible ≥ durable

*accepted*: taken from the wire. *visible*: readers see it. *durable*: journaled, and acknowledged.
A batch at or below ``accepted`` is a resend: it is not appended again, only acknowledged once
durable. The next batch must be ``accepted + 1``; anything else is a jump.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from storage.errors import InvalidDataError, SequenceError, StorageError

PENDING_BATCHES_MAX: Final = 256
"""Batches a stream may have waiting for the appender before its reading pauses."""
PENDING_BYTES_MAX: Final = 64 << 20
"""Bytes likewise: a greedy producer is slowed down by Flight's flow control, not by memory."""


@dataclass(frozen=True, slots=True)
class Ack:
    """What a stream tells its producer.

    Attributes:
        seq: Newest durable batch.
        rows: Rows made durable since the previous ack; the two that follow likewise.
        quarantined: Impossible rows put aside.
        duplicates: Repeats of rows that were there.
    """

    seq: int
    rows: int
    quarantined: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Mark:
    """One batch on its way to the journal."""

    stream: "AppendStream"
    seq: int
    rows: int
    quarantined: int
    duplicates: int


class Producer:
    """The marks of one producer.

    ``accepted`` belongs to the producer's stream, whose lock guards it; the rest is guarded by the
    lock of the table.
    """

    __slots__ = ("accepted", "durable", "handover", "name", "stream")

    def __init__(self, name: str | None, durable: int = 0) -> None:
        self.name = name
        self.accepted = durable
        self.durable = durable
        self.handover = threading.Lock()
        self.stream: AppendStream | None = None

    def __repr__(self) -> str:
        return f"<Producer {self.name} accepted {self.accepted} durable {self.durable}>"


class ProducerTable:
    """All producers ever seen, and their open streams."""

    def __init__(self, marks: Mapping[str, int]) -> None:
        self.lock = threading.Lock()
        self._producers = {name: Producer(name, seq) for name, seq in marks.items()}

    def get(self, name: str) -> Producer:
        """Return a producer, new ones with no batch yet."""
        with self.lock:
            return self._producers.setdefault(name, Producer(name))

    def durable(self, name: str) -> int:
        """Return the newest durable batch of a producer, 0 when it has none."""
        with self.lock:
            producer = self._producers.get(name)
            return producer.durable if producer else 0


class AppendStream:
    """One DoPut: batches go in at one end, acks come out at the other.

    ``push`` is called by the thread that reads the wire, ``take`` by the appender, ``settle`` by
    the journal, ``next_ack`` by the thread that writes acks.
    """

    def __init__(self, table: ProducerTable, wake: threading.Event) -> None:
        self._table = table
        self._wake = wake
        self._producer = Producer(None)
        # Two conditions, so that a batch taken in does not wake the thread that writes acks.
        self._lock = threading.Lock()
        self._taken = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        self._pending: deque[tuple[int, pa.RecordBatch, int]] = deque()  # seq, batch, bytes
        self._pending_bytes = 0
        self._read = 0  # newest batch that came through this stream
        self._acked = 0
        self._counts = [0, 0, 0]
        self._ended = False
        self._error: StorageError | None = None
        self._refusal: StorageError | None = None

    def __repr__(self) -> str:
        state = "failed" if self._error else "ended" if self._ended else "open"
        return f"<AppendStream {state} read {self._read} pending {len(self._pending)}>"

    def push(
        self,
        batch: pa.RecordBatch,
        producer: str | None = None,
        seq: int = 0,
        *,
        size: int | None = None,
    ) -> None:
        """Hand over one batch; waits while the appender is behind.

        Args:
            batch: Rows of the stream's schema.
            producer: Who numbers the batches; None for nobody (then ``seq`` is ignored).
            seq: The batch's number.
            size: Bytes of the batch where the caller knows them.

        Raises:
            InvalidDataError: The batch's own buffers contradict each other.
            SequenceError: The number jumps, or a newer stream of the producer has taken over.
            StorageError: The stream was ended from the other side.
        """
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InvalidDataError(f"the batch is not valid Arrow data: {error}") from error
        if producer != self._producer.name:
            self._take_over(producer)
        if size is None:
            # Not nbytes, which walks every buffer and costs more than all the rest of this.
            size = batch.get_total_buffer_size()
        with self._taken:
            while self._is_full() and self._refusal is None:
                self._taken.wait()
            if self._refusal is not None:
                raise self._refusal
            if producer is not None and self._is_resend(seq):
                self._read = max(self._read, seq)
                self._settled.notify_all()
            else:
                self._read = self._producer.accepted = self._producer.accepted + 1
                self._pending.append((self._read, batch, size))
                self._pending_bytes += size
        if not self._wake.is_set():
            self._wake.set()

    def _take_over(self, name: str | None) -> None:
        if self._read or name is None:
            # A batch without a number would take that of the next one, which would pass for resent.
            raise SequenceError("a stream carries the batches of one producer, or of none")
        self._producer = self._table.get(name)
        with self._producer.handover:  # in turn: a third stream must wait for the first one, too
            with self._table.lock:
                before, self._producer.stream = self._producer.stream, self
            if before is not None:
                # What it has queued must reach the journal before what we queue: marks only grow.
                before.refuse(_superseded(name))
                before.wait_until_taken()
                before.fail(_superseded(name))

    def refuse(self, error: StorageError) -> None:
        """Take no more batches; those taken in go their way."""
        with self._taken:
            self._refusal = self._refusal or error
            self._taken.notify_all()

    def wait_until_taken(self) -> None:
        """Wait until the appender has taken every batch of this stream."""
        with self._taken:
            while self._pending and self._error is None:
                self._taken.wait()

    def _is_resend(self, seq: int) -> bool:
        producer = self._producer
        expected = producer.accepted + 1
        if not 1 <= seq <= expected:
            message = f"producer {producer.name!r} sent batch {seq} where {expected} comes next"
            raise SequenceError(message, expected=expected)
        return seq < expected

    def _is_full(self) -> bool:
        return len(self._pending) >= PENDING_BATCHES_MAX or self._pending_bytes >= PENDING_BYTES_MAX

    def take(self, batches_max: int) -> list[tuple[int, pa.RecordBatch]]:
        """Return the batches that wait, oldest first."""
        if not self._pending:
            return []
        with self._taken:
            count = min(batches_max, len(self._pending))
            taken = [self._pending.popleft() for _ in range(count)]
            self._pending_bytes -= sum(size for _, _, size in taken)
            self._taken.notify_all()
        return [(seq, batch) for seq, batch, _ in taken]

    def settle(self, mark: Mark) -> None:
        """Note that a batch of this stream is durable."""
        producer = self._producer
        with self._table.lock:
            producer.durable = max(producer.durable, mark.seq)
            current = producer.stream
        with self._settled:
            self._counts[0] += mark.rows
            self._counts[1] += mark.quarantined
            self._counts[2] += mark.duplicates
            self._settled.notify_all()
        if current is not None and current is not self:
            current.nudge()

    def nudge(self) -> None:
        """Look again: the producer's marks have moved."""
        with self._settled:
            self._settled.notify_all()

    def next_ack(self) -> Ack | None:
        """Wait for progress and return it; None once all is acknowledged and the stream ended.

        Raises:
            StorageError: The stream was ended from the other side.
        """
        with self._settled:
            while True:
                durable = min(self._producer.durable, self._read)
                if durable > self._acked or any(self._counts):
                    self._acked = durable
                    ack = Ack(self._producer.durable, *self._counts)
                    self._counts = [0, 0, 0]
                    return ack
                if self._error is not None:  # after the acks: what is durable stays so
                    raise self._error
                if self._ended and durable >= self._read:
                    return None
                self._settled.wait()

    def end(self) -> None:
        """The producer is done: ``next_ack`` returns None after the last ack."""
        with self._settled:
            self._ended = True
            self._settled.notify_all()

    def fail(self, error: StorageError) -> None:
        """End the stream from this side; both its threads raise ``error``."""
        with self._settled:
            self._error = self._error or error
            self._refusal = self._refusal or error
            self._taken.notify_all()
            self._settled.notify_all()

    def release(self) -> None:
        """Let go of the producer: it outlives its streams by far, and must not keep them."""
        with self._table.lock:
            if self._producer.stream is self:
                self._producer.stream = None

    @property
    def error(self) -> StorageError | None:
        """Why the stream was ended from this side; None as long as it was not."""
        return self._error

    @property
    def producer_name(self) -> str | None:
        """Who numbers the batches."""
        return self._producer.name


def _superseded(producer: str | None) -> SequenceError:
    return SequenceError(f"another stream of producer {producer!r} has taken over")
