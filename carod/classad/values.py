"""ClassAd values, and their text.

A value is a Python ``int`` (64 bits, signed), ``float``, ``str``, ``bool``, ``list``, ``ClassAd``, an aware
``datetime`` (absolute time, whole seconds and an offset), a ``timedelta`` (relative time), `UNDEFINED` or
`ERROR`. Source of the rules: HTCondor manual, "ClassAd mechanism"; where it is silent, HTCondor's own
library.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Union

if TYPE_CHECKING:
    from .ad import ClassAd
    from .evaluation import Expr


class _Singleton:
    """`UNDEFINED` or `ERROR`: compared with ``is``, false in a condition, the same after copy and pickle."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return self._name


UNDEFINED: Final = _Singleton("UNDEFINED")
ERROR: Final = _Singleton("ERROR")

Value: TypeAlias = Union[
    int, float, str, bool, "list[Any]", "ClassAd", datetime, timedelta, _Singleton
]  # fmt: skip

# Longest string a function may produce, in characters: replaceAll and strcat must not eat the machine.
MAX_STRING = 16 << 20

SCALARS = frozenset({int, float, str, bool, datetime, timedelta, _Singleton})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)

# Words that the lexer reads as something else, and those that HTCondor quotes in front of a scope.
_RESERVED = frozenset({"true", "false", "undefined", "error", "is", "isnt", "parent"})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NEEDS_ESCAPE = re.compile(r'[\x00-\x1f\\"\x7f\udc80-\udcff]')
_NEEDS_ESCAPE_IN_NAME = re.compile(r"[\x00-\x1f\\'\x7f\udc80-\udcff]")
_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_ESCAPES |= {"\\": "\\\\", '"': '\\"', "'": "\\'"}


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    if char in _ESCAPES:
        return _ESCAPES[char]
    # A NUL ends a string in HTCondor and its parser refuses it, so it can't be written; bytes that are no
    # UTF-8 are kept as lone surrogates (errors="surrogateescape").
    return "" if char == "\0" else f"\\{ord(char) & 0xFF:03o}"


def quote(text: str) -> str:
    """`text` as a ClassAd string literal, quotes included. Not ASCII stays as it is, a NUL is dropped."""
    if _NEEDS_ESCAPE.search(text):
        text = _NEEDS_ESCAPE.sub(_escape, text)
    return f'"{text}"'


def quote_name(name: str) -> str:
    """`name` as an attribute's name: as it is if it is an identifier, else in single quotes."""
    if _IDENTIFIER.match(name) and name.lower() not in _RESERVED:
        return name
    return "'" + _NEEDS_ESCAPE_IN_NAME.sub(_escape, name) + "'"


def real_text(value: float) -> str:
    """A real's shortest text that reads back the same, written as HTCondor's daemons do (``1E+16``)."""
    if math.isfinite(value):
        return repr(value).upper()
    return _not_finite(value)


def real_text_long(value: float) -> str:
    """A real's text inside the language, by string() and strcat(): 16 digits, ``1.500000000000000E+00``."""
    if not math.isfinite(value):
        return _not_finite(value)
    return f"{value:.1f}" if value == 0 else f"{value:.15E}"


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return 'real("NaN")'
    return 'real("INF")' if value > 0 else 'real("-INF")'


def unparse(value: Value | Expr, *, canonical: bool = False) -> str:
    """ClassAd source of a value or expression; parsing it gives the same value or tree.

    `canonical` writes reals as string() does in the language. Raises TypeError for what is no ClassAd value.
    """
    kind = type(value)
    if kind is str:
        return quote(value)  # type: ignore[arg-type]
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if kind is float:
        return (real_text_long if canonical else real_text)(value)  # type: ignore[arg-type]
    if value is UNDEFINED:
        return "undefined"
    if value is ERROR:
        return "error"
    if isinstance(value, datetime):
        return f'absTime("{absolute_text(value)}")'
    if isinstance(value, timedelta):
        return f'relTime("{relative_text(value.total_seconds())}")'
    if isinstance(value, (list, tuple)):
        separator = "," if canonical else ", "
        return "{ " + separator.join([unparse(item, canonical=canonical) for item in value]) + " }"
    text = getattr(value, "unparse", None)
    if text is None:
        raise TypeError(f"{kind.__name__} is no ClassAd value: use int, float, str, bool, list, ClassAd or a time")
    return str(text(canonical=canonical))


def epoch_seconds(time: datetime) -> int:
    """Whole seconds since 1970 UTC; a naive time is local, as everywhere in Python."""
    if time.tzinfo is None:
        time = time.astimezone()
    return (time - _EPOCH) // _SECOND


def utc_offset(time: datetime) -> int:
    """Seconds east of Greenwich."""
    if time.tzinfo is None:
        time = time.astimezone()
    return (time.utcoffset() or timedelta()) // _SECOND


def local_offset(seconds: int) -> int:
    """Seconds east of Greenwich here at the instant `seconds`. Raises ValueError or OSError."""
    return (datetime.fromtimestamp(seconds).astimezone().utcoffset() or timedelta()) // _SECOND


def absolute(seconds: float, offset: int | None = None) -> datetime | _Singleton:
    """The absolute time at `seconds` since 1970 with an offset in seconds, the local one if None.

    `ERROR` for what ``datetime`` can't hold (years 1 to 9999, offsets under a day).
    """
    try:
        whole = math.trunc(seconds)
        zone = timezone(timedelta(seconds=local_offset(whole) if offset is None else offset))
        return (_EPOCH + timedelta(seconds=whole)).astimezone(zone)
    except (ValueError, OverflowError, OSError):
        return ERROR


def relative(seconds: float) -> timedelta | _Singleton:
    """The relative time of `seconds`; `ERROR` for what ``timedelta`` can't hold."""
    try:
        return timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        return ERROR


def absolute_text(time: datetime) -> str:
    """``2020-01-31T09:00:00-06:00``. HTCondor writes Greenwich as ``-00:00``; so do we."""
    offset = utc_offset(time)
    local = _EPOCH + timedelta(seconds=epoch_seconds(time) + offset)
    sign, minutes = ("+", offset // 60) if offset > 0 else ("-", -offset // 60)
    return f"{local.year:04d}-{local:%m-%dT%H:%M:%S}{sign}{minutes // 60:02d}:{minutes % 60:02d}"


def relative_text(seconds: float) -> str:
    """``[-][[[days+]hh:]mm:]ss[.fff]``: leading parts that are zero are left out."""
    sign = "-" if seconds < 0 else ""
    micros = round(abs(seconds) * 1_000_000)
    whole, fraction = divmod(micros, 1_000_000)
    minutes, secs = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    tail = f"{secs:02d}" + (f".{fraction:06d}".rstrip("0") if fraction else "")
    if days:
        return f"{sign}{days}+{hours:02d}:{minutes:02d}:{tail}"
    if hours:
        return f"{sign}{hours:02d}:{minutes:02d}:{tail}"
    return f"{sign}{minutes:02d}:{tail}" if minutes else sign + tail


_NOT_ASCII_LOWER = {ord(c): ord(c) + 32 for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def fold(text: str) -> str:
    """Lower case of the ASCII letters only: HTCondor compares and converts in the C locale."""
    return text.lower() if text.isascii() else text.translate(_NOT_ASCII_LOWER)


def wrap(number: int) -> int:
    """`number` as a signed 64-bit integer, wrapping as the machine's does."""
    if -0x8000_0000_0000_0000 <= number <= 0x7FFF_FFFF_FFFF_FFFF:
        return number
    return ((number + 0x8000_0000_0000_0000) & 0xFFFF_FFFF_FFFF_FFFF) - 0x8000_0000_0000_0000


def wrap32(number: int) -> int:
    """`number` as C converts it to an int: HTCondor's indexes and times pass through one."""
    return ((number + 0x8000_0000) & 0xFFFF_FFFF) - 0x8000_0000
