"""Who is calling: every RPC is authenticated here, before its handler runs.

A key may come in three ways; a call may use one of them:

- header ``authorization: Bearer <key>``;
- header ``authorization: Basic base64(<model id>:<key>)``; in a handshake, as
  ``authenticate_basic_token`` makes it, the answer carries the key as a bearer token;
- the classic handshake, whose payload is the key or a serialized ``BasicAuth`` and whose token the
  client repeats in the header ``auth-token-bin``.

The token a handshake hands out is the key itself: the server keeps no sessions, so there is nothing
to expire, to cap or to lose in a restart. A handshake without any credential succeeds and yields
nothing; the next call is refused.

A server needs both halves::

    authenticator = Authenticator(key_store)
    FlightServerBase(
        location,
        auth_handler=HandshakeHandler(authenticator),
        middleware={MIDDLEWARE_KEY: AuthMiddlewareFactory(authenticator)},
    )
"""

import base64
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, final

import structlog
from pyarrow import ArrowException, flight

from flight_server.errors import CredentialError, Refusal, to_flight_error, traceback_of
from flight_server.keys import Identity, KeyStore
from flight_server.tokens import KEY_PREFIX

MIDDLEWARE_KEY: Final = "auth"
"""The name under which handlers find the middleware of their call."""
_MAX_CREDENTIAL_CHARS: Final = 512
"""The longest model id and a key take 184 in base64; anything much longer is not a credential."""
_LOG: Final = structlog.get_logger(__name__)

Headers: TypeAlias = Mapping[str, Sequence[str | bytes]]
"""As pyarrow hands them over: names in lower case, ``-bin`` values as bytes."""


@final
@dataclass(frozen=True, slots=True)
class Credential:
    """A key as it was presented, with the model id that came along in ``Basic``."""

    key: str = field(repr=False)
    model_id: str | None = None


@final
class Authenticator:
    """Checks credentials against the store; logs and counts the refused ones."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._refused: Counter[Refusal] = Counter()
        self._lock = threading.Lock()

    def authenticate(self, credential: Credential) -> Identity:
        """Tell who presents this credential, or raise ``CredentialError``."""
        identity = self._keys.verify(credential.key)
        if credential.model_id not in (None, identity.model_id):
            raise CredentialError(Refusal.WRONG_MODEL)
        return identity

    def refuse(self, error: Exception) -> flight.FlightUnauthenticatedError:
        """Log and count why a call is not let in; returns what the client gets to see.

        An error that is not about credentials refuses the call too: who can't be checked stays out.
        """
        refusal = error.refusal if isinstance(error, CredentialError) else Refusal.UNCHECKED
        with self._lock:
            self._refused[refusal] += 1
        if refusal is Refusal.UNCHECKED:
            _LOG.error("credentials can't be checked", exception=traceback_of(error))
        else:
            _LOG.warning("credential refused", refusal=refusal.value)
        return to_flight_error(CredentialError(refusal))

    def refused(self) -> dict[Refusal, int]:
        """How many calls were refused since the start, by cause."""
        with self._lock:
            return dict(self._refused)


@final
class AuthMiddleware(flight.ServerMiddleware):  # type: ignore[misc]
    """The caller of one RPC."""

    def __init__(self, identity: Identity, answer: dict[str, str]) -> None:
        self.identity = identity
        self._answer = answer

    def sending_headers(self) -> dict[str, str]:
        """The bearer token in answer to a handshake; nothing otherwise."""
        return self._answer


@final
class AuthMiddlewareFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets an RPC through to its handler only with a valid key."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def start_call(self, info: flight.CallInfo, headers: Headers) -> AuthMiddleware | None:
        """Authenticate one RPC; raises ``FlightUnauthenticatedError`` and nothing else."""
        is_handshake = info.method is flight.FlightMethod.HANDSHAKE
        try:
            credential = credential_of(headers)
            if credential is None and is_handshake:
                return None  # it travels in the payload, which HandshakeHandler reads
            if credential is None:
                raise CredentialError(Refusal.MISSING)
            identity = self._authenticator.authenticate(credential)
        # Whatever is no FlightError, pyarrow sends to the client with its traceback.
        except Exception as error:  # noqa: BLE001
            raise self._authenticator.refuse(error) from None
        answer = {"authorization": f"Bearer {credential.key}"} if is_handshake else {}
        return AuthMiddleware(identity, answer)


class _Incoming(Protocol):
    """What pyarrow passes for the client's half of a handshake; it does not export the class."""

    def read(self) -> bytes: ...


class _Outgoing(Protocol):
    """What pyarrow passes for our half of a handshake."""

    def write(self, message: bytes) -> None: ...


@final
class HandshakeHandler(flight.ServerAuthHandler):  # type: ignore[misc]
    """The classic handshake: a key in the payload is answered with the token to repeat."""

    def __init__(self, authenticator: Authenticator) -> None:
        super().__init__()
        self._authenticator = authenticator

    def authenticate(self, outgoing: _Outgoing, incoming: _Incoming) -> None:
        """Conduct the handshake; raises ``FlightUnauthenticatedError`` and nothing else."""
        try:
            payload = incoming.read()
        except (ArrowException, OSError):
            return  # no payload: the credential came in a header, or there is none
        try:
            credential = credential_in(payload)
            self._authenticator.authenticate(credential)
            outgoing.write(credential.key.encode("ascii"))
        except Exception as error:  # noqa: BLE001 - as in AuthMiddlewareFactory.start_call
            raise self._authenticator.refuse(error) from None

    def is_valid(self, token: bytes) -> str:  # noqa: ARG002 - the middleware checks it
        """Let the call through to the middleware, which sees all headers and not just this one."""
        return ""


def identity_of(context: flight.ServerCallContext) -> Identity:
    """Tell who makes the call that ``context`` belongs to."""
    middleware = context.get_middleware(MIDDLEWARE_KEY)
    if not isinstance(middleware, AuthMiddleware):
        raise CredentialError(Refusal.MISSING)
    return middleware.identity


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
