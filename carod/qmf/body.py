"""A message's body as a map or a list, whatever the protocol, and only if it is safe to look at.

AMQP 1.0 has maps; over 0-9-1 they travel as JSON, where bytes are `{"_bytes": "base64"}` and a uuid is its text.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

from carod.amqp import Message

MAX_STRING = 65_535
"""The most bytes in a string or in binary: AMQP 0-10's longest with a length of two bytes, all that QMF uses."""
MAX_NAME = 255
"""The most bytes in a map's key (0-10: one byte of length)."""
MAX_DEPTH = 16
MAX_REQUEST = 1 << 20
"""The most bytes in a request's body."""
MAX_ITEMS = 50_000
"""The most values in a request, nested ones included."""
MAX_ANSWER, MAX_ANSWER_ITEMS = 64 << 20, 10_000_000
"""The same for what an agent answers, which a console believes more of."""
INTEGERS = range(-(1 << 63), 1 << 64)
MAX_COMMON = 1 << 62


class BadBody(ValueError):
    """A body that can't be read; the text says what is wrong with it and where."""


def read_body(message: Message, max_size: int = MAX_REQUEST, max_items: int = MAX_ITEMS) -> dict[str, Any] | list[Any]:
    """The map or list in a message: None, bool, int, float, str, bytes, uuid.UUID, maps and lists. Raises BadBody."""
    body: Any = message.value
    from_json = body is None
    if from_json:
        body = _parse(message, max_size)
    plain = _Plain(from_json, max_items).value(body, 0)
    if not isinstance(plain, dict | list):
        raise BadBody(f"the body is {type(plain).__name__}, not a map or a list")
    return plain


def _parse(message: Message, max_size: int) -> Any:
    raw = message.body
    if not isinstance(raw, bytes) or len(raw) > max_size:
        raise BadBody(f"the body has more than {max_size} bytes")
    if message.content_type not in (None, "application/json"):
        raise BadBody(f"content type {message.content_type[:60]!r}: send application/json, or an AMQP 1.0 map or list")
    if not raw:
        return {}
    try:
        return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise BadBody("nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise BadBody(f"the body is not JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:60]!r} is there twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


class _Plain:
    """Copies a body into plain values, counting and measuring as it goes."""

    __slots__ = ("from_json", "left")

    def __init__(self, from_json: bool, max_items: int) -> None:
        self.from_json, self.left = from_json, max_items

    def value(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise BadBody("the body has too many values")
        kind = value.__class__
        if kind is str:  # nearly all values are text or numbers, and of these kinds themselves
            return value if len(value) <= MAX_STRING and value.isascii() else self._text(value, MAX_STRING)
        if value is None or kind is bool or kind is float:
            return value
        if kind is int and -MAX_COMMON < value < MAX_COMMON:
            return value
        if kind is dict or kind is list:
            if depth >= MAX_DEPTH:
                raise BadBody(f"nested deeper than {MAX_DEPTH}")
            return self._map(value, depth + 1) if kind is dict else [self.value(item, depth + 1) for item in value]
        return self._rare(value, depth)

    def _rare(self, value: Any, depth: int) -> Any:
        """AMQP's own types, which are derived from Python's, and what only AMQP has."""
        match value:
            case str():
                return self._text(value, MAX_STRING)
            case int():
                if value not in INTEGERS:
                    raise BadBody(f"an integer of {value.bit_length()} bits: AMQP's have 64")
                return int(value)
            case float():
                return float(value)
            case uuid.UUID():
                return value
            case bytes() | bytearray() | memoryview():
                return self._binary(bytes(value))
            case dict():
                return self.value(dict(value), depth)
            case list() | tuple():
                return self.value(list(value), depth)
        raise BadBody(f"a value of type {type(value).__name__}")

    def _text(self, text: str, limit: int) -> str:
        if len(text) * 4 > limit or not text.isascii():
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                raise BadBody("a string holds half of a surrogate pair, which is no character") from None
            if size > limit:
                raise BadBody(f"a string of {size} bytes; the longest that QMF can carry has {limit}")
        return str(text)

    def _binary(self, data: bytes) -> str | bytes:
        """Clients of 0-10 under Python 2 send text as binary."""
        if len(data) > MAX_STRING:
            raise BadBody(f"binary of {len(data)} bytes; the longest that QMF can carry has {MAX_STRING}")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data

    def _map(self, value: dict[Any, Any], depth: int) -> Any:
        if self.from_json and value.keys() == {"_bytes"}:
            return self._base64(value["_bytes"])
        result = {}
        for key, item in value.items():
            plain = key.__class__ is str and len(key) <= MAX_NAME and key.isascii()
            result[key if plain else self._name(key)] = self.value(item, depth)
        return result

    def _name(self, key: Any) -> str:
        name = self._binary(key) if isinstance(key, bytes) else key
        if not isinstance(name, str):
            raise BadBody(f"a map's key is {type(key).__name__}, not a string")
        return self._text(name, MAX_NAME)

    def _base64(self, text: Any) -> bytes:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise BadBody("_bytes is not base64") from None
        if len(data) > MAX_STRING:
            raise BadBody(f"binary of {len(data)} bytes; the longest that QMF can carry has {MAX_STRING}")
        return data


# -- sending ---------------------------------------------------------------------------------------------------


class TooLong(ValueError):
    """A value that no QMF message can carry; the text says which."""


def sendable(value: Any) -> Any:
    """A value as it can travel: what AMQP or JSON has no number for becomes its ClassAd text. Raises TooLong."""
    kind = value.__class__
    if kind is str:
        return value if value.isascii() and len(value) <= MAX_STRING else _sendable_text(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if value in INTEGERS else str(value)
    if kind is float:
        return value if math.isfinite(value) else f'real("{str(value).upper().replace("NAN", "NaN")}")'
    if kind is bytes:
        if len(value) > MAX_STRING:
            raise TooLong(f"binary of {len(value)} bytes, of which QMF carries {MAX_STRING}")
        return value
    if isinstance(value, Mapping):
        return {sendable(name): sendable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(item) for item in value]
    if isinstance(value, int):  # an enumeration's member
        return int(value)
    if isinstance(value, str):
        return sendable(str(value))
    return value


def _sendable_text(text: str) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > MAX_STRING:
        raise TooLong(f"a string of {len(encoded)} bytes, of which QMF carries {MAX_STRING}")
    return encoded.decode()
