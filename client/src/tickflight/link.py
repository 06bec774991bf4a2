"""The state of a writer's link to the server. No I/O: the engine acts, this decides.

phase    event    next      meaning
-------  -------  --------  ----------------------------------------------------------------------
IDLE     DIAL     OPENING   there is something to send
IDLE     REFUSED  FAILED    the spool can't be read
IDLE     STOP     CLOSED
OPENING  OPENED   OPEN      the stream took our schema; nothing is proved before the first ack
OPENING  ENDED    IDLE      nothing to send after all: an older stream's acks came in
OPENING  LOST     BROKEN    nobody there, or busy: retry later
OPENING  REFUSED  FAILED    not with this key, not this dataset, not this schema
OPEN     FINISH   ENDING    we said that nothing more comes on this stream
OPEN     LOST     BROKEN    connection gone, server draining, or no ack for too long
OPEN     REFUSED  FAILED    a batch can't be taken, ever
ENDING   ENDED    IDLE      the server acked the rest and closed
ENDING   LOST     BROKEN
ENDING   REFUSED  FAILED
BROKEN   DIAL     OPENING   the delay is over
BROKEN   REFUSED  FAILED    the spool can't be read
BROKEN   STOP     CLOSED
FAILED   STOP     CLOSED    the error stays and is raised by every later call

Any other pair is a bug and raises. Every DIAL begins a new generation; what threads of an older
generation still report of their stream's end is ignored (their acks are not: durable is durable).
"""

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

FIRST_DELAY_SECONDS: Final = 0.1  # a restarted server is back in about a second
MAX_DELAY_SECONDS: Final = 5.0  # how long a returned server may stay unnoticed


class Phase(Enum):
    """Where the link is."""

    IDLE = "idle"
    OPENING = "opening"
    OPEN = "open"
    ENDING = "ending"
    BROKEN = "broken"
    FAILED = "failed"
    CLOSED = "closed"


class Event(Enum):
    """What happens to the link."""

    DIAL = "dial"
    OPENED = "opened"
    FINISH = "finish"
    ENDED = "ended"
    LOST = "lost"
    REFUSED = "refused"
    STOP = "stop"


TRANSITIONS: Final[Mapping[Phase, Mapping[Event, Phase]]] = MappingProxyType(
    {
        Phase.IDLE: {
            Event.DIAL: Phase.OPENING,
            Event.REFUSED: Phase.FAILED,
            Event.STOP: Phase.CLOSED,
        },
        Phase.OPENING: {
            Event.OPENED: Phase.OPEN,
            Event.ENDED: Phase.IDLE,
            Event.LOST: Phase.BROKEN,
            Event.REFUSED: Phase.FAILED,
        },
        Phase.OPEN: {
            Event.FINISH: Phase.ENDING,
            Event.LOST: Phase.BROKEN,
            Event.REFUSED: Phase.FAILED,
        },
        Phase.ENDING: {
            Event.ENDED: Phase.IDLE,
            Event.LOST: Phase.BROKEN,
            Event.REFUSED: Phase.FAILED,
        },
        Phase.BROKEN: {
            Event.DIAL: Phase.OPENING,
            Event.REFUSED: Phase.FAILED,
            Event.STOP: Phase.CLOSED,
        },
        Phase.FAILED: {Event.STOP: Phase.CLOSED},
        Phase.CLOSED: {},
    }
)

STREAMING: Final = frozenset({Phase.OPENING, Phase.OPEN, Phase.ENDING})
"""Phases in which a stream exists."""


class Link:
    """Phase, generation and the delay before the next attempt."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        """Take ``jitter``, a source of numbers in [0, 1): writers must not come back in step."""
        self._jitter = jitter
        self.phase = Phase.IDLE
        self.generation = 0
        self.losses = 0
        """Streams lost since the beginning."""
        self._failures = 0  # since the last proof that the server takes our rows
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return f"<Link {self.phase.value}, generation {self.generation}, {self.losses} lost>"

    @property
    def streaming(self) -> bool:
        """Whether a stream exists."""
        return self.phase in STREAMING

    @property
    def trusted(self) -> bool:
        """Whether the last attempt has not failed, or has been made good since."""
        return self._failures == 0

    def on(self, event: Event) -> None:
        """Follow the table.

        Raises:
            RuntimeError: the table has no such transition; a bug of ours.
        """
        following = TRANSITIONS[self.phase].get(event)
        if following is None:
            raise RuntimeError(f"{event.value} can't happen while {self.phase.value}")
        self.phase = following

    def dial(self) -> None:
        """Begin an attempt."""
        self.on(Event.DIAL)
        self.generation += 1

    def lost(self, now: float) -> None:
        """End a stream that is to be tried again, after a delay that grows."""
        self.on(Event.LOST)
        self.losses += 1
        delay = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(self._failures, 16))
        self._failures += 1
        self._retry_at = now + delay * (0.5 + self._jitter() / 2)

    def proved(self) -> None:
        """Note an ack: the next loss begins with the shortest delay again."""
        self._failures = 0

    def wait(self, now: float) -> float | None:
        """Seconds until the next attempt may begin; None while there can't be one."""
        match self.phase:
            case Phase.IDLE:
                return 0.0
            case Phase.BROKEN:
                return max(0.0, self._retry_at - now)
            case _:
                return None
