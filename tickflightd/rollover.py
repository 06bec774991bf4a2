"""Rolling over by hand: asking the running service, and waiting until the lake has it all."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import tickflight
from tickflightd.errors import ServiceError

POLL_SECONDS: Final = 0.1
"""How often the service is asked how far it is: a segment takes a second or more."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """What a rollover by hand has brought into the lake.

    Attributes:
        segments: Finished journal files it waited for.
        rows: Rows of them.
        through: Number of the newest segment the lake has now.
    """

    segments: int
    rows: int
    through: int


def rolled_over(
    client: tickflight.Client, *, everything: bool, show: Callable[[int, int], None]
) -> Rolled:
    """Have the service roll over, and wait until the lake has all of it.

    Args:
        client: With a key that may.
        everything: Close the running segment first.
        show: Called with the rows that are done and all there are.

    Raises:
        ServiceError: It failed. The service tries again by itself.
        TickflightError: The service refused, or went away.
    """
    begun = news = client.action("rollover", {"all": everything})
    while news["through"] < begun["last"]:
        time.sleep(POLL_SECONDS)
        news = client.action("status")["rollover"]
        done = news["rows"] - begun["rows"]
        show(done, done + news["unrolled_rows"])
        _require_progress(begun, news)
    return Rolled(begun["last"] - begun["through"], news["rows"] - begun["rows"], news["through"])


def _require_progress(begun: dict[str, Any], news: dict[str, Any]) -> None:
    if news["failures"] > begun["failures"]:
        raise ServiceError(f"{news['detail']} (nothing is lost, and it is tried again by itself)")
