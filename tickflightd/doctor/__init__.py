"""``tickflightd doctor``: what is wrong with this machine, these settings, or the service on it.

The checks (``host``, ``data``, ``running``) judge plain values and touch nothing; ``probes``
measures, and ``examination`` brings both together.
"""

from tickflightd.doctor.examination import examine
from tickflightd.doctor.findings import Finding, Level, worst

__all__ = ["Finding", "Level", "examine", "worst"]
