"""The door: who may come in, how many at once, and what is remembered of them."""

from dataclasses import dataclass
from typing import Any, final

from flight_server.auth import Authenticator
from flight_server.calls import Calls
from flight_server.history import QueryHistory
from flight_server.identity import Identity, Scope
from flight_server.streams import StreamSlots
from storage.ports import Clock


@final
@dataclass(frozen=True, slots=True)
class Door:
    """All that stands between clients and the store."""

    authenticator: Authenticator
    calls: Calls
    readers: StreamSlots
    replays: StreamSlots
    writers: StreamSlots
    live: StreamSlots
    history: QueryHistory
    clock: Clock

    @property
    def streams(self) -> int:
        """Streams running, in and out."""
        return self.readers.taken + self.replays.taken + self.writers.taken + self.live.taken

    def drain(self, seconds: float) -> bool:
        """Let no more streams in, wait for those that run, then cut them; tell if all ended.

        Live streams have no end to wait for: they are cut first, and go on at another server.
        """
        self.writers.refuse()
        until = self.clock.monotonic() + seconds
        # Those of a replay take as long as its span did, and are not waited for either.
        self.live.drain(0.0)
        self.replays.drain(0.0)
        ended = self.readers.drain(seconds)
        ended &= self.writers.drain(max(0.0, until - self.clock.monotonic()))
        ended &= self.replays.drain(max(0.0, until - self.clock.monotonic()))
        return self.live.drain(max(0.0, until - self.clock.monotonic())) and ended

    def report(self, caller: Identity) -> dict[str, Any]:
        """Return what ``status`` says of the door; addresses are for administrators."""
        refused = self.authenticator.refused()
        report: dict[str, Any] = {
            "calls": {"running": self.calls.running, "turned_away": self.calls.turned_away},
            "streams": self.streams,
            "reading": {"streams": self.readers.taken, "stalled": self.readers.stalled},
            "live": {"streams": self.live.taken, "stalled": self.live.stalled},
            "replays": {"streams": self.replays.taken, "stalled": self.replays.stalled},
            "writing": {"streams": self.writers.taken, "idle": self.writers.stalled},
            "refused_credentials": sum(refused.values()),
            "refused": {cause.value: count for cause, count in refused.items()},
            "history": {"folded": self.history.folded},
        }
        if Scope.ADMIN in caller.scopes:
            report["failed_logins"] = self.authenticator.failures.report()
        return report
