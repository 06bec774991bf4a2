"""What a writer tells of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WriterStats:
    """What a writer has done, and holds, at one moment."""

    rows_written: int
    """Taken by ``write``."""
    rows_durable: int
    """Safe on the server, those below included."""
    rows_quarantined: int
    """Set aside by the server as impossible; a lost ack loses its part of this and the next."""
    rows_duplicate: int
    """Dropped by the server because it had them."""
    reconnects: int
    """Streams lost since the writer was opened."""
    spooled_rows: int
    """Waiting on disk, those of earlier lives included."""
    spooled_bytes: int
    """What the spool directory holds."""
    connected: bool
    """Whether a stream is open; an idle writer may have none."""
    last_failure: str | None
    """Why the last stream or the spool failed, if one ever did."""
