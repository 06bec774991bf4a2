"""How the spot-checks of the last day went, for ``status``."""

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow.compute as pc

from storage.ports import MICROSECONDS, Clock
from storage.schemas import SPOT_CHECKS
from storage.selection import Selection
from storage.snapshot import Snapshot
from storage.spot_checks import Finding

DAY: Final = 24 * 3_600 * MICROSECONDS
NAMED_MAX: Final = 3
"""Failures that are named; the rest are counted, and ``spot_checks`` has them all."""


class CheckTally:
    """Sums findings up; safe to share between threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._found: deque[tuple[int, int, int]] = deque()
        self._failing: Sequence[Finding] = ()

    def learn(self, snapshot: Snapshot) -> None:
        """Count what earlier lives have found in the last day."""
        now = snapshot.now
        selection = Selection(columns=("checked", "passed"))
        rows = snapshot.range(SPOT_CHECKS.name, selection, now - DAY, now)
        for batch in rows.batches:
            checked, passed = (pc.sum(column).as_py() for column in batch.columns)
            with self._lock:
                self._found.append((now, checked, passed))

    def note(self, news: Iterable[Finding], failing: Sequence[Finding]) -> None:
        """Count what was found, and take what is wrong still in place of what was before."""
        now = self._clock.now()
        with self._lock:
            self._found.extend((now, one.checked, one.passed) for one in news)
        self._failing = tuple(failing)

    @property
    def trouble(self) -> str | None:
        """What is wrong; None where nothing is."""
        failing = self._failing
        if not failing:
            return None
        named = "; ".join(f"{one.dataset}: {one.detail}" for one in failing[:NAMED_MAX])
        more = f"; and {len(failing) - NAMED_MAX} more" if len(failing) > NAMED_MAX else ""
        return f"{named}{more}"

    def summary(self) -> str:
        """Return the pass rate of the last day for people; empty before the first look."""
        sums = self.fields()
        if not sums["checked"]:
            return ""
        rate = 100 * sums["passed"] / sums["checked"]
        shown = "100" if sums["passed"] == sums["checked"] else f"{min(rate, 99.999):.3f}"
        return f"{sums['checked']:,} rows looked at in the last day, {shown} % as they should be"

    def fields(self) -> dict[str, Any]:
        """Return the rows of the last day, as JSON can hold them."""
        since = self._clock.now() - DAY
        with self._lock:
            while self._found and self._found[0][0] < since:
                self._found.popleft()
            checked, passed = (sum(one[at] for one in self._found) for at in (1, 2))
        return {"checked": checked, "passed": passed, "failing": len(self._failing)}
