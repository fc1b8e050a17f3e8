"""Built-in functions on strings: strcat, join, substr, toUpper, strcmp, the version comparisons, split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..evaluation import LazyList, State
from ..functions import ANY_NUMBER, function
from ..values import ERROR, MAX_STRING, UNDEFINED, fold, wrap32
from .conversions import to_string


def to_bytes(text: str) -> bytes:
    """HTCondor's strings are bytes: positions and lengths count them."""
    return text.encode("utf-8", "surrogateescape")


def from_bytes(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def byte_length(text: str) -> int:
    return len(text) if text.isascii() else len(to_bytes(text))


def _joined(state: State, parts: Sequence[str], separator: str = "") -> Any:
    if sum(map(len, parts)) + len(separator) * len(parts) > MAX_STRING:
        return ERROR
    text = separator.join(parts)
    state.charge(len(text))
    return text


@function("strcat", takes=(0, ANY_NUMBER))
def strcat(state: State, values: Sequence[Any]) -> Any:
    parts = []
    for value in values:
        text = to_string(state, value)
        if type(text) is not str:
            return text
        parts.append(text)
    return _joined(state, parts)


@function("join", takes=(0, ANY_NUMBER))
def join(state: State, values: Sequence[Any]) -> Any:
    if values and len(values) <= 2 and type(values[-1]) is LazyList:
        values = [values[0] if len(values) == 2 else "", *state.members(values[-1])]
    separator = ""
    parts: list[str] = []
    undefined = False
    for position, value in enumerate(values):
        text = to_string(state, value)
        if text is ERROR:
            return ERROR
        if text is UNDEFINED:
            undefined = True
        elif position == 0:
            separator = text
        elif parts or text:
            parts.append(text)
        else:
            # HTCondor puts the separator before an item if there is any text yet: leading empty ones vanish.
            undefined = undefined and False
    if undefined and not parts:
        return UNDEFINED
    return _joined(state, parts, separator)


_UPPER = {ord(char): ord(char) - 32 for char in "abcdefghijklmnopqrstuvwxyz"}


def _upper(text: str) -> str:
    return text.upper() if text.isascii() else text.translate(_UPPER)


def _change_case(change: Callable[[str], str]) -> Callable[[State, Sequence[Any]], Any]:
    def body(state: State, values: Sequence[Any]) -> Any:
        text = to_string(state, values[0])
        if type(text) is not str:
            return text
        state.charge(len(text))
        return change(text)

    return body


function("toUpper", takes=1)(_change_case(_upper))
function("toLower", takes=1)(_change_case(fold))


@function("substr", takes=(2, 3))
def substr(state: State, values: Sequence[Any]) -> Any:
    if any(value is UNDEFINED for value in values):
        return UNDEFINED
    text, offset = values[0], values[1]
    if type(text) is not str or any(type(value) is not int for value in values[1:]):
        return ERROR
    state.charge(len(text))
    # The numbers pass through a C int in HTCondor.
    data: Any = text if text.isascii() else to_bytes(text)
    start = wrap32(offset)
    start = max(0, len(data) + start) if start < 0 else min(start, len(data))
    end = len(data)
    if len(values) == 3:
        count = wrap32(values[2])
        end = max(start, end + count) if count < 0 else min(start + count, end)
    part = data[start:end]
    return from_bytes(part) if isinstance(part, bytes) else part


def _compare_text(change: Callable[[str], str]) -> Callable[[State, Sequence[Any]], Any]:
    def body(state: State, values: Sequence[Any]) -> Any:
        if values[0] is UNDEFINED or values[1] is UNDEFINED:
            return UNDEFINED
        left, right = to_string(state, values[0]), to_string(state, values[1])
        if type(left) is not str or type(right) is not str:
            return ERROR
        state.charge(len(left) + len(right))
        one, other = to_bytes(change(left)), to_bytes(change(right))
        return (one > other) - (one < other)

    return body


function("strcmp", takes=2)(_compare_text(lambda text: text))
function("stricmp", takes=2)(_compare_text(fold))


# Versions: glibc's strverscmp(). A run of digits compares by value, one with leading zeros as a fraction.

_NORMAL, _INTEGRAL, _FRACTIONAL, _ZEROS = 0, 3, 6, 9
_NEXT = (
    (_NORMAL, _INTEGRAL, _ZEROS),
    (_NORMAL, _INTEGRAL, _INTEGRAL),
    (_NORMAL, _FRACTIONAL, _FRACTIONAL),
    (_NORMAL, _FRACTIONAL, _ZEROS),
)
_DIFFERENCE, _LENGTH = 2, 3
_RESULT = (
    (2, 2, 2, 2, 3, 2, 2, 2, 2),
    (2, -1, -1, 1, 3, 3, 1, 3, 3),
    (2, 2, 2, 2, 2, 2, 2, 2, 2),
    (2, 1, 1, -1, 2, 2, -1, 2, 2),
)


def _class(byte: int) -> int:
    return 2 if byte == 48 else 1 if 48 < byte <= 57 else 0


def compare_versions(left: str, right: str) -> int:
    """Below, above or equal to zero as `left` is an earlier, later or the same version as `right`."""
    one, other = to_bytes(left) + b"\0", to_bytes(right) + b"\0"
    position = 0
    row = _NORMAL // 3
    while one[position] == other[position]:
        if one[position] == 0:
            return 0
        row = _NEXT[row][_class(one[position])] // 3
        position += 1
    verdict = _RESULT[row][_class(one[position]) * 3 + _class(other[position])]
    difference = one[position] - other[position]
    if verdict == _DIFFERENCE:
        return difference
    if verdict != _LENGTH:
        return verdict
    position += 1
    while _class(one[position]):
        if not _class(other[position]):
            return 1
        position += 1
    return -1 if _class(other[position]) else difference


def _version_texts(state: State, values: Sequence[Any]) -> list[str] | None:
    texts = [to_string(state, value) for value in values]
    if any(type(text) is not str for text in texts):
        return None
    state.charge(sum(map(len, texts)) << 6)
    return texts


def _version(name: str, verdict: Callable[[int], Any]) -> None:
    def body(state: State, values: Sequence[Any]) -> Any:
        if values[0] is UNDEFINED or values[1] is UNDEFINED:
            return UNDEFINED
        texts = _version_texts(state, values)
        return ERROR if texts is None else verdict(compare_versions(*texts))

    function(name, takes=2)(body)


_version("versioncmp", lambda order: order)
_version("versionLT", lambda order: order < 0)
_version("versionLE", lambda order: order <= 0)
_version("versionEQ", lambda order: order == 0)
_version("versionGE", lambda order: order >= 0)
_version("versionGT", lambda order: order > 0)


@function("version_in_range", takes=3)
def version_in_range(state: State, values: Sequence[Any]) -> Any:
    if values[1] is UNDEFINED or values[2] is UNDEFINED:
        return UNDEFINED
    texts = _version_texts(state, values)
    if texts is None:
        return ERROR
    version, least, most = texts
    return compare_versions(least, version) <= 0 and compare_versions(version, most) <= 0


# Splitting


@function("split", takes=(1, 2))
def split(state: State, values: Sequence[Any]) -> Any:
    text, separators = values[0], values[1] if len(values) == 2 else ", \t"
    if type(text) is not str or type(separators) is not str:
        return ERROR
    parts: list[Any] = []
    start = 0
    last = ""
    for position, char in enumerate(text):
        if char not in separators:
            continue
        if position > start:
            parts.append(text[start:position])
        elif char == last and not char.isspace():
            # Two of the same separator enclose an empty item; white space never does.
            parts.append("")
        if not char.isspace():
            last = char
        start = position + 1
    if start < len(text):
        parts.append(text[start:])
    state.charge(len(text) << 4)
    return LazyList(parts, None)


def _split_at(first: bool) -> Callable[[State, Sequence[Any]], Any]:
    def body(state: State, values: Sequence[Any]) -> Any:
        text = values[0]
        if type(text) is not str:
            return ERROR
        before, at, after = text.partition("@")
        if not at:
            before, after = (text, "") if first else ("", text)
        return LazyList([before, after], None)

    return body


function("splitUserName", takes=1)(_split_at(first=True))
function("splitSlotName", takes=1)(_split_at(first=False))
