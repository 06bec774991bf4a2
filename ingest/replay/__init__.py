"""Files of ticks played as if they were live, once or N times as fast as they happened."""

from ingest.replay.source import ReplayProgress, ReplaySource
from ingest.replay.tape import Tape, open_tape

__all__ = ["ReplayProgress", "ReplaySource", "Tape", "open_tape"]
