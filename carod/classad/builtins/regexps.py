r"""Built-in functions with regular expressions: regexp, regexpMember, regexps, replace, replaceAll.

HTCondor uses PCRE, which gives up on a pattern that backtracks without end. Python's own ``re`` never gives
up and holds the interpreter meanwhile: ``(a+)+$`` would stop a node for good. Hence the package `regex`,
whose matching takes a timeout; it knows PCRE's possessive and recursive forms and POSIX classes, too.
Matching is on bytes, as in HTCondor, so ``\w`` is ASCII and ``.`` one byte of UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..evaluation import Abort, LazyList, State
from ..functions import function
from ..values import ERROR, MAX_STRING, UNDEFINED
from .strings import from_bytes, to_bytes

if TYPE_CHECKING:
    from regex import Match, Pattern

# Compiling is not bounded by the timeout; a policy's patterns are far shorter.
MAX_PATTERN = 4096

# Where PCRE's dialect differs: \Z also matches before a final newline and \z does not; \Q...\E quotes; \k<n> refers
# back; \h is blank; and under m the ^ matches after each newline but one that ends the text.
_CLASS = rb"\[\^?\]?(?:\[:\^?\w+:\]|\\[\s\S]|[^\]\\])*+\]"
_DIALECT = re.compile(rb"(" + _CLASS + rb")|\\Q([\s\S]*?)(?:\\E|\Z)|\\k(?:<(\w+)>|\{(\w+)\}|'(\w+)')|\\([\s\S])|\^")
_ESCAPES = {b"Z": rb"(?=\n?\Z)", b"z": rb"\Z", b"E": b"", b"h": rb"[ \t]"}


def _translate(source: bytes, options: str) -> bytes:
    caret = rb"(?:\A|(?<=\n)(?!\Z))" if "m" in options else b"^"

    def one(match: re.Match[bytes]) -> bytes:
        in_class, quoted, *names, escaped = match.groups()
        if in_class is not None:
            return in_class
        if quoted is not None:
            return re.escape(quoted)
        if escaped is not None:
            return _ESCAPES.get(escaped, match[0])
        name = next(filter(None, names), None)
        return caret if name is None else b"(?P=" + name + b")"

    return _DIALECT.sub(one, source)


@lru_cache(maxsize=128)
def _compiled(pattern: str, options: str, longer: bool) -> Pattern[bytes] | None:
    import regex

    flags = 0
    for letter, flag in (("i", regex.I), ("m", regex.M), ("s", regex.S), ("x", regex.X)):
        if letter in options:
            flags |= flag
    try:
        source = _translate(to_bytes(pattern), options)
        if longer:
            # Only here, and not empty: \G is where the search starts. The line's end is for a comment under x.
            source = rb"\G(?:" + source + (b"\n" if "x" in options else b"") + rb")(?!\G)"
        return regex.compile(source, flags)
    except (
        regex.error,
        RecursionError,
        OverflowError,
        MemoryError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
    ):
        # Besides its own error the package lets several of Python's through for broken patterns.
        return None


def compile_pattern(state: State, pattern: str, options: str, *, longer: bool = False) -> Pattern[bytes] | None:
    """The compiled pattern, if `longer` for matches that start where the search does and are not empty.

    None if `pattern` is none.
    """
    state.charge(len(pattern) << 4)
    if len(pattern) > MAX_PATTERN:
        return None
    return _compiled(pattern, "".join(sorted(set(options) & set("imsx"))), longer)


def search(state: State, compiled: Pattern[bytes], data: bytes, start: int = 0) -> Match[bytes] | None:
    """The first match from `start` on. Raises TimeoutError when the evaluation's time for it is used up."""
    state.charge(len(data))
    if state.regexp_time <= 0:
        raise TimeoutError
    begin = monotonic()
    try:
        return compiled.search(data, start, timeout=state.regexp_time)
    except (MemoryError, RuntimeError):
        raise TimeoutError from None
    finally:
        state.regexp_time -= monotonic() - begin


def _exceptional(values: Sequence[Any]) -> Any:
    """ERROR or UNDEFINED if an argument is; None if all are values."""
    if any(value is ERROR for value in values):
        return ERROR
    return UNDEFINED if any(value is UNDEFINED for value in values) else None


def _found(state: State, pattern: str, options: str, text: str) -> Any:
    compiled = compile_pattern(state, pattern, options)
    if compiled is None:
        return ERROR
    try:
        return search(state, compiled, to_bytes(text)) is not None
    except TimeoutError:
        return ERROR


@function("regexp", takes=(2, 3))
def regexp(state: State, values: Sequence[Any]) -> Any:
    exceptional = _exceptional(values)
    if exceptional is not None:
        return exceptional
    if any(type(value) is not str for value in values):
        return ERROR
    return _found(state, values[0], values[2] if len(values) == 3 else "", values[1])


@function("regexpMember", takes=(2, 3))
def regexp_member(state: State, values: Sequence[Any]) -> Any:
    exceptional = _exceptional(values)
    if exceptional is not None:
        return exceptional
    pattern, texts, options = values[0], values[1], values[2] if len(values) == 3 else ""
    if type(pattern) is not str or type(texts) is not LazyList or type(options) is not str:
        return ERROR
    result: Any = False
    for item in texts.items:
        text = state.within(item, texts.scope)
        if text is UNDEFINED:
            result = UNDEFINED
        elif type(text) is not str:
            return ERROR
        elif _found(state, pattern, options, text) is True:
            return True
    return result


@function("regexps", takes=(3, 4))
def regexps(state: State, values: Sequence[Any]) -> Any:
    return _substitute(state, values, "")


@function("replace", takes=(3, 4))
def replace(state: State, values: Sequence[Any]) -> Any:
    return _substitute(state, values, "f")


@function("replaceAll", takes=(3, 4))
def replace_all(state: State, values: Sequence[Any]) -> Any:
    return _substitute(state, values, "fg")


def _substitute(state: State, values: Sequence[Any], more_options: str) -> Any:
    exceptional = _exceptional(values)
    if exceptional is not None:
        return exceptional
    if any(type(value) is not str for value in values):
        return ERROR
    options = (values[3] if len(values) == 4 else "") + more_options
    try:
        result = _replaced(state, values[0], to_bytes(values[1]), to_bytes(values[2]), options)
    except TimeoutError:
        return ERROR
    return ERROR if result is None else from_bytes(result)


def _replaced(state: State, pattern: str, data: bytes, replacement: bytes, options: str) -> bytes | None:
    """`data` with its matches replaced, without option f the replacements alone; None if that fails."""
    compiled = compile_pattern(state, pattern, options)
    whole, every = "f" in options, "g" in options
    out: list[bytes] = []
    size = position = 0
    after_empty = False
    while compiled is not None:
        match = search(state, compiled, data, position)
        if match is None and after_empty:
            # The rule of PCRE's manual for going on after an empty match: nothing longer here, so one byte on.
            if position >= len(data):
                return None  # HTCondor fails when an empty match is the last
            out.append(data[position : position + 1])
            position += 1
            compiled = compile_pattern(state, pattern, options)
            after_empty = False
            continue
        if match is None:
            break
        if whole:
            out.append(data[position : match.start()])
        expanded = _expand(match, replacement)
        if expanded is None:
            return None
        out.append(expanded)
        size += len(expanded)
        if size > MAX_STRING:
            raise Abort
        position = match.end()
        if not every:
            break
        # HTCondor forgets this only where nothing longer is found.
        after_empty = after_empty or match.start() == position
        compiled = compile_pattern(state, pattern, options, longer=after_empty)
    if compiled is None:
        return None
    if whole:
        out.append(data[position:])
    return b"".join(out)


_GROUP = re.compile(rb"\\([0-9])")


def _expand(match: Match[bytes], replacement: bytes) -> bytes | None:
    r"""The replacement with ``\0`` to ``\9`` filled in; None if a group is beyond the last that matched."""
    if b"\\" not in replacement:
        return replacement
    last = max((group for group in range(len(match.groups()) + 1) if match.start(group) >= 0), default=0)
    if any(int(group) > last for group in _GROUP.findall(replacement)):
        return None
    return _GROUP.sub(lambda group: match.group(int(group[1])) or b"", replacement)
