"""AMQP 1.0's types, to and from the wire (specification part 1, "Types").

Why not Proton's: its `Data` crosses into C for every value of a message, which costs more than all else that is done
with it, and a message that it can't decode raises, whereupon the broker offers the same one to the next node.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

MAX_DEPTH = 32
"""Maps, lists and described values nested deeper are refused: nobody means them, and decoding recurses."""
COMMON = 100
"""Strings shorter than this are kept encoded: most of a reply's headers are those of the one before."""

Decoded = tuple[Any, int]

_pack_i64, _pack_u64, _pack_f64 = (struct.Struct(f">c{code}").pack for code in ("q", "Q", "d"))
_u32 = struct.Struct(">I").unpack_from
_i64 = struct.Struct(">q").unpack_from


class Malformed(ValueError):
    """Bytes that are no AMQP 1.0 value, or one that nobody means; the text says where."""


class Symbol(str):
    """A name from a set that both sides know; ASCII."""

    __slots__ = ()


class Timestamp(int):
    """Milliseconds since the epoch."""

    __slots__ = ()


class Described:
    """A value with a type that is none of AMQP's own, named by `descriptor`."""

    __slots__ = ("descriptor", "value")

    def __init__(self, descriptor: object, value: object) -> None:
        self.descriptor, self.value = descriptor, value


# -- encoding --------------------------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """One value with its constructor. Raises ValueError for a number too large, TypeError for what has no AMQP type.

    Integers are `long`, whatever their size: that is what every other broker and language makes of it alike.
    """
    kind = value.__class__
    if kind is str:
        return encode_text(value)
    if kind is bool:
        return b"\x41" if value else b"\x42"
    if kind is int:
        return encode_int(value)
    if kind is float:
        return _pack_f64(b"\x82", value)
    return _encode_rare(value)


def encode_text(text: str) -> bytes:
    """A string; text that has none of Unicode's (it came as bytes) is bytes again."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return encode_bytes(text.encode("utf-8", "surrogateescape"))
    size = len(data)
    return (b"\xa1" + size.to_bytes(1, "big") if size < 256 else b"\xb1" + size.to_bytes(4, "big")) + data


def encode_bytes(data: bytes) -> bytes:
    size = len(data)
    return (b"\xa0" + size.to_bytes(1, "big") if size < 256 else b"\xb0" + size.to_bytes(4, "big")) + data


def encode_symbol(name: str) -> bytes:
    """Raises ValueError for what is not ASCII."""
    data = name.encode("ascii")
    size = len(data)
    return (b"\xa3" + size.to_bytes(1, "big") if size < 256 else b"\xb3" + size.to_bytes(4, "big")) + data


def encode_int(value: int) -> bytes:
    if -128 <= value <= 127:
        return b"\x55" + (value & 0xFF).to_bytes(1, "big")
    if -1 << 63 <= value < 1 << 63:
        return _pack_i64(b"\x81", value)
    if 0 < value < 1 << 64:
        return _pack_u64(b"\x80", value)
    raise ValueError(f"a header can't hold {value:.6g}: AMQP's integers have 64 bits")


def encode_ulong(value: int) -> bytes:
    """Raises ValueError for what is none."""
    if 0 <= value < 256:
        return b"\x53" + value.to_bytes(1, "big")
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value} is no unsigned integer of 64 bits")
    return _pack_u64(b"\x80", value)


def encode_uint(value: int) -> bytes:
    """What does not fit is the nearest that does."""
    value = max(0, min(value, 0xFFFFFFFF))
    if value < 256:
        return b"\x52" + value.to_bytes(1, "big")
    return b"\x70" + value.to_bytes(4, "big")


def encode_timestamp(milliseconds: int) -> bytes:
    return _pack_i64(b"\x83", max(-1 << 63, min(milliseconds, (1 << 63) - 1)))


def _encode_rare(value: Any) -> bytes:
    match value:
        case None:
            return b"\x40"
        case bytes():
            return encode_bytes(value)
        case Symbol():
            return encode_symbol(value)
        case Timestamp():
            return encode_timestamp(value)
        case UUID():
            return b"\x98" + value.bytes
        case list() | tuple():
            return encode_list([encode(item) for item in value])
        case Mapping():
            return encode_map(value)
        case Described():
            return b"\x00" + encode(value.descriptor) + encode(value.value)
        case str():
            return encode_text(str(value))
        case int():
            return encode_int(int(value))
    raise TypeError(f"AMQP has no type for {type(value).__name__} {value!r:.80}")


def encode_list(items: list[bytes]) -> bytes:
    """A list of encoded items."""
    return _compound(b"\xc0", b"\xd0", items) if items else b"\x45"


def encode_map(values: Mapping[Any, Any], keys: Callable[[str], bytes] = encode) -> bytes:
    """A map; `keys` encodes a key."""
    parts: list[bytes] = []
    for name, value in values.items():
        parts += keys(name), encode(value)
    return _compound(b"\xc1", b"\xd1", parts)


def encode_headers(headers: Mapping[str, Any]) -> bytes:
    """A map from strings: a message's application properties."""
    parts = []
    for name, value in headers.items():
        kind = value.__class__
        if (kind is str and len(value) < COMMON) or kind is int or kind is bool:
            parts.append(_encode_common(name, value))
        else:
            parts.append(encode_text(name) + encode(value))
    data = b"".join(parts)
    return b"\xd1" + (len(data) + 4).to_bytes(4, "big") + (2 * len(parts)).to_bytes(4, "big") + data


@lru_cache(maxsize=2048, typed=True)
def _encode_common(name: str, value: str | int) -> bytes:
    return encode_text(name) + encode(value)


def _compound(small: bytes, large: bytes, items: list[bytes]) -> bytes:
    data, count = b"".join(items), len(items)
    if len(data) < 255 and count < 256:
        return small + bytes((len(data) + 1, count)) + data
    return large + (len(data) + 4).to_bytes(4, "big") + count.to_bytes(4, "big") + data


# -- decoding --------------------------------------------------------------------------------------------------


def decode(data: bytes, at: int = 0, depth: int = 0) -> Decoded:
    """The value at an offset, and the offset behind it. Raises Malformed.

    A string that is not UTF-8 is bytes; so is a decimal number, whose bits nobody here can use.
    """
    try:
        kind = data[at]
    except IndexError:
        raise Malformed(f"a value was expected at {at}, where the message ends") from None
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise Malformed(f"unknown type 0x{kind:02x} at {at}")
    try:
        return decoder(data, at + 1, depth)
    except (IndexError, struct.error):
        raise Malformed(f"the value at {at} goes beyond the message's end") from None


def _take(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    end = at + size
    if end > len(data):
        raise Malformed(f"{size} bytes expected at {at}, {len(data) - at} left")
    return data[at:end], end


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _text8(data: bytes, at: int, _depth: int) -> Decoded:
    start = at + 1
    end = start + data[at]
    if end > len(data):
        raise Malformed(f"{data[at]} bytes expected at {start}, {len(data) - start} left")
    try:
        return data[start:end].decode(), end
    except UnicodeDecodeError:
        return data[start:end], end


def _text32(data: bytes, at: int, _depth: int) -> Decoded:
    found, end = _take(data, at + 4, _u32(data, at)[0])
    return _text(found), end


def _binary8(data: bytes, at: int, _depth: int) -> Decoded:
    return _take(data, at + 1, data[at])


def _binary32(data: bytes, at: int, _depth: int) -> Decoded:
    return _take(data, at + 4, _u32(data, at)[0])


def _symbol8(data: bytes, at: int, _depth: int) -> Decoded:
    found, end = _take(data, at + 1, data[at])
    return Symbol(found.decode("latin-1")), end


def _symbol32(data: bytes, at: int, _depth: int) -> Decoded:
    found, end = _take(data, at + 4, _u32(data, at)[0])
    return Symbol(found.decode("latin-1")), end


def _constant(value: object) -> Callable[[bytes, int, int], Decoded]:
    return lambda data, at, depth: (value, at)


def _fixed(size: int, convert: Callable[[bytes], object]) -> Callable[[bytes, int, int], Decoded]:
    def decoder(data: bytes, at: int, _depth: int) -> Decoded:
        found, end = _take(data, at, size)
        return convert(found), end

    return decoder


def _number(size: int, signed: bool) -> Callable[[bytes, int, int], Decoded]:
    return _fixed(size, lambda found: int.from_bytes(found, "big", signed=signed))


def _character(found: bytes) -> str:
    point = int.from_bytes(found, "big")
    if point > 0x10FFFF or 0xD800 <= point < 0xE000:
        raise Malformed(f"0x{point:x} is no character")
    return chr(point)


def _extent(data: bytes, at: int, width: int) -> tuple[int, int, int]:
    """Of a list, map or array at its size: how many items it has, where they begin, where they end."""
    size = int.from_bytes(data[at : at + width], "big")
    start, end = at + 2 * width, at + width + size
    if size < width or end > len(data):
        raise Malformed(f"a list, map or array of {size} bytes at {at}, {len(data) - at - width} left")
    return int.from_bytes(data[at + width : start], "big"), start, end


def _list(width: int) -> Callable[[bytes, int, int], Decoded]:
    def decoder(data: bytes, at: int, depth: int) -> Decoded:
        count, at, end = _extent(data, at, width)
        return _items(data, at, end, count, depth), end

    return decoder


def _map(width: int) -> Callable[[bytes, int, int], Decoded]:
    def decoder(data: bytes, at: int, depth: int) -> Decoded:
        count, at, end = _extent(data, at, width)
        items = iter(_items(data, at, end, count & ~1, depth))
        try:
            return dict(zip(items, items, strict=True)), end
        except TypeError:
            raise Malformed(f"a map at {at} has a map or list for a key") from None

    return decoder


def _items(data: bytes, at: int, end: int, count: int, depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise Malformed(f"values nested deeper than {MAX_DEPTH}")
    if count > end - at:
        raise Malformed(f"{count} items expected at {at}, {end - at} bytes left")
    items: list[Any] = []
    decoders, add = _DECODERS, items.append
    for _ in range(count):
        kind = data[at]
        if kind == 0xA1:  # most of what there is in a message's headers: no call for these
            start = at + 2
            at = start + data[at + 1]
            try:
                add(str(data[start:at], "utf-8"))
            except UnicodeDecodeError:
                add(data[start:at])
        elif kind in decoders:
            item, at = decoders[kind](data, at + 1, depth + 1)
            add(item)
        else:
            raise Malformed(f"unknown type 0x{kind:02x} at {at}")
    if at > end:
        raise Malformed(f"a list or map's items go beyond its end at {end}")
    return items


def _array(width: int) -> Callable[[bytes, int, int], Decoded]:
    def decoder(data: bytes, at: int, depth: int) -> Decoded:
        count, at, end = _extent(data, at, width)
        if depth >= MAX_DEPTH:
            raise Malformed(f"values nested deeper than {MAX_DEPTH}")
        while data[at] == 0:
            _, at = decode(data, at + 1, depth + 1)  # the items' descriptor
        item_decoder = _DECODERS.get(data[at])
        if item_decoder is None or data[at] == 0:
            raise Malformed(f"unknown type 0x{data[at]:02x} of an array at {at}")
        at += 1
        if count > end - at:  # of items that take no bytes, a few could claim to be billions
            raise Malformed(f"{count} items of an array expected at {at}, {end - at} bytes left")
        items = []
        for _ in range(count):
            item, at = item_decoder(data, at, depth + 1)
            items.append(item)
        if at > end:
            raise Malformed(f"an array's items go beyond its end at {end}")
        return items, end

    return decoder


def _described(data: bytes, at: int, depth: int) -> Decoded:
    if depth >= MAX_DEPTH:
        raise Malformed(f"values nested deeper than {MAX_DEPTH}")
    descriptor, at = decode(data, at, depth + 1)
    value, at = decode(data, at, depth + 1)
    return Described(descriptor, value), at


def _long(data: bytes, at: int, _depth: int) -> Decoded:
    return _i64(data, at)[0], at + 8


def _small(data: bytes, at: int, _depth: int) -> Decoded:
    value = data[at]
    return (value - 256 if value > 127 else value), at + 1


_DECODERS: dict[int, Callable[[bytes, int, int], Decoded]] = {
    0x00: _described,
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(0),
    0x44: _constant(0),
    0x45: lambda data, at, depth: ([], at),
    0x50: _number(1, False),
    0x51: _small,
    0x52: _number(1, False),
    0x53: _number(1, False),
    0x54: _small,
    0x55: _small,
    0x56: _fixed(1, lambda found: found != b"\0"),
    0x60: _number(2, False),
    0x61: _number(2, True),
    0x70: _number(4, False),
    0x71: _number(4, True),
    0x72: _fixed(4, lambda found: struct.unpack(">f", found)[0]),
    0x73: _fixed(4, _character),
    0x74: _fixed(4, bytes),
    0x80: _number(8, False),
    0x81: _long,
    0x82: _fixed(8, lambda found: struct.unpack(">d", found)[0]),
    0x83: _fixed(8, lambda found: Timestamp(int.from_bytes(found, "big", signed=True))),
    0x84: _fixed(8, bytes),
    0x94: _fixed(16, bytes),
    0x98: _fixed(16, lambda found: UUID(bytes=found)),
    0xA0: _binary8,
    0xA1: _text8,
    0xA3: _symbol8,
    0xB0: _binary32,
    0xB1: _text32,
    0xB3: _symbol32,
    0xC0: _list(1),
    0xC1: _map(1),
    0xD0: _list(4),
    0xD1: _map(4),
    0xE0: _array(1),
    0xF0: _array(4),
}
