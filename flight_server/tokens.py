"""The text of an API key: ``tf_<id>_<secret><checksum>``, made and taken apart.

Twelve base62 characters of id (public: logs and ``keys list`` show it), 43 of secret (32 random
bytes) and 6 of CRC-32 over all that precedes them. Underscores keep a double click selecting the
whole key; the checksum lets a mistyped key die without a look at the store and makes scanning
for leaked ones exact. It proves nothing: only the store knows which keys exist.
"""

import re
import secrets
import string
import zlib
from typing import Final

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_BYTES: Final = 32
"""256 bits: no dictionary reaches it, so a fast digest is enough in the store."""
_ID_CHARS: Final = 12
_SECRET_CHARS: Final = 43
"""Base62 characters that hold any 32 bytes."""
_CHECKSUM_CHARS: Final = 6
"""Base62 characters that hold any 32-bit number."""
KEY_PREFIX: Final = "tf_"
_PATTERN: Final = re.compile(
    rf"{KEY_PREFIX}([0-9A-Za-z]{{{_ID_CHARS}}})_[0-9A-Za-z]{{{_SECRET_CHARS + _CHECKSUM_CHARS}}}"
)
KEY_CHARS: Final = len(KEY_PREFIX) + _ID_CHARS + 1 + _SECRET_CHARS + _CHECKSUM_CHARS


def mint() -> tuple[str, str]:
    """Make a new key; returns its public id and its whole text."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARS))
    secret = int.from_bytes(secrets.token_bytes(_SECRET_BYTES))
    body = f"{KEY_PREFIX}{key_id}_{_base62(secret, _SECRET_CHARS)}"
    return key_id, body + _checksum(body)


def id_of(token: str) -> str | None:
    """The public id in a well-formed key; ``None`` for any other text."""
    matched = _PATTERN.fullmatch(token)
    body, checksum = token[:-_CHECKSUM_CHARS], token[-_CHECKSUM_CHARS:]
    if matched is None or _checksum(body) != checksum:
        return None
    return matched[1]


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), _CHECKSUM_CHARS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
