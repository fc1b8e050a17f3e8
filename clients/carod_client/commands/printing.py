"""Ads as HTCondor's tools print them: -format, -af, -long, -json, -jsonl (manual, condor_q, "-format", "-autoformat").

Formats come from users and values from jobs: neither can make this fail, print forever or write to a terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from carod.classad import ERROR, UNDEFINED, ClassAd, ClassAdSyntaxError, Expr, parse, unparse

WIDEST = 4096
"""The most characters that a format may ask for."""
NO_FIT = "[?????]"
"""What is printed for a value that a format can't show."""
_DIRECTIVE = re.compile(r"%(?P<flags>[-+ 0#]*)(?P<width>\d*)(?:\.(?P<precision>\d*))?[hlLqjzt]*(?P<kind>[a-zA-Z])")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}
_OPTIONS = frozenset(",lhrVntgjo")


class BadFormat(ValueError):
    """A format, an attribute or a letter of -af that means nothing; the text says what is meant."""


def expression(text: str) -> Expr:
    """What is to be printed: an attribute's name, or an expression. Raises BadFormat."""
    try:
        return parse(text)
    except ClassAdSyntaxError as error:
        raise BadFormat(f"{text!r} is neither an attribute's name nor an expression: {error}") from None


# -- -format -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Format:
    """`-format FORMAT ATTRIBUTE`: printf's format with one directive, and what goes there."""

    before: str
    flags: str
    width: int
    precision: int | None
    kind: str
    after: str
    value: Expr

    @classmethod
    def read(cls, text: str, attribute: str) -> Format:
        """Raises BadFormat."""
        plain = text.replace("%%", "\0")
        found = list(_DIRECTIVE.finditer(plain))
        if plain.count("%") > 1 or len(found) != plain.count("%"):
            raise BadFormat(f"format {text!r}: one directive is needed, such as %s, %d, %6.2f or %v (%% is a per cent)")
        if not found:
            return cls(_unescaped(plain), "", 0, None, "", "", expression(attribute))
        (match,) = found
        kind = match["kind"]
        if kind not in "sdiuxXoeEfFgGcvV":
            raise BadFormat(f"format {text!r}: %{kind} is no directive; there are s, d, i, u, x, o, e, f, g, c, v, V")
        width, precision = int(match["width"] or 0), match["precision"]
        if width > WIDEST or int(precision or 0) > WIDEST:
            raise BadFormat(f"format {text!r}: at most {WIDEST} characters for a value")
        return cls(
            _unescaped(plain[: match.start()]), match["flags"], width,
            None if precision is None else int(precision or 0), kind, _unescaped(plain[match.end() :]),
            expression(attribute),
        )  # fmt: skip

    def text(self, ad: ClassAd) -> str:
        """The ad's part of a line; nothing if it has no such attribute, as with HTCondor's tools."""
        value = self.value.evaluate(ad)
        if value is UNDEFINED and self.kind != "V":
            return ""
        if not self.kind:
            return self.before
        return f"{self.before}{self._shown(value)}{self.after}"

    def _shown(self, value: Any) -> str:
        kind = self.kind
        if kind in "sv":
            return self._padded(bare(value))
        if kind == "V":
            return self._padded(unparse(value))
        if not isinstance(value, int | float):
            return NO_FIT
        try:
            if kind == "c":
                return self._padded(chr(int(value)) if 32 <= int(value) < 0x110000 else "?")
            return self._number(kind, value)
        except (OverflowError, ValueError):  # NaN, infinity, a surrogate
            return self._padded(bare(value))

    def _number(self, kind: str, value: float) -> str:
        precision = "" if self.precision is None else f".{self.precision}"
        if kind in "diuxXo":
            number = int(value)
            if kind in "uxXo" and number < 0:
                number += 1 << 64  # as C prints a negative number without its sign
            kind = "d" if kind == "u" else kind
            return str(f"%{self.flags}{self.width or ''}{precision}{kind}" % number)
        return str(f"%{self.flags}{self.width or ''}{precision}{kind}" % float(value))

    def _padded(self, text: str) -> str:
        cut = text if self.precision is None else text[: self.precision]
        return cut.ljust(self.width) if "-" in self.flags else cut.rjust(self.width)


def _unescaped(text: str) -> str:
    """C's escapes as characters: shells hand on `\\n` as two."""

    def character(match: re.Match[str]) -> str:
        hexadecimal, octal, other = match.groups()
        if other is not None:
            return _ESCAPES.get(other, other)
        return chr(int(hexadecimal, 16) if hexadecimal else int(octal, 8) & 0xFF)

    return _ESCAPE.sub(character, text).replace("\0", "%")


# -- -af -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AutoFormat:
    """`-af[:OPTIONS] ATTRIBUTE ...`: the values of an ad in a line."""

    options: str
    names: tuple[str, ...]
    values: tuple[Expr, ...]

    @classmethod
    def read(cls, options: str, names: Sequence[str]) -> AutoFormat:
        """Raises BadFormat."""
        unknown = set(options) - _OPTIONS
        if unknown:
            raise BadFormat(
                f"-af:{options}: {min(unknown)!r} is no option of it; there are , (comma), t (tab), n (a line each), "
                "g (blank line), l (label), h (heading), r (unevaluated), V (quotes), j (job id)"
            )
        if not names and not set(options) & {"j", "o"}:
            raise BadFormat("-af: attributes are missing; write -af ClusterId ProcId")
        return cls(options, tuple(names), tuple(map(expression, names)))

    def lines(self, ads: Iterable[ClassAd]) -> Iterator[str]:
        """A line for each ad, or several; before all, headings if they are asked for."""
        if "h" not in self.options:
            for ad in ads:
                yield self._joined(self._fields(ad))
            return
        rows = [[*(["ID"] if self._with_id else []), *self.names]]
        rows += [self._fields(ad) for ad in ads]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            padded = [field.ljust(width) for field, width in zip(row, widths, strict=True)]
            yield self._joined(padded).rstrip(" \n") + "\n"

    @property
    def _with_id(self) -> bool:
        return "j" in self.options or "o" in self.options

    def _fields(self, ad: ClassAd) -> list[str]:
        fields = [job_id(ad)] if self._with_id else []
        for name, value in zip(self.names, self.values, strict=True):
            shown = self._value(ad, name, value)
            fields.append(f"{name} = {shown}" if "l" in self.options and "h" not in self.options else shown)
        return fields

    def _value(self, ad: ClassAd, name: str, value: Expr) -> str:
        if "r" in self.options:
            return unparse(ad[name]) if name in ad else "undefined"
        result = value.evaluate(ad)
        return unparse(result) if "V" in self.options else bare(result)

    def _joined(self, fields: list[str]) -> str:
        between = "\t" if "t" in self.options else "\n" if "n" in self.options else " "
        if "," in self.options:
            between = "," + between
        return between.join(fields) + "\n" + "\n" * ("g" in self.options)


# -- whole ads -------------------------------------------------------------------------------------------------------


def long_text(ad: ClassAd, names: Iterable[str] = ()) -> str:
    """An attribute a line, sorted, and a blank line."""
    shown = [name for name in names if name in ad] or sorted(ad, key=str.lower)
    return ClassAd((name, ad[name]) for name in shown).to_text() + "\n"


def json_object(ad: ClassAd) -> dict[str, Any]:
    """An ad as condor_q -json has it: what JSON can't say is its source text as `/Expr(...)/`."""
    return {name: json_value(ad[name]) for name in sorted(ad, key=str.lower)}


def json_value(value: Any) -> Any:
    if value is UNDEFINED or value is None:
        return None
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    if isinstance(value, ClassAd):
        return json_object(value)
    if isinstance(value, list):
        return [json_value(each) for each in value]
    return f"/Expr({unparse(value)})/"


def json_array(ads: Iterable[ClassAd]) -> Iterator[str]:
    """A JSON array, an ad a line."""
    yield "["
    before = "\n"
    for ad in ads:
        yield before + json.dumps(json_object(ad))
        before = ",\n"
    yield "\n]\n"


def json_lines(ads: Iterable[ClassAd]) -> Iterator[str]:
    for ad in ads:
        yield json.dumps(json_object(ad)) + "\n"


# -- values ----------------------------------------------------------------------------------------------------------


def bare(value: Any) -> str:
    """A value on one line: a string without its quotes, and nothing in it that a terminal would obey."""
    if value is UNDEFINED:
        return "undefined"
    if value is ERROR:
        return "error"
    text = value if isinstance(value, str) else unparse(value)
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def job_id(ad: ClassAd) -> str:
    return f"{integer(ad, 'ClusterId')}.{integer(ad, 'ProcId')}"


def integer(ad: ClassAd, name: str, default: int = 0) -> int:
    value = ad.evaluate(name)
    return int(value) if isinstance(value, int | float) and abs(value) < 1 << 62 else default


def text(ad: ClassAd, name: str) -> str:
    value = ad.evaluate(name)
    return bare(value) if isinstance(value, str) else ""
