"""The nodes of the expression tree: their evaluation and their text.

Chains of binary operators, which lean left and may be long, are walked with a loop and cost one level of depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .evaluation import Abort, Expr, LazyList, State
from .operators import BINARY, UNARY, truth
from .values import ERROR, SCALARS, UNDEFINED, fold, quote_name, unparse, wrap32

if TYPE_CHECKING:
    from .ad import ClassAd
    from .functions import Function


class Literal(Expr):
    """A number, string, boolean, time, UNDEFINED or ERROR."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value
        self.depth = 1

    def _eval(self, state: State) -> Any:
        return self.value

    def _write(self, out: list[str], canonical: bool) -> None:
        out.append(unparse(self.value, canonical=canonical))


class Attribute(Expr):
    """``name``, ``.name`` (absolute: from the outermost ad) or ``base.name``."""

    __slots__ = ("absolute", "base", "key", "name")

    def __init__(self, name: str, base: Expr | None = None, *, absolute: bool = False) -> None:
        self.name = name
        self.key = fold(name)
        self.base = base
        self.absolute = absolute
        self._nest(base)

    def _eval(self, state: State) -> Any:
        found = self.find(state)
        if found is None:
            state.charge()
            return UNDEFINED
        value, scope = found
        kind = type(value)
        if scope is None:
            return value
        if kind in SCALARS:
            state.charge(len(value) if kind is str else 0)
            return value
        if not isinstance(value, Expr):
            return state.placed(value, scope) if kind is list else value.inside(scope)
        # An attribute that is evaluated because of itself is undefined inside itself.
        key = (id(scope.entries), self.key)
        if key in state.busy:
            return UNDEFINED
        state.busy.add(key)
        state.charge()
        state.enter(value.depth)
        outer, state.current = state.current, scope
        result = value._eval(state)
        # No try/finally: an exception ends the whole evaluation, and the state with it.
        state.current = outer
        state.depth -= value.depth
        state.busy.discard(key)
        return result

    def find(self, state: State) -> tuple[Any, ClassAd | None] | None:
        """What the name refers to, unevaluated, and the ad it was found in; None if it is undefined."""
        if self.base is not None:
            return self._find_in(self.base._eval(state), state)
        if self.absolute:
            if state.my is None:
                raise Abort
            return None if state.target is not None else state.find(state.my, self.key)
        current = state.current
        if current is None:
            return None
        found = state.find(current, self.key)
        if found is None and state.target is not None:
            other = state.opposite(current)
            if other is not None:
                return state.find(other, self.key)
        return found

    def _find_in(self, base: Any, state: State) -> tuple[Any, ClassAd | None] | None:
        if base is UNDEFINED:
            return None
        if type(base) is LazyList:
            return self._of_each(base, state), None
        if type(base) in SCALARS:
            return ERROR, None
        return state.find(base, self.key)

    def _of_each(self, items: LazyList, state: State) -> LazyList:
        """``{ad, ad}.name`` is the list of each ad's attribute."""
        values = [Attribute(self.name, Literal(member))._eval(state) for member in state.members(items)]
        return LazyList(values, items.scope)

    def _write(self, out: list[str], canonical: bool) -> None:
        if self.base is not None:
            self.base._write(out, canonical)
            if type(self.base) is Literal and type(self.base.value) in (int, float):
                out.append(" ")  # "1.a" would read as a broken real
        if self.base is not None or self.absolute:
            out.append(".")
        out.append(quote_name(self.name))


class Unary(Expr):
    __slots__ = ("apply", "operand", "symbol")

    def __init__(self, symbol: str, operand: Expr) -> None:
        self.symbol = symbol
        self.operand = operand
        self.apply = UNARY[symbol]
        self._nest(operand)

    def _eval(self, state: State) -> Any:
        return self.apply(self.operand._eval(state))

    def _write(self, out: list[str], canonical: bool) -> None:
        out.append(f" {self.symbol}" if canonical else self.symbol)
        # "-1" would be read back as a literal.
        if self.symbol == "-" and type(self.operand) is Literal and type(self.operand.value) in (int, float):
            out.append(" ")
        self.operand._write(out, canonical)


class Binary(Expr):
    __slots__ = ("apply", "left", "right", "short", "symbol")

    def __init__(self, symbol: str, left: Expr, right: Expr) -> None:
        self.symbol = symbol
        self.left = left
        self.right = right
        self.apply = BINARY[symbol]
        # The left operand that decides alone.
        self.short = {"&&": False, "||": True}.get(symbol)
        self._nest(right, left)
        if type(left) is Binary:
            self.depth = max(left.depth, right.depth + 1)

    def _spine(self) -> tuple[list[Binary], Expr]:
        """This node and the binary operators down its left side, and what is leftmost."""
        nodes, node = [self], self.left
        while type(node) is Binary:
            nodes.append(node)
            node = node.left
        return nodes, node

    def _eval(self, state: State) -> Any:
        if type(self.left) is not Binary:
            left = self.left._eval(state)
            if self.short is not None and truth(left) is self.short:
                return self.short
            return self.apply(left, self.right._eval(state))
        nodes, leftmost = self._spine()
        value = leftmost._eval(state)
        while nodes:
            node = nodes.pop()
            if node.short is not None and truth(value) is node.short:
                value = node.short
            else:
                value = node.apply(value, node.right._eval(state))
        return value

    def _write(self, out: list[str], canonical: bool) -> None:
        nodes, leftmost = self._spine()
        leftmost._write(out, canonical)
        while nodes:
            node = nodes.pop()
            out.append(f" {_WORDS.get(node.symbol, node.symbol) if canonical else node.symbol} ")
            node.right._write(out, canonical)


# string() in the language writes them so.
_WORDS = {"=?=": "is", "=!=": "isnt"}


class Conditional(Expr):
    """``condition ? then : otherwise``; without `then` it is the default operator ``?:``."""

    __slots__ = ("condition", "otherwise", "then")

    def __init__(self, condition: Expr, then: Expr | None, otherwise: Expr) -> None:
        self.condition = condition
        self.then = then
        self.otherwise = otherwise
        self._nest(condition, then, otherwise)

    def _eval(self, state: State) -> Any:
        value = self.condition._eval(state)
        if self.then is None:
            return self.otherwise._eval(state) if value is UNDEFINED else value
        meaning = truth(value)
        if meaning is None:
            return value if value is UNDEFINED else ERROR
        return (self.then if meaning else self.otherwise)._eval(state)

    def _write(self, out: list[str], canonical: bool) -> None:
        self.condition._write(out, canonical)
        if self.then is None:
            out.append(" ?: ")
        else:
            out.append(" ? ")
            self.then._write(out, canonical)
            out.append(" : ")
        self.otherwise._write(out, canonical)


class Parentheses(Expr):
    """Kept in the tree, as HTCondor does, so that a policy is written out the way it was written."""

    __slots__ = ("inner",)

    def __init__(self, inner: Expr) -> None:
        self.inner = inner
        self._nest(inner)

    def _eval(self, state: State) -> Any:
        return self.inner._eval(state)

    def _write(self, out: list[str], canonical: bool) -> None:
        out.append("(")
        self.inner._write(out, canonical)
        out.append(")")


class Subscript(Expr):
    """``list[number]`` or ``ad["name"]``."""

    __slots__ = ("base", "index")

    def __init__(self, base: Expr, index: Expr) -> None:
        self.base = base
        self.index = index
        self._nest(base, index)

    def _eval(self, state: State) -> Any:
        base = self.base._eval(state)
        index = self.index._eval(state)
        if base is ERROR or index is ERROR:
            return ERROR
        if base is UNDEFINED or index is UNDEFINED:
            return UNDEFINED
        if type(base) is LazyList:
            if type(index) is not int or not 0 <= wrap32(index) < len(base.items):
                return ERROR
            return state.within(base.items[wrap32(index)], base.scope)
        if type(index) is not str or type(base) in SCALARS:
            return ERROR
        entry = base.entries.get(fold(index))
        return UNDEFINED if entry is None else state.within(entry[1], base)

    def _write(self, out: list[str], canonical: bool) -> None:
        self.base._write(out, canonical)
        out.append("[")
        self.index._write(out, canonical)
        out.append("]")


class Call(Expr):
    """A function's call. `function` is None if there is none that takes this number of arguments."""

    __slots__ = ("arguments", "function", "name")

    def __init__(self, name: str, arguments: tuple[Expr, ...], function: Function | None) -> None:
        self.name = name
        self.arguments = arguments
        self.function = function
        self._nest(*arguments)
        self.depth += 2  # the function's own frames

    def _eval(self, state: State) -> Any:
        state.charge()
        function = self.function
        if function is None:
            return ERROR
        if function.lazy:
            return function.body(state, self.arguments)
        values = []
        for argument in self.arguments:
            values.append(argument._eval(state))  # noqa: PERF401 - a comprehension is one more frame
        return function.body(state, values)

    def _write(self, out: list[str], canonical: bool) -> None:
        out.append(quote_name(self.name))
        out.append("(")
        _write_items(self.arguments, out, canonical)
        out.append(")")


class ListExpr(Expr):
    """``{ a, b }``. Members that are literals are kept as plain values."""

    __slots__ = ("items",)

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = tuple(plain(item) for item in items)
        self._nest(*items)
        self.depth += 2  # writing takes three frames a level, as does an ad

    def _eval(self, state: State) -> Any:
        return LazyList(self.items, state.current)

    def _write(self, out: list[str], canonical: bool) -> None:
        out.append("{ ")
        _write_items(self.items, out, canonical)
        out.append(" }")


class AdExpr(Expr):
    """``[ a = 1; b = 2 ]``. `entries` is what a ClassAd keeps: folded name -> (name, value)."""

    __slots__ = ("entries",)

    def __init__(self, attributes: Sequence[tuple[str, Expr]]) -> None:
        self.entries: dict[str, tuple[str, Any]] = {}
        for name, value in attributes:
            self.entries[fold(name)] = (name, plain(value))
        self._nest(*[value for _, value in attributes])
        self.depth += 2

    def _eval(self, state: State) -> Any:
        from .ad import ClassAd

        return ClassAd.over(self.entries, state.current)

    def _write(self, out: list[str], canonical: bool) -> None:
        write_ad(self.entries, out, canonical)


def plain(expr: Any) -> Any:
    """A literal's value; any other expression itself."""
    return expr.value if type(expr) is Literal else expr


def _write_value(value: Any, out: list[str], canonical: bool) -> None:
    if isinstance(value, Expr):
        value._write(out, canonical)
    else:
        out.append(unparse(value, canonical=canonical))


def _write_items(items: Sequence[Any], out: list[str], canonical: bool) -> None:
    separator = ""
    for item in items:
        out.append(separator)
        _write_value(item, out, canonical)
        separator = "," if canonical else ", "


def write_ad(entries: dict[str, tuple[str, Any]], out: list[str], canonical: bool) -> None:
    out.append("[ ")
    separator = ""
    for name, value in entries.values():
        out.append(f"{separator}{quote_name(name)} = ")
        _write_value(value, out, canonical)
        separator = "; "
    out.append(" ]")
