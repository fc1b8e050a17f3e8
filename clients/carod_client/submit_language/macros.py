"""Names and their values in a submit description: `$(name)`, `$(name:default)`, `$ENV(name)`, `$Fnx(name)` and so on.

Values are kept as they are written and expanded when they are used, so that a value may name what is set below it;
only a value that names itself is expanded at once (`args = $(args) -v`). `$$(name)` is the slot's to expand, and is
left alone. Source: HTCondor manual, "Submit description file", macros; HTCondor's own library where it is silent.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from carod.classad import ClassAdSyntaxError, parse
from carod_client.submit_language.errors import Place, SubmitError

DEEPEST = 64
"""Names inside names: past this they go round in a circle."""
LONGEST_VALUE = 1 << 20
"""Characters of an expanded value: names that double each other would fill the machine."""
_FUNCTION = re.compile(r"\$(?P<function>[A-Za-z_]*)\(")
_NAME = re.compile(r"[A-Za-z_][\w.]*\Z")
_PRINTF = re.compile(r"[^%]*%[-+ 0#]{0,5}\d{0,4}(?:\.\d{1,4})?[diouxXeEfgGs][^%]*\Z")


class Macros:
    """The values of names, whose case does not matter. `used` has the names that something asked for, in lower case."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self.live: dict[str, str] = {}
        """Values that change from job to job (Process, the items of `queue`); they go before all others."""
        self.used: set[str] = set()
        self.unknown: dict[str, Place] = {}
        """Names that had no value where one was asked for, and where that was first."""
        self.varied = False
        """Set when a value was asked for that may be another one for the next job."""
        self._values: dict[str, str] = {}
        self._environ = os.environ if environ is None else environ

    def set(self, name: str, value: str, place: Place) -> None:
        """Give a name its value. Raises SubmitError if the value names itself in a way that can't be expanded."""
        folded = name.lower()
        if re.search(rf"\$\({re.escape(folded)}[:)]", value, re.IGNORECASE):
            value = self._expand(value, place, 0, only=folded)
        self._values[folded] = value

    def get(self, name: str) -> str | None:
        """A name's value as it was written."""
        folded = name.lower()
        self.used.add(folded)
        value = self.live.get(folded)
        if value is None:
            return self._values.get(folded)
        self.varied = True
        return value

    def expand(self, text: str, place: Place) -> str:
        """The text with all macros replaced. Raises SubmitError for a circle, or a function that is unknown."""
        return self._expand(text, place, 0) if "$" in text else text

    def _expand(self, text: str, place: Place, depth: int, only: str | None = None) -> str:
        if depth > DEEPEST:
            raise SubmitError(place, f"{text.strip()[:80]!r} goes round in a circle: a name whose value needs itself")
        out: list[str] = []
        at = size = 0
        while (dollar := text.find("$", at)) >= 0:
            out.append(text[at:dollar])
            replaced, at = self._one(text, dollar, place, depth, only)
            out.append(replaced)
            size += len(replaced)
            if size > LONGEST_VALUE:
                raise SubmitError(place, f"a value of more than {LONGEST_VALUE:,} characters; put it into a file")
        out.append(text[at:])
        return "".join(out)

    def _one(self, text: str, dollar: int, place: Place, depth: int, only: str | None) -> tuple[str, int]:
        """What the text at a `$` becomes, and where the text goes on."""
        if text.startswith("$$(", dollar):
            end = _closing(text, dollar + 2, place)
            return text[dollar:end], end
        call = _FUNCTION.match(text, dollar)
        if call is None:
            return "$", dollar + 1
        end = _closing(text, call.end() - 1, place)
        inner, function = text[call.end() : end - 1], call["function"]
        if only is not None and (function or inner.partition(":")[0].lower() != only):
            return text[dollar:end], end
        if not function:
            return self._variable(inner, text[dollar:end], place, depth), end
        apply = _FUNCTIONS.get(function.upper())
        if apply is not None:
            return apply(self, inner, place, depth), end
        if re.fullmatch(r"F[fpdnxbq]*", function):
            return self._file_name(function[1:], inner, place, depth), end
        if function.isupper():
            raise SubmitError(place, f"${function}() is no macro function; there are: {', '.join(sorted(_FUNCTIONS))}")
        return text[dollar:end], end

    def _variable(self, inner: str, written: str, place: Place, depth: int) -> str:
        name, colon, default = inner.partition(":")
        inside = _FUNCTION.match(f"${name.strip()}")
        if inside is not None and inside["function"].upper() == "ENV" and name.strip().endswith(")"):
            return self._environment(name.strip()[4:-1] + colon + default, place, depth)
        if name.upper() == "DOLLAR":
            return "$"
        if not _NAME.match(name):
            return written
        value = self.get(name)
        if value is None:
            if not colon:
                self.unknown.setdefault(name.lower(), place)
            value = default
        return self._expand(value, place, depth + 1)

    def _value_of(self, name: str, place: Place, depth: int) -> str:
        """What a function's argument stands for: the value of the name, or itself if it is none."""
        value = self.get(name.strip()) if _NAME.match(name.strip()) else None
        return self._expand(name if value is None else value, place, depth + 1)

    def _environment(self, inner: str, place: Place, depth: int) -> str:
        name, colon, default = inner.partition(":")
        value = self._environ.get(name.strip())
        if value is not None:
            return value
        return self._expand(default, place, depth + 1) if colon else "UNDEFINED"

    def _number(self, inner: str, place: Place, depth: int, real: bool) -> str:
        name, _, form = inner.partition(",")
        text = self._value_of(name, place, depth)
        value = _evaluated(text, place)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SubmitError(place, f"{text.strip()!r}, the value of {name.strip()!r}, is no number")
        return _printf(form.strip() or ("%g" if real else "%d"), float(value) if real else int(value), place)

    def _string(self, inner: str, place: Place, depth: int) -> str:
        name, _, form = inner.partition(",")
        text = self._value_of(name, place, depth)
        try:
            value = parse(text).evaluate()
        except ClassAdSyntaxError:
            value = text
        return _printf(form.strip() or "%s", value if isinstance(value, str) else text, place)

    def _eval(self, inner: str, place: Place, depth: int) -> str:
        value = _evaluated(self._value_of(inner, place, depth), place)
        if isinstance(value, str):
            return value
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _choice(self, inner: str, place: Place, depth: int) -> str:
        name, *choices = inner.split(",")
        if len(choices) == 1 and (listed := self.get(choices[0].strip())) is not None:
            choices = self._expand(listed, place, depth + 1).split(",")
        text = self._value_of(name, place, depth)
        if not text.strip().isdecimal() or int(text) >= len(choices):
            raise SubmitError(place, f"$CHOICE: {text.strip()!r} is not one of 0 to {len(choices) - 1}")
        return self._expand(choices[int(text)].strip(), place, depth + 1)

    def _random_choice(self, inner: str, place: Place, depth: int) -> str:
        self.varied = True
        return random.choice(self._expand(inner, place, depth + 1).split(",")).strip()

    def _random_integer(self, inner: str, place: Place, depth: int) -> str:
        self.varied = True
        numbers = [part.strip() for part in self._expand(inner, place, depth + 1).split(",")]
        if len(numbers) not in (2, 3) or not all(re.fullmatch(r"-?\d{1,18}", number) for number in numbers):
            raise SubmitError(place, f"$RANDOM_INTEGER({inner}): write (MIN, MAX) or (MIN, MAX, STEP)")
        low, high, step = (*map(int, numbers), 1)[:3]
        if low > high or step < 1:
            raise SubmitError(place, f"$RANDOM_INTEGER({inner}): the range is empty")
        return str(low + step * random.randint(0, (high - low) // step))

    def _substr(self, inner: str, place: Place, depth: int) -> str:
        name, *numbers = inner.split(",")
        text = self._value_of(name, place, depth)
        try:
            start, *length = [int(_evaluated(self._value_of(number, place, depth), place)) for number in numbers]
        except (TypeError, ValueError):
            raise SubmitError(place, f"$SUBSTR({inner}): write (NAME, START) or (NAME, START, LENGTH)") from None
        tail = text[start:] if start >= 0 else text[max(0, len(text) + start) :]
        return tail if not length else tail[: length[0]]

    def _basename(self, inner: str, place: Place, depth: int) -> str:
        name, _, suffix = inner.partition(",")
        return self._value_of(name, place, depth).rpartition("/")[2].removesuffix(suffix.strip() or "\0")

    def _dirname(self, inner: str, place: Place, depth: int) -> str:
        return self._file_name("p", inner, place, depth)

    def _file_name(self, letters: str, inner: str, place: Place, depth: int) -> str:
        """`$Fp` its directory, `$Fd` the last part of that, `$Fn` the name, `$Fx` its extension, `f` the full path."""
        text = self._value_of(inner, place, depth).strip()
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        if "f" in letters and not text.startswith("/"):
            text = str(Path.cwd() / text)
        result = _parts(text, letters) if set(letters) & set("pdnx") else text
        return f'"{result}"' if "q" in letters else result


_FUNCTIONS: dict[str, Callable[[Macros, str, Place, int], str]] = {
    "ENV": Macros._environment,
    "INT": lambda macros, inner, place, depth: macros._number(inner, place, depth, real=False),
    "REAL": lambda macros, inner, place, depth: macros._number(inner, place, depth, real=True),
    "STRING": Macros._string,
    "EVAL": Macros._eval,
    "CHOICE": Macros._choice,
    "RANDOM_CHOICE": Macros._random_choice,
    "RANDOM_INTEGER": Macros._random_integer,
    "SUBSTR": Macros._substr,
    "BASENAME": Macros._basename,
    "DIRNAME": Macros._dirname,
}


def _parts(path: str, letters: str) -> str:
    directory, slash, last = path.rpartition("/")
    stem, dot, extension = last.rpartition(".")
    if not dot:
        stem, extension = last, ""
    bare = "b" in letters
    result = ""
    if "p" in letters or letters.count("d") > 1:
        result = directory + slash
    elif "d" in letters:
        result = PurePosixPath(directory).name + slash
    if "n" in letters:
        result += stem
    if "x" in letters:
        result += extension if bare and "n" not in letters else dot + extension
    return result.rstrip("/") if bare else result


def _closing(text: str, opening: int, place: Place) -> int:
    """Where the text after a parenthesis's partner begins."""
    depth = 0
    for at in range(opening, len(text)):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if depth == 0:
                return at + 1
    raise SubmitError(place, f"{text[max(0, opening - 1) :][:60]!r} has no closing ')'")


def _evaluated(text: str, place: Place) -> Any:
    try:
        return parse(text).evaluate()
    except ClassAdSyntaxError as error:
        raise SubmitError(place, str(error)) from None


def _printf(form: str, value: object, place: Place) -> str:
    try:
        if not _PRINTF.match(form):
            raise ValueError
        return form % value
    except (TypeError, ValueError):
        raise SubmitError(place, f"format {form!r} does not suit {value!r}; write for instance %d or %05.2f") from None
