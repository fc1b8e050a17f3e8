"""Predicates of QMF queries (`_where`): what an object must be like to be in the answer.

A list: `["eq", "Owner", ["quote", "jane"]]`, `["and", P, Q]`. A string is a property's name, `["quote", X]` and numbers
are values. A property that an object does not have makes its test false.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

MAX_DEPTH = 12

Predicate = Callable[[Mapping[str, Any]], bool]
"""Whether an object with these values is meant."""

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_MISSING = object()


class BadPredicate(ValueError):
    """A predicate that means nothing; the text shows the part that does not."""


def split(where: Any) -> tuple[dict[str, Any], Predicate | None]:
    """A predicate as properties that must have these values, for an index, and the rest. Raises BadPredicate."""
    equal: dict[str, Any] = {}
    rest = []
    conjuncts = where[1:] if isinstance(where, list) and where[:1] == ["and"] else [where]
    for each in conjuncts:
        match each:
            case ["eq", str(name), ["quote", value]] if name not in equal and isinstance(value, str | int | float):
                equal[name] = value
            case _:
                rest.append(_compile(each, 0))
    return equal, (lambda values: all(test(values) for test in rest)) if rest else None


def _compile(part: Any, depth: int) -> Predicate:
    if depth > MAX_DEPTH:
        raise BadPredicate(f"_where: nested deeper than {MAX_DEPTH}")
    match part:
        case ["true"] | []:
            return lambda values: True
        case ["false"]:
            return lambda values: False
        case ["not" | "and" | "or" as connective, *parts]:
            tests = [_compile(each, depth + 1) for each in parts]
            return _connected(connective, tests)
        case ["exists", str(name)]:
            return lambda values: values.get(name) is not None
        case [str(name), left, right] if name in _COMPARISONS:
            return _compared(_COMPARISONS[name], _operand(left), _operand(right))
    raise BadPredicate(f"_where: {str(part)[:80]!r} is no predicate; write e.g. ['eq', 'Owner', ['quote', 'jane']]")


def _connected(connective: str, tests: list[Predicate]) -> Predicate:
    match connective:
        case "and":
            return lambda values: all(test(values) for test in tests)
        case "or":
            return lambda values: any(test(values) for test in tests)
    return lambda values: not any(test(values) for test in tests)


def _operand(part: Any) -> Callable[[Mapping[str, Any]], Any]:
    match part:
        case str():
            return lambda values: values.get(part, _MISSING)
        case ["quote", value]:
            return lambda values: value
        case int() | float():
            return lambda values: part
    raise BadPredicate(f"_where: {str(part)[:80]!r} is neither a property's name nor ['quote', value]")


def _compared(
    compare: Callable[[Any, Any], bool],
    left: Callable[[Mapping[str, Any]], Any],
    right: Callable[[Mapping[str, Any]], Any],
) -> Predicate:
    def test(values: Mapping[str, Any]) -> bool:
        a, b = left(values), right(values)
        if a is _MISSING or b is _MISSING or a is None or b is None:
            return False
        try:
            return compare(a, b)
        except TypeError:
            return False

    return test
