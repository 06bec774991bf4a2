"""One line of the report."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Measure:
    """One measurement and its floor.

    Attributes:
        name: What was done.
        value: How much of ``unit``.
        floor: The same without us.
        floor_is: What stands in for us there.
        details: Everything else that was seen.
    """

    name: str
    value: float
    unit: str
    floor: float
    floor_is: str
    details: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Value over floor."""
        return self.value / self.floor
