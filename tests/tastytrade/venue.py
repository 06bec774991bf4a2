"""A tastytrade of our own: OAuth, the REST calls the SDK makes, and dxLink, on a port of its own.

It runs in a thread with an event loop; a test tells it what to send and how to misbehave, and waits
for what the client did. What a connection was told and asked is kept.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from tests.tastytrade import dxlink_wire
from tests.tastytrade.dxfeed_events import Event, equity, future

PATIENCE_SECONDS: Final = 30.0
CLIENT_SECRET: Final = "client-secret-canary"
REFRESH_TOKEN: Final = "refresh-token-canary"
ACCESS_TOKEN: Final = "access-token-canary"
QUOTE_TOKEN: Final = "quote-token-canary"
CANARIES: Final = (CLIENT_SECRET, REFRESH_TOKEN, ACCESS_TOKEN, QUOTE_TOKEN)


class Layout(Enum):
    """How a channel's fields are laid out."""

    AS_ASKED = "as asked"
    REVERSED = "reversed"
    UNSAID = "as asked, and FEED_CONFIG does not say so"


class Handshake(Enum):
    """What becomes of a connection's beginning."""

    WELCOME = "welcome"
    TOKEN_REFUSED = "token refused"
    NO_AUTH_STATE = "no AUTH_STATE"


@dataclass
class Manners:
    """How the venue treats whoever comes next; a test changes what it likes."""

    failures: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """Answers by path: a status and a body; bytes are sent as they are."""
    handshake: Handshake = Handshake.WELCOME
    layout: Layout = Layout.AS_ASKED
    left_out: frozenset[str] = frozenset()
    """Fields that FEED_CONFIG does not give although they were asked for."""
    delayed: bool = False
    expires_in: int = 900
    open_markets: frozenset[str] = frozenset({"CME", "Equity"})
    futures: list[dict[str, Any]] = field(default_factory=list)
    equities: list[dict[str, Any]] = field(default_factory=list)


def usual_manners() -> Manners:
    futures = [
        future(code, month, expires, active=month == "Z6")
        for code in ("MES", "MNQ", "NQ")
        for month, expires in (("Z6", "2026-12-18"), ("H7", "2027-03-19"))
    ]
    equities = [equity(symbol, is_index=symbol == "VIX") for symbol in ("SPY", "QQQ", "VIX")]
    return Manners(futures=futures, equities=equities)


@dataclass
class Connection:
    """One websocket, from the server's side."""

    writer: asyncio.StreamWriter
    received: list[dict[str, Any]] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    fields: dict[str, list[str]] = field(default_factory=dict)
    subscribed: dict[str, dict[str, Any]] = field(default_factory=dict)
    closed: bool = False

    def send(self, **message: Any) -> None:
        self.writer.write(dxlink_wire.frame(json.dumps(message).encode()))

    def follows(self, kind: str, *symbols: str) -> bool:
        return not self.closed and set(symbols) <= self.subscribed.get(kind, {}).keys()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


class Venue:
    """The simulated tastytrade; as a context, it listens until the block ends."""

    def __init__(self, manners: Manners | None = None) -> None:
        self.manners = manners or usual_manners()
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 22))
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def open_connections(self) -> list[Connection]:
        return [connection for connection in self.connections if not connection.closed]

    def wait_for(self, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until something the client did makes ``condition`` true."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds), "the client did not"

    def wait_for_subscription(self, kind: str, *symbols: str) -> None:
        self.wait_for(lambda: any(one.follows(kind, *symbols) for one in self.connections))

    def send(self, kind: str, *events: Event) -> None:
        """Send events in one frame, on every connection that follows their symbols."""
        self._call(self._send(kind, events))

    def send_raw(self, payload: bytes) -> None:
        """Send a text frame as it is to every open connection."""
        self._call(self._send_raw(dxlink_wire.frame(payload)))

    def send_message(self, **message: Any) -> None:
        self.send_raw(json.dumps(message).encode())

    def send_bytes(self, data: bytes) -> None:
        """Send bytes that need be no frame."""
        self._call(self._send_raw(data))

    def close(self, code: int = 1012, reason: str = "Reconnection is required") -> None:
        """Close every connection in an orderly way."""
        self._call(self._send_raw(dxlink_wire.close_frame(code, reason)))

    def abort(self) -> None:
        """Cut every connection."""
        self._call(self._abort())

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    def _note_change(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _close(self) -> None:
        self._server.close()
        await self._abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0.01)  # transports end a turn of the loop later

    async def _abort(self) -> None:
        for connection in self.open_connections:
            connection.writer.transport.abort()

    async def _send_raw(self, data: bytes) -> None:
        for connection in self.open_connections:
            connection.writer.write(data)
            await connection.writer.drain()

    async def _send(self, kind: str, events: Sequence[Event]) -> None:
        for connection in self.open_connections:
            followed = connection.subscribed.get(kind, {})
            values = [
                event[name]
                for event in events
                if event["eventSymbol"] in followed
                for name in connection.fields[kind]
            ]
            if values:
                channel = connection.channels[kind]
                connection.send(type="FEED_DATA", channel=channel, data=[kind, values])
                with suppress(ConnectionError):
                    await connection.writer.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _read_request(reader)
                self.requests.append(request)
                self._note_change()
                if request.headers.get("upgrade", "").lower() == "websocket":
                    await self._dxlink(request, reader, writer)
                    break
                status, body = self._answer(request)
                writer.write(_response(status, body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()

    def _answer(self, request: Request) -> tuple[int, Any]:
        failure = self.manners.failures.get(request.path)
        if failure is not None:
            return failure
        if request.path == "/oauth/token":
            return self._log_in(json.loads(request.body))
        if request.headers.get("authorization") != f"Bearer {ACCESS_TOKEN}":
            return 401, {"error": {"code": "invalid_token", "message": "Unauthorized"}}
        if request.path == "/api-quote-tokens":
            place = "delayed" if self.manners.delayed else "realtime"
            url = f"ws://127.0.0.1:{self._port}/{place}"
            return 200, {"data": {"token": QUOTE_TOKEN, "dxlink-url": url, "level": "api"}}
        if request.path == "/instruments/futures":
            asked = request.query.get("product-code[]", [])
            return _page([one for one in self.manners.futures if one["product-code"] in asked])
        if request.path == "/instruments/equities":
            asked = request.query.get("symbol[]", [])
            return _page([one for one in self.manners.equities if one["symbol"] in asked])
        if request.path == "/market-time/sessions/current":
            return self._sessions(request.query["instrument-collections[]"])
        return 404, {"error": {"code": "not_found", "message": request.path}}

    def _log_in(self, body: dict[str, str]) -> tuple[int, Any]:
        if body["client_secret"] != CLIENT_SECRET:
            return 401, {"error_code": "invalid_client", "error_description": "Unknown client"}
        if body["refresh_token"] != REFRESH_TOKEN:
            return 400, {"error_code": "invalid_grant", "error_description": "Grant revoked"}
        lifetime = self.manners.expires_in
        return 200, {
            "access_token": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": lifetime,
        }

    def _sessions(self, markets: list[str]) -> tuple[int, Any]:
        states = {True: "Open", False: "Closed"}
        items = [
            {"instrument-collection": market, "state": states[market in self.manners.open_markets]}
            for market in markets
        ]
        return 200, {"data": {"items": items}}

    async def _dxlink(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        key = dxlink_wire.accept_key(request.headers["sec-websocket-key"])
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {key}\r\n\r\n".encode()
        )
        connection = Connection(writer)
        self.connections.append(connection)
        try:
            while True:
                opcode, payload = await dxlink_wire.read(reader)
                if opcode == dxlink_wire.CLOSE:
                    writer.write(dxlink_wire.frame(payload, dxlink_wire.CLOSE))
                    return
                if opcode == dxlink_wire.PING:
                    writer.write(dxlink_wire.frame(payload, dxlink_wire.PONG))
                if opcode == dxlink_wire.TEXT:
                    self._obey(connection, json.loads(payload))
                await writer.drain()
                self._note_change()
        finally:
            connection.closed = True
            self._note_change()

    def _obey(self, connection: Connection, message: dict[str, Any]) -> None:
        connection.received.append(message)
        channel = message["channel"]
        match message["type"]:
            case "SETUP":
                connection.send(
                    type="SETUP",
                    channel=0,
                    keepaliveTimeout=60,
                    acceptKeepaliveTimeout=60,
                    version="1.0-1.2.1-20240722-153442",
                )
                if self.manners.handshake is not Handshake.NO_AUTH_STATE:
                    connection.send(type="AUTH_STATE", channel=0, state="UNAUTHORIZED")
            case "AUTH":
                refused = self.manners.handshake is Handshake.TOKEN_REFUSED
                good = message["token"] == QUOTE_TOKEN and not refused
                state = "AUTHORIZED" if good else "UNAUTHORIZED"
                connection.send(type="AUTH_STATE", channel=0, state=state)
            case "CHANNEL_REQUEST":
                connection.send(
                    type="CHANNEL_OPENED",
                    channel=channel,
                    service="FEED",
                    parameters={"contract": "AUTO", "subFormat": "LIST"},
                )
            case "FEED_SETUP":
                self._configure(connection, channel, message)
            case "FEED_SUBSCRIPTION":
                for one in message.get("add", ()):
                    connection.subscribed.setdefault(one["type"], {})[one["symbol"]] = one
                for one in message.get("remove", ()):
                    connection.subscribed.get(one["type"], {}).pop(one["symbol"], None)

    def _configure(self, connection: Connection, channel: int, message: dict[str, Any]) -> None:
        ((kind, fields),) = message["acceptEventFields"].items()
        if self.manners.layout is Layout.REVERSED:
            fields = fields[::-1]
        fields = [name for name in fields if name not in self.manners.left_out]
        connection.channels[kind] = channel
        connection.fields[kind] = fields
        period = message["acceptAggregationPeriod"]
        said: dict[str, Any] = {"dataFormat": "COMPACT", "aggregationPeriod": period}
        connection.send(type="FEED_CONFIG", channel=channel, **said)
        if self.manners.layout is not Layout.UNSAID:
            # As the real one does: the fields come in a second message, before the first data.
            said["eventFields"] = {kind: fields}
            connection.send(type="FEED_CONFIG", channel=channel, **said)


def _page(items: list[dict[str, Any]]) -> tuple[int, Any]:
    pagination = {"per-page": 250, "page-offset": 0, "total-pages": 1}
    return 200, {"data": {"items": items}, "pagination": pagination}


def _response(status: int, body: Any) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, bytes) else "application/json"
    head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    pairs = (line.split(":", 1) for line in head[1:] if ":" in line)
    headers = {name.lower(): value.strip() for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    return Request(method, parts.path, parse_qs(parts.query), headers, body)
