"""The operators on values: three-valued logic, numeric promotion, 64-bit arithmetic.

Rules: HTCondor manual, "ClassAd evaluation semantics"; each was compared with HTCondor's own evaluator.
Strict operators give ERROR if an operand is ERROR, else UNDEFINED if one is UNDEFINED; strings compare
without case except under ``=?=`` and ``=!=``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from .values import ERROR, UNDEFINED, absolute, epoch_seconds, fold, relative, utc_offset, wrap

_MIN, _MAX = -(1 << 63), (1 << 63) - 1


def truth(value: Any) -> bool | None:
    """What `value` counts as in a condition: a boolean, or a number that is not zero; None for all else."""
    kind = type(value)
    if kind is bool:
        return bool(value)
    if kind is int or kind is float:
        return bool(value != 0)
    return None


def _strict(left: Any, right: Any) -> Any:
    """ERROR or UNDEFINED if an operand is; None if both are values."""
    if left is ERROR or right is ERROR:
        return ERROR
    if left is UNDEFINED or right is UNDEFINED:
        return UNDEFINED
    return None


def _number(value: Any) -> Any:
    return int(value) if type(value) is bool else value


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


# Arithmetic


def _divide(left: int, right: int) -> Any:
    if right == 0:
        return ERROR
    if left == _MIN and right == -1:
        return _MAX
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _modulus(left: int, right: int) -> Any:
    return ERROR if right == 0 else int(math.copysign(1, left)) * (abs(left) % abs(right))


def _divide_real(left: float, right: float) -> float:
    if right:
        return left / right
    if left == 0 or math.isnan(left):
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1, right)


_INTEGER: dict[str, Callable[[int, int], Any]] = {
    "+": lambda a, b: wrap(a + b),
    "-": lambda a, b: wrap(a - b),
    "*": lambda a, b: wrap(a * b),
    "/": _divide,
    "%": _modulus,
}
_REAL: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide_real,
}


def _arithmetic(symbol: str) -> Callable[[Any, Any], Any]:
    on_integers = _INTEGER[symbol]

    def apply(left: Any, right: Any) -> Any:
        if type(left) is int and type(right) is int:
            return on_integers(left, right)
        exceptional = _strict(left, right)
        if exceptional is not None:
            return exceptional
        left, right = _number(left), _number(right)
        if not (_is_number(left) and _is_number(right)):
            return _time_arithmetic(symbol, left, right)
        if type(left) is int and type(right) is int:
            return on_integers(left, right)
        if symbol == "%":
            return ERROR
        result = _REAL[symbol](float(left), float(right))
        # Only positive infinity counts as an overflow in HTCondor.
        return ERROR if result == math.inf else result

    return apply


def _time_arithmetic(symbol: str, left: Any, right: Any) -> Any:
    if isinstance(left, datetime):
        if isinstance(right, datetime):
            return relative(epoch_seconds(left) - epoch_seconds(right)) if symbol == "-" else ERROR
        if isinstance(right, timedelta) and symbol in "+-":
            shift = int(right.total_seconds())
            return absolute(epoch_seconds(left) + (shift if symbol == "+" else -shift), utc_offset(left))
        return ERROR
    if not isinstance(left, timedelta):
        if isinstance(right, timedelta) and symbol == "*" and _is_number(left):
            return relative(left * right.total_seconds())
        return ERROR
    seconds = left.total_seconds()
    if isinstance(right, datetime):
        return absolute(epoch_seconds(right) + int(seconds), utc_offset(right)) if symbol == "+" else ERROR
    if isinstance(right, timedelta):
        if symbol == "+":
            return relative(seconds + right.total_seconds())
        return relative(seconds - right.total_seconds()) if symbol == "-" else ERROR
    if not _is_number(right):
        return ERROR
    if symbol == "*":
        return relative(seconds * right)
    return relative(_divide_real(seconds, float(right))) if symbol == "/" else ERROR


def negate(value: Any) -> Any:
    if type(value) is int:
        return wrap(-value)
    if type(value) is float or isinstance(value, timedelta):
        return -value
    return value if value is UNDEFINED else ERROR


def plus(value: Any) -> Any:
    if _is_number(value) or isinstance(value, timedelta) or value is UNDEFINED:
        return value
    return ERROR


# Bits


def _bitwise(apply_to: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        if type(left) is int and type(right) is int:
            return apply_to(left, right)
        exceptional = _strict(left, right)
        return ERROR if exceptional is None else exceptional

    return apply


# The machine uses the low six bits of a shift's count, and so do HTCondor's shifts.


def _shift_right(left: int, count: int) -> int:
    if left >= 0:
        return left >> (count & 63)
    return left >> min(max(count, 0), 64)


def _shift_right_unsigned(left: int, count: int) -> int:
    if left >= 0:
        return left >> (count & 63)
    return ((left >> 1) & _MAX) >> ((count - 1) & 63)


def complement(value: Any) -> Any:
    if type(value) is int:
        return ~value
    return value if value is UNDEFINED else ERROR


# Comparison


def _comparison(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    def apply(left: Any, right: Any) -> Any:
        kind = type(left)
        if kind is type(right):
            if kind is int or kind is float:
                return compare(left, right)
            if kind is str:
                return compare(fold(left), fold(right))
        exceptional = _strict(left, right)
        if exceptional is not None:
            return exceptional
        left, right = _number(left), _number(right)
        if _is_number(left) and _is_number(right):
            if type(left) is not type(right):
                left, right = float(left), float(right)
            return compare(left, right)
        if isinstance(left, datetime) and isinstance(right, datetime):
            return compare(epoch_seconds(left), epoch_seconds(right))
        if isinstance(left, timedelta) and isinstance(right, timedelta):
            return compare(left, right)
        return ERROR

    return apply


_SIMPLE = (int, float, str, bool)


def identical(left: Any, right: Any) -> Any:
    """``=?=``: same type and same value, case and all; ERROR between two lists or two ads."""
    if left is right and (left is UNDEFINED or left is ERROR):
        return True
    if isinstance(left, datetime) and isinstance(right, datetime):
        return epoch_seconds(left) == epoch_seconds(right) and utc_offset(left) == utc_offset(right)
    kind = type(left)
    if kind is not type(right):
        return False
    if kind in _SIMPLE or kind is timedelta:
        return bool(left == right)
    return ERROR if left is not UNDEFINED and left is not ERROR else False


def different(left: Any, right: Any) -> Any:
    same = identical(left, right)
    return same if same is ERROR else not same


# Logic


def _logic_operand(value: Any) -> Any:
    """A boolean, UNDEFINED or ERROR: what `value` is to ``&&``, ``||`` and ``!``."""
    if type(value) is bool or value is UNDEFINED:
        return value
    meaning = truth(value)
    return ERROR if meaning is None else meaning


def both(left: Any, right: Any) -> Any:
    left, right = _logic_operand(left), _logic_operand(right)
    if left is False or left is ERROR:
        return left
    if left is True or right is not True:
        return right
    return UNDEFINED


def either(left: Any, right: Any) -> Any:
    left, right = _logic_operand(left), _logic_operand(right)
    if left is True or left is ERROR:
        return left
    if left is False or right is not False:
        return right
    return UNDEFINED


def negation(value: Any) -> Any:
    value = _logic_operand(value)
    return (not value) if type(value) is bool else value


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{symbol: _arithmetic(symbol) for symbol in "+-*/%"},
    "&": _bitwise(operator.and_),
    "|": _bitwise(operator.or_),
    "^": _bitwise(operator.xor),
    "<<": _bitwise(lambda a, b: wrap(a << (b & 63))),
    ">>": _bitwise(_shift_right),
    ">>>": _bitwise(_shift_right_unsigned),
    "<": _comparison(operator.lt),
    "<=": _comparison(operator.le),
    ">": _comparison(operator.gt),
    ">=": _comparison(operator.ge),
    "==": _comparison(operator.eq),
    "!=": _comparison(operator.ne),
    "=?=": identical,
    "=!=": different,
    "&&": both,
    "||": either,
}

UNARY: dict[str, Callable[[Any], Any]] = {"-": negate, "+": plus, "~": complement, "!": negation}
