import base64
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import flight

from flight_server.auth import (
    MIDDLEWARE_KEY,
    Authenticator,
    AuthMiddlewareFactory,
    HandshakeHandler,
    identity_of,
)
from flight_server.credentials import Credential, Headers, credential_in, credential_of
from flight_server.errors import CredentialError, Refusal, to_flight_error
from flight_server.keys import KeyStore, NewKey, Scope
from storage.ports import SystemClock

REPOSITORY = Path(__file__).parents[2]
MODEL = "desk:bot-1"
REVOCATION_SECONDS = 5
"""Promised to users."""


class WhoServer(flight.FlightServerBase):  # type: ignore[misc]
    """Answers every method with the model id of its caller."""

    def __init__(self, authenticator: Authenticator) -> None:
        super().__init__(
            "grpc://127.0.0.1:0",
            auth_handler=HandshakeHandler(authenticator),
            middleware={MIDDLEWARE_KEY: AuthMiddlewareFactory(authenticator)},
        )
        self.handled = 0

    def who(self, context: flight.ServerCallContext) -> str:
        model_id = identity_of(context).model_id
        self.handled += 1
        return model_id

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Any:
        try:
            yield self.who(context).encode()
            if action.type == "fail":
                raise RuntimeError("CANARY from the handler")
        except Exception as error:  # noqa: BLE001 - as every handler must
            raise to_flight_error(error) from None

    def do_get(self, context: flight.ServerCallContext, _: flight.Ticket) -> Any:
        return flight.RecordBatchStream(pa.table({"who": [self.who(context)]}))

    def list_flights(self, context: flight.ServerCallContext, _: bytes) -> Any:
        self.who(context)
        return iter(())

    def list_actions(self, context: flight.ServerCallContext) -> Any:
        return [(self.who(context), "")]

    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> Any:
        return flight.FlightInfo(pa.schema([(self.who(context), pa.int8())]), descriptor, [])

    def get_schema(self, context: flight.ServerCallContext, _: flight.FlightDescriptor) -> Any:
        return flight.SchemaResult(pa.schema([(self.who(context), pa.int8())]))

    def do_put(
        self,
        context: flight.ServerCallContext,
        _: flight.FlightDescriptor,
        reader: Any,
        writer: Any,
    ) -> None:
        reader.read_all()
        writer.write(self.who(context).encode())


class Handshake(flight.ClientAuthHandler):  # type: ignore[misc]
    """Sends a payload and repeats the token it gets."""

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self.payload = payload
        self.token = b""

    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        outgoing.write(self.payload)
        self.token = incoming.read()

    def get_token(self) -> bytes:
        return self.token


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyStore]:
    with KeyStore(tmp_path, SystemClock()) as store:
        yield store


@pytest.fixture
def new(keys: KeyStore) -> NewKey:
    return keys.create(MODEL, scopes=[Scope.READ_REALTIME])


@pytest.fixture
def authenticator(keys: KeyStore) -> Authenticator:
    return Authenticator(keys)


@pytest.fixture
def server(authenticator: Authenticator) -> Iterator[WhoServer]:
    server = WhoServer(authenticator)
    yield server
    server.shutdown()


@pytest.fixture
def client(server: WhoServer) -> Iterator[flight.FlightClient]:
    with closing(flight.connect(("127.0.0.1", server.port))) as client:
        yield client


def with_header(*values: str, name: str = "authorization") -> flight.FlightCallOptions:
    return flight.FlightCallOptions(headers=[(name.encode(), value.encode()) for value in values])


def bearer(key: str) -> flight.FlightCallOptions:
    return with_header(f"Bearer {key}")


def basic(model_id: str, key: str) -> str:
    return "Basic " + base64.b64encode(f"{model_id}:{key}".encode()).decode()


def who(client: flight.FlightClient, options: flight.FlightCallOptions | None = None) -> str:
    (result,) = client.do_action("who", options=options)
    return str(result.body.to_pybytes().decode())


def put(client: flight.FlightClient, options: flight.FlightCallOptions) -> Any:
    table = pa.table({"n": [1]})
    descriptor = flight.FlightDescriptor.for_path("ticks")
    writer, reader = client.do_put(descriptor, table.schema, options=options)
    with closing(writer):
        writer.write_table(table)
        writer.done_writing()
        return reader.read()


DESCRIPTOR = flight.FlightDescriptor.for_path("ticks")
RPCS: dict[str, Callable[[flight.FlightClient, flight.FlightCallOptions], Any]] = {
    "do_action": who,
    "do_get": lambda client, options: client.do_get(flight.Ticket(b""), options).read_all(),
    "do_put": put,
    "list_flights": lambda client, options: list(client.list_flights(options=options)),
    "list_actions": lambda client, options: client.list_actions(options),
    "get_flight_info": lambda client, options: client.get_flight_info(DESCRIPTOR, options),
    "get_schema": lambda client, options: client.get_schema(DESCRIPTOR, options),
}


class TestWaysIn:
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_a_bearer_header(self, client: flight.FlightClient, new: NewKey, scheme: str) -> None:
        assert who(client, with_header(f"{scheme} {new.key}")) == MODEL

    def test_a_basic_header(self, client: flight.FlightClient, new: NewKey) -> None:
        assert who(client, with_header(basic(MODEL, new.key))) == MODEL

    def test_a_basic_header_without_padding(
        self, client: flight.FlightClient, keys: KeyStore
    ) -> None:
        for model_id in ("a", "ab", "abc"):
            header = basic(model_id, keys.create(model_id, scopes=[Scope.SQL]).key).rstrip("=")
            assert who(client, with_header(header)) == model_id

    def test_a_basic_handshake_answers_with_a_bearer_token(
        self, client: flight.FlightClient, new: NewKey
    ) -> None:
        header = client.authenticate_basic_token(MODEL, new.key)
        assert header == (b"authorization", f"Bearer {new.key}".encode())
        assert who(client, flight.FlightCallOptions(headers=[header])) == MODEL

    def test_a_classic_handshake_with_basic_auth(
        self, client: flight.FlightClient, new: NewKey
    ) -> None:
        client.authenticate(Handshake(flight.BasicAuth(MODEL, new.key).serialize()))
        assert who(client) == MODEL

    def test_a_classic_handshake_with_the_bare_key(
        self, client: flight.FlightClient, new: NewKey
    ) -> None:
        client.authenticate(Handshake(new.key.encode()))
        assert who(client) == MODEL

    @pytest.mark.parametrize("rpc", RPCS)
    def test_every_method_lets_a_valid_key_in(
        self, client: flight.FlightClient, new: NewKey, server: WhoServer, rpc: str
    ) -> None:
        RPCS[rpc](client, bearer(new.key))
        assert server.handled == 1

    def test_only_a_handshake_is_answered_with_the_key(
        self, authenticator: Authenticator, new: NewKey
    ) -> None:
        factory = AuthMiddlewareFactory(authenticator)
        headers = {"authorization": [f"Bearer {new.key}"]}
        middleware = factory.start_call(_Call(flight.FlightMethod.DO_GET), headers)
        assert middleware is not None
        assert middleware.sending_headers() == {}

    def test_a_new_key_is_known_at_the_next_call(
        self, client: flight.FlightClient, keys: KeyStore, new: NewKey
    ) -> None:
        assert who(client, bearer(new.key)) == MODEL
        later = keys.create("later", scopes=[Scope.SQL])
        assert who(client, bearer(later.key)) == "later"


class TestRefused:
    @pytest.mark.parametrize("rpc", RPCS)
    def test_no_method_is_handled_without_a_key(
        self, client: flight.FlightClient, server: WhoServer, rpc: str
    ) -> None:
        # pyarrow's client has no better than an OSError for what get_schema is refused with.
        with pytest.raises((flight.FlightUnauthenticatedError, OSError), match="Unauthenticated"):
            RPCS[rpc](client, flight.FlightCallOptions())
        assert server.handled == 0

    @pytest.mark.parametrize(
        ("header", "refusal"),
        [
            ("Bearer", Refusal.MALFORMED),
            ("Bearer tf_abc", Refusal.MALFORMED),
            ("Bearer " + "x" * 600, Refusal.MALFORMED),
            ("Digest abc", Refusal.MALFORMED),
            ("Basic !!!!", Refusal.MALFORMED),
            ("Basic " + base64.b64encode(b"\xff\xfe:x").decode(), Refusal.MALFORMED),
            ("Basic " + base64.b64encode(b"nobody").decode(), Refusal.MALFORMED),
            ("", Refusal.MISSING),
        ],
    )
    def test_a_header_that_holds_no_key(
        self,
        client: flight.FlightClient,
        authenticator: Authenticator,
        header: str,
        refusal: Refusal,
    ) -> None:
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, with_header(header))
        assert authenticator.refused() == {refusal: 1}

    def test_a_key_of_another_service(
        self, client: flight.FlightClient, authenticator: Authenticator, tmp_path: Path
    ) -> None:
        with KeyStore(tmp_path / "other", SystemClock()) as other:
            foreign = other.create(MODEL, scopes=[Scope.ADMIN])
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, bearer(foreign.key))
        assert authenticator.refused() == {Refusal.UNKNOWN: 1}

    def test_an_expired_key(
        self, client: flight.FlightClient, keys: KeyStore, authenticator: Authenticator
    ) -> None:
        clock = SystemClock()
        expiry = clock.now() + 50_000
        short = keys.create(MODEL, scopes=[Scope.SQL], expires_at=expiry)
        clock.sleep(max(0, expiry - clock.now()) / 1e6 + 0.001)
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, bearer(short.key))
        assert authenticator.refused() == {Refusal.EXPIRED: 1}

    def test_a_revoked_key(
        self,
        client: flight.FlightClient,
        keys: KeyStore,
        new: NewKey,
        authenticator: Authenticator,
    ) -> None:
        who(client, bearer(new.key))
        keys.revoke(new.id)
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, bearer(new.key))
        assert authenticator.refused() == {Refusal.REVOKED: 1}

    @pytest.mark.parametrize("model_id", ["desk", "", "other", "desk:bot-1 "])
    def test_a_good_key_under_another_model_id(
        self,
        client: flight.FlightClient,
        new: NewKey,
        authenticator: Authenticator,
        model_id: str,
    ) -> None:
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, with_header(basic(model_id, new.key)))
        with pytest.raises(flight.FlightUnauthenticatedError):
            client.authenticate_basic_token(model_id, new.key)
        with pytest.raises(flight.FlightUnauthenticatedError):
            client.authenticate(Handshake(flight.BasicAuth(model_id, new.key).serialize()))
        assert authenticator.refused() == {Refusal.WRONG_MODEL: 3}

    def test_two_headers_even_if_both_are_good(
        self, client: flight.FlightClient, new: NewKey, authenticator: Authenticator
    ) -> None:
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, with_header(f"Bearer {new.key}", f"Bearer {new.key}"))
        client.authenticate(Handshake(new.key.encode()))
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, bearer(new.key))
        assert authenticator.refused() == {Refusal.AMBIGUOUS: 2}

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"nonsense",
            b"\xff" * 40,
            b"tf_",
            b"tf_\xff",
            b"tf_" + b"x" * 5_000_000,
            flight.BasicAuth(MODEL, "wrong").serialize(),
        ],
        ids=["empty", "text", "bytes", "prefix", "prefix and bytes", "huge", "wrong"],
    )
    def test_a_handshake_without_a_good_key(
        self, client: flight.FlightClient, payload: bytes
    ) -> None:
        with pytest.raises(flight.FlightUnauthenticatedError, match="invalid credentials"):
            client.authenticate(Handshake(payload))

    def test_a_token_that_no_handshake_gave(self, client: flight.FlightClient) -> None:
        options = flight.FlightCallOptions(headers=[(b"auth-token-bin", b"\xff\x00 made up")])
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, options)

    def test_a_handshake_without_a_payload_yields_nothing(
        self, client: flight.FlightClient
    ) -> None:
        class Silent(flight.ClientAuthHandler):  # type: ignore[misc]
            def authenticate(self, outgoing: Any, incoming: Any) -> None:
                pass

            def get_token(self) -> bytes:
                return b""

        client.authenticate(Silent())
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client)

    def test_a_closed_store_lets_nobody_in(
        self,
        client: flight.FlightClient,
        keys: KeyStore,
        new: NewKey,
        authenticator: Authenticator,
    ) -> None:
        who(client, bearer(new.key))
        keys.close()
        with pytest.raises(flight.FlightUnauthenticatedError):
            who(client, bearer(new.key))
        assert authenticator.refused() == {Refusal.UNCHECKED: 1}

    def test_a_bug_in_the_check_lets_nobody_in_and_shows_nothing(
        self,
        client: flight.FlightClient,
        keys: KeyStore,
        new: NewKey,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def broken(_: str) -> None:
            raise ZeroDivisionError("CANARY")

        monkeypatch.setattr(keys, "verify", broken)
        for call in (
            lambda: who(client, bearer(new.key)),
            lambda: client.authenticate(Handshake(new.key.encode())),
        ):
            with pytest.raises(flight.FlightUnauthenticatedError) as caught:
                call()
            assert "CANARY" not in str(caught.value)
            assert "Traceback" not in str(caught.value)

    def test_a_handler_behind_no_middleware_has_no_caller(self) -> None:
        class Open(WhoServer):
            def __init__(self) -> None:
                flight.FlightServerBase.__init__(self, "grpc://127.0.0.1:0")
                self.handled = 0

        server = Open()
        with (
            closing(flight.connect(("127.0.0.1", server.port))) as client,
            pytest.raises(flight.FlightUnauthenticatedError),
        ):
            who(client)
        server.shutdown()


class TestTogether:
    def test_another_process_revokes_within_the_promised_time(
        self, client: flight.FlightClient, new: NewKey, tmp_path: Path
    ) -> None:
        script = (
            "import pathlib, sys\n"
            "from flight_server.keys import KeyStore\n"
            "from storage.ports import SystemClock\n"
            "KeyStore(pathlib.Path(sys.argv[1]), SystemClock()).revoke(sys.argv[2])\n"
        )
        assert who(client, bearer(new.key)) == MODEL
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), new.id], cwd=REPOSITORY, check=True
        )
        deadline = time.monotonic() + REVOCATION_SECONDS
        refused = False
        while not refused and time.monotonic() < deadline:
            try:
                who(client, bearer(new.key))
            except flight.FlightUnauthenticatedError:
                refused = True
            time.sleep(0.02)  # nothing tells a client that a key was revoked
        assert refused

    def test_callers_at_the_same_time_are_not_mixed_up(
        self, server: WhoServer, keys: KeyStore
    ) -> None:
        made = {f"bot-{i}": keys.create(f"bot-{i}", scopes=[Scope.SQL]).key for i in range(6)}
        start = threading.Barrier(6)

        def calls(key: str) -> set[str]:
            with closing(flight.connect(("127.0.0.1", server.port))) as client:
                start.wait()
                return {who(client, bearer(key)) for _ in range(40)}

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(calls, made.values()))
        assert answers == [{model_id} for model_id in made]

    def test_no_key_shows_in_logs_or_errors(
        self,
        client: flight.FlightClient,
        server: WhoServer,
        keys: KeyStore,
        authenticator: Authenticator,
        new: NewKey,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        secret = new.key.split("_")[2][:30]
        encoded = base64.b64encode(new.key.encode()).decode()[8:40]
        wrong = new.key[:-1] + ("A" if new.key[-1] != "A" else "B")
        shown = [repr(it) for it in (new, authenticator, keys, keys.list(), server)]
        shown += [repr(keys.verify(new.key)), repr(Credential(new.key))]

        def attempt(call: Callable[[], object]) -> None:
            with pytest.raises(flight.FlightError) as caught:
                call()
            shown.append(f"{caught.value!r} {caught.value} {caught.value.extra_info!r}")

        attempt(lambda: list(client.do_action("fail", options=bearer(new.key))))
        attempt(lambda: who(client, bearer(wrong)))
        attempt(lambda: who(client, with_header(basic("other", new.key))))
        attempt(lambda: who(client, with_header(f"Bearer {new.key}", f"Bearer {new.key}")))
        attempt(lambda: client.authenticate_basic_token("other", new.key))
        attempt(lambda: client.authenticate(Handshake(wrong.encode())))
        keys.revoke(new.id)
        attempt(lambda: who(client, bearer(new.key)))
        keys.close()
        attempt(lambda: who(client, bearer(new.key)))

        logged = "".join(capfd.readouterr())
        assert "CANARY from the handler" in logged
        assert "can't be checked" in logged
        for text in (logged, *shown):
            assert secret not in text
            assert encoded not in text
        for text in shown:
            assert "Traceback" not in text
            assert "CANARY" not in text


class _Call:
    """What pyarrow tells a middleware about the call."""

    def __init__(self, method: flight.FlightMethod) -> None:
        self.method = method


class TestAnyInput:
    """Whatever a client sends is a credential or a `CredentialError`, never another error."""

    @given(st.lists(st.text(max_size=60), max_size=3), st.lists(st.binary(max_size=60), max_size=2))
    def test_headers(self, authorization: list[str], token: list[bytes]) -> None:
        headers: Headers = {"authorization": authorization, "auth-token-bin": token}
        try:
            credential = credential_of(headers)
        except CredentialError:
            return
        assert (credential is None) == (not any(authorization) and not any(token))

    @given(st.sampled_from(["Basic", "basic ", "Bearer"]), st.text(max_size=600))
    def test_header_parameters(self, scheme: str, parameter: str) -> None:
        try:
            credential = credential_of({"authorization": [f"{scheme} {parameter}"]})
        except CredentialError:
            return
        assert credential is not None

    @given(st.text(st.characters(exclude_characters=":", codec="utf-8"), max_size=80), st.text())
    def test_basic_takes_apart_what_was_put_together(self, key: str, model_id: str) -> None:
        try:
            raw = f"{model_id}:{key}".encode()
        except UnicodeEncodeError:
            return
        header = "Basic " + base64.b64encode(raw).decode()
        if len(header) <= 512:
            assert credential_of({"authorization": [header]}) == Credential(key, model_id)

    @given(st.binary(max_size=600) | st.binary(max_size=80).map(lambda tail: b"tf_" + tail))
    def test_payloads(self, payload: bytes) -> None:
        with suppress(CredentialError):
            assert isinstance(credential_in(payload).key, str)
