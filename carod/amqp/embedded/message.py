"""A message as it came: its encoded bytes, of which a broker reads the sections that are its own.

Bodies are never decoded, and only the header section is ever written anew (AMQP 1.0, part 3, 3.2).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from carod.amqp.amqp10 import codec
from carod.amqp.amqp10.codec import Malformed
from carod.amqp.amqp10.message import (
    ABSOLUTE_EXPIRY,
    DELIVERY_ANNOTATIONS,
    HEADER,
    MESSAGE_ANNOTATIONS,
    PROPERTIES,
    SUBJECT,
    TO,
    descriptor,
)

DEFAULT_PRIORITY = 4
PRIORITIES = 10
OVERHEAD = 1024
"""Bytes that a message costs beside its own, about: a flood of empty ones must not go unnoticed."""
HEAD = 1 << 16
"""Bytes at a message's begin that are in one piece, so that most sections can be read without joining the rest."""

_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}
"""Bytes of a value by the first half of its constructor; others begin with their size (part 1, 1.2)."""
_HEADER_MARK = b"\x00\x53\x70"


class Stored:
    """An encoded message in pieces, with what its header and properties say. Raises Malformed.

    `expires` is when it is no more to be delivered (time.monotonic), by its own will.
    """

    __slots__ = ("_durable", "_head", "_header_size", "_rest", "count", "expires", "priority", "size", "subject", "to")

    def __init__(self, chunks: Sequence[bytes | bytearray]) -> None:
        self.size = sum(map(len, chunks))
        head, self._rest = _parted(chunks)
        try:
            self._read(head)
        except Malformed:
            if not self._rest:
                raise
            head, self._rest = b"".join(chunks), ()  # a section that goes beyond the first piece
            self._read(head)
        self._head = head

    def _read(self, data: bytes) -> None:
        self.to: str | None = None
        self.subject: str | None = None
        self._durable, self.priority, ttl, self.count = False, DEFAULT_PRIORITY, None, 0
        self._header_size = at = 0
        absolute: int | None = None
        while at < len(data):
            section, start = descriptor(data, at)
            if section == HEADER:
                at = self._header_size = skip(data, start)
                self._durable, self.priority, ttl, self.count = _header(data[start:at])
            elif section == PROPERTIES:
                self.to, self.subject, absolute = _properties(data, start)
                break
            elif section in (DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS):
                at = skip(data, start)
            else:
                break
        self.expires = _expiry(ttl, absolute)

    def encoded(self, count: int) -> tuple[bytes | bytearray, ...]:
        """The message as it is to be sent when `count` deliveries of it have failed."""
        if not count and self.expires is None:
            return (self._head, *self._rest)
        ttl = None if self.expires is None else max(0, round((self.expires - time.monotonic()) * 1000))
        fields = [
            codec.encode(self._durable), bytes((0x50, self.priority)),
            codec.encode(None) if ttl is None else codec.encode_uint(ttl),
            codec.encode(False), codec.encode_uint(count),
        ]  # fmt: skip
        return (_HEADER_MARK + codec.encode_list(fields) + self._head[self._header_size :], *self._rest)


def _parted(chunks: Sequence[bytes | bytearray]) -> tuple[bytes, tuple[bytes | bytearray, ...]]:
    """A first piece that is all of a small message or at least HEAD of a large one, and the others."""
    size, number = 0, 0
    while number < len(chunks) and size < HEAD:
        size += len(chunks[number])
        number += 1
    return b"".join(chunks[:number]), tuple(chunks[number:])


@lru_cache(maxsize=256)
def _header(data: bytes) -> tuple[bool, int, int | None, int]:
    """Of a header section: durable, priority, ttl (milliseconds), delivery count."""
    fields, _ = codec.decode(data)
    if not isinstance(fields, list):
        raise Malformed("the header is no list")
    durable, priority, ttl, _, count = (*fields, *(None,) * 5)[:5]
    return durable is True, min(_integer(priority, DEFAULT_PRIORITY), PRIORITIES - 1), ttl, _integer(count, 0)


def _integer(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default


def _properties(data: bytes, at: int) -> tuple[str | None, str | None, int | None]:
    """Of a properties section: `to`, `subject`, absolute expiry (milliseconds since the epoch)."""
    kind = data[at]
    if kind == 0x45:
        return None, None, None
    if kind not in (0xC0, 0xD0):
        raise Malformed("the properties are no list")
    width = 1 if kind == 0xC0 else 4
    count = int.from_bytes(data[at + 1 + width : at + 1 + 2 * width], "big")
    at += 1 + 2 * width
    found: dict[int, Any] = {}
    for number in range(min(count, ABSOLUTE_EXPIRY + 1)):
        if number in (TO, SUBJECT, ABSOLUTE_EXPIRY):
            found[number], at = codec.decode(data, at)
        else:
            at = skip(data, at)
    to, subject, absolute = found.get(TO), found.get(SUBJECT), found.get(ABSOLUTE_EXPIRY)
    return (
        to if isinstance(to, str) else None,
        subject if isinstance(subject, str) else None,
        absolute if isinstance(absolute, int) else None,
    )


def _expiry(ttl: int | None, absolute: int | None) -> float | None:
    """When a message of this ttl that has come now expires (time.monotonic)."""
    lives = []
    if isinstance(ttl, int):
        lives.append(ttl / 1000)
    if absolute:
        lives.append(absolute / 1000 - time.time())
    return time.monotonic() + min(lives) if lives else None


def skip(data: bytes, at: int) -> int:
    """The offset behind the value at an offset. Raises Malformed."""
    values = 1
    while values:
        if at >= len(data):
            raise Malformed(f"a value goes beyond the message's end at {len(data)}")
        kind = data[at]
        at += 1
        if kind == 0:  # described: a descriptor and a value
            values += 1
            continue
        width = _WIDTHS.get(kind >> 4)
        if width is None:
            if kind < 0xA0:
                raise Malformed(f"unknown type 0x{kind:02x} at {at - 1}")
            size = 4 if kind & 0x10 else 1
            width = size + int.from_bytes(data[at : at + size], "big")
        at += width
        values -= 1
    if at > len(data):
        raise Malformed(f"a value goes beyond the message's end at {len(data)}")
    return at
