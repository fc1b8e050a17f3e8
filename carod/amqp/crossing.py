"""Messages of AMQP 1.0 clients as RabbitMQ hands them to 0-9-1 consumers, and the way back.

RabbitMQ 4 makes a 0-9-1 message of all that has a place in one. A uuid is `urn:uuid:...`; an id that fits no short
string is header `x-message-id`; a body that is no Data is as encoded, in property type `amqp-1.0`. Of a ulong there is
only its text. The plugin of RabbitMQ 3 translates nothing: the sections are headers, encoded as they came. Both make
a 1.0 message of a 0-9-1 one that has such headers, which is the only way to give back an id that is not a string.
"""

from __future__ import annotations

import re

from carod.amqp.amqp10 import message as sections
from carod.amqp.amqp10.message import PLUGIN, id_text
from carod.amqp.transport import HeaderValue, Message, TypedId

AMQP10_TYPE = "amqp-1.0"
PROPERTIES, HEADERS = "x-amqp-1.0-properties", "x-amqp-1.0-app-properties"
"""Headers that hold a section of a 1.0 message."""
MESSAGE_ID, CORRELATION_ID = "x-message-id", "x-correlation-id"
PLUGIN_DATA = "binary"
"""What the plugin says in property `type` of a message whose body is one of Data, and not as encoded."""
_URN = "urn:uuid:"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def arrived(message: Message) -> Message:
    """A message from a 0-9-1 broker, as it was if a 1.0 client sent it. Never raises."""
    headers = message.headers
    if PROPERTIES in headers or HEADERS in headers:
        message = _through_plugin(message)
    if message.type == AMQP10_TYPE:
        _decode_body(message)
    if not isinstance(message.message_id, TypedId):
        message.message_id = _id(message.message_id, headers.get(MESSAGE_ID))
    if not isinstance(message.correlation_id, TypedId):
        message.correlation_id = _id(message.correlation_id, headers.get(CORRELATION_ID))
    return message


def _id(text: str | None, header: HeaderValue) -> str | None:
    if text is None:
        return id_text(header) if isinstance(header, str | bytes) else None
    if text.startswith(_URN) and _UUID.fullmatch(text, len(_URN)):
        return TypedId(text[len(_URN) :], "uuid")
    return text


def _decode_body(message: Message) -> None:
    inner = bodies(_bytes(message.body))
    message.type, message.body, message.value = None, inner.body, inner.value


def _through_plugin(message: Message) -> Message:
    encoded = b"".join(_bytes(message.headers.get(name, b"")) for name in (PROPERTIES, HEADERS))
    inner = sections.decode(encoded).message
    if inner.malformed:
        return Message(message.body, malformed=inner.malformed)
    others = {name: value for name, value in message.headers.items() if name not in (PROPERTIES, HEADERS)}
    inner.headers = {**others, **inner.headers}
    inner.body, inner.durable, inner.priority = message.body, message.durable, message.priority
    inner.expiration, inner.user_id = message.expiration, message.user_id
    inner.type = None if message.type == PLUGIN_DATA else message.type
    inner.message_id, inner.correlation_id = _from_plugin(inner.message_id), _from_plugin(inner.correlation_id)
    return inner


def _from_plugin(text: str | None) -> str | None:
    return None if text is None else TypedId(text, PLUGIN + getattr(text, "kind", ""))


def _bytes(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return value.encode("utf-8", "surrogateescape")
    return b""


def bodies(encoded: bytes) -> Message:
    """A message of nothing but these body sections. What can't be read is the body as it is. Never raises."""
    message = sections.decode(encoded).message
    return Message(encoded) if message.malformed else message


def id_to_091(text: str) -> str:
    """An id as RabbitMQ 4 makes the right one of it, where that needs no header."""
    return f"{_URN}{text}" if isinstance(text, TypedId) and text.kind == "uuid" else text


def extra_headers(message: Message) -> dict[str, HeaderValue]:
    """Headers by which RabbitMQ gives a 1.0 consumer what 0-9-1 has no place for; none for most messages."""
    ids = (message.message_id, message.correlation_id)
    kinds = [text.kind for text in ids if isinstance(text, TypedId) and text.kind != "uuid"]
    if not kinds:
        return {}
    extra = {PROPERTIES: sections.properties_section(message)}
    if any(kind.startswith(PLUGIN) for kind in kinds):
        extra[HEADERS] = sections.headers_section(message.headers)
    # A long string, of whatever bytes, is what RabbitMQ looks for.
    return {name: data.decode("utf-8", "surrogateescape") for name, data in extra.items()}
