"""Built-in functions on a job's environment and arguments, and on the users of this machine.

The syntaxes are HTCondor's (manual, condor_submit: arguments, environment). V1 separates by white space or
``;`` and quotes nothing. V2 separates by white space; single quotes enclose what holds white space, and a
doubled one inside them is a quote.
"""

from __future__ import annotations

import pwd
from collections.abc import Sequence
from typing import Any

from ..evaluation import Abort, LazyList, State
from ..functions import ANY_NUMBER, function
from ..values import ERROR, UNDEFINED

_BLANK = " \t\n\v\f\r"


def split_v2(text: str) -> list[str] | None:
    """The arguments in V2 text; None if a quote is not closed."""
    words: list[str] = []
    word: list[str] | None = None
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char in _BLANK:
            if word is not None:
                words.append("".join(word))
            word = None
            continue
        word = [] if word is None else word
        if char != "'":
            word.append(char)
            continue
        while True:
            end = text.find("'", position)
            if end < 0:
                return None
            word.append(text[position:end])
            position = end + 1
            if not text.startswith("'", position):
                break
            word.append("'")
            position += 1
    if word is not None:
        words.append("".join(word))
    return words


def join_v2(words: Sequence[str]) -> str:
    """V2 text that `split_v2` reads back."""
    return " ".join([_quote_v2(word) for word in words])


def _quote_v2(word: str) -> str:
    if not word:
        return "''"
    out: list[str] = []
    quoted = False
    for char in word:
        special = char in _BLANK or char == "'"
        if special != quoted:
            out.append("'")
        quoted = special
        out.append("''" if char == "'" else char)
    return "".join(out) + ("'" if quoted else "")


def _version(values: Sequence[Any]) -> int | None:
    """The syntax's version, the optional second argument; None if it is neither 1 nor 2."""
    version = values[1] if len(values) == 2 else 2
    return version if type(version) is int and version in (1, 2) else None


@function("argsToList", takes=(1, 2))
def args_to_list(state: State, values: Sequence[Any]) -> Any:
    version, text = _version(values), values[0]
    if version is None or type(text) is not str:
        return ERROR
    state.charge(len(text) << 5)
    words = split_v2(text) if version == 2 else text.split()
    return ERROR if words is None else LazyList(words, None)


@function("listToArgs", takes=(1, 2))
def list_to_args(state: State, values: Sequence[Any]) -> Any:
    version, items = _version(values), values[0]
    if version is None or type(items) is not LazyList:
        return ERROR
    words = state.members(items)
    if any(type(word) is not str for word in words):
        return ERROR
    state.charge(sum(map(len, words)) << 5)
    if version == 2:
        return join_v2(words)
    if any(char in word for word in words for char in _BLANK):
        return ERROR
    return " ".join([word for word in words if word])


def _merge(environment: dict[str, str], settings: Sequence[str]) -> bool:
    """Enter ``NAME=value`` texts; False if one is none."""
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not name or not equals:
            return False
        environment[name] = value
    return True


def _environment_text(environment: dict[str, str]) -> str:
    return join_v2([f"{name}={environment[name]}" for name in sorted(environment)])


@function("envV1ToV2", takes=1)
def environment_to_v2(state: State, values: Sequence[Any]) -> Any:
    text = values[0]
    if type(text) is not str:
        return text if text is UNDEFINED else ERROR
    state.charge(len(text) << 5)
    environment: dict[str, str] = {}
    settings = [part for part in map(str.lstrip, text.replace("\n", ";").split(";")) if part]
    return _environment_text(environment) if _merge(environment, settings) else ERROR


@function("mergeEnvironment", takes=(0, ANY_NUMBER))
def merge_environment(state: State, values: Sequence[Any]) -> Any:
    environment: dict[str, str] = {}
    for text in values:
        if text is UNDEFINED:
            continue
        if type(text) is not str:
            return ERROR
        state.charge(len(text) << 5)
        settings = split_v2(text)
        if settings is None or not _merge(environment, settings):
            return ERROR
    return _environment_text(environment)


@function("userHome", takes=(0, ANY_NUMBER))
def user_home(state: State, values: Sequence[Any]) -> Any:
    if len(values) not in (1, 2):
        raise Abort
    default = values[1] if len(values) == 2 and type(values[1]) is str and values[1] else UNDEFINED
    user = values[0]
    if type(user) is not str:
        return ERROR if default is UNDEFINED and user is not UNDEFINED else default
    try:
        return pwd.getpwnam(user).pw_dir
    except (KeyError, ValueError):
        return default


@function("userMap", takes=(2, 4))
def user_map(state: State, values: Sequence[Any]) -> Any:
    # There are no maps here, as in an HTCondor without CLASSAD_USER_MAP_NAMES.
    if values[0] is ERROR or values[1] is ERROR:
        return ERROR
    return values[3] if len(values) == 4 else UNDEFINED
