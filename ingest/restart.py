"""When to start a failed source again, and when not to."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Delays between attempts: doubling, bounded, spread so that many sources do not come at once.

    Attributes:
        first_delay_seconds: After the first failure; most disconnects are over by then.
        max_delay_seconds: However often it failed; a venue that is back is heard within this.
        healthy_seconds: A run this long was a success, and the next failure is a first one again.
    """

    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 30.0
    healthy_seconds: float = 60.0

    def delay_seconds(self, failures: int, jitter: float) -> float:
        """Return how long to wait after so many failures in a row.

        Args:
            failures: 1 for the first.
            jitter: Uniform in [0, 1); the delay is at least half of what it is at most.
        """
        # 2.0 ** 1024 overflows, and the bound is reached long before.
        doublings = min(failures - 1, 64)
        longest = min(self.first_delay_seconds * 2.0**doublings, self.max_delay_seconds)
        return longest * (1 + jitter) / 2
