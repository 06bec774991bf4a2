"""What arrived, in the order it came: where a snapshot ends, this goes on.

A reader is a ``Cursor``: a position and nothing else, so that one who stands still costs nobody
anything. Rows come out of memory as long as they are there, then out of the finished files of the
journal; those who want the same rows share the blocks that are made of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import final
from weakref import WeakValueDictionary

from storage.arrival_blocks import Block, Feed, Wanted
from storage.errors import InvalidDataError, JournalError, TooOldError
from storage.herald import Herald, Waiter
from storage.journal_arrivals import segment_blocks
from storage.published import Publication
from storage.segments import Segment, SegmentLine


@dataclass(frozen=True, slots=True)
class Origin:
    """Where positions come from.

    Attributes:
        epoch: This life of the server.
        began: Position of each dataset's first row of this life.
        durable: Tells the position below which all rows of a dataset are durable.
    """

    epoch: int
    began: Mapping[str, int]
    durable: Callable[[str], int]


@final
class Arrivals:
    """The arrivals of every dataset; safe to share between threads.

    Args:
        publication: What is in memory.
        segments: The finished files of the journal.
        origin: Where positions come from.
        herald: Tells of rows that came.
    """

    def __init__(
        self, publication: Publication, segments: SegmentLine, origin: Origin, herald: Herald
    ) -> None:
        self._publication = publication
        self._segments = segments
        self._origin = origin
        self._herald = herald
        self._feeds: WeakValueDictionary[Wanted, Feed] = WeakValueDictionary()

    @property
    def epoch(self) -> int:
        """This life of the server."""
        return self._origin.epoch

    def end(self, dataset: str) -> int:
        """Return the position after the newest row."""
        return self._publication.current.hot[dataset].end

    def durable(self, dataset: str) -> int:
        """Return the position below which all rows are durable."""
        return self._origin.durable(dataset)

    def resumed(self, dataset: str, epoch: int, position: int) -> int:
        """Return where a reader goes on who had come to a position in some life of the server.

        What an older life had not made durable is gone, and its positions are those of other rows.

        Raises:
            InvalidDataError: There has been no such position yet.
            TooOldError: Nobody knows any more where that life ended.
        """
        if epoch > self.epoch or (epoch == self.epoch and position > self.end(dataset)):
            now = f"{self.epoch}, position {self.end(dataset)}"
            message = (
                f"after names epoch {epoch}, position {position}; the server is at epoch {now}"
            )
            raise InvalidDataError(message, field="after")
        if epoch == self.epoch:
            return position
        return min(position, self._border(dataset, epoch))

    def cursor(self, wanted: Wanted, position: int) -> "Cursor":
        """Return a reader of all rows from a position on."""
        feed = self._feeds.get(wanted)
        if feed is None:
            # Two may do so at once; both feeds work.
            feed = self._feeds[wanted] = Feed(wanted)
        return Cursor(self, feed, position, self._herald)

    def read(self, feed: Feed, start: int, stop: int) -> Block | None:
        """Return the rows from ``start`` on, None where they are not in memory any more."""
        state = self._publication.current.hot[feed.wanted.dataset]
        return feed.read(state, start, stop) if start >= state.base else None

    def read_journal(self, wanted: Wanted, position: int) -> Iterator[Block]:
        """Return the rows of the journal file that has a position, from there on.

        Raises:
            TooOldError: The file is gone, now or while it is read.
            JournalError: While it is read: it can't be.
        """
        segment = self._segment(wanted.dataset, position)
        try:
            yield from segment_blocks(segment, wanted, position)
        except JournalError:
            if segment in tuple(self._segments):
                raise
            raise self._too_old(wanted.dataset) from None

    def _segment(self, dataset: str, position: int) -> Segment:
        for segment in self._segments:
            first, end = segment.span(dataset)
            if first <= position < end:
                return segment
        raise self._too_old(dataset)

    def _border(self, dataset: str, epoch: int) -> int:
        """Return where the rows of an older life ended."""
        if epoch == self.epoch - 1:
            return self._origin.began.get(dataset, 0)
        segments = tuple(self._segments)
        if not segments or segments[0].epoch > epoch:
            raise self._too_old(dataset)
        later = (segment for segment in segments if segment.epoch > epoch)
        after = next(later, None)
        return self._origin.began.get(dataset, 0) if after is None else after.span(dataset)[0]

    def _too_old(self, dataset: str) -> TooOldError:
        spans = (segment.span(dataset) for segment in self._segments)
        base = self._publication.current.hot[dataset].base
        oldest = min((first for first, end in spans if first < end), default=base)
        return TooOldError(min(oldest, base), self.epoch)


@final
class Cursor:
    """One reader's place in the arrivals of a dataset. Used by one thread.

    Attributes:
        position: Position of the next row to look at.
    """

    def __init__(self, arrivals: Arrivals, feed: Feed, position: int, herald: Herald) -> None:
        self.position = position
        self._arrivals = arrivals
        self._feed = feed
        self._herald = herald
        self._waiter = Waiter(feed.wanted.dataset)
        self._journal: Iterator[Block] | None = None

    def __repr__(self) -> str:
        return f"<Cursor {self._feed.wanted.dataset} at {self.position}>"

    @property
    def is_caught_up(self) -> bool:
        """Whether no row waits, as far as readers were told."""
        return self.position >= self._herald.horizon(self._feed.wanted.dataset)

    def read(self, until: int | None = None) -> Block | None:
        """Return the next rows, None when there are none yet; never waits.

        A block may be empty: then no row up to its end was wanted.

        Args:
            until: Position to stop at, which has been in memory.

        Raises:
            TooOldError: The rows have left both memory and journal.
            JournalError: The journal can't be read.
        """
        block = self._next(until)
        if block is not None:
            self.position = block.stop
        return block

    def wait(self, seconds: float) -> None:
        """Wait until rows may have come, or as long as that."""
        self._waiter.position = self.position
        self._herald.wait(self._waiter, seconds)

    def close(self) -> None:
        """Read no more."""
        self._herald.leave(self._waiter)

    def _next(self, until: int | None) -> Block | None:
        if self._journal is None:
            stop = self._herald.horizon(self._feed.wanted.dataset)
            if until is not None:
                stop = min(stop, until)
            if self.position >= stop:
                return None
            block = self._arrivals.read(self._feed, self.position, stop)
            if block is not None:
                return block
            self._journal = self._arrivals.read_journal(self._feed.wanted, self.position)
        block = next(self._journal, None)
        if block is not None:
            return block
        self._journal = None
        return self._next(until)
