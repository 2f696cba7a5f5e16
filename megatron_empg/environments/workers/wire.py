"""How two processes talk: JSON after its length, four bytes in network order, over a socket pair.

The text is UTF-8, in which lone surrogates pass as they are: whatever a string of Python holds arrives unchanged.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
LARGEST = (1 << 32) - 1
_CHUNK = 1 << 18


class TooLong(Exception):
    """A message is longer than the reader takes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def to_bytes(message: Any) -> bytes:
    """The text of a message. Raises TypeError or ValueError for what is no JSON."""
    return json.dumps(message, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")


def from_bytes(body: bytes) -> Any:
    """What `to_bytes` made of it. Raises ValueError for anything else."""
    try:
        return json.loads(body.decode("utf-8", "surrogatepass"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


async def send(connection: socket.socket, body: bytes) -> None:
    """Send one message over a socket that does not block. Raises OSError when the other side is gone."""
    await asyncio.get_running_loop().sock_sendall(connection, _LENGTH.pack(len(body)) + body)


async def receive(connection: socket.socket, limit: int) -> bytes:
    """One message from a socket that does not block.

    Raises EOFError or OSError when the other side is gone, and TooLong, before reading it, for a longer one.
    """
    (size,) = _LENGTH.unpack(await _read(connection, _LENGTH.size))
    if size > limit:
        raise TooLong(size)
    return await _read(connection, size)


async def _read(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    found = bytearray()
    while len(found) < size:
        piece = await loop.sock_recv(connection, min(_CHUNK, size - len(found)))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def _plain(value: Any) -> Any:
    """A number of numpy's as one of Python's."""
    item = getattr(value, "item", None)
    if not callable(item) or getattr(value, "ndim", None) != 0:
        raise TypeError(f"a {type(value).__name__} is not JSON")
    return item()
