"""The newest rows in Redis: what a reader of live streams can be that is not ours.

The mirror lives with the sources because it is one turned round: a process on the far side of
Flight, with the SDK between itself and the service, that tells of its state in ``service_events``.
"""

from ingest.mirror.hashes import HashWriter, RedisHashes
from ingest.mirror.mirror import Market, Mirror

__all__ = ["HashWriter", "Market", "Mirror", "RedisHashes"]
