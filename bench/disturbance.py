"""How busy the machine was with other things: what any figure has to be read with."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STEAL: Final = 7
"""Which number of ``/proc/stat`` counts the time that the host gave to other guests."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What else there was.

    Attributes:
        load_before: Load average of a minute, before the run.
        load_after: Likewise, after it.
        stolen: Share of the processors' time that the host gave to others meanwhile; 0 where the
            kernel does not say.
    """

    load_before: float
    load_after: float
    stolen: float


class Watch:
    """Looks at the machine from its making on."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._stolen, self._all = _processor_time()

    def seen(self) -> Disturbance:
        """Return what there was so far."""
        stolen, everything = _processor_time()
        share = (stolen - self._stolen) / max(1, everything - self._all)
        return Disturbance(self._load, os.getloadavg()[0], share)


def _processor_time() -> tuple[int, int]:
    """Return how much was stolen, and all there was."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0, 0
    times = [int(word) for word in path.read_text().splitlines()[0].split()[1 : _STEAL + 2]]
    return times[_STEAL], sum(times)
