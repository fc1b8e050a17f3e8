"""Text to tree.

Literals, which is most of what arrives in message headers, are read with a few regular expressions; lark is
imported and its LALR parser built (about 50 ms, once) when the first text needs it. Parsed expressions are
cached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ad import ClassAd
from .evaluation import MAX_DEPTH, Expr, NestingError
from .expr import AdExpr, Literal
from .values import ERROR, UNDEFINED, Value

if TYPE_CHECKING:
    from lark import Lark, Token

# Longest text that the cache keeps, and how many texts: 1000 policies, a few MB at worst.
MAX_CACHED_TEXT = 4096
CACHE_SIZE = 1024
# Tokens of one text; parsing them takes about half a second. The largest machine ads have some thousands.
MAX_TOKENS = 100_000

_BEFORE, _AFTER = 40, 20


class ClassAdSyntaxError(ValueError):
    """Text that is no ClassAd expression. `line` and `column` count from 1 in `text`."""

    def __init__(self, problem: str, text: str, position: int) -> None:
        self.problem = problem
        self.text = text
        position = max(0, min(position, len(text)))
        start = text.rfind("\n", 0, position) + 1
        self.line = text.count("\n", 0, position) + 1
        self.column = position - start + 1
        end = text.find("\n", position)
        line = text[start : len(text) if end < 0 else end]
        where = f"column {self.column}" if self.line == 1 else f"line {self.line}, column {self.column}"
        super().__init__(f"{problem} at {where} of {_excerpt(line, self.column - 1)!r}")

    def __reduce__(self) -> Any:
        return _remake, (self.args[0], self.problem, self.text, self.line, self.column)


def _remake(message: str, problem: str, text: str, line: int, column: int) -> ClassAdSyntaxError:
    error = ClassAdSyntaxError.__new__(ClassAdSyntaxError)
    error.args = (message,)
    error.problem, error.text, error.line, error.column = problem, text, line, column
    return error


def _excerpt(line: str, position: int) -> str:
    """What surrounds `position` in a long line, the whole of a short one."""
    start = max(0, position - _BEFORE)
    end = position + _AFTER
    return ("..." if start else "") + line[start:end] + ("..." if end < len(line) else "")


# Literals

_WORDS: dict[str, Any] = {"true": True, "false": False, "undefined": UNDEFINED, "error": ERROR}
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)\Z")
_REAL = re.compile(r"-?(?:[0-9]*\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)\Z")
_STRING = re.compile(r'"(?:[^"\\]++|\\[\s\S])*+"\Z')
_TIME = re.compile(r'(abs|rel)time\([ \t]*("[^"\\]*")[ \t]*\)\Z', re.IGNORECASE)
_BLANK = " \t\n\v\f\r"

_NOT_LITERAL = object()


def _literal(text: str) -> Any:
    """The value of a literal's text; `_NOT_LITERAL` for all else. Raises ClassAdSyntaxError."""
    first = text[:1]
    if first == '"':
        if text.find('"', 1) == len(text) - 1 and "\\" not in text and len(text) > 1:
            return _checked(text[1:-1], text)
        return unescape(text[1:-1], text, 0) if _STRING.match(text) else _NOT_LITERAL
    if first in "-.0123456789" and first:
        if _INTEGER.match(text):
            return integer(text, text, 0)
        return float(text) if _REAL.match(text) else _NOT_LITERAL
    if len(text) <= 9:
        return _WORDS.get(text.lower(), _NOT_LITERAL) if text.isascii() else _NOT_LITERAL
    if first in "aArR":
        match = _TIME.match(text)
        if match:
            return time_literal(match[1].lower() + "time", match[2][1:-1], text, 0)
    return _NOT_LITERAL


def integer(digits: str, text: str, position: int) -> int:
    # 20 characters hold every 64-bit integer; int() of very long digits is slow and refuses in the end.
    if len(digits) < 19:
        return int(digits)
    value = int(digits) if len(digits) <= 20 else 1 << 63
    if not -(1 << 63) <= value < 1 << 63:
        raise ClassAdSyntaxError("an integer that does not fit in 64 bits (write it as a real)", text, position)
    return value


_ESCAPE = re.compile(r"\\([0-3]?[0-7]{1,2}|[\s\S])")
_PLAIN_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _unescape_one(match: re.Match[str]) -> str:
    char = match[1]
    if char[0] in "01234567":
        # A byte; those above 127 are put together below.
        code = int(char, 8)
        return chr(code) if code < 0x80 else chr(0xDC00 + code)
    return _PLAIN_ESCAPES.get(char, char)


def unescape(body: str, text: str, position: int) -> str:
    r"""A string's body with its escapes replaced: ``\n`` and so on, ``\ooo`` a byte, any other ``\x`` x."""
    if "\\" in body:
        body = _ESCAPE.sub(_unescape_one, body)
        if not body.isascii():
            body = body.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return _checked(body, text, position)


def _checked(body: str, text: str, position: int = 0) -> str:
    if "\0" in body:
        raise ClassAdSyntaxError("a NUL character in a string", text, position)
    return body


def time_literal(function: str, written: str, text: str, position: int) -> Value:
    """The time that ``absTime("...")`` or ``relTime("...")`` writes."""
    from .builtins.times import parse_absolute, parse_relative

    value = parse_absolute(written) if function == "abstime" else parse_relative(written)
    if value is None:
        form = "2020-01-31T09:00:00-06:00" if function == "abstime" else "1+02:03:04"
        raise ClassAdSyntaxError(f"{written!r} is no time like {form}", text, position)
    return value


# Expressions


def parse(text: str) -> Expr:
    """The tree of an expression's source. Raises `ClassAdSyntaxError`, with line and column."""
    value = parse_value(text)
    return value if isinstance(value, Expr) else Literal(value)


def parse_value(text: str) -> Value | Expr:
    """A literal's value as Python's own, any other expression's tree. Raises `ClassAdSyntaxError`.

    This is the fast path for message headers: literals never meet the parser, other text is cached.
    """
    value = _literal(text)
    if value is _NOT_LITERAL:
        stripped = text.strip(_BLANK)
        if len(stripped) < len(text):
            value = _literal(stripped)
    if value is not _NOT_LITERAL:
        return value  # type: ignore[no-any-return]
    expr = _parse_cached(text) if len(text) <= MAX_CACHED_TEXT else _parse(text)
    return expr.value if type(expr) is Literal else expr


def _parse(text: str) -> Expr:
    from lark import UnexpectedInput

    try:
        return _lark().parse(text)  # type: ignore[return-value]
    except UnexpectedInput as error:
        raise _syntax_error(error, text) from None
    except NestingError as error:
        raise ClassAdSyntaxError(str(error), text, 0) from None
    except _TokenError as error:
        raise ClassAdSyntaxError(error.problem, text, error.position) from None
    except RecursionError:
        # Not by the text's depth, which is bounded: the caller's own stack is nearly full.
        raise ClassAdSyntaxError("no stack left to parse", text, 0) from None


_parse_cached = lru_cache(maxsize=CACHE_SIZE)(_parse)


def _syntax_error(error: Any, text: str) -> ClassAdSyntaxError:
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return ClassAdSyntaxError("unexpected end", text, len(text))
    position = error.pos_in_stream if token is None else token.start_pos
    if token is not None:
        shown = str(token)
    elif text[position] in "\"'":
        return ClassAdSyntaxError(f"no closing {text[position]}", text, position)
    else:
        word = re.compile(r"[A-Za-z0-9_.]{1,40}|[\s\S]").match(text, position)
        shown = word.group() if word else ""
    return ClassAdSyntaxError(f"unexpected {_excerpt(shown, 0)!r}", text, position)


class _TokenError(Exception):
    def __init__(self, problem: str, position: int) -> None:
        self.problem = problem
        self.position = position


# After these a minus is an operator, elsewhere it belongs to the number it touches (HTCondor's lexer).
_OPERANDS = frozenset({"INTEGER", "REAL", "STRING", "WORD", "NAME", "QUOTED_NAME", "DOT", "RSQB", "RPAR", "RBRACE"})
_OPENING = frozenset({"LPAR", "LSQB", "LBRACE"})
_CLOSING = frozenset({"RPAR", "RSQB", "RBRACE"})


class _Tokens:
    """Between lexer and parser: joins signs to numbers, bounds the depth and the number of tokens."""

    always_accept: Iterable[str] = ()

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        minus: Token | None = None
        previous = ""
        depth = 0
        for count, token in enumerate(stream, 1):
            kind = token.type
            if kind in _OPENING:
                depth += 1
            elif kind in _CLOSING:
                depth -= 1
            if count > MAX_TOKENS:
                raise _TokenError(f"more than {MAX_TOKENS} tokens", token.start_pos or 0)
            if depth > MAX_DEPTH:
                raise _TokenError(f"nested deeper than {MAX_DEPTH}", token.start_pos or 0)
            if minus is not None:
                if kind in ("INTEGER", "REAL") and token.start_pos == minus.end_pos:
                    token = minus.update(kind, "-" + token)
                else:
                    yield minus
                minus = None
            if kind == "MINUS" and previous not in _OPERANDS:
                minus = token
            else:
                yield token
            previous = kind
        if minus is not None:
            yield minus


@cache
def _lark() -> Lark:
    from lark import Lark

    from .tree import TreeBuilder

    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", transformer=TreeBuilder(), postlex=_Tokens())


# Ads

_OLD_LINE = re.compile(r"[ \t]*([A-Za-z_][A-Za-z0-9_]*|'(?:[^'\\]++|\\.)+')[ \t]*=")
_COMMENTS = re.compile(r"(?:\s++|//[^\n]*+|/\*[\s\S]*?\*/)*")


def parse_ad(text: str) -> ClassAd:
    """The ad in new-style or old-style text; see `ClassAd.parse`."""
    body = _COMMENTS.match(text)
    if body and text.startswith("[", body.end()):
        expr = parse(text)
        if type(expr) is not AdExpr:
            raise ClassAdSyntaxError("an expression that is no ad", text, 0)
        return ClassAd.over(expr.entries.copy(), None)
    ad = ClassAd()
    position = 0
    for line in text.split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            _add_line(ad, line.rstrip(), text, position)
        position += len(line) + 1
    return ad


def _add_line(ad: ClassAd, line: str, text: str, position: int) -> None:
    match = _OLD_LINE.match(line)
    if match is None:
        raise ClassAdSyntaxError("expected 'name = expression'", text, position)
    name = match[1]
    if name.startswith("'"):
        name = unescape(name[1:-1], text, position)
    source = line[match.end() :]
    try:
        ad[name] = parse_value(new_style(source))
    except ClassAdSyntaxError as error:
        start = position + match.end() + len(source) - len(source.lstrip())
        raise ClassAdSyntaxError(error.problem, text, max(start, position + match.end() + error.column - 1)) from None


# In old style a backslash is itself, but before a quote that does not end the line.
_OLD_BACKSLASH = re.compile(r'\\(?!"(?!\s*\Z))')
_ANY_STRING = re.compile(r'"((?:[^"\\]++|\\[\s\S])*+)"')


def new_style(line: str) -> str:
    """An old-style expression with new-style escapes."""
    return _OLD_BACKSLASH.sub(r"\\\\", line) if "\\" in line else line


def old_style(source: str) -> str:
    """New-style source with old-style strings, in which a line's end becomes a space."""
    return _ANY_STRING.sub(_old_string, source)


def _old_string(match: re.Match[str]) -> str:
    body = unescape(match[1], "", 0).replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
    return '"' + body.replace('"', '\\"') + '"'
