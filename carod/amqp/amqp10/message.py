"""Messages to and from AMQP 1.0's sections (specification part 3, "Messaging", 3.2)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from carod.amqp.amqp10 import codec
from carod.amqp.amqp10.codec import Malformed, Symbol, Timestamp
from carod.amqp.transport import HeaderValue, Message, TypedId

HEADER, DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS, PROPERTIES, HEADERS = 0x70, 0x71, 0x72, 0x73, 0x74
DATA, SEQUENCE, VALUE, FOOTER = 0x75, 0x76, 0x77, 0x78
_NAMES = {
    "amqp:header:list": HEADER,
    "amqp:delivery-annotations:map": DELIVERY_ANNOTATIONS,
    "amqp:message-annotations:map": MESSAGE_ANNOTATIONS,
    "amqp:properties:list": PROPERTIES,
    "amqp:application-properties:map": HEADERS,
    "amqp:data:binary": DATA,
    "amqp:amqp-sequence:list": SEQUENCE,
    "amqp:amqp-value:*": VALUE,
    "amqp:footer:map": FOOTER,
}
(
    MESSAGE_ID, USER_ID, TO, SUBJECT, REPLY_TO, CORRELATION_ID, CONTENT_TYPE, CONTENT_ENCODING, ABSOLUTE_EXPIRY,
    CREATION_TIME,
) = range(10)  # fmt: skip
"""Fields of the properties section, in their order."""
DURABLE, PRIORITY, TTL, FIRST_ACQUIRER, DELIVERY_COUNT = range(5)
"""Fields of the header section, in their order."""
TYPE = Symbol("x-basic-type")
"""Message annotation for 0-9-1's property `type`, which 1.0 has not; the name is RabbitMQ's."""
_PLAIN = frozenset((str, int, float, bool, bytes, type(None)))
_NULL = b"\x40"
PLUGIN = "plugin "
"""Before the kind of an id that came through RabbitMQ 3's plugin; see `carod.amqp.crossing`."""
_HEX = "0x"
"""How a binary message id that is no text begins in its text form."""


@dataclass(slots=True)
class Received:
    """A message and what came with it: how often its delivery has failed, who had it, the key it was sent with."""

    message: Message
    delivery_count: int = 0
    first_acquirer: bool = False
    subject: str | None = None
    annotations: Mapping[Any, Any] | None = None


# -- message ids -----------------------------------------------------------------------------------------------


def id_text(value: Any) -> str | None:
    """The text form of a message id of any of AMQP's types, which `encode_id` takes back to what it was.

    A uuid's is canonical, a ulong's decimal; bytes are their UTF-8 text, or hexadecimal after `0x` if they have none.
    """
    match value:
        case None:
            return None
        case UUID():
            return TypedId(str(value), "uuid")
        case bool():
            return str(value)
        case int():
            return TypedId(str(value), "ulong")
        case bytes():
            text = value.decode("utf-8", "replace")
            plain = text.isprintable() and "�" not in text and not text.startswith(_HEX)
            return TypedId(text if plain else f"{_HEX}{value.hex()}", "binary")
    return str(value)


def id_bytes(text: str) -> bytes | None:
    """What a message id was that came as bytes; None if it was something else."""
    if not isinstance(text, TypedId) or text.kind.removeprefix(PLUGIN) != "binary":
        return None
    return bytes.fromhex(text[2:]) if text.startswith(_HEX) else text.encode()


def encode_id(text: str) -> bytes:
    """A message or correlation id, of the type that it had. Text that is no such id is a string."""
    try:
        match getattr(text, "kind", "").removeprefix(PLUGIN):
            case "uuid":
                return b"\x98" + UUID(text).bytes
            case "ulong":
                return codec.encode_ulong(int(text))
            case "binary":
                return codec.encode_bytes(id_bytes(text) or b"")
    except (ValueError, OverflowError):
        pass
    return _text(text)


# -- encoding --------------------------------------------------------------------------------------------------


def encode_head(message: Message, size: int | None, *, to: str | None = None, subject: str | None = None,
                annotations: Mapping[Any, Any] | None = None) -> bytes:  # fmt: skip
    """All of a message's bytes that come before its body of `size` bytes, or all, if the body is a `value`.

    With None for a size and no value, the caller adds the body's section, too. Raises ValueError for what AMQP can't
    hold.
    """
    parts = [_header(message.durable, message.priority, _milliseconds(message.expiration))]
    if message.type is not None or annotations:
        noted = {**(annotations or {}), **({} if message.type is None else {TYPE: message.type})}
        parts += b"\x00\x53\x72", codec.encode_map(noted)
    parts.append(properties_section(message, to, subject))
    if message.headers:
        parts.append(headers_section(message.headers))
    if message.value is not None:
        parts += b"\x00\x53\x77", codec.encode(message.value)
    elif size is None:
        pass
    elif size < 256:
        parts += b"\x00\x53\x75\xa0", size.to_bytes(1, "big")
    elif size <= 0xFFFFFFFF:
        parts += b"\x00\x53\x75\xb0", size.to_bytes(4, "big")
    else:
        raise ValueError(f"a body of {size} bytes is over AMQP 1.0's 4 GiB")
    return b"".join(parts)


@lru_cache(maxsize=64)
def _header(durable: bool, priority: int | None, ttl: int | None) -> bytes:
    fields = [b"\x41" if durable else b"\x42"]
    if priority is not None or ttl is not None:
        fields.append(_NULL if priority is None else bytes((0x50, max(0, min(priority, 255)))))
    if ttl is not None:
        fields.append(codec.encode_uint(ttl))
    return b"\x00\x53\x70" + codec.encode_list(fields)


def _milliseconds(expiration: float | None) -> int | None:
    return None if expiration is None else max(1, round(expiration * 1000))  # for some brokers, 0 is never


def headers_section(headers: Mapping[str, HeaderValue]) -> bytes:
    return b"\x00\x53\x74" + codec.encode_headers(headers)


def properties_section(message: Message, to: str | None = None, subject: str | None = None) -> bytes:
    fields = [
        _NULL if message.message_id is None else encode_id(message.message_id),
        _NULL if message.user_id is None else codec.encode_bytes(message.user_id.encode("utf-8", "surrogateescape")),
        _NULL if to is None else _text(to),
        _NULL if subject is None else _text(subject),
        _NULL if message.reply_to is None else _text(message.reply_to),
        _NULL if message.correlation_id is None else encode_id(message.correlation_id),
    ]
    if message.content_type is not None or message.timestamp is not None:
        content_type = (message.content_type or "").encode("ascii", "replace").decode()
        fields.append(codec.encode_symbol(content_type) if content_type else _NULL)
    if message.timestamp is not None:
        fields += _NULL, _NULL, codec.encode_timestamp(message.timestamp * 1000)
    return b"\x00\x53\x73" + codec.encode_list(fields)


def _text(text: str) -> bytes:
    """A property that must be text: what is no Unicode would cost the connection."""
    try:
        return codec.encode_text(text.encode().decode())
    except UnicodeEncodeError:
        return codec.encode_text(text.encode("utf-8", "replace").decode())


# -- decoding --------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Received:
    """The message in these bytes. Never raises: see `Message.malformed`, with which the body is all the bytes."""
    try:
        return _decode(data)
    except Malformed as error:
        return Received(Message(data, malformed=str(error)))


def _decode(data: bytes) -> Received:
    received = Received(Message())
    message, at, end = received.message, 0, len(data)
    ttl: int | None = None
    fields: list[Any] = []
    bodies: list[tuple[int, Any]] = []
    while at < end:
        section, at = descriptor(data, at)
        start = at
        content, at = codec.decode(data, at)
        if section in (DATA, SEQUENCE, VALUE):
            bodies.append((section, content))
        elif section == PROPERTIES:
            fields = _fields(content, start)
        elif section == HEADER:
            ttl = _read_header(received, _fields(content, start))
        elif section == HEADERS:
            message.headers = headers(content, start)
        elif section == MESSAGE_ANNOTATIONS and isinstance(content, dict):
            received.annotations = content
            message.type = _string(content.get(TYPE))
    _read_properties(received, fields, ttl)
    _read_body(message, bodies)
    return received


def descriptor(data: bytes, at: int) -> tuple[int, int]:
    """Which section begins at an offset, and where its content does."""
    if data[at : at + 2] == b"\x00\x53" and at + 2 < len(data):
        return data[at + 2], at + 3
    if data[at] != 0:
        raise Malformed(f"a section was expected at {at}, not 0x{data[at]:02x}")
    name, at = codec.decode(data, at + 1)
    section = _NAMES.get(name) if isinstance(name, str) else name
    if not isinstance(section, int):
        raise Malformed(f"unknown section {name!r:.40} at {at}")
    return section, at


def _fields(content: Any, at: int) -> list[Any]:
    if not isinstance(content, list):
        raise Malformed(f"a section at {at} is no list")
    return content


def _read_header(received: Received, fields: list[Any]) -> int | None:
    """Read a header section; the message's ttl (milliseconds) comes back."""
    message = received.message
    durable, priority, ttl, first_acquirer, delivery_count = (*fields, *(None,) * 5)[:5]
    message.durable = durable is True
    message.priority = _integer(priority)
    received.first_acquirer = first_acquirer is True
    received.delivery_count = _integer(delivery_count) or 0
    return _integer(ttl)


def _read_properties(received: Received, fields: list[Any], ttl: int | None) -> None:
    message, fields = received.message, [*fields, *(None,) * 10]
    message.message_id = id_text(fields[MESSAGE_ID])
    message.correlation_id = id_text(fields[CORRELATION_ID])
    message.user_id = _string(fields[USER_ID])
    message.reply_to = _string(fields[REPLY_TO])
    message.content_type = _string(fields[CONTENT_TYPE])
    received.subject = _string(fields[SUBJECT])
    created, expires = _integer(fields[CREATION_TIME]), _integer(fields[ABSOLUTE_EXPIRY])
    if created is not None:
        message.timestamp = created // 1000
    if ttl is not None or expires is not None:
        message.expiration = _expiration(message.timestamp, created, ttl, expires)


def _expiration(timestamp: int | None, created: int | None, ttl: int | None, expires: int | None) -> float:
    """Seconds from a message's timestamp, or from now if it has none, to the earlier of its two ends."""
    now = time.time() * 1000
    ends = [] if ttl is None else [(now if created is None else created) + ttl]
    if expires is not None:
        ends.append(expires)
    return (min(ends) - (now if timestamp is None else timestamp * 1000)) / 1000


def _read_body(message: Message, bodies: list[tuple[int, Any]]) -> None:
    """Data sections are one body, sequences one list; an AmqpValue is bytes, a map, a list, or its text."""
    if len(bodies) == 1 and bodies[0][0] == DATA and bodies[0][1].__class__ is bytes:
        message.body = bodies[0][1]
        return
    parts: list[bytes] = []
    for section, content in bodies:
        if section == SEQUENCE:
            message.value = [*(message.value or []), *plain_value(_fields(content, 0))]
        elif isinstance(content, list | dict):
            message.value = plain_value(content)
        else:
            parts.append(_bytes(content))
    message.body = b"".join(parts)


def _bytes(content: Any) -> bytes:
    match content:
        case None:
            return b""
        case bytes():
            return content
        case codec.Described():
            return _bytes(content.value)
    return str(content).encode()


def headers(content: Any, at: int) -> dict[str, HeaderValue]:
    """Application properties. Raises Malformed if they are no map."""
    if not isinstance(content, dict):
        raise Malformed(f"the application properties at {at} are no map")
    result: dict[str, HeaderValue] = {}
    for name, value in content.items():
        if name.__class__ is not str:
            name = _name(name)
        result[name] = value if value.__class__ in _PLAIN else _plain(value)
    return result


def _plain(value: Any) -> HeaderValue:
    """A value of any AMQP type as one that a header has; see `transport.HeaderValue`."""
    match value:
        case Timestamp():
            return int(value) // 1000
        case UUID() | Symbol():
            return str(value)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {_name(name): _plain(item) for name, item in value.items()}
        case codec.Described():
            return _plain(value.value)
    return value  # type: ignore[no-any-return]


def plain_value(value: Any) -> Any:
    """The same for a body that is a map or a list, in which a uuid stays one."""
    match value:
        case list():
            return [plain_value(item) for item in value]
        case dict():
            return {_name(name): plain_value(item) for name, item in value.items()}
        case UUID():
            return value
    return _plain(value)


def _name(name: Any) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def _string(value: Any) -> str | None:
    if value is None or value.__class__ is str:
        return value
    return _name(value)


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None
