"""The properties of an AMQP 0-9-1 message, to and from the wire (specification 4.2.5 and RabbitMQ's errata).

Why not pamqp's: it sends every float in 32 bits, and text that is not UTF-8 or a timestamp beyond the year 9999
raises in its reader, where it ends the connection; the broker then redelivers the same message to the next node.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache

from carod.amqp import crossing
from carod.amqp.transport import HeaderValue, Message, TypedId

MAX_DEPTH = 32
"""Tables and lists nested deeper are refused: nobody means them, and decoding recurses."""

# Flag bits of the properties in the order they stand on the wire (specification, class basic).
CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
PRIORITY, CORRELATION_ID, REPLY_TO, EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
MESSAGE_ID, TIMESTAMP, TYPE, USER_ID, APP_ID, CLUSTER_ID = 1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3, 1 << 2

_SHORT_STRINGS = {
    CONTENT_TYPE: "content_type",
    CORRELATION_ID: "correlation_id",
    REPLY_TO: "reply_to",
    MESSAGE_ID: "message_id",
    TYPE: "type",
    USER_ID: "user_id",
}
_pack_u32, _pack_i32, _pack_i64, _pack_f64 = (struct.Struct(f">{code}").pack for code in ("I", "ci", "cq", "cd"))


class MalformedFields(ValueError):
    """Bytes that are no 0-9-1 property list; the text says where."""


# -- encoding --------------------------------------------------------------------------------------------------


def _encode_value(value: HeaderValue) -> bytes:
    kind = value.__class__
    if kind is str:
        text = value.encode("utf-8", "surrogateescape")  # type: ignore[union-attr]
        return b"S" + _pack_u32(len(text)) + text
    if kind is bool:
        return b"t\x01" if value else b"t\x00"
    if kind is int:
        if -0x80000000 <= value <= 0x7FFFFFFF:  # type: ignore[operator]
            return _pack_i32(b"I", value)
        return _encode_large(value)  # type: ignore[arg-type]
    if kind is float:
        return _pack_f64(b"d", value)
    return _encode_rare(value)


def _encode_large(value: int) -> bytes:
    if -1 << 63 <= value < 1 << 63:
        return _pack_i64(b"l", value)
    if 0 < value < 1 << 64:  # only a timestamp has the 64th bit, and only as one did it come
        return b"T" + value.to_bytes(8, "big")
    raise ValueError(f"a header can't hold {value:.6g}: AMQP's integers have 64 bits")


def _encode_rare(value: HeaderValue) -> bytes:
    match value:
        case None:
            return b"V"
        case bytes():
            return b"x" + _pack_u32(len(value)) + value
        case list():
            items = b"".join(map(_encode_value, value))
            return b"A" + _pack_u32(len(items)) + items
        case Mapping():
            return b"F" + encode_table(value)
    raise TypeError(f"a header can't hold {type(value).__name__} {value!r:.80}")


def _id(text: str, what: str) -> bytes:
    return _short(crossing.id_to_091(text) if isinstance(text, TypedId) else text, what)


def _short(text: str, what: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > 255:
        raise ValueError(f"{what} is {len(data)} bytes long, AMQP 0-9-1 takes 255: {text[:60]!r}...")
    return bytes((len(data),)) + data


def encode_table(headers: Mapping[str, HeaderValue]) -> bytes:
    """A field table with its length. Raises ValueError for a name over 255 bytes, TypeError for an odd value."""
    data = b"".join(map(_encode_field, headers, headers.values()))
    return _pack_u32(len(data)) + data


def _encode_field(name: str, value: HeaderValue) -> bytes:
    kind = value.__class__
    if (kind is str and len(value) < COMMON) or kind is int or kind is bool:  # type: ignore[arg-type]
        return _encode_common(name, value)  # type: ignore[arg-type]
    return _short(name, "header name") + _encode_value(value)


COMMON = 100
"""Strings shorter than this are kept encoded: a slot's attributes go out with every job's first reply, and most of a
job's own with its first and its last."""


@lru_cache(maxsize=2048, typed=True)
def _encode_common(name: str, value: str | int) -> bytes:
    return _short(name, "header name") + _encode_value(value)


def encode_properties(message: Message) -> bytes:
    """Flags and property list of a content header frame. Raises ValueError naming the property that is too long."""
    flags, parts = 0, []
    if message.content_type is not None:
        flags |= CONTENT_TYPE
        parts.append(_short(message.content_type, "content_type"))
    headers = message.headers
    if isinstance(message.correlation_id, TypedId) or isinstance(message.message_id, TypedId):
        headers = {**headers, **crossing.extra_headers(message)}
    if headers:
        flags |= HEADERS
        parts.append(encode_table(headers))
    flags |= DELIVERY_MODE
    parts.append(b"\x02" if message.durable else b"\x01")
    if message.priority is not None:
        flags |= PRIORITY
        parts.append(bytes((max(0, min(message.priority, 255)),)))
    if message.correlation_id is not None:
        flags |= CORRELATION_ID
        parts.append(_id(message.correlation_id, "correlation_id"))
    if message.reply_to is not None:
        flags |= REPLY_TO
        parts.append(_short(message.reply_to, "reply_to"))
    if message.expiration is not None:
        flags |= EXPIRATION
        parts.append(_short(str(max(0, round(message.expiration * 1000))), "expiration"))
    if message.message_id is not None:
        flags |= MESSAGE_ID
        parts.append(_id(message.message_id, "message_id"))
    if message.timestamp is not None:
        flags |= TIMESTAMP
        parts.append(message.timestamp.to_bytes(8, "big"))
    if message.type is not None:
        flags |= TYPE
        parts.append(_short(message.type, "type"))
    if message.user_id is not None:
        flags |= USER_ID
        parts.append(_short(message.user_id, "user_id"))
    return flags.to_bytes(2, "big") + b"".join(parts)


# -- decoding --------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class _Reader:
    """A cursor over received bytes; every read is checked against their end."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def take(self, count: int) -> bytes:
        start = self.at
        if count > self.end - start:
            raise MalformedFields(f"{count} bytes expected at {start}, {self.end - start} left")
        self.at = start + count
        return self.data[start : self.at]

    def number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(count), "big", signed=signed)

    def short(self) -> str:
        return self.take(self.number(1)).decode("utf-8", "surrogateescape")

    def inner(self) -> _Reader:
        length = self.number(4)
        start = self.at
        self.take(length)
        return _Reader(self.data, start, self.at)

    def table(self, depth: int = 0) -> dict[str, HeaderValue]:
        fields, result = self.inner(), {}
        while fields.at < fields.end:
            name = fields.short()
            result[name] = fields.value(depth)
        return result

    def array(self, depth: int) -> list[HeaderValue]:
        fields, result = self.inner(), []
        while fields.at < fields.end:
            result.append(fields.value(depth))
        return result

    def value(self, depth: int) -> HeaderValue:
        if depth > MAX_DEPTH:
            raise MalformedFields(f"tables nested deeper than {MAX_DEPTH}")
        kind = self.take(1)
        decode = _DECODERS.get(kind)
        if decode is None:
            raise MalformedFields(f"unknown field type {kind!r} at {self.at - 1}")
        return decode(self, depth)


def _decimal(reader: _Reader, _depth: int) -> float:
    scale = reader.number(1)
    return float(reader.number(4, signed=True) / 10**scale)


_DECODERS: dict[bytes, Callable[[_Reader, int], HeaderValue]] = {
    b"S": lambda reader, _: _text(reader.take(reader.number(4))),
    b"t": lambda reader, _: reader.number(1) != 0,
    b"I": lambda reader, _: reader.number(4, signed=True),
    b"l": lambda reader, _: reader.number(8, signed=True),
    b"L": lambda reader, _: reader.number(8, signed=True),
    b"b": lambda reader, _: reader.number(1, signed=True),
    b"B": lambda reader, _: reader.number(1),
    b"s": lambda reader, _: reader.number(2, signed=True),
    b"U": lambda reader, _: reader.number(2, signed=True),
    b"u": lambda reader, _: reader.number(2),
    b"i": lambda reader, _: reader.number(4),
    b"d": lambda reader, _: float(struct.unpack(">d", reader.take(8))[0]),
    b"f": lambda reader, _: float(struct.unpack(">f", reader.take(4))[0]),
    b"T": lambda reader, _: reader.number(8),
    b"x": lambda reader, _: reader.take(reader.number(4)),
    b"V": lambda reader, _: None,
    b"D": _decimal,
    b"F": lambda reader, depth: reader.table(depth + 1),
    b"A": lambda reader, depth: reader.array(depth + 1),
}


def decode_properties(data: bytes, body: bytes) -> Message:
    """The message of a content header's flags and property list. Never raises: see `Message.malformed`."""
    message = Message(body=body)
    try:
        _decode_into(message, _Reader(data, 0, len(data)))
    except MalformedFields as error:
        return Message(body=body, malformed=str(error))
    return crossing.arrived(message)


def _decode_into(message: Message, reader: _Reader) -> None:
    flags = reader.number(2)
    bit = CONTENT_TYPE
    while bit >= CLUSTER_ID:
        if flags & bit:
            if (name := _SHORT_STRINGS.get(bit)) is not None:
                setattr(message, name, reader.short())
            elif bit == HEADERS:
                message.headers = reader.table()
            elif bit == DELIVERY_MODE:
                message.durable = reader.number(1) == 2
            elif bit == PRIORITY:
                message.priority = reader.number(1)
            elif bit == EXPIRATION:
                message.expiration = _milliseconds(reader.short())
            elif bit == TIMESTAMP:
                message.timestamp = reader.number(8)
            else:  # content encoding, app id, cluster id: not ours
                reader.short()
        bit >>= 1


def _milliseconds(text: str) -> float | None:
    try:
        return int(text) / 1000
    except ValueError:
        raise MalformedFields(f"expiration {text[:40]!r} is not a number of milliseconds") from None
