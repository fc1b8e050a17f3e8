"""Built-in functions on string lists: text with separators, as old ClassAds had before lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..evaluation import State
from ..functions import function
from ..values import ERROR, UNDEFINED, fold
from .conversions import strtod, truncate
from .regexps import compile_pattern, search
from .strings import to_bytes

_DEFAULT = " ,"
# HTCondor's starting points for min and max, C's FLT_MAX and FLT_MIN: no list has a maximum below the latter.
_FLT_MAX, _FLT_MIN = 3.4028234663852886e38, 1.1754943508222875e-38


def _pieces(state: State, text: str, separators: str) -> list[str]:
    state.charge(len(text) << 4)
    if not separators:
        return [text]
    if len(separators) > 1:
        text = text.translate({ord(char): separators[0] for char in separators})
    return text.split(separators[0])


def items(state: State, text: str, separators: str = _DEFAULT) -> list[str]:
    """The list's items, without white space around them; empty ones don't count."""
    stripped = [piece.strip(" \t\n\v\f\r") for piece in _pieces(state, text, separators)]
    return [piece for piece in stripped if piece]


def _texts(values: Sequence[Any]) -> bool:
    return all(type(value) is str for value in values)


@function("stringListSize", takes=(1, 2))
def size(state: State, values: Sequence[Any]) -> Any:
    return len(items(state, *values)) if _texts(values) else ERROR


def _summary(name: str, start: float, step: Callable[[float, float], float]) -> None:
    def body(state: State, values: Sequence[Any]) -> Any:
        if not _texts(values):
            return ERROR
        entries = items(state, *values)
        if not entries:
            return 0.0 if start == 0 else UNDEFINED
        result = start
        real = False
        for entry in entries:
            number = strtod(entry)
            if number is None:
                return ERROR
            real = real or bool(entry.strip("+-0123456789"))
            result = step(number, result)
        if name == "stringListAvg":
            result /= len(entries)
        return result if real else truncate(result)

    function(name, takes=(1, 2))(body)


_summary("stringListSum", 0.0, lambda item, sum_: item + sum_)
_summary("stringListAvg", 0.0, lambda item, sum_: item + sum_)
_summary("stringListMin", _FLT_MAX, lambda item, least: item if item < least else least)
_summary("stringListMax", _FLT_MIN, lambda item, most: item if item > most else most)


def _separators(values: Sequence[Any]) -> Any:
    if len(values) < 3 or values[2] is UNDEFINED:
        return _DEFAULT
    return values[2] if type(values[2]) is str else ERROR


def _member(change: Callable[[str], str]) -> Callable[[State, Sequence[Any]], Any]:
    def body(state: State, values: Sequence[Any]) -> Any:
        wanted, text = values[0], values[1]
        separators = _separators(values)
        if separators is ERROR or not all(type(value) is str or value is UNDEFINED for value in (wanted, text)):
            return ERROR
        if wanted is UNDEFINED and text is UNDEFINED:
            return UNDEFINED
        if wanted is UNDEFINED or text is UNDEFINED:
            return False
        folded = change(wanted)
        return any(change(item) == folded for item in items(state, text, separators))

    return body


function("stringListMember", takes=(2, 3))(_member(lambda text: text))
function("stringListIMember", takes=(2, 3))(_member(fold))


def _subset(change: Callable[[str], str]) -> Callable[[State, Sequence[Any]], Any]:
    def body(state: State, values: Sequence[Any]) -> Any:
        left, right = values[0], values[1]
        separators = _separators(values)
        if separators is ERROR or not all(type(value) is str or value is UNDEFINED for value in (left, right)):
            return ERROR
        if left is UNDEFINED and right is UNDEFINED:
            return UNDEFINED
        wanted = {change(item) for item in items(state, left, separators)} if left is not UNDEFINED else set()
        there = {change(item) for item in items(state, right, separators)} if right is not UNDEFINED else set()
        if left and not wanted and left is not UNDEFINED:
            return False  # to HTCondor text of nothing but separators is no empty list
        return wanted <= there

    return body


function("stringListSubsetMatch", takes=(2, 3))(_subset(lambda text: text))
function("stringListISubsetMatch", takes=(2, 3))(_subset(fold))


@function("stringListsIntersect", takes=(2, 3))
def intersect(state: State, values: Sequence[Any]) -> Any:
    if any(value is ERROR for value in values):
        return ERROR
    if any(value is UNDEFINED for value in values):
        return UNDEFINED
    if not _texts(values):
        return ERROR
    separators = (values[2] if len(values) == 3 else "") or _DEFAULT
    left, right = (set(_pieces(state, text, separators)) - {""} for text in values[:2])
    return not left.isdisjoint(right)


@function("stringList_regexpMember", takes=(2, 4))
def regexp_member(state: State, values: Sequence[Any]) -> Any:
    if not _texts(values):
        return ERROR
    entries = items(state, values[1], *values[2:3])
    if not entries:
        return UNDEFINED
    compiled = compile_pattern(state, values[0], values[3].lower() if len(values) == 4 else "")
    if compiled is None:
        return ERROR
    return any(search(state, compiled, to_bytes(entry)) for entry in entries)
