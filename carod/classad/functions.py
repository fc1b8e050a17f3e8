"""The built-in functions: the table, and the functions about expressions themselves.

Each function's name, argument count and behaviour were compared with HTCondor's own evaluator; the manual is
"Predefined Functions" in its ClassAd chapter. The rest of them are in the modules that `_load` names, by
noun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from .evaluation import Abort, Expr, LazyList, State
from .expr import AdExpr, Attribute, Binary, Call, Conditional, ListExpr, Literal, Parentheses, Subscript, Unary
from .operators import truth
from .values import ERROR, SCALARS, UNDEFINED, fold, unparse

Body = Callable[[State, Sequence[Any]], Any]


class Function(NamedTuple):
    """`body` gets the state and the arguments' values, or their expressions if the function is lazy."""

    body: Body
    least: int
    most: int
    lazy: bool


TABLE: dict[str, Function] = {}

ANY_NUMBER = 1 << 30


def function(*names: str, takes: int | tuple[int, int], lazy: bool = False) -> Callable[[Body], Body]:
    """Enter a function into the table; any other number of arguments than it `takes` gives ERROR."""
    least, most = (takes, takes) if isinstance(takes, int) else takes

    def enter(body: Body) -> Body:
        for name in names:
            TABLE[name.lower()] = Function(body, least, most, lazy)
        return body

    return enter


@cache
def _load() -> dict[str, Function]:
    for module in ("conversions", "environments", "lists", "regexps", "strings", "stringlists", "times"):
        import_module(f"{__package__}.builtins.{module}")
    return TABLE


def find_function(name: str, count: int) -> Function | None:
    """The function `name` if there is one and it takes `count` arguments."""
    found = _load().get(name.lower())
    return found if found and found.least <= count <= found.most else None


# Types


def _is_type(name: str, test: Callable[[Any], bool]) -> None:
    function(name, takes=1)(lambda state, values: test(values[0]))


def _is_ad(value: Any) -> bool:
    return type(value) not in SCALARS and type(value) is not LazyList


_is_type("isUndefined", lambda value: value is UNDEFINED)
_is_type("isError", lambda value: value is ERROR)
_is_type("isString", lambda value: type(value) is str)
_is_type("isInteger", lambda value: type(value) is int)
_is_type("isReal", lambda value: type(value) is float)
_is_type("isBoolean", lambda value: type(value) is bool)
_is_type("isList", lambda value: type(value) is LazyList)
_is_type("isClassAd", _is_ad)


# Control


@function("ifThenElse", takes=3, lazy=True)
def if_then_else(state: State, arguments: Sequence[Any]) -> Any:
    condition = arguments[0]._eval(state)
    meaning = truth(condition)
    if meaning is None:
        return condition if condition is UNDEFINED else ERROR
    return arguments[1 if meaning else 2]._eval(state)


@function("debug", takes=1)
def debug(state: State, values: Sequence[Any]) -> Any:
    return values[0]


@function("eval", takes=1)
def evaluate_text(state: State, values: Sequence[Any]) -> Any:
    from .builtins.conversions import to_string
    from .parser import ClassAdSyntaxError, parse

    text = to_string(state, values[0])
    if type(text) is not str:
        return ERROR
    # Parsing costs some 10 microseconds a token.
    state.charge(len(text) << 6)
    try:
        expr = parse(text)
    except ClassAdSyntaxError:
        return ERROR
    state.enter(expr.depth + 2)
    value = expr._eval(state)
    state.depth -= expr.depth + 2
    return value


# Expressions as such


@function("unparse", takes=1, lazy=True)
def unparse_attribute(state: State, arguments: Sequence[Any]) -> Any:
    reference = arguments[0]
    if type(reference) is not Attribute:
        return ERROR
    if state.current is None or reference.base is not None or reference.absolute:
        return ""
    entry = state.current.entries.get(reference.key)
    return "" if entry is None else unparse(entry[1], canonical=True).lstrip(" ")


@function("evalInEachContext", takes=2, lazy=True)
def evaluate_in_each(state: State, arguments: Sequence[Any]) -> Any:
    contexts = arguments[1]._eval(state)
    if type(contexts) is not LazyList:
        return contexts if contexts is UNDEFINED else ERROR
    expr = _referred(state, arguments[0])
    values = [_in_context(state, expr, context) for context in state.members(contexts)]
    return LazyList(values, state.current)


@function("countMatches", takes=2, lazy=True)
def count_matches(state: State, arguments: Sequence[Any]) -> Any:
    contexts = arguments[1]._eval(state)
    if type(contexts) is not LazyList:
        return 0 if contexts is UNDEFINED else ERROR
    expr = _referred(state, arguments[0])
    values = [_in_context(state, expr, context) for context in state.members(contexts)]
    return sum(truth(value) is True for value in values)


def _referred(state: State, expr: Any) -> Any:
    """An attribute that is defined here stands for its expression, which each context then evaluates."""
    found = expr.find(state) if type(expr) is Attribute else None
    return expr if found is None else found[0]


def _in_context(state: State, expr: Any, context: Any) -> Any:
    if not _is_ad(context):
        return context if context is UNDEFINED else ERROR
    state.enter(3)
    value = state.within(expr, context)
    state.depth -= 3
    return value


@function("unresolved", takes=(1, 2), lazy=True)
def unresolved(state: State, arguments: Sequence[Any]) -> Any:
    from .builtins.regexps import compile_pattern
    from .builtins.strings import to_bytes

    reference = arguments[0]
    if type(reference) is not Attribute:
        return ERROR
    found = reference.find(state)
    if found is None or found[0] is ERROR:
        return UNDEFINED
    names: dict[str, str] = {}
    outer = state.current
    _collect(state, found[0], found[1], names)
    state.current = outer
    shown = [names[key].split(".", 1)[-1] if key.startswith("target.") else names[key] for key in sorted(names)]
    if len(arguments) == 1:
        return ",".join(shown)
    pattern = arguments[1]._eval(state)
    if type(pattern) is not str:
        raise Abort
    compiled = compile_pattern(state, pattern, "i")
    if compiled is None:
        return ERROR
    matched = [compiled.search(to_bytes(name), timeout=1) for name in shown]
    return any(match is not None and match.end() > match.start() for match in matched)


def _collect(state: State, value: Any, scope: Any, names: dict[str, str]) -> None:
    """Add to `names` (folded -> as written) the references in `value` that `scope` doesn't resolve."""
    if not isinstance(value, Expr):
        return
    state.charge()
    state.enter(1)
    state.current = scope
    if type(value) is Attribute:
        _collect_reference(state, value, scope, names)
    else:
        for child in _children(value):
            _collect(state, child, scope, names)
    state.depth -= 1


def _collect_reference(state: State, reference: Attribute, scope: Any, names: dict[str, str]) -> None:
    if reference.base is not None:
        base = reference.base._eval(state)
        if base is UNDEFINED:
            full = f"{reference.base}.{reference.name}"
            names[fold(full)] = full
            return
        if not _is_ad(base):
            return
        found = state.find(base, reference.key)
    else:
        found = None if scope is None else state.find(scope, reference.key)
    if found is None:
        names[reference.key] = reference.name
    elif found[1] is not None:
        key = (id(found[1].entries), reference.key)
        if key not in state.busy:
            state.busy.add(key)
            _collect(state, found[0], found[1], names)
            state.busy.discard(key)


def _children(node: Expr) -> Sequence[Any]:
    if isinstance(node, Binary):
        nodes, leftmost = node._spine()
        return [leftmost, *[binary.right for binary in reversed(nodes)]]
    if isinstance(node, Unary):
        return (node.operand,)
    if isinstance(node, Parentheses):
        return (node.inner,)
    if isinstance(node, Conditional):
        return (node.condition, node.then, node.otherwise)
    if isinstance(node, Subscript):
        return (node.base, node.index)
    if isinstance(node, Call):
        return node.arguments
    if isinstance(node, ListExpr):
        return node.items
    if isinstance(node, AdExpr):
        return [value for _, value in node.entries.values()]
    assert isinstance(node, Literal)
    return ()
