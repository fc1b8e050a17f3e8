"""AMQP 0-10's encoding of maps (specification 0-10, "Types"), which version 1 of QMF describes schemas with."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Any

VOID, BOOL, UINT8, INT64, DOUBLE, UUID, STR16 = 0xF0, 0x08, 0x02, 0x31, 0x33, 0x48, 0x95
_NUMBERS = dict(
    zip((0x01, 0x02, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x23, 0x33, 0x38), "bBhHiIqQfdq", strict=True),
)
"""Type codes of fixed width by their letter in `struct`."""
_LENGTHS = {0x80: 1, 0x84: 1, 0x85: 1, 0x90: 2, 0x94: 2, 0x95: 2, 0xA0: 4}
"""Type codes of binaries and strings by the width of their length."""
_TEXTS = frozenset((0x84, 0x85, 0x94, 0x95))
_MAP, _LIST = 0xA8, 0xA9
_MAX_DEPTH = 8


class BadEncoding(ValueError):
    """Bytes that are not what they should be; the text says where."""


class Writer:
    """Collects encoded values."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    @property
    def encoded(self) -> bytes:
        return b"".join(self.parts)

    def number(self, value: int, width: int) -> None:
        self.parts.append(value.to_bytes(width, "big"))

    def str8(self, text: str) -> None:
        data = text.encode()
        self.number(len(data), 1)
        self.parts.append(data)

    def raw(self, data: bytes) -> None:
        self.parts.append(data)

    def map(self, values: Mapping[str, Any]) -> None:
        inner = Writer()
        inner.number(len(values), 4)
        for name, value in values.items():
            inner.str8(name)
            inner._value(value)
        data = inner.encoded
        self.number(len(data), 4)
        self.raw(data)

    def _value(self, value: Any) -> None:
        match value:
            case bool():
                self.raw(bytes((BOOL, value)))
            case int() if 0 <= value < 256:
                self.raw(bytes((UINT8, value)))
            case int():
                self.raw(struct.pack(">Bq", INT64, value))
            case float():
                self.raw(struct.pack(">Bd", DOUBLE, value))
            case str():
                data = value.encode()
                self.raw(struct.pack(">BH", STR16, len(data)) + data)
            case uuid.UUID():
                self.raw(bytes((UUID,)) + value.bytes)
            case _:
                raise TypeError(f"a schema's map can't hold {type(value).__name__}")


class Reader:
    """Takes values off encoded bytes; every read is checked against their end. Raises BadEncoding."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) < count:
            raise BadEncoding(f"{count} bytes expected at {self.at}, {len(part)} left")
        self.at += count
        return part

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def str8(self) -> str:
        return self._text(self.take(self.number(1)))

    def map(self, depth: int = 0) -> dict[str, Any]:
        inner = Reader(self.take(self.number(4)))
        if not inner.data:
            return {}
        return {inner.str8(): inner._value(depth + 1) for _ in range(inner.number(4))}

    def _list(self, depth: int) -> list[Any]:
        inner = Reader(self.take(self.number(4)))
        return [inner._value(depth + 1) for _ in range(inner.number(4))] if inner.data else []

    def _value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise BadEncoding(f"maps nested deeper than {_MAX_DEPTH}")
        code = self.number(1)
        if code == VOID:
            return None
        if code == BOOL:
            return self.number(1) != 0
        if code in _NUMBERS:
            letter = ">" + _NUMBERS[code]
            return struct.unpack(letter, self.take(struct.calcsize(letter)))[0]
        if code in _LENGTHS:
            data = self.take(self.number(_LENGTHS[code]))
            return self._text(data) if code in _TEXTS else data
        if code == UUID:
            return uuid.UUID(bytes=self.take(16))
        if code == _MAP:
            return self.map(depth)
        if code == _LIST:
            return self._list(depth)
        raise BadEncoding(f"unknown type code {code:#04x} at {self.at - 1}")

    def _text(self, data: bytes) -> str:
        return data.decode("utf-8", "replace")
