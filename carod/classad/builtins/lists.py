"""Built-in functions on lists: size, sum, avg, min, max, member, anyCompare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..evaluation import LazyList, State
from ..functions import function
from ..operators import BINARY
from ..values import ERROR, SCALARS, UNDEFINED
from .strings import byte_length


@function("size", takes=1)
def size(state: State, values: Sequence[Any]) -> Any:
    value = values[0]
    if value is UNDEFINED:
        return UNDEFINED
    if type(value) is str:
        return byte_length(value)
    if type(value) is LazyList:
        return len(value.items)
    return ERROR if type(value) in SCALARS else len(value)


def _numbers(state: State, value: Any) -> Any:
    """The numbers in a list without its undefined members; UNDEFINED or ERROR if it is no such list."""
    if type(value) is not LazyList:
        return value if value is UNDEFINED else ERROR
    members = [member for member in state.members(value) if member is not UNDEFINED]
    return members if all(type(member) in (int, float, bool) for member in members) else ERROR


def _add(numbers: list[Any]) -> Any:
    total = numbers[0] if numbers else 0
    for number in numbers[1:]:
        total = BINARY["+"](total, number)
    return total


@function("sum", takes=1)
def sum_of(state: State, values: Sequence[Any]) -> Any:
    numbers = _numbers(state, values[0])
    return _add(numbers) if type(numbers) is list else numbers


@function("avg", takes=1)
def avg_of(state: State, values: Sequence[Any]) -> Any:
    numbers = _numbers(state, values[0])
    if type(numbers) is not list:
        return numbers
    return BINARY["/"](_add(numbers), float(len(numbers))) if numbers else 0


def _bound(symbol: str) -> Callable[[State, Sequence[Any]], Any]:
    def body(state: State, values: Sequence[Any]) -> Any:
        numbers = _numbers(state, values[0])
        if type(numbers) is not list:
            return numbers
        bound: Any = UNDEFINED
        for number in numbers:
            if bound is UNDEFINED:
                bound = number
            elif BINARY[symbol](number, bound) is True:
                # HTCondor compares in place, which promotes the number.
                bound = _promoted(number, bound)
            elif type(number) is not type(bound):
                bound = _promoted(bound, number)
        return bound

    return body


def _promoted(number: Any, other: Any) -> Any:
    """`number` after a comparison with `other`: a boolean became an integer, beside a real a real."""
    if type(number) is bool:
        number = int(number)
    return float(number) if type(number) is int and type(other) is float else number


function("min", takes=1)(_bound("<"))
function("max", takes=1)(_bound(">"))


def _member(symbol: str) -> Callable[[State, Sequence[Any]], Any]:
    strict = symbol == "=="

    def body(state: State, values: Sequence[Any]) -> Any:
        wanted, items = values
        if items is UNDEFINED or (strict and wanted is UNDEFINED):
            return UNDEFINED
        if type(items) is not LazyList or type(wanted) not in SCALARS or (strict and wanted is ERROR):
            return ERROR
        compare = BINARY[symbol]
        return any(compare(state.within(item, items.scope), wanted) is True for item in items.items)

    return body


function("member", takes=2)(_member("=="))
function("identicalMember", takes=2)(_member("=?="))

_COMPARISONS = {symbol: BINARY[symbol] for symbol in ("<", "<=", "!=", "==", ">", ">=")}
_COMPARISONS |= {"is": BINARY["=?="], "isnt": BINARY["=!="]}


def _compare(every: bool) -> Callable[[State, Sequence[Any]], Any]:
    def body(state: State, values: Sequence[Any]) -> Any:
        symbol, items, value = values
        if symbol is UNDEFINED:
            return UNDEFINED
        compare = _COMPARISONS.get(symbol) if type(symbol) is str else None
        if compare is None:
            return ERROR
        if type(items) is not LazyList:
            return items if items is UNDEFINED else ERROR
        for item in items.items:
            result = compare(state.within(item, items.scope), value)
            if result is UNDEFINED:
                return False
            if type(result) is not bool:
                return ERROR
            if result is not every:
                return result
        return every

    return body


function("anyCompare", takes=3)(_compare(every=False))
function("allCompare", takes=3)(_compare(every=True))
