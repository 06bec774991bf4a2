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

Most calls bring a key that was accepted a moment ago; they are let in at once. Any other credential
is looked up when the handler asks who is calling (``call_of``): only there pyarrow tells the
client's address, by which failures are counted and limited. Methods without such a handler are
refused before they begin.

A server needs both halves::

    authenticator = Authenticator(key_store)
    FlightServerBase(
        location,
        auth_handler=HandshakeHandler(authenticator),
        middleware={MIDDLEWARE_KEY: AuthMiddlewareFactory(authenticator)},
    )
"""

import threading
from collections import Counter
from typing import Final, Protocol, final

import structlog
from pyarrow import ArrowException, flight

from flight_server.calls import Call, Calls
from flight_server.credentials import Credential, Headers, credential_in, credential_of
from flight_server.errors import (
    BusyError,
    CredentialError,
    Refusal,
    to_flight_error,
    traceback_of,
)
from flight_server.keys import Identity, KeyStore
from flight_server.limits import FailedLogins, address_of
from storage.ports import Clock, SystemClock

MIDDLEWARE_KEY: Final = "auth"
"""The name under which handlers find the middleware of their call."""
_LOG: Final = structlog.get_logger(__name__)
_UNKNOWN_ADDRESS: Final = "unknown"
_KNOWS_ADDRESS: Final = frozenset(
    {
        flight.FlightMethod.LIST_FLIGHTS,
        flight.FlightMethod.GET_FLIGHT_INFO,
        flight.FlightMethod.DO_GET,
        flight.FlightMethod.DO_PUT,
        flight.FlightMethod.DO_ACTION,
        flight.FlightMethod.LIST_ACTIONS,
    }
)
"""Methods whose handlers ask who is calling; ``get_schema`` could only answer with a traceback."""


@final
class Authenticator:
    """Checks credentials against the store; logs, counts and limits the refused ones."""

    def __init__(self, keys: KeyStore, clock: Clock | None = None) -> None:
        self._keys = keys
        self._refused: Counter[Refusal] = Counter()
        self._lock = threading.Lock()
        self.failures = FailedLogins(clock or SystemClock())

    def recognise(self, credential: Credential) -> Identity | None:
        """Tell who presents this credential if it was accepted before; ``None`` says nothing."""
        identity = self._keys.recognise(credential.key)
        if identity is None or credential.model_id not in (None, identity.model_id):
            return None
        return identity

    def authenticate(self, credential: Credential) -> Identity:
        """Tell who presents this credential, or raise ``CredentialError``."""
        identity = self._keys.verify(credential.key)
        if credential.model_id not in (None, identity.model_id):
            raise CredentialError(Refusal.WRONG_MODEL)
        return identity

    def refuse(
        self, error: Exception, address: str = _UNKNOWN_ADDRESS
    ) -> flight.FlightUnauthenticatedError:
        """Log and count why a call is not let in; returns what the client gets to see.

        An error that is not about credentials refuses the call too: who can't be checked stays out.
        """
        refusal = error.refusal if isinstance(error, CredentialError) else Refusal.UNCHECKED
        with self._lock:
            self._refused[refusal] += 1
        within_limit = self.failures.note(address)
        if refusal is Refusal.UNCHECKED:
            _LOG.error("credentials can't be checked", exception=traceback_of(error))
        elif within_limit:  # beyond, whoever fails would also fill our log
            _LOG.warning("credential refused", refusal=refusal.value, address=address)
        return to_flight_error(CredentialError(refusal))

    def refused(self) -> dict[Refusal, int]:
        """How many calls were refused since the start, by cause."""
        with self._lock:
            return dict(self._refused)


@final
class AuthMiddleware(flight.ServerMiddleware):  # type: ignore[misc]
    """One RPC: who calls, and that it ends."""

    def __init__(
        self,
        authenticator: Authenticator,
        calls: Calls,
        method: flight.FlightMethod,
        started: float,
    ) -> None:
        self._authenticator = authenticator
        self._calls = calls
        self._method = method
        self._started = started
        self._credential: Credential | Exception | None = None
        self._answer: dict[str, str] = {}
        self._call: Call | None = None

    def present(self, credential: Credential | Exception) -> None:
        """Let in who is known; keep other credentials, or what is wrong with them, for later.

        Raises:
            FlightError: This method has no later, and the credential is not accepted.
        """
        self._credential = credential
        if isinstance(credential, Credential):
            known = self._authenticator.recognise(credential)
            if known is not None:
                self._call = self._calls.admit(known, self._method, self._started)
                self._answer_handshake(credential)
                return
        if self._method not in _KNOWS_ADDRESS:
            self._admit(_UNKNOWN_ADDRESS)

    def call(self, context: flight.ServerCallContext) -> Call:
        """Return the call, whose key is checked by then.

        Raises:
            FlightError: The credential is not accepted, or its address may not try any more.
        """
        return self._call or self._admit(address_of(context.peer()))

    def require_welcome(self) -> None:
        """Check once more the key of a call that was let in.

        Raises:
            CredentialError: It is not accepted any more.
        """
        assert isinstance(self._credential, Credential)  # noqa: S101 - or it was not let in
        self._authenticator.authenticate(self._credential)

    def _admit(self, address: str) -> Call:
        credential = self._credential
        try:
            if not isinstance(credential, Credential):
                raise credential or CredentialError(Refusal.MISSING)
            self._authenticator.failures.require_below_limit(address)
            identity = self._authenticator.authenticate(credential)
            self._call = self._calls.admit(identity, self._method, self._started)
        except BusyError as error:
            raise to_flight_error(error) from None
        except Exception as error:  # noqa: BLE001 - any other would be sent with its traceback
            raise self._authenticator.refuse(error, address) from None
        self._answer_handshake(credential)
        return self._call

    def _answer_handshake(self, credential: Credential) -> None:
        if self._method is flight.FlightMethod.HANDSHAKE:
            self._answer = {"authorization": f"Bearer {credential.key}"}

    def sending_headers(self) -> dict[str, str]:
        """The bearer token in answer to a handshake; nothing otherwise."""
        return self._answer

    def call_completed(self, exception: BaseException | None) -> None:  # noqa: ARG002
        """Note the end, which pyarrow tells whatever became of the client."""
        self._calls.leave(self._method, self._call)


@final
class AuthMiddlewareFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets an RPC through to its handler only with a valid key, and only while there is room."""

    def __init__(self, authenticator: Authenticator, calls: Calls | None = None) -> None:
        self._authenticator = authenticator
        self._calls = calls or Calls()

    def start_call(self, info: flight.CallInfo, headers: Headers) -> AuthMiddleware:
        """Begin one RPC; raises ``FlightError`` and nothing else."""
        try:
            started = self._calls.enter(info.method)
        except BusyError as error:
            raise to_flight_error(error) from None
        middleware = AuthMiddleware(self._authenticator, self._calls, info.method, started)
        try:
            credential = _presented(headers)
            # A handshake without a header has its credential in the payload.
            if credential is not None or info.method is not flight.FlightMethod.HANDSHAKE:
                middleware.present(credential or CredentialError(Refusal.MISSING))
        except Exception as error:  # noqa: BLE001 - any other would be sent with its traceback
            middleware.call_completed(error)
            raise to_flight_error(error) from None
        return middleware


def _presented(headers: Headers) -> Credential | CredentialError | None:
    try:
        return credential_of(headers)
    except CredentialError as error:
        return error


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


def call_of(context: flight.ServerCallContext) -> Call:
    """Return the call that ``context`` belongs to.

    Raises:
        FlightError: Its credential is not accepted.
    """
    middleware = context.get_middleware(MIDDLEWARE_KEY)
    if not isinstance(middleware, AuthMiddleware):
        raise to_flight_error(CredentialError(Refusal.MISSING))
    return middleware.call(context)


def require_welcome(call: Call) -> None:
    """Check the key of a call once more that has lasted for a while, and still does.

    Raises:
        CredentialError: It is not accepted any more.
    """
    middleware = None if call.context is None else call.context.get_middleware(MIDDLEWARE_KEY)
    if not isinstance(middleware, AuthMiddleware):
        raise CredentialError(Refusal.MISSING)
    middleware.require_welcome()


def identity_of(context: flight.ServerCallContext) -> Identity:
    """Tell who makes the call that ``context`` belongs to; raises as ``call_of``."""
    return call_of(context).caller
