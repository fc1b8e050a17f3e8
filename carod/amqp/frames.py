"""AMQP 0-9-1 frames on the fast lane: deliveries, returns and confirms in; publishes and settlements out.

These are all but a few of a connection's frames. They pass by aiormq, which would hand each through two queues and
three coroutines; what is left to it is the connection, its channels, and every method that has an answer.
(Specification 4.2.3, "General Frame Format"; class basic, and RabbitMQ's confirms.)
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterator
from typing import Protocol

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
OVERHEAD = 8
"""Bytes of a frame around its payload: type, channel, length, end mark."""
END = b"\xce"
BASIC = b"\x00\x3c"
PUBLISH, RETURN, DELIVER, ACK, NACK = (BASIC + bytes((0, method)) for method in (40, 50, 60, 80, 120))
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00" + END
ALIVE = 1.0
"""Seconds after which aiormq is shown a heartbeat if all that came went by it: it would take silence for death."""
_SETTLE = struct.Struct(">BHI4sQBB")


class Lane(Protocol):
    """The other end of a channel's fast lane."""

    def content(self, method: bytes, properties: bytes, body: bytes) -> None:
        """A whole message: the payload of its deliver or return method, its encoded properties, its body."""

    def confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        """The broker has taken, or could not take, what was published as `tag` (or all up to it)."""


class _Content:
    """A message whose frames are still coming."""

    __slots__ = ("chunks", "left", "method", "properties")

    def __init__(self, method: bytes) -> None:
        self.method, self.properties = method, b""
        self.left = -1
        self.chunks: list[bytes] = []


class Switch(asyncio.StreamReaderProtocol):
    """Stands between the socket and aiormq's stream: frames of channels with a lane take it, as they arrive."""

    def __init__(self, reader: asyncio.StreamReader, lanes: dict[int, Lane]) -> None:
        super().__init__(reader)
        self._lanes = lanes
        self._buffer = bytearray()
        self._contents: dict[int, _Content] = {}
        self._shown = self.heard = time.monotonic()

    def data_received(self, data: bytes) -> None:
        buffer, at, now = self._buffer, 0, time.monotonic()
        self.heard = now
        buffer += data
        size = len(buffer)
        while size - at >= OVERHEAD:
            if buffer.startswith(b"AMQP", at):  # the broker speaks another version, and hangs up
                end = size
            else:
                end = at + OVERHEAD + int.from_bytes(buffer[at + 3 : at + 7], "big")
            if end > size:
                break
            channel = int.from_bytes(buffer[at + 1 : at + 3], "big")
            if not (channel in self._lanes and self._take(buffer[at], channel, bytes(buffer[at + 7 : end]))):
                self._shown = now
                super().data_received(bytes(buffer[at:end]))
            at = end
        del buffer[:at]
        if now - self._shown > ALIVE:
            self._shown = now
            super().data_received(HEARTBEAT_FRAME)

    def _take(self, kind: int, channel: int, rest: bytes) -> bool:
        """Put a frame (`rest` is its payload and end mark) on its channel's lane; False if it is aiormq's."""
        lane = self._lanes[channel]
        if kind == METHOD:
            method = rest[:4]
            if method in (DELIVER, RETURN):
                self._contents[channel] = _Content(rest)
            elif method in (ACK, NACK):
                lane.confirm(int.from_bytes(rest[4:12], "big"), bool(rest[12] & 1), method == ACK)
            else:
                return False
            return True
        content = self._contents.get(channel)
        if content is None:
            return False
        if kind == HEADER:
            content.left = int.from_bytes(rest[4:12], "big")
            content.properties = rest[12:-1]
        else:
            content.chunks.append(rest[:-1])
            content.left -= len(rest) - 1
        if content.left <= 0:
            del self._contents[channel]
            body = content.chunks[0] if len(content.chunks) == 1 else b"".join(content.chunks)
            lane.content(content.method, content.properties, body)
        return True


def delivered(method: bytes) -> tuple[int, bool]:
    """Delivery tag and redelivered flag of a deliver method's payload."""
    at = 5 + method[4]  # class, method, the consumer's tag
    return int.from_bytes(method[at : at + 8], "big"), bool(method[at + 8] & 1)


def return_reason(method: bytes) -> str:
    """Why a message came back, from a return method's payload."""
    code = int.from_bytes(method[4:6], "big")
    return f"{code} {method[7 : 7 + method[6]].decode('utf-8', 'replace')}"


def settle(channel: int, tag: int, *, taken: bool, requeue: bool = False) -> bytes:
    """A basic.ack frame, or basic.nack."""
    method, bits = (ACK, 0) if taken else (NACK, 2 if requeue else 0)
    return _SETTLE.pack(METHOD, channel, 13, method, tag, bits, END[0])


def publish(channel: int, exchange: str, key: str, mandatory: bool, size: int, properties: bytes) -> bytes:
    """Method and content header frames of a message with a body of `size` bytes. Names are at most 255 bytes.

    An exchange's is ASCII (specification 1.1, exchange-name): a broker that misses it says so in a text of 255 bytes,
    and one cut inside a character ends the connection, for pamqp can't read it.
    """
    number = channel.to_bytes(2, "big")
    to, by = exchange.encode("ascii"), key.encode("utf-8", "surrogateescape")
    method = b"".join(
        (
            PUBLISH,
            b"\0\0",
            len(to).to_bytes(1, "big"),
            to,
            len(by).to_bytes(1, "big"),
            by,
            b"\1" if mandatory else b"\0",
        )
    )
    header = b"".join((BASIC, b"\0\0", size.to_bytes(8, "big"), properties))
    return b"".join(
        (b"\1", number, len(method).to_bytes(4, "big"), method, END,
         b"\2", number, len(header).to_bytes(4, "big"), header, END)
    )  # fmt: skip


def body_frame(channel: int, chunk: bytes) -> bytes:
    return b"".join((b"\3", channel.to_bytes(2, "big"), len(chunk).to_bytes(4, "big"), chunk, END))


def body_frames(channel: int, body: bytes, size: int) -> Iterator[bytes]:
    """The frames of a body, each with at most `size` bytes of it."""
    return (body_frame(channel, body[at : at + size]) for at in range(0, len(body), size))
