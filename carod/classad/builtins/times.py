"""Times: the text of time literals, and the built-in functions on times."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from ..evaluation import State
from ..functions import function
from ..values import (
    ERROR,
    SCALARS,
    UNDEFINED,
    absolute,
    epoch_seconds,
    local_offset,
    relative,
    utc_offset,
    wrap32,
)
from .conversions import to_real, truncate

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# strftime's result in HTCondor has room for this.
_MAX_FORMATTED = 1023

_ZONE = re.compile(r"\s*[zZ]\s*\Z|([+-])([0-9]{2}):?([0-9]{2})\s*\Z")
_ABSOLUTE = re.compile(r"[^0-9]*([0-9]{4})" + r"(?:[^0-9]*([0-9]{2}))?" * 5 + r"[^0-9]*\Z")
_RELATIVE = re.compile(
    r"\s*(-)?\s*(?:([0-9]+)\s*[dD+])?\s*(?:([0-9]+)\s*[hH:])?\s*(?:([0-9]+)\s*[mM:])?\s*"
    r"(?:([0-9]*\.?[0-9]+)\s*[sS]?|[sS])?\s*\Z"
)


def parse_absolute(text: str) -> Any:
    """The time written in `text`, None if there is none.

    Four digits of the year, then pairs for month, day, hour, minute and second, with anything but digits
    between them; at the end Z, ``+hh:mm`` or ``-hh:mm``, else local time. What is missing is zero.
    """
    if len(text) > 100:
        return None
    zone = _ZONE.search(text)
    match = _ABSOLUTE.match(text[: zone.start()] if zone else text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
    if match[2] is None:
        month = 1
    try:
        # A month or day beyond the calendar rolls over, as C's mktime() does it; a missing day is day zero.
        months = year * 12 + month - 1
        start = datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)
        local = start + timedelta(days=day - 1, hours=hour, minutes=minute, seconds=second)
        seconds = epoch_seconds(local)
        if zone is None:
            offset = _offset_of_local(seconds)
        elif zone[1] is None:
            offset = 0
        else:
            offset = (int(zone[2]) * 60 + int(zone[3])) * (-60 if zone[1] == "-" else 60)
        value = absolute(seconds - offset, offset)
    except (ValueError, OverflowError, OSError):
        return None
    return None if value is ERROR else value


def _offset_of_local(local_seconds: int) -> int:
    """The offset at a local time given as if it were UTC's."""
    guess = local_offset(local_seconds)
    return local_offset(local_seconds - guess)


def parse_relative(text: str) -> timedelta | None:
    """The time span written as ``[-][[[days+]hh:]mm:]ss[.fff]`` or ``1d2h3m4s``; None if there is none."""
    if len(text) > 100:
        return None
    match = _RELATIVE.match(text)
    if match is None:
        return None
    sign, days, hours, minutes, seconds = match.groups()
    # "1:02" is minutes and seconds, although the pattern reads its 1 as hours.
    if hours is not None and minutes is None and text[match.end(3) :].lstrip().startswith(":"):
        hours, minutes = None, hours
    total = int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)
    value = relative(-total if sign else total)
    return value if isinstance(value, timedelta) else None


@function("isAbstime", takes=1)
def is_absolute(state: State, values: Sequence[Any]) -> bool:
    return isinstance(values[0], datetime)


@function("isReltime", takes=1)
def is_relative(state: State, values: Sequence[Any]) -> bool:
    return isinstance(values[0], timedelta)


@function("time", takes=0)
def epoch_time(state: State, values: Sequence[Any]) -> int:
    return int(time.time())


@function("currentTime", takes=0)
def current_time(state: State, values: Sequence[Any]) -> Any:
    return absolute(time.time())


@function("timeZoneOffset", takes=0)
def time_zone_offset(state: State, values: Sequence[Any]) -> Any:
    return relative(local_offset(int(time.time())))


@function("dayTime", takes=0)
def day_time(state: State, values: Sequence[Any]) -> Any:
    now = time.localtime()
    return relative(now.tm_hour * 3600 + now.tm_min * 60 + now.tm_sec)


@function("absTime", takes=(0, 2))
def absolute_time(state: State, values: Sequence[Any]) -> Any:
    if not values:
        return absolute(time.time())
    offset: int | None = None
    if len(values) == 2:
        second = values[1]
        if type(second) not in (int, float) and not isinstance(second, timedelta):
            return ERROR
        offset = wrap32(int(to_real(second)))
    value = values[0]
    if isinstance(value, datetime) or value is UNDEFINED:
        return value
    if isinstance(value, timedelta):
        return absolute(value.total_seconds(), offset)
    if type(value) is int or type(value) is float:
        return absolute(_as_int(value), offset)
    if type(value) is str:
        # HTCondor hands a computed string through; a time is more use.
        return _or_error(parse_absolute(value)) if offset is None else ERROR
    return ERROR


def _as_int(value: int | float) -> int:
    """As C converts to an int: an integer wraps, a real out of range is the least int."""
    if isinstance(value, int):
        return wrap32(value)
    whole = truncate(value)
    return whole if -(1 << 31) <= whole < 1 << 31 else -(1 << 31)


def _or_error(value: Any) -> Any:
    return ERROR if value is None else value


@function("relTime", takes=1)
def relative_time(state: State, values: Sequence[Any]) -> Any:
    value = values[0]
    if isinstance(value, timedelta) or value is UNDEFINED:
        return value
    if isinstance(value, datetime):
        return relative(epoch_seconds(value))
    if type(value) is str:
        return _or_error(parse_relative(value))
    if type(value) is int:
        return relative(wrap32(value))
    return relative(value) if type(value) is float else ERROR


_FIELDS_OF_DATE = {
    "getYear": lambda when: when.tm_year,
    "getMonth": lambda when: when.tm_mon,
    "getDayOfYear": lambda when: when.tm_yday - 1,
    "getDayOfMonth": lambda when: when.tm_mday,
    "getDayOfWeek": lambda when: (when.tm_wday + 1) % 7,
    "getHours": lambda when: when.tm_hour,
    "getMinutes": lambda when: when.tm_min,
    "getSeconds": lambda when: when.tm_sec,
}
# Of a span: (modulus, divisor).
_FIELDS_OF_SPAN = {
    "getDays": (0, 86400),
    "getHours": (86400, 3600),
    "getMinutes": (3600, 60),
    "getSeconds": (60, 1),
}


def _field(name: str) -> None:
    of_date, of_span = _FIELDS_OF_DATE.get(name), _FIELDS_OF_SPAN.get(name)

    def body(state: State, values: Sequence[Any]) -> Any:
        value = values[0]
        if isinstance(value, datetime) and of_date is not None:
            # Local time, whatever the offset the time was written with.
            try:
                return of_date(time.localtime(epoch_seconds(value)))
            except (ValueError, OverflowError, OSError):
                return ERROR
        if isinstance(value, timedelta) and of_span is not None:
            seconds = int(value.total_seconds())
            modulus, divisor = of_span
            part = abs(seconds) % modulus if modulus else abs(seconds)
            return (part // divisor) * (-1 if seconds < 0 else 1)
        return ERROR

    function(name, takes=1)(body)


for _name in sorted({*_FIELDS_OF_DATE, *_FIELDS_OF_SPAN}):
    _field(_name)


def _as_time(value: Any) -> Any:
    """A number as the absolute time it counts, here."""
    return absolute(_as_int(value)) if type(value) is int or type(value) is float else value


def _parts(value: datetime) -> datetime:
    """The date and time of day at the offset `value` was written with."""
    return _EPOCH + timedelta(seconds=epoch_seconds(value) + utc_offset(value))


@function("splitTime", takes=1)
def split_time(state: State, values: Sequence[Any]) -> Any:
    from ..ad import ClassAd

    value = _as_time(values[0])
    if isinstance(value, datetime):
        when = _parts(value)
        return ClassAd(
            {
                "Type": "AbsoluteTime",
                "Year": when.year,
                "Month": when.month,
                "Day": when.day,
                "Hours": when.hour,
                "Minutes": when.minute,
                "Seconds": when.second,
                "Offset": utc_offset(value),
            }
        )
    if isinstance(value, timedelta):
        return ClassAd(_split_span(value.total_seconds()))
    return value if value is UNDEFINED else ERROR


def _split_span(total: float) -> dict[str, Any]:
    size = abs(total)
    whole = int(size)
    parts = [whole // 86400, whole % 86400 // 3600, whole % 3600 // 60, whole % 60 + (size - whole)]
    if total < 0:
        # The sign is the first part's that is not zero.
        for position, part in enumerate(parts):
            if part or position == 3:
                parts[position] = -part
                break
    days, hours, minutes, seconds = parts
    return {
        "Type": "RelativeTime",
        "Days": days,
        "Hours": hours,
        "Minutes": minutes,
        "Seconds": float(seconds),
    }


@function("formatTime", takes=(0, 2))
def format_time(state: State, values: Sequence[Any]) -> Any:
    form = values[1] if len(values) == 2 else "%c"
    if type(form) is not str or len(form) > _MAX_FORMATTED or "\0" in form:
        return ERROR
    if not values:
        return _formatted(form, tuple(time.localtime()))
    value = _as_time(values[0])
    if isinstance(value, datetime):
        return _formatted(form, (*_parts(value).timetuple()[:8], 0))
    if type(value) in SCALARS or not hasattr(value, "entries"):
        return ERROR
    fields = _from_split(state, value)
    return ERROR if fields is None else _formatted(form, fields)


def _from_split(state: State, ad: Any) -> tuple[int, ...] | None:
    """Python's time tuple for an ad like splitTime()'s, whose parts need not make a date that exists."""

    def part(name: str, default: int) -> int:
        entry = ad.entries.get(name)
        value = state.within(entry[1], ad) if entry else default
        return value if type(value) is int else default

    year, month, day = part("year", 1900), part("month", 1), part("day", 0)
    try:
        ordinal = date(year, month, 1).toordinal() + day - 1
        weekday, yearday = (ordinal + 6) % 7, ordinal - date(year, 1, 1).toordinal() + 1
    except (ValueError, OverflowError):
        return None
    return (year, month, day, part("hours", 0), part("minutes", 0), part("seconds", 0), weekday, yearday, 0)


def _formatted(form: str, fields: Any) -> Any:
    try:
        text = time.strftime(form, fields)
    except (ValueError, UnicodeError, OverflowError):
        return ERROR
    return text if len(text) <= _MAX_FORMATTED else ERROR


@function("interval", takes=1)
def interval(state: State, values: Sequence[Any]) -> Any:
    number = to_real(values[0])
    if type(number) is not float:
        return ERROR
    total = wrap32(values[0] if type(values[0]) is int else truncate(number))
    sign = "-" if total < 0 else ""
    minutes, seconds = divmod(abs(total), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{sign}{days}+{hours:02d}:{minutes:02d}:{seconds:02d}"
    if hours:
        return f"{sign}{hours}:{minutes:02d}:{seconds:02d}"
    return f"{sign}{minutes}:{seconds:02d}" if minutes else f"{sign}{seconds}"
