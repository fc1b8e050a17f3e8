"""What a command's text means: units, signals, arguments, variables, expressions. Errors are ValueError, brief ones."""

from __future__ import annotations

import fnmatch
import math
import re
import signal
from collections.abc import Mapping

from carod.arguments import (
    join_arguments,
    join_environment,
    split_arguments,
    split_environment,
    split_old_environment,
)
from carod.classad import Expr, Value, parse, parse_value

_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[KMGTP])B?\Z", re.IGNORECASE)
_KIB = {"K": 1, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30, "P": 1 << 40}
_INTEGER = re.compile(r"-?\d+\Z")

UNIVERSES = {
    "standard": 1, "vanilla": 5, "scheduler": 7, "grid": 9, "java": 10, "parallel": 11, "local": 12, "vm": 13,
    "docker": 5, "container": 5,
}  # fmt: skip
RUN_HERE = frozenset({"vanilla", "local"})


def expression(text: str) -> Value | Expr:
    return parse_value(text)


def boolean(text: str) -> bool:
    """A literal or an expression that needs no ad; yes and no as HTCondor's users write them."""
    if text.lower() in ("yes", "no"):
        return text.lower() == "yes"
    value = parse(text).evaluate()
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value != 0
    raise ValueError(f"{text!r} is neither true nor false")


def integer(text: str) -> int:
    """A literal or an expression that needs no ad."""
    value = parse(text).evaluate()
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{text!r} is no integer")
    return value


def memory(text: str) -> Value | Expr:
    """MiB: `2GB`, `512`, `1.5 G`, or an expression."""
    return _quantity(text, 1 << 10, "512, 512MB or 2GB")


def disk(text: str) -> Value | Expr:
    """KiB: `10MB`, `4096`, or an expression."""
    return _quantity(text, 1, "4096 (KiB), 10MB or 2GB")


def _quantity(text: str, unit: int, examples: str) -> Value | Expr:
    match = _QUANTITY.match(text)
    if match:
        return math.ceil(float(match["number"]) * _KIB[match["unit"].upper()] / unit)
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither a size such as {examples} nor an expression ({error})") from None
    if isinstance(value, str) or (isinstance(value, int | float) and (isinstance(value, bool) or value < 0)):
        raise ValueError(f"{text!r} is no size; write for instance {examples}")
    return math.ceil(value) if isinstance(value, float) else value


def signal_name(text: str) -> str:
    """SIGTERM for `SIGTERM`, `term` and `15`."""
    try:
        if text.isdecimal():
            return signal.Signals(int(text)).name
        name = text.strip('"').upper()
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].name
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is no signal; write for instance SIGINT or 2") from None


def universe(text: str) -> int:
    """JobUniverse of one that nodes run."""
    name = text.lower()
    if name.isdecimal():
        name = next((known for known, number in UNIVERSES.items() if number == int(name)), name)
    if name in RUN_HERE:
        return UNIVERSES[name]
    if name in UNIVERSES:
        raise ValueError(f"no node runs the {name} universe; vanilla and local jobs run here")
    raise ValueError(f"there is no {text!r} universe; vanilla and local jobs run here")


def dequoted(text: str) -> str | None:
    """The inside of `"..."` with `""` for a quote, HTCondor's mark of its new syntax; None for any other text."""
    if not text.startswith('"'):
        return None
    inner = text[1:-1]
    if len(text) < 2 or not text.endswith('"') or (len(inner) - len(inner.rstrip('"'))) % 2:
        raise ValueError(f"the double quote that opens {text[:60]!r} is not closed")
    if '"' in inner.replace('""', ""):
        raise ValueError(f'a double quote inside {text[:60]!r} stands alone; write it twice: ""')
    return inner.replace('""', '"')


def arguments(text: str) -> dict[str, str]:
    """`Arguments` for new syntax, `Args` for old."""
    new = dequoted(text)
    if new is not None:
        return {"Arguments": join_arguments(split_arguments(new))}
    if '"' in text.replace('\\"', ""):
        raise ValueError(
            f'a double quote in {text[:60]!r}; write \\" for one, or enclose all in double quotes and write it twice'
        )
    return {"Args": text.replace('\\"', '"')} if text else {}


def environment(text: str) -> dict[str, str]:
    """The variables of either syntax."""
    new = dequoted(text)
    return split_environment(new) if new is not None else split_old_environment(text)


def chosen_environment(patterns: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What `getenv` takes from the submitter's environment: all, none, or names with `*`, `!name` left out."""
    wanted = [word for word in re.split(r"[\s,]+", patterns) if word]
    if len(wanted) == 1 and wanted[0].lower() in ("true", "false", "yes", "no", "1", "0"):
        return _sendable(environ) if wanted[0].lower() in ("true", "yes", "1") else {}
    left_out = [word[1:] for word in wanted if word.startswith("!")]
    taken = [word for word in wanted if not word.startswith("!")]

    def matches(name: str, among: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in among)

    return _sendable(
        {name: value for name, value in environ.items() if matches(name, taken) and not matches(name, left_out)}
    )


def _sendable(environ: Mapping[str, str]) -> dict[str, str]:
    """Shell functions and bytes that are no text can't be sent."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if value.isprintable() and name and "(" not in name and "%" not in name
    }


def joined_environment(variables: Mapping[str, str]) -> str:
    return join_environment(variables)


def listed(text: str) -> list[str]:
    """Names between commas, all of them in double quotes or none."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if '"' in text:
        raise ValueError(f"{text[:60]!r}: a file's name has no quotes; commas separate names")
    return [word.strip() for word in text.split(",") if word.strip()]
