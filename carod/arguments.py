"""HTCondor's two syntaxes for a job's arguments and environment (manual, condor_submit, "arguments", "environment").

New (`Arguments`, `Environment`): white space separates, `'...'` groups, `''` inside a group is one quote. Old
(`Args`, `Env`): spaces separate arguments and `\\"` is a double quote; semicolons separate variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_WORD = re.compile(r"(?:[^\s']+|'(?:[^']|'')*')+")
_PART = re.compile(r"'((?:[^']|'')*)'|([^']+)")


class ArgumentsError(ValueError):
    """Text that is no list of arguments or variables; says what and where."""


def split_arguments(text: str) -> list[str]:
    """The words of new-syntax text. Raises ArgumentsError for a quote that is not closed."""
    if "'" not in text:
        return text.split()
    words, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        word = _WORD.match(text, at)
        if word is None or (word.end() < len(text) and text[word.end()] == "'"):
            raise ArgumentsError(
                f"the quote (') at column {_open_quote(text) + 1} of {text[:200]!r} is not closed; '' is a quote itself"
            )
        words.append("".join(quoted.replace("''", "'") or plain for quoted, plain in _PART.findall(word[0])))
        at = word.end()
    return words


def _open_quote(text: str) -> int:
    """Where the quote begins that is not closed."""
    opened, at = -1, 0
    while at < len(text):
        if text[at] == "'":
            if opened < 0:
                opened = at
            elif text[at + 1 : at + 2] == "'":
                at += 1  # a quote in a quote
            else:
                opened = -1
        at += 1
    return opened


def join_arguments(words: Iterable[str]) -> str:
    """New-syntax text for words. Raises ArgumentsError for a word that no program can be given."""
    return " ".join(_quote(word) for word in words)


def _quote(word: str) -> str:
    if "\0" in word:
        raise ArgumentsError(f"argument {word[:80]!r} holds a NUL character, which no program can be given")
    if word and not any(character.isspace() or character == "'" for character in word):
        return word
    return "'" + word.replace("'", "''") + "'"


def split_old_arguments(text: str) -> list[str]:
    """The words of old-syntax text: nothing groups, a backslash before a double quote escapes it."""
    return text.replace('\\"', '"').split()


def split_environment(text: str) -> dict[str, str]:
    """The variables of new-syntax text. Raises ArgumentsError."""
    return dict(_variable(word) for word in split_arguments(text))


def split_old_environment(text: str) -> dict[str, str]:
    """The variables of old-syntax text, `A=1;B=2`. Raises ArgumentsError."""
    return dict(_variable(word) for word in text.split(";") if word.strip())


def join_environment(variables: Mapping[str, str]) -> str:
    """New-syntax text for variables. Raises ArgumentsError for a name that can't be one."""
    for name in variables:
        if not name or "=" in name:
            raise ArgumentsError(f"environment variable {name[:80]!r}: a name is not empty and has no '='")
    return join_arguments(f"{name}={value}" for name, value in variables.items())


def _variable(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    name = name.strip() if equals else ""
    if not name:
        raise ArgumentsError(f"{word[:80]!r} is no NAME=value")
    return name, value
