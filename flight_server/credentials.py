"""Credentials as clients present them: in a header, or in the payload of a handshake."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, final

from pyarrow import ArrowException, flight

from flight_server.errors import CredentialError, Refusal
from flight_server.tokens import KEY_PREFIX

_MAX_CREDENTIAL_CHARS: Final = 512
"""The longest model id and a key take 184 in base64; anything much longer is not a credential."""

Headers: TypeAlias = Mapping[str, Sequence[str | bytes]]
"""As pyarrow hands them over: names in lower case, ``-bin`` values as bytes."""


@final
@dataclass(frozen=True, slots=True)
class Credential:
    """A key as it was presented, with the model id that came along in ``Basic``."""

    key: str = field(repr=False)
    model_id: str | None = None


def credential_of(headers: Headers) -> Credential | None:
    """Read the credential out of the headers of a call; ``None`` when there is none.

    Raises:
        CredentialError: There are several, or what is there is not one.
    """
    found = [
        (name, value)
        for name in ("authorization", "auth-token-bin")
        for value in headers.get(name, ())
        if value
    ]
    if not found:
        return None
    if len(found) > 1:
        raise CredentialError(Refusal.AMBIGUOUS)
    name, value = found[0]
    text = _text(value)
    if name == "auth-token-bin":
        return Credential(text)
    scheme, _, parameter = text.partition(" ")
    match scheme.lower():
        case "bearer":
            return Credential(parameter.strip(" "))
        case "basic":
            return _basic(parameter.strip(" "))
        case _:
            raise CredentialError(Refusal.MALFORMED)


def credential_in(payload: bytes) -> Credential:
    """Read the credential out of the payload of a classic handshake.

    Raises:
        CredentialError: It is neither a key nor a serialized ``BasicAuth``.
    """
    if len(payload) > _MAX_CREDENTIAL_CHARS:
        raise CredentialError(Refusal.MALFORMED)
    if payload.startswith(KEY_PREFIX.encode("ascii")):
        return Credential(_text(payload))
    try:
        basic = flight.BasicAuth.deserialize(payload)
    except (ArrowException, OSError) as error:
        raise CredentialError(Refusal.MALFORMED) from error
    return Credential(_text(basic.password), _text(basic.username))


def _basic(parameter: str) -> Credential:
    # Some clients leave out the padding.
    digits = parameter.rstrip("=")
    try:
        decoded = _text(base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True))
    except ValueError as error:
        raise CredentialError(Refusal.MALFORMED) from error
    # A model id may hold colons, a key never does.
    model_id, _, key = decoded.rpartition(":")
    return Credential(key, model_id)


def _text(value: str | bytes) -> str:
    if len(value) > _MAX_CREDENTIAL_CHARS:
        raise CredentialError(Refusal.MALFORMED)
    try:
        return value if isinstance(value, str) else value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CredentialError(Refusal.MALFORMED) from error
