"""AMQP 0-9-1 byte by byte, for messages that no client library sends: without an id, or with properties that lie."""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame

FLAGS = {"headers": 13, "delivery_mode": 12, "correlation_id": 10, "reply_to": 9, "expiration": 8, "message_id": 7,
         "timestamp": 6, "type": 5, "user_id": 4}  # fmt: skip
"""Properties by the bit of their flag, in the order in which they stand on the wire."""


class Wire:
    """One connection with one channel in confirm mode."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, url: str) -> Self:
        parts = urlsplit(url)
        wire = cls(*await asyncio.open_connection(parts.hostname, parts.port or 5672))
        wire._writer.write(b"AMQP\x00\x00\x09\x01")
        await wire._expect(commands.Connection.Start)
        secret = f"\0{unquote(parts.username or 'guest')}\0{unquote(parts.password or 'guest')}"
        wire._send(0, commands.Connection.StartOk({}, "PLAIN", secret, "en_US"))
        tune = await wire._expect(commands.Connection.Tune)
        wire._send(0, commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        wire._send(0, commands.Connection.Open(unquote(parts.path[1:]) or "/"))
        await wire._expect(commands.Connection.OpenOk)
        wire._send(1, commands.Channel.Open())
        await wire._expect(commands.Channel.OpenOk)
        wire._send(1, commands.Confirm.Select())
        await wire._expect(commands.Confirm.SelectOk)
        return wire

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def publish(self, key: str, properties: bytes, body: bytes = b"") -> None:
        """Publish to the default exchange; back once the broker has confirmed it."""
        self._send(1, commands.Basic.Publish(exchange="", routing_key=key))
        self._write(2, b"\x00\x3c\x00\x00" + len(body).to_bytes(8, "big") + properties)
        if body:
            self._write(3, body)
        await self._expect(commands.Basic.Ack)

    async def get(self, queue: str) -> tuple[bytes, bytes] | None:
        """Flags and properties, undecoded, and the body of a queue's next message."""
        self._send(1, commands.Basic.Get(queue=queue, no_ack=True))
        kind, payload = await self._frame()
        if payload.startswith(b"\x00\x3c\x00\x48"):  # basic.get-empty
            return None
        assert (kind, payload[:4]) == (1, b"\x00\x3c\x00\x47"), payload  # basic.get-ok
        _, header = await self._frame()
        body, size = b"", int.from_bytes(header[4:12], "big")
        while len(body) < size:
            body += (await self._frame())[1]
        return header[12:], body

    def _send(self, channel: int, method: Any) -> None:
        self._writer.write(frame.marshal(method, channel))

    def _write(self, kind: int, payload: bytes) -> None:
        self._writer.write(struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce")

    async def _frame(self) -> tuple[int, bytes]:
        kind, _, size = struct.unpack(">BHI", await self._reader.readexactly(7))
        return kind, (await self._reader.readexactly(size + 1))[:-1]

    async def _expect(self, wanted: type[Any]) -> Any:
        kind, payload = await self._frame()
        head = struct.pack(">BHI", kind, 1, len(payload))
        _, _, method = frame.unmarshal(head + payload + b"\xce")
        assert isinstance(method, wanted), method
        return method


def properties(**values: bytes | int) -> bytes:
    """A property list: short strings as bytes, `headers` as a whole field table (`table`), numbers as they are."""
    flags, parts = 0, []
    for name, bit in FLAGS.items():
        if name in values:
            value = values[name]
            flags |= 1 << bit
            if name == "delivery_mode":
                parts.append(bytes((int(value),)))
            elif name == "timestamp":
                parts.append(struct.pack(">Q", value))
            elif name == "headers":
                assert isinstance(value, bytes)
                parts.append(value)
            else:
                assert isinstance(value, bytes)
                parts.append(bytes((len(value),)) + value)
    return flags.to_bytes(2, "big") + b"".join(parts)


def table(**fields: bytes) -> bytes:
    """A field table of values that are encoded already."""
    return raw_table({name.encode(): value for name, value in fields.items()})


def raw_table(fields: dict[bytes, bytes]) -> bytes:
    data = b"".join(bytes((len(name),)) + name + value for name, value in fields.items())
    return len(data).to_bytes(4, "big") + data


def text(value: str | bytes) -> bytes:
    """A long string, as a field's value."""
    data = value.encode() if isinstance(value, str) else value
    return b"S" + len(data).to_bytes(4, "big") + data


def double(value: float) -> bytes:
    return b"d" + struct.pack(">d", value)


def timestamp(value: int) -> bytes:
    return b"T" + struct.pack(">Q", value)


def array(*values: bytes) -> bytes:
    data = b"".join(values)
    return b"A" + len(data).to_bytes(4, "big") + data
