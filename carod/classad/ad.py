"""ClassAd: a case-insensitive mapping of names to expressions, and the matching of two of them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping
from datetime import datetime, timedelta
from typing import Any

from .evaluation import Expr, evaluate
from .expr import AdExpr, ListExpr, plain, write_ad
from .operators import truth
from .values import SCALARS, UNDEFINED, Value, fold, quote_name, unparse


class _Items(ItemsView[str, Any]):
    """The pairs of an ad without a look-up for each: every reply to a job walks its ad."""

    _mapping: ClassAd

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        ad = self._mapping
        return iter([(name, ad.shown(value)) for name, value in ad.entries.values()])


class ClassAd(MutableMapping[str, Any]):
    """A mapping of attribute names, whose case does not matter, to values and expressions.

    Set an attribute to an int (64 bits), float, str, bool, list, ClassAd, datetime, timedelta, `UNDEFINED`,
    `ERROR` or an `Expr`; reading gives the same back. None becomes `UNDEFINED`, a dict a ClassAd; what else is no
    ClassAd value is a TypeError. Names keep the spelling they were last set with, and
    the order they were first set in. `evaluate` gives an attribute's value.
    """

    # entries: folded name -> (name, value); parent: the ad this one is nested in.
    __slots__ = ("entries", "parent")

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /) -> None:
        self.entries: dict[str, tuple[str, Any]] = {}
        self.parent: ClassAd | None = None
        if values:
            for name, value in values.items() if isinstance(values, Mapping) else values:
                self[name] = value

    @classmethod
    def parse(cls, text: str) -> ClassAd:
        """The ad in `text`: new-style ``[a = 1; b = 2]``, or old-style, an ``a = 1`` a line.

        Old-style text may have blank lines and comments (``#``), and its strings have no escapes but ``\\"``.
        Raises `ClassAdSyntaxError`.
        """
        from .parser import parse_ad

        return parse_ad(text)

    @classmethod
    def over(cls, entries: dict[str, tuple[str, Any]], parent: ClassAd | None) -> ClassAd:
        """An ad that shares `entries` and is nested in `parent`."""
        ad = cls.__new__(cls)
        ad.entries = entries
        ad.parent = parent
        return ad

    def inside(self, parent: ClassAd | None) -> ClassAd:
        """This ad, nested in `parent`; it shares its attributes."""
        return self if self.parent is parent else ClassAd.over(self.entries, parent)

    def root(self) -> ClassAd:
        """The outermost ad around this one."""
        ad = self
        while ad.parent is not None:
            ad = ad.parent
        return ad

    def copy(self) -> ClassAd:
        """A new ad with the same attributes, in the same enclosing ad. Nested lists and ads are shared."""
        return ClassAd.over(self.entries.copy(), self.parent)

    def evaluate(self, name: str, target: ClassAd | None = None) -> Value:
        """The value of attribute `name`, matched with `target`; `UNDEFINED` if missing. Never raises."""
        entry = self.entries.get(fold(name))
        if entry is None:
            return UNDEFINED
        value = entry[1]
        if type(value) in SCALARS:
            return value  # type: ignore[no-any-return]
        return evaluate(value, self, target)  # type: ignore[no-any-return]

    def to_text(self) -> str:
        """Old-style text: ``Name = expression`` a line, in HTCondor's format of job and machine ads.

        Old style has no escape for a line's end: one inside a string is written as a space.
        """
        lines = [f"{quote_name(name)} = {_old_text(value)}\n" for name, value in self.entries.values()]
        return "".join(lines)

    def unparse(self, *, canonical: bool = False) -> str:
        out: list[str] = []
        write_ad(self.entries, out, canonical)
        return "".join(out)

    def __getitem__(self, name: str) -> Any:
        entry = self.entries.get(fold(name))
        if entry is None:
            raise KeyError(name)
        return self.shown(entry[1])

    def shown(self, value: Any) -> Any:
        """A stored value as callers get it: literal lists and ads as such, not as expressions."""
        if type(value) is ListExpr:
            return list(value.items)
        if type(value) is AdExpr:
            return ClassAd.over(value.entries.copy(), self)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        entry = self.entries.get(fold(name))
        return default if entry is None else self.shown(entry[1])

    def __setitem__(self, name: str, value: Any) -> None:
        if type(value) not in _KEPT:
            value = _storable(name, value)
        self.entries[fold(name)] = (name, value)

    def __delitem__(self, name: str) -> None:
        try:
            del self.entries[fold(name)]
        except KeyError:
            raise KeyError(name) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and fold(name) in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.entries.values()])

    def items(self) -> ItemsView[str, Any]:
        return _Items(self)

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        """Same attributes with the same values and expressions; order and names' case do not matter."""
        if not isinstance(other, ClassAd):
            return NotImplemented
        mine, theirs = self.entries, other.entries
        if mine.keys() != theirs.keys():
            return False
        return all(_same(value, theirs[key][1]) for key, (_, value) in mine.items())

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.unparse()

    def __repr__(self) -> str:
        return f"ClassAd.parse({str(self)!r})"


_KEPT = SCALARS | {list, ClassAd}


def _storable(name: str, value: Any) -> Any:
    """What an ad keeps for a `value` of any other type than those it keeps as they are."""
    if isinstance(value, Expr):
        return plain(value)
    if value is None:
        return UNDEFINED
    if isinstance(value, Mapping):
        return ClassAd(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # an IntEnum, a str of another library
    if isinstance(value, datetime):
        return datetime.combine(value.date(), value.timetz())
    if isinstance(value, timedelta):
        return timedelta(value.days, value.seconds, value.microseconds)
    raise TypeError(f"{name}: {value!r} is no ClassAd value: use int, float, str, bool, list, ClassAd or a time")


def _same(left: Any, right: Any) -> bool:
    # By text where types differ: a list may come from a parser or from Python; 1, 1.0 and True are different.
    return (type(left) is type(right) and left == right) or unparse(left) == unparse(right)


def _old_text(value: Any) -> str:
    text = unparse(value)
    if "\\" not in text:
        return text
    from .parser import old_style

    return old_style(text)


def matches(my: ClassAd, target: ClassAd, attribute: str = "Requirements") -> bool:
    """Whether `attribute` of `my` is true against `target`: TRUE or a number that is not zero.

    UNDEFINED, ERROR, a string and a missing attribute do not match (HTCondor's rule for START and
    Requirements).
    """
    return truth(my.evaluate(attribute, target)) is True


def symmetric_match(left: ClassAd, right: ClassAd) -> bool:
    """Whether the Requirements of each ad are true against the other."""
    return matches(left, right) and matches(right, left)
