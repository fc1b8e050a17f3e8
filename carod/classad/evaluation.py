"""One evaluation: its state and budgets, lists during it, and `Expr`, what every node of a tree can do.

Nodes are immutable and shared (parsed text is cached), so scopes live in the `State` of one evaluation, never in the
tree. Evaluation recurses one Python frame for a level of the tree; `depth` counts those levels when a node is made,
so that neither a deep tree nor a long chain of references can exhaust the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .values import ERROR, SCALARS, UNDEFINED, Value, unparse

if TYPE_CHECKING:
    from .ad import ClassAd

# Deepest tree the parser builds. HTCondor stops at some hundred parentheses, too; people stay below 30.
MAX_DEPTH = 300
# Levels one evaluation may stack over all attributes it follows: half of Python's default recursion limit.
MAX_EVALUATION_DEPTH = 500
# Attributes, list members and calls one evaluation may touch; about 0.2 s. A policy uses a few dozen.
MAX_STEPS = 100_000
# Seconds one evaluation may spend in regular expressions.
MAX_REGEXP_TIME = 0.5


class NestingError(ValueError):
    """A tree deeper than `MAX_DEPTH`."""


class Abort(Exception):
    """The evaluation as a whole fails: out of budget, or a reference that HTCondor refuses to evaluate."""


class State:
    """One evaluation: its two root ads, the ad whose scope is current, and what is left of the budgets."""

    __slots__ = ("busy", "current", "depth", "my", "regexp_time", "steps", "target")

    def __init__(self, current: ClassAd | None, target: ClassAd | None) -> None:
        self.current = current
        self.my = None if current is None else current.root()
        self.target = target
        self.steps = MAX_STEPS
        self.depth = 0
        self.regexp_time = MAX_REGEXP_TIME
        self.busy: set[tuple[int, str]] = set()

    def charge(self, size: int = 0) -> None:
        """Pay for a step on `size` characters."""
        self.steps -= 1 + (size >> 10)
        if self.steps < 0:
            raise Abort

    def within(self, value: Any, scope: ClassAd | None) -> Any:
        """The value of what an ad or a list holds, in the scope of its ad."""
        kind = type(value)
        if kind in SCALARS:
            self.charge(len(value) if kind is str else 0)
            return value
        if not isinstance(value, Expr):
            return self.placed(value, scope)
        self.charge()
        outer, self.current = self.current, scope
        self.enter(value.depth + 1)
        result = value._eval(self)
        self.depth -= value.depth + 1
        self.current = outer
        return result

    def placed(self, value: Any, scope: ClassAd | None) -> Any:
        """A list or ad, where it belongs; ERROR for an object from Python that is no value."""
        if type(value) is list:
            return LazyList(value, scope)
        if type(value) is LazyList:
            return value
        if not hasattr(value, "entries"):
            return ERROR
        # A value from an evaluation knows its place already; an ad in a list from Python doesn't yet.
        return value if value.parent is not None else value.inside(scope)

    def enter(self, depth: int) -> None:
        self.depth += depth
        if self.depth > MAX_EVALUATION_DEPTH:
            raise Abort

    def members(self, items: LazyList) -> list[Any]:
        """The values of a list's members."""
        scope = items.scope
        return [self.within(item, scope) for item in items.items]

    def find(self, start: ClassAd, name: str) -> tuple[Any, ClassAd | None] | None:
        """Look `name` up in `start` and its enclosing ads: what is there and in which ad, None if nowhere.

        The ad is None for names that mean an ad themselves (MY, TARGET, parent, ...).
        """
        scope = start
        while True:
            entry = scope.entries.get(name)
            if entry is not None:
                return entry[1], scope
            if name in _SCOPES:
                return self._scope_named(name, scope), None
            if scope.parent is None:
                return self._match_scope(name, scope)
            scope = scope.parent

    def _scope_named(self, name: str, scope: ClassAd) -> Any:
        if name == "parent":
            return UNDEFINED if scope.parent is None else scope.parent
        if name == "my" or name == "self":
            return scope
        if self.target is not None:
            return UNDEFINED  # the root of a match is HTCondor's match ad, which holds nothing of ours
        if self.my is None:
            raise Abort
        return self.my

    def _match_scope(self, name: str, scope: ClassAd) -> tuple[Any, None] | None:
        if self.target is None or name not in _MATCH_SCOPES:
            return None
        other = self.opposite(scope)
        return None if other is None else (other, None)

    def opposite(self, scope: ClassAd) -> ClassAd | None:
        """The other root ad of a match; None for what is no root ad of one."""
        if scope is self.my:
            return self.target
        return self.my if scope is self.target else None


_SCOPES = frozenset({"my", "self", "parent", "root", "toplevel"})
_MATCH_SCOPES = frozenset({"target", "other"})


class LazyList:
    """A list during evaluation: its members are evaluated one by one, when used, in the scope of its ad."""

    __slots__ = ("items", "scope")

    def __init__(self, items: Sequence[Any], scope: ClassAd | None) -> None:
        self.items = items
        self.scope = scope

    def unparse(self, *, canonical: bool = False) -> str:
        return unparse(list(self.items), canonical=canonical)


class Expr:
    """An expression. Two are equal if they are written the same; `str()` gives source that parses to it."""

    __slots__ = ("depth",)
    depth: int

    def evaluate(self, my: ClassAd | None = None, target: ClassAd | None = None) -> Value:
        """The expression's value in the scope of `my`, matched with `target`.

        An unscoped name is looked up in `my` (innermost nested ad first), then in `target`; inside an
        expression found in `target` the two change places. Never raises: what can't be evaluated is `ERROR`.
        """
        return evaluate(self, my, target)  # type: ignore[no-any-return]

    def _eval(self, state: State) -> Any:
        raise NotImplementedError

    def _write(self, out: list[str], canonical: bool) -> None:
        raise NotImplementedError

    def unparse(self, *, canonical: bool = False) -> str:
        out: list[str] = []
        self._write(out, canonical)
        return "".join(out)

    def _nest(self, *children: Any) -> None:
        depth = 0
        for child in children:
            if isinstance(child, Expr) and child.depth > depth:
                depth = child.depth
        if depth >= MAX_DEPTH:
            raise NestingError(f"nested deeper than {MAX_DEPTH}")
        self.depth = depth + 1

    def __str__(self) -> str:
        return self.unparse()

    def __repr__(self) -> str:
        return f"parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> Any:
        from .parser import parse

        return parse, (str(self),)


def evaluate(value: Any, my: ClassAd | None, target: ClassAd | None) -> Any:
    """`value`, an expression or what an ad holds, evaluated in the scope of `my`; see `Expr.evaluate`."""
    if my is None and target is not None:
        from .ad import ClassAd

        my = ClassAd()
    state = State(my, target)
    try:
        return export(state.within(value, my), state)
    except (Abort, RecursionError, MemoryError):
        # RecursionError: the caller's own stack was nearly full.
        return ERROR


def export(value: Any, state: State) -> Any:
    """What the caller gets: lists as Python lists of values, ads as copies that know their enclosing ad."""
    if type(value) in SCALARS:
        return value
    if type(value) is LazyList:
        state.enter(3)
        values = [export(state.within(item, value.scope), state) for item in value.items]
        state.depth -= 3
        return values
    return value.copy()
