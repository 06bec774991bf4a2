"""The server's end of a websocket, as little of it as a feed needs."""

import asyncio
import base64
import hashlib
import struct
from typing import Final

TEXT: Final = 1
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TWO_BYTES: Final = 126
_EIGHT_BYTES: Final = 127


def accept_key(key: str) -> str:
    """Return what proves that the upgrade was understood."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return a whole message as one frame."""
    length = len(payload)
    if length < _TWO_BYTES:
        size = bytes([length])
    elif length < 1 << 16:
        size = bytes([_TWO_BYTES]) + struct.pack("!H", length)
    else:
        size = bytes([_EIGHT_BYTES]) + struct.pack("!Q", length)
    return bytes([0x80 | opcode]) + size + payload


def close_frame(code: int, reason: str) -> bytes:
    return frame(struct.pack("!H", code) + reason.encode(), CLOSE)


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return opcode and payload of a client's frame, which is masked and whole."""
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length == _TWO_BYTES:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
    elif length == _EIGHT_BYTES:
        (length,) = struct.unpack("!Q", await reader.readexactly(8))
    mask = await reader.readexactly(4)
    masked = await reader.readexactly(length)
    key = (mask * (length // 4 + 1))[:length]
    whole = int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")
    return first & 0x0F, whole.to_bytes(length, "big")
