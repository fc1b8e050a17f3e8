"""Built-in functions that convert and calculate: int, real, string, bool, floor, pow, quantize, random."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from ..evaluation import Abort, LazyList, State
from ..functions import function
from ..values import (
    ERROR,
    MAX_STRING,
    SCALARS,
    UNDEFINED,
    absolute_text,
    epoch_seconds,
    fold,
    relative_text,
    unparse,
    wrap,
    wrap32,
)

_HEX = r"0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?"
# What C's strtod reads.
_NUMBER = re.compile(
    rf"[ \t\n\v\f\r]*([+-]?(?:{_HEX}|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf(?:inity)?|nan))",
    re.IGNORECASE,
)
_NOT_AN_INTEGER = -(1 << 63)


def strtod(text: str) -> float | None:
    """The number that `text` starts with, as C's strtod() reads it; None if there is none."""
    match = _NUMBER.match(text)
    if match is None:
        return None
    digits = match[1]
    if "x" in digits or "X" in digits:
        try:
            return float.fromhex(digits)
        except OverflowError:
            return -math.inf if digits.startswith("-") else math.inf
    return float(digits)


def truncate(value: float) -> int:
    """A real as a 64-bit integer, as the machine converts it: out of range is the least integer."""
    if not -(2.0**63) <= value < 2.0**63:
        return _NOT_AN_INTEGER
    return int(value)


def checked(text: str) -> Any:
    """`text`, or ERROR if it is too long."""
    return text if len(text) <= MAX_STRING else ERROR


def to_string(state: State, value: Any) -> Any:
    """What string() gives; UNDEFINED and ERROR stay."""
    if type(value) is str or value is UNDEFINED or value is ERROR:
        return value
    if isinstance(value, datetime):
        return absolute_text(value)
    if isinstance(value, timedelta):
        return relative_text(int(value.total_seconds()))
    text = unparse(value, canonical=True)
    if type(value) not in SCALARS:
        state.charge(len(text) << 4)
    return checked(text)


def to_real(value: Any) -> Any:
    """What real() gives; UNDEFINED stays, what is no number is ERROR."""
    if type(value) is float or value is UNDEFINED:
        return value
    if type(value) is int or type(value) is bool:
        return float(value)
    if type(value) is str:
        number = strtod(value)
        return ERROR if number is None else number
    if isinstance(value, datetime):
        return float(epoch_seconds(value))
    if isinstance(value, timedelta):
        return float(int(value.total_seconds()))
    return ERROR


@function("int", takes=1)
def int_of(state: State, values: Sequence[Any]) -> Any:
    value = values[0]
    if type(value) is int:
        return value
    number = to_real(value)
    return truncate(number) if type(number) is float else number


@function("real", takes=1)
def real_of(state: State, values: Sequence[Any]) -> Any:
    return to_real(values[0])


@function("string", takes=1)
def string_of(state: State, values: Sequence[Any]) -> Any:
    return to_string(state, values[0])


@function("bool", takes=1)
def bool_of(state: State, values: Sequence[Any]) -> Any:
    value = values[0]
    if type(value) is bool or value is UNDEFINED:
        return value
    if type(value) is int or type(value) is float:
        return value != 0
    if type(value) is str:
        return {"true": True, "false": False}.get(fold(value), UNDEFINED)
    if isinstance(value, timedelta):
        return int(value.total_seconds()) != 0
    return ERROR


def _rounding(rounded: Any) -> Any:
    def body(state: State, values: Sequence[Any]) -> Any:
        value = values[0]
        if type(value) is int:
            return value
        number = to_real(value)
        if type(number) is not float:
            return ERROR
        return truncate(rounded(number)) if math.isfinite(number) else _NOT_AN_INTEGER

    return body


function("floor", takes=1)(_rounding(math.floor))
function("ceil", "ceiling", takes=1)(_rounding(math.ceil))
function("round", takes=1)(_rounding(round))


def _power(base: float, exponent: float) -> float:
    """C's pow(): infinity and NaN where Python raises."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ValueError:
        if base == 0:
            return math.copysign(math.inf, base) if exponent % 2 == 1 else math.inf
        return math.nan


@function("pow", takes=2)
def power(state: State, values: Sequence[Any]) -> Any:
    base, exponent = values
    if type(base) is int and type(exponent) is int and exponent >= 0:
        # HTCondor rounds by adding a half and cutting off, wrong by one for negative powers: so it is.
        return truncate(_power(float(base), float(exponent)) + 0.5)
    base, exponent = to_real(base), to_real(exponent)
    if type(base) is not float or type(exponent) is not float:
        return ERROR
    return _power(base, exponent)


@function("quantize", takes=2)
def quantize(state: State, values: Sequence[Any]) -> Any:
    value, step = values
    number = to_real(value)
    if type(number) is not float:
        return ERROR
    if type(step) is LazyList:
        step = 0.0 if not step.items else step
    if type(step) is LazyList:
        items, scope = step.items, step.scope
        for item in items:
            step = state.within(item, scope)
            limit = to_real(step)
            if type(limit) is not float:
                return ERROR
            if limit >= number:
                return step
    size = to_real(step)
    if type(size) is not float:
        return ERROR
    return _multiple(value, number, step, size)


def _multiple(value: Any, number: float, step: Any, size: float) -> Any:
    """The least multiple of `step` that is not below `value`."""
    if type(step) is int and type(value) is int:
        if step == 0:
            return value
        sum_ = wrap(value + step - 1)
        quotient = abs(sum_) // abs(step)
        return wrap((quotient if (sum_ < 0) == (step < 0) else -quotient) * step)
    if (step == 0) if type(step) is int else (abs(size) <= 1e-8):
        return value
    ratio = number / size
    if not math.isfinite(ratio):
        return ratio * size
    # C's ceil() keeps the sign of a zero.
    return math.copysign(float(math.ceil(ratio)), ratio) * size if ratio <= 0 else math.ceil(ratio) * size


@function("random", takes=(0, 1))
def random_below(state: State, values: Sequence[Any]) -> Any:
    limit = values[0] if values else 1.0
    if type(limit) is not int and type(limit) is not float:
        return ERROR
    if type(limit) is int:
        limit = wrap32(limit)
    if limit <= 0:
        raise Abort
    return random.randrange(limit) if type(limit) is int else random.random() * limit
