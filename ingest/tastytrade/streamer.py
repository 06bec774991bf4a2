"""The SDK's streamer, for a network that fails: frames as they came, and never a silent stall.

What differs from ``DXLinkStreamer``, and why:

- Values stay columns in the making; the SDK builds an object an event and drops what its model
  does not like, such as a NaN bid.
- The order of fields follows FEED_CONFIG, and a frame may hold several kinds of events.
- Frames over 64 KiB are read; the SDK's default ends the connection.
- Logging in has a deadline, a refused token is tried once, silence ends the connection.
- An ERROR of a channel is reported and survived; the protocol calls it informational.

It reaches into private parts of the SDK, whose version is pinned for that.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import structlog
from anyio import TASK_STATUS_IGNORED, create_task_group, fail_after
from anyio.abc import TaskStatus
from httpx2 import AsyncClient
from httpx2.websockets import HTTPXWSException, WebSocketDisconnect
from tastytrade import DXLinkStreamer, Session
from tastytrade.streamer import DXLINK_VERSION, MAP_EVENTS
from wsproto.events import CloseConnection, TextMessage

from ingest.errors import SourceError, SourceSilentError
from ingest.ports import Clock
from ingest.tastytrade.account import QUOTE_TOKEN_PATH
from ingest.tastytrade.frames import SIGN_OF_LIFE, Frame

MESSAGE_BYTES_MAX: Final = 16 << 20
"""A hundred thousand trades in one frame; a limit all the same, as what has none fills memory."""
HANDSHAKE_SECONDS: Final = 15.0
"""From SETUP to AUTHORIZED; the reference client gives each of its two answers ten seconds."""
SILENCE_SECONDS: Final = 65.0
"""The feed must send a keepalive within the 60 s we ask for; five more for the way."""
DATA_SILENCE_SECONDS: Final = 120.0
"""An open market gives one of our symbols a trade or a quote every few seconds, day and night."""
KEEPALIVE_SECONDS: Final = 60
_FATAL: Final = {"UNAUTHORIZED", "TIMEOUT", "UNSUPPORTED_PROTOCOL"}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a streamer waits.

    Attributes:
        handshake_seconds: For the log-in to the feed.
        silence_seconds: For the next message, whatever it is.
        data_seconds: For the next event, while the market is open.
    """

    handshake_seconds: float = HANDSHAKE_SECONDS
    silence_seconds: float = SILENCE_SECONDS
    data_seconds: float = DATA_SILENCE_SECONDS


class FeedStreamer(DXLinkStreamer):
    """One connection to the feed; made anew for each, as the SDK's can't be entered twice.

    Args:
        session: Who is logged in.
        receive: Called with each frame, keepalives included.
        clock: Stamps what comes.
        patience: How long to wait.
    """

    def __init__(
        self,
        session: Session,
        receive: Callable[[Frame], Awaitable[None]],
        *,
        clock: Clock,
        patience: Patience,
    ) -> None:
        super().__init__(session)
        # Its queues of objects have no limit; none is used.
        for entrance in self._send.values():
            entrance.close()
        for exit_ in self._recv.values():
            exit_.close()
        self._receive = receive
        self._clock = clock
        self._patience = patience
        self._fields: dict[tuple[int, str], tuple[str, ...]] = {}
        self._token_sent = False
        self._logged_in = False
        self._waiting_since: float | None = None
        self.is_delayed = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        granted = await self.session._get(QUOTE_TOKEN_PATH)  # noqa: SLF001 - see the module
        try:
            self._wss_url, self._auth_token = granted["dxlink-url"], granted["token"]
        except KeyError as error:
            raise SourceError(f"tastytrade's grant for the feed lacks {error}") from None
        self.is_delayed = "delayed" in self._wss_url.lower()
        async with (
            AsyncClient(**self.session.client_kwargs) as client,
            client.websocket(
                self._wss_url,
                keepalive_ping_interval_seconds=None,  # the feed wants messages of its own
                max_message_size_bytes=MESSAGE_BYTES_MAX,
            ) as self._websocket,
            create_task_group() as tasks,
        ):
            await self._shake_hands(tasks.start)
            tasks.start_soon(self._heartbeat)
            tasks.start_soon(self._watch)
            yield self
            tasks.cancel_scope.cancel()

    async def _shake_hands(self, start: Callable[[Any], Awaitable[Any]]) -> None:
        try:
            with fail_after(self._patience.handshake_seconds):
                await start(self._reader)
        except TimeoutError:
            seconds = self._patience.handshake_seconds
            raise SourceError(f"the feed did not log us in within {seconds:.0f} s") from None

    async def _reader(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        await self._websocket.send_json(
            {
                "type": "SETUP",
                "channel": 0,
                "keepaliveTimeout": KEEPALIVE_SECONDS,
                "acceptKeepaliveTimeout": KEEPALIVE_SECONDS,
                "version": DXLINK_VERSION,
            }
        )
        while True:
            text = await self._next()
            received = self._clock.now()
            try:
                message = json.loads(text)
                kind, channel = message["type"], message["channel"]
            except (ValueError, TypeError, KeyError) as error:
                raise SourceError("the feed sent a message that can't be read") from error
            if kind == "FEED_DATA":
                await self._pass_on(channel, message["data"], received)
            elif kind == "AUTH_STATE":
                await self._log_in(message["state"], task_status)
            elif kind == "KEEPALIVE":
                await self._receive(Frame(SIGN_OF_LIFE, (), (), received))
            else:
                self._note(kind, channel, message)

    async def _next(self) -> str:
        """Return the next message, past the method for that, whose timer costs a quarter more."""
        self._waiting_since = self._clock.monotonic()
        event = await self._websocket._receive_event.receive()  # noqa: SLF001 - see the module
        self._waiting_since = None
        match event:
            case TextMessage():
                return event.data
            case HTTPXWSException():
                raise event
            case CloseConnection():
                raise WebSocketDisconnect(event.code, event.reason)
            case _:
                raise SourceError("the feed sent a message that is no text")

    async def _watch(self) -> None:
        """End the connection when nothing comes, as long as it is us who wait."""
        patience = self._patience.silence_seconds
        while True:
            await self._clock.sleep(min(1.0, patience / 4))
            since = self._waiting_since
            if since is not None and self._clock.monotonic() - since >= patience:
                raise SourceSilentError(f"the feed said nothing for {patience:.0f} s")

    async def _pass_on(self, channel: int, data: Sequence[Any], received: int) -> None:
        if len(data) % 2:
            raise SourceError("the feed sent events of a kind it does not name")
        for kind, values in zip(data[::2], data[1::2], strict=True):
            fields = self._fields.get((channel, kind)) or self._asked_for(channel, kind)
            if len(values) % len(fields):
                raise SourceError(f"the feed sent {kind} events that end in the middle")
            await self._receive(Frame(kind, fields, values, received))

    def _asked_for(self, channel: int, kind: str) -> tuple[str, ...]:
        """Return the fields of a channel whose configuration names none: as asked."""
        if kind not in MAP_EVENTS:
            raise SourceError(f"the feed sent {str(kind)[:40]} events, which nobody asked for")
        fields = tuple(MAP_EVENTS[kind].model_json_schema()["properties"])
        self._fields[channel, kind] = fields
        return fields

    async def _log_in(self, state: str, task_status: TaskStatus[None]) -> None:
        if state == "AUTHORIZED":
            if not self._logged_in:
                self._logged_in = True
                task_status.started()
        elif self._token_sent:
            raise SourceError("the feed does not accept the token tastytrade gave for it")
        else:
            self._token_sent = True
            message = {"type": "AUTH", "channel": 0, "token": self._auth_token}
            await self._websocket.send_json(message)

    def _note(self, kind: str, channel: int, message: Mapping[str, Any]) -> None:
        match kind:
            case "FEED_CONFIG":
                for event, fields in (message.get("eventFields") or {}).items():
                    self._fields[channel, event] = tuple(fields)
            case "CHANNEL_OPENED":
                self._subscription_state[self._channels_reversed[channel]].set()
            case "CHANNEL_CLOSED":
                event = self._channels_reversed.get(channel)
                raise SourceError(f"the feed closed the channel of {event}")
            case "ERROR":
                error, text = str(message.get("error")), str(message.get("message"))[:120]
                if channel == 0 and error in _FATAL:
                    raise SourceError(f"the feed ended the connection: {error} {text}")
                _log.warning("the feed complains", channel=channel, error=error, text=text)
            case "SETUP":
                pass
            case _:
                _log.warning("message of an unknown type", type=str(kind)[:40])
