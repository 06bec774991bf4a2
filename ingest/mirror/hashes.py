"""Writing hashes to Redis, over one connection that never reconnects behind our back."""

from collections.abc import Mapping
from typing import Final, Protocol, final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.retry import Retry

from ingest.errors import ConfigurationError, MirrorError
from ingest.mirror.newest import Fields

ANSWER_SECONDS: Final = 1.0
"""How long Redis may take to answer before it counts as gone: it usually takes a millisecond."""
CLIENT_NAME: Final = "tickflight-mirror"
_REASON_CHARS_MAX: Final = 120
"""What is shown of a refusal: its first words say which it is."""


class HashWriter(Protocol):
    """Where hashes go."""

    @property
    def place(self) -> str:
        """Where that is, in words fit to be shown."""

    def connect(self) -> None:
        """Connect, and see to it that somebody answers.

        Raises:
            MirrorError: Nobody does, or not to us.
        """

    def write(self, hashes: Mapping[str, Fields]) -> dict[str, str]:
        """Set the fields of hashes, all at once; none is nothing but a look whether it is there.

        Returns:
            Why a hash was not written, by key, for those that were not.

        Raises:
            MirrorError: The connection is gone; nobody knows what was written.
        """

    def close(self) -> None:
        """Let the connection go."""


@final
class RedisHashes:
    """Hashes of one Redis server.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as the settings have it; never shown.

    Raises:
        ConfigurationError: The URL can't be used.
    """

    def __init__(self, url: str) -> None:
        self.place = _place(url)
        try:
            self._pool = redis.ConnectionPool.from_url(
                url,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=ANSWER_SECONDS,
                # Each connection that is made anew has to be known of: Redis may have lost all.
                retry=Retry(NoBackoff(), 0),
                client_name=CLIENT_NAME,
                protocol=2,
            )
            # As lazy as a pool is, only this finds out whether the options fit the URL.
            self._pool.make_connection()
        except (ValueError, TypeError, redis.RedisError):
            raise ConfigurationError(
                "REDIS_URL can't be used: check its form and options"
            ) from None
        self._connection: ConnectionInterface | None = None

    def __repr__(self) -> str:
        return f"<RedisHashes {self.place}>"

    def connect(self) -> None:
        """See ``HashWriter.connect``."""
        self.close()
        connection = self._pool.make_connection()
        try:
            connection.connect()
            # Rows are sent only to one that answers: what lies unread in the socket of a server
            # that stands still would be written after what is newer.
            connection.send_command("PING")
            connection.read_response()
        except redis.RedisError as error:
            connection.disconnect()
            raise MirrorError(_why(error)) from None
        self._connection = connection

    def write(self, hashes: Mapping[str, Fields]) -> dict[str, str]:
        """See ``HashWriter.write``."""
        connection = self._connection
        if connection is None:
            raise MirrorError("there is no connection")
        commands = [_hset(key, fields) for key, fields in hashes.items()] or [("PING",)]
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            answers = [_answer(connection) for _ in commands]
        except redis.RedisError as error:
            self.close()
            raise MirrorError(_why(error)) from None
        told = zip(hashes, answers, strict=False)
        return {key: answer for key, answer in told if answer is not None}

    def close(self) -> None:
        """See ``HashWriter.close``."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None


def _hset(key: str, fields: Fields) -> tuple[str, ...]:
    return ("HSET", key, *(text for pair in fields.items() for text in pair))


def _answer(connection: ConnectionInterface) -> str | None:
    """Read one answer; returns why Redis refused, None when it did not."""
    try:
        connection.read_response()
    except (redis.ConnectionError, redis.TimeoutError):
        raise
    except redis.ResponseError as error:
        return _why(error)
    return None


def _why(error: redis.RedisError) -> str:
    """Return what is wrong in words that hold nothing of the URL."""
    match error:
        case redis.OutOfMemoryError():
            return "its memory is full (maxmemory)"
        case redis.AuthenticationError():
            return "it refuses the password of REDIS_URL"
        case redis.TimeoutError():
            return f"it does not answer within {ANSWER_SECONDS:.0f} s"
        case redis.ResponseError():
            return f"it refuses: {str(error)[:_REASON_CHARS_MAX]}"
        case _:
            return "it can't be reached"


def _place(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    try:
        port = parts.port or 6379
    except ValueError:
        raise ConfigurationError("REDIS_URL can't be used: its port is none") from None
    return f"{parts.hostname or '127.0.0.1'}:{port}"
