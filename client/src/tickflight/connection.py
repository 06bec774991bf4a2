"""One connection to a server: the calls of Arrow Flight, with our key and our errors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import pyarrow as pa
from pyarrow import flight

from tickflight.errors import (
    ConfigurationError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    map_errors,
)
from tickflight.settings import Settings

_MAX_TIMEOUT_SECONDS: Final = 86_400.0  # gRPC takes no deadline for ever; None does
_SCHEMA_ERROR_KEY: Final = b"tickflight.error"


class Connection:
    """A Flight channel that sends the key with every call; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._header = (b"authorization", b"Bearer " + settings.api_key.encode())
        with map_errors():
            self._client = flight.connect(settings.uri, **_tls(settings))

    def __repr__(self) -> str:
        return f"<Connection {self._settings.uri}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """Where the server is."""
        return self._settings.uri

    def again(self) -> "Connection":
        """Another channel to the same server with the same key."""
        return Connection(self._settings)

    def close(self) -> None:
        """Let the channel go; idempotent."""
        with map_errors():
            self._client.close()

    def get(
        self, ticket: Mapping[str, object], *, timeout: float | None
    ) -> flight.FlightStreamReader:
        """Ask for a stream; the reader's own errors still need ``map_errors``."""
        with map_errors():
            return self._client.do_get(flight.Ticket(_body(ticket)), self._options(timeout))

    def put(
        self, dataset: str, schema: pa.Schema, *, timeout: float | None, job: str | None = None
    ) -> tuple[flight.FlightStreamWriter, flight.FlightMetadataReader]:
        """Open a stream into ``dataset``, past the server's memory where there is a ``job``.

        Its halves' own errors still need ``map_errors``.
        """
        path = (dataset,) if job is None else (dataset, "bulk", job)
        with map_errors():
            writer, reader = self._client.do_put(
                flight.FlightDescriptor.for_path(*path), schema, self._options(timeout)
            )
        return writer, reader

    def action(
        self, name: str, body: Mapping[str, object], *, timeout: float | None
    ) -> dict[str, Any]:
        """Run an action and return its one JSON answer, ``{}`` when it has none.

        Raises:
            TickflightError: as ``tickflight.errors`` lists them.
        """
        with map_errors():
            results = list(
                self._client.do_action(flight.Action(name, _body(body)), self._options(timeout))
            )
        return _answer(name, results[0].body.to_pybytes() if results else b"{}")

    def schema(self, ticket: Mapping[str, object], *, timeout: float | None) -> pa.Schema:
        """The Arrow schema that ``get`` would answer this ticket with; any valid key may ask.

        Raises:
            NotFoundError: there is no such answer; the server says so in the schema's metadata,
                because pyarrow can't send an error here without its traceback.
        """
        descriptor = flight.FlightDescriptor.for_command(_body(ticket))
        with map_errors():
            schema = self._client.get_schema(descriptor, self._options(timeout)).schema
        if not schema.names:
            reason = (schema.metadata or {}).get(_SCHEMA_ERROR_KEY, b"the server knows no schema")
            raise NotFoundError(reason.decode(errors="replace"), field="dataset")
        return schema

    def _options(self, timeout: float | None) -> flight.FlightCallOptions:
        if timeout is None:
            return flight.FlightCallOptions(headers=[self._header])
        if not 0 < timeout <= _MAX_TIMEOUT_SECONDS:
            raise InvalidRequestError(
                f"a timeout must lie between 0 and {_MAX_TIMEOUT_SECONDS:.0f} seconds; None waits"
                " for ever",
                field="timeout",
            )
        return flight.FlightCallOptions(timeout=timeout, headers=[self._header])


def _tls(settings: Settings) -> dict[str, str | bytes]:
    options: dict[str, str | bytes] = {}
    if settings.tls_root_certs is not None:
        options["tls_root_certs"] = _read(settings.tls_root_certs)
    if settings.tls_server_name is not None:
        options["override_hostname"] = settings.tls_server_name
    return options


def _read(certificates: Path) -> bytes:
    try:
        return certificates.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the certificates in {certificates} can't be read: {error.strerror}"
        ) from None


def _body(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _answer(name: str, body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ServerError(f"the server's answer to {name} is not a JSON object")
    return answer
