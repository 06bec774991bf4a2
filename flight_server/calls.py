"""Calls in flight: how many there may be, whose they are, and what became of each."""

import threading
from collections.abc import Callable
from typing import Final, final

from pyarrow import flight

from flight_server.errors import BusyError
from flight_server.identity import Identity
from flight_server.limits import KeyRates
from storage.ports import Clock, SystemClock

CALLS_MAX: Final = 1_024
"""Calls at once: each holds a thread until its client has taken the answer."""
CALLS_PER_KEY_MAX: Final = CALLS_MAX // 2
"""Of them for one key, so that no key alone can shut the door to all others."""
HANDSHAKES_MAX: Final = 32
"""Handshakes at once: they come before the key, and a client may begin one and say nothing."""
ANSWER_BYTES_MAX: Final = 1 << 30
"""Bytes of ready answers that wait for their clients to take them."""
OK: Final = "ok"
DENIED: Final = "denied"
CANCELLED: Final = "cancelled"


@final
class Call:
    """One call from the moment its key was accepted.

    Attributes:
        caller: Whose key it is.
        operation: What was asked for: the ``op`` of a ticket, or the method.
        ticket: What was asked for in detail, fit to be kept.
        rows: Rows sent so far.
        bytes: Bytes of them in memory.
        outcome: ``ok``, ``denied``, ``cancelled`` or ``error:<code>``.
        seconds: How long it took, once it has ended.
        is_cancelled: Tells whether the client has gone away.
        context: What pyarrow knows of it, of use only while it runs.
    """

    __slots__ = (
        "_started",
        "bytes",
        "caller",
        "context",
        "held",
        "is_cancelled",
        "operation",
        "outcome",
        "release",
        "rows",
        "seconds",
        "ticket",
    )

    def __init__(self, caller: Identity, operation: str, started: float) -> None:
        self.caller = caller
        self.operation = operation
        self.ticket = ""
        self.rows = 0
        self.bytes = 0
        self.outcome = OK
        self.seconds = 0.0
        self.held = 0
        self.release: Callable[[], None] | None = None
        self.is_cancelled: Callable[[], bool] = lambda: False
        self.context: flight.ServerCallContext | None = None
        self._started = started

    def __repr__(self) -> str:
        return f"<Call {self.operation} of {self.caller.model_id} {self.outcome}>"

    def sent(self, rows: int, size: int) -> None:
        """Count rows and their bytes that go to the client."""
        self.rows += rows
        self.bytes += size

    def end(self, now: float) -> None:
        """Note the end, and give back what the call held."""
        self.seconds = now - self._started
        if self.release is not None:
            self.release()


@final
class Calls:
    """Lets calls in while there is room; safe to share between threads.

    Args:
        note: Told of each call that ended.
        clock: Where time comes from.
    """

    def __init__(
        self, note: Callable[[Call], None] | None = None, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._note = note
        self._rates = KeyRates(self._clock)
        self._lock = threading.Lock()
        self._handshakes = 0
        self._total = 0
        self._by_key: dict[str, int] = {}
        self._held = 0
        self.turned_away = 0
        """Calls refused because there were too many, since the start."""

    def __repr__(self) -> str:
        return f"<Calls {self._total} of {CALLS_MAX}>"

    @property
    def running(self) -> int:
        """Calls in flight."""
        return self._total

    def enter(self, method: flight.FlightMethod) -> float:
        """Let a call in whose key is not checked yet; returns when it came, monotonic seconds.

        Raises:
            BusyError: There are too many.
        """
        is_handshake = method is flight.FlightMethod.HANDSHAKE
        with self._lock:
            if self._total >= CALLS_MAX:
                raise self._busy(f"{CALLS_MAX} calls are running; retry in a moment")
            if is_handshake and self._handshakes >= HANDSHAKES_MAX:
                raise self._busy(f"{HANDSHAKES_MAX} handshakes are running; retry in a moment")
            self._handshakes += is_handshake
            self._total += 1
        return self._clock.monotonic()

    def admit(self, caller: Identity, method: flight.FlightMethod, started: float) -> Call:
        """Let a call in whose key is good.

        Raises:
            BusyError: The key has too many running, or is over its rate.
        """
        wait_ms = self._rates.take(caller)
        with self._lock:
            if wait_ms:
                message = f"this key may make {caller.calls_per_second} calls a second"
                raise self._busy(f"{message}; retry in {wait_ms} ms", retry_after_ms=wait_ms)
            running = self._by_key.get(caller.key_id, 0)
            if running >= CALLS_PER_KEY_MAX:
                raise self._busy(f"{running} calls of this key are running; let some end first")
            self._by_key[caller.key_id] = running + 1
        return Call(caller, OPERATIONS[method], started)

    def hold(self, call: Call, size: int) -> None:
        """Count an answer in memory until its call ends.

        Raises:
            BusyError: The answers that others have not taken yet fill the room.
        """
        with self._lock:
            if self._held and self._held + size > ANSWER_BYTES_MAX:
                raise self._busy("too many answers wait to be taken; retry in a moment")
            self._held += size
            call.held += size

    def leave(self, method: flight.FlightMethod, call: Call | None) -> None:
        """Note that a call has ended; ``call`` is what ``admit`` returned, if it came so far."""
        with self._lock:
            self._total -= 1
            self._handshakes -= method is flight.FlightMethod.HANDSHAKE
            if call is not None:
                self._held -= call.held
                self._forget(call.caller.key_id)
        if call is not None:
            call.end(self._clock.monotonic())
            if self._note is not None:
                self._note(call)

    def _busy(self, message: str, *, retry_after_ms: int | None = None) -> BusyError:
        self.turned_away += 1
        return BusyError(message, retry_after_ms=retry_after_ms)

    def _forget(self, key_id: str) -> None:
        running = self._by_key[key_id] - 1
        if running:
            self._by_key[key_id] = running
        else:
            del self._by_key[key_id]


OPERATIONS: Final = {
    flight.FlightMethod.INVALID: "unknown",
    flight.FlightMethod.HANDSHAKE: "handshake",
    flight.FlightMethod.LIST_FLIGHTS: "list",
    flight.FlightMethod.GET_FLIGHT_INFO: "info",
    flight.FlightMethod.GET_SCHEMA: "schema",
    flight.FlightMethod.DO_GET: "get",
    flight.FlightMethod.DO_PUT: "put",
    flight.FlightMethod.DO_ACTION: "action",
    flight.FlightMethod.LIST_ACTIONS: "actions",
    flight.FlightMethod.DO_EXCHANGE: "exchange",
}
"""What a call is named until its handler knows better."""
