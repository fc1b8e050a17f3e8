"""HTCondor's own evaluator, and values of both in a form that can be compared."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import classad2

from carod.classad import ERROR, UNDEFINED, ClassAd, ClassAdSyntaxError, parse

# HTCondor's daemons switch the library to their semantics when they start; here the first evaluation that makes an
# ad does it. Before, the functions of its compatibility layer do not exist.
classad2.ExprTree("splitTime(0)").eval()

SYNTAX = "no expression"
NO_UTF8 = "no UTF-8"


def theirs(text: str, my: str | None = None, target: str | None = None) -> Any:
    """What HTCondor gives for `text`; a whole evaluation that fails is its error value."""
    try:
        tree = classad2.ExprTree(text)
    except classad2.ClassAdException:
        return SYNTAX
    scope = classad2.ClassAd(my) if my is not None else None
    other = classad2.ClassAd(target) if target is not None else None
    return _evaluated(lambda: tree.eval(scope, other))


def their_attribute(ad: str, name: str) -> Any:
    tree = classad2.ClassAd(ad)
    return _evaluated(lambda: tree.eval(name))


def _evaluated(evaluate: Any) -> Any:
    try:
        return _their_value(evaluate())
    except classad2.ClassAdException:
        return "error"
    except UnicodeDecodeError:
        return NO_UTF8


def _their_value(value: Any) -> Any:
    if isinstance(value, classad2.Value):
        return "undefined" if value == classad2.Value.Undefined else "error"
    if isinstance(value, classad2.ExprTree):
        return _evaluated(value.eval)
    if isinstance(value, list):
        return [_their_value(member) for member in value]
    if isinstance(value, classad2.ClassAd):
        return {name.lower(): their_attribute(repr(value), name) for name in value}
    return _comparable(value)


def ours(text: str, my: str | None = None, target: str | None = None) -> Any:
    """What we give for `text`, in the same form."""
    try:
        tree = parse(text)
    except ClassAdSyntaxError:
        return SYNTAX
    scope = ClassAd.parse(my) if my is not None else None
    other = ClassAd.parse(target) if target is not None else None
    return comparable(tree.evaluate(scope, other))


def comparable(value: Any) -> Any:
    if value is UNDEFINED:
        return "undefined"
    if value is ERROR:
        return "error"
    if isinstance(value, list):
        return [comparable(member) for member in value]
    if isinstance(value, ClassAd):
        return {name.lower(): comparable(value.evaluate(name)) for name in value}
    return _comparable(value)


def _comparable(value: Any) -> Any:
    if isinstance(value, datetime):
        return ("time", value.timestamp())
    if isinstance(value, timedelta):
        return ("float", repr(value.total_seconds()))
    if isinstance(value, float):
        # By text, for NaN is not NaN, and 0.0 is -0.0.
        return ("float", "nan" if math.isnan(value) else repr(value))
    return (type(value).__name__, value)
