"""What a `queue` statement asks for: how many jobs, and the values that its variables take.

    queue [COUNT] [VARIABLES] [in | from | matching [files | dirs | any]] [SLICE] [ITEMS]

Source: HTCondor manual, condor_submit, "queue"; HTCondor's own library where it is silent.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from carod.classad import ClassAdSyntaxError, parse
from carod_client.submit_language.errors import Place, SubmitError
from carod_client.submit_language.macros import Macros
from carod_client.submit_language.statements import Queue

MOST_JOBS = 10_000_000
"""Jobs of one `queue`: more than that is a slip of the finger."""
LARGEST_TABLE = 256 << 20
"""Bytes of a file of items."""
_SOURCE = re.compile(r"(?:^|\s)(?P<how>in|from|matching)(?=[\s(\[]|$)\s*(?P<rest>.*)\Z", re.IGNORECASE | re.DOTALL)
_KIND = re.compile(r"(?P<kind>files|dirs|any)(?=[\s(\[])\s*(?P<rest>.*)\Z", re.IGNORECASE | re.DOTALL)
_SLICE = re.compile(r"\[\s*(-?\d*)\s*(?:(:)\s*(-?\d*)\s*(?:(:)\s*(-?\d*)\s*)?)?\]\s*")
_VARIABLE = re.compile(r"[A-Za-z_][\w.]*\Z")
_FIELD = re.compile(r"[\s,]+")
_COMMA = re.compile(r"\s*,\s*")


@dataclass(frozen=True, slots=True)
class Items:
    """`count` jobs for each row; a row has a value for each of the `variables` that it reaches."""

    count: int
    variables: tuple[str, ...] = ()
    rows: list[str] | None = field(default=None)

    def __iter__(self) -> Iterator[tuple[int, int, dict[str, str]]]:
        """Row number, step in it, and the variables' values; one row without values where there are no items."""
        for number, row in enumerate([""] if self.rows is None else self.rows):
            values = {} if self.rows is None else self._values(row)
            for step in range(self.count):
                yield number, step, values

    def __len__(self) -> int:
        return self.count * (1 if self.rows is None else len(self.rows))

    def _values(self, row: str) -> dict[str, str]:
        """The fields of a row, the last variable takes the rest: commas separate, or white space where is none."""
        if len(self.variables) == 1:
            return {self.variables[0]: row}
        fields = re.split(_COMMA if "," in row else r"\s+", row, maxsplit=len(self.variables) - 1)
        return dict(zip(self.variables, fields, strict=False))


def items(queue: Queue, macros: Macros) -> Items:
    """What a queue statement stands for. Raises SubmitError."""
    place = queue.place
    arguments = macros.expand(queue.arguments, place).strip()
    source = _SOURCE.search(arguments)
    head = arguments[: source.start()] if source else arguments
    if source is None:
        count = _count(head, place)
        return Items(count)
    count, variables = _head(head.strip(), place)
    how, rest = source["how"].lower(), source["rest"].strip()
    kind = "any"
    if how == "matching" and (found := _KIND.match(rest + " ")):
        kind, rest = found["kind"].lower(), found["rest"].strip()
    chosen = slice(None)
    if rest.startswith("["):
        chosen, rest = _slice(rest, place)
    rows = queue.rows
    if rows is None and rest.startswith("(") and rest.endswith(")"):
        rows, rest = [rest[1:-1]], ""
    read = {"in": _words, "from": _lines, "matching": _paths}[how]
    found_rows = read(rows, rest, place, macros, kind)
    result = Items(count, variables or ("Item",), found_rows[chosen])
    if len(result) > MOST_JOBS:
        raise SubmitError(place, f"{len(result):,} jobs, more than {MOST_JOBS:,} at once")
    return result


def _head(head: str, place: Place) -> tuple[int, tuple[str, ...]]:
    """A count, where there is one, and the variables."""
    words = [word for word in _FIELD.split(head) if word]
    names = 0
    while names < len(words) and _VARIABLE.match(words[-1 - names]):
        names += 1
    variables = tuple(words[len(words) - names :])
    if len({name.lower() for name in variables}) < len(variables):
        raise SubmitError(place, f"queue: a variable is named twice in {', '.join(variables)}")
    numbers = head
    for name in reversed(variables):
        numbers = numbers[: numbers.rindex(name)].rstrip(", \t")
    return _count(numbers, place), variables


def _count(text: str, place: Place) -> int:
    if not text.strip():
        return 1
    try:
        value = parse(text).evaluate()
    except ClassAdSyntaxError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int):
        raise SubmitError(
            place,
            f"queue: {text.strip()!r} is no number of jobs; write `queue 10`, `queue x in (a, b)`, "
            "`queue x, y from FILE` or `queue x matching *.dat`",
        )
    if not 0 <= value <= MOST_JOBS:
        raise SubmitError(place, f"queue: {value} jobs; a number from 0 to {MOST_JOBS:,} is meant")
    return value


def _slice(text: str, place: Place) -> tuple[slice, str]:
    match = _SLICE.match(text)
    if match is None:
        raise SubmitError(place, f"queue: {text[:40]!r} does not begin with a slice such as [0:10] or [::2]")
    first, colon, second, _, step = match.groups()
    rest = text[match.end() :]
    if not colon:
        if not first:
            return slice(None), rest
        at = int(first)
        return slice(at, at + 1 or None), rest
    if step and int(step) == 0:
        raise SubmitError(place, f"queue: slice {match[0].strip()!r} has step 0")
    parts = (int(part) if part else None for part in (first, second, step))
    return slice(*parts), rest


def _words(rows: list[str] | None, rest: str, place: Place, macros: Macros, kind: str) -> list[str]:
    """The words of a list."""
    text = rest if rows is None else "\n".join(line for line in rows if not line.lstrip().startswith("#"))
    words = [word for word in _FIELD.split(macros.expand(text, place)) if word]
    if not words:
        raise SubmitError(place, "queue: no items; write queue x in (a, b, c)")
    return words


def _lines(rows: list[str] | None, rest: str, place: Place, macros: Macros, kind: str) -> list[str]:
    """The lines of a table: those between parentheses, or those of a file."""
    if rows is not None:
        inline = (macros.expand(row, place).strip() for row in rows)
        return [row for row in inline if row and not row.startswith("#")]
    if not rest:
        raise SubmitError(place, "queue: from which file? Write queue x from FILE, or the rows between ( and )")
    if rest.endswith("|"):
        raise SubmitError(
            place, f"queue: items from a program, {rest!r}, are not supported; write its output to a file"
        )
    path = Path(rest.strip().strip('"'))
    try:
        if path.stat().st_size > LARGEST_TABLE:
            raise SubmitError(place, f"queue: {rest!r} has more than {LARGEST_TABLE >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SubmitError(place, f"queue: {rest!r}: {error.strerror}; paths are relative to {os.getcwd()!r}") from None
    except UnicodeDecodeError:
        raise SubmitError(place, f"queue: {rest!r} is not UTF-8 text") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _paths(rows: list[str] | None, rest: str, place: Place, macros: Macros, kind: str) -> list[str]:
    """The files and directories that match, sorted, each once; directories end with a slash."""
    patterns = _words(rows, rest, place, macros, kind)
    found: dict[str, None] = {}
    for pattern in patterns:
        for path in sorted(glob.glob(pattern)):
            is_directory = os.path.isdir(path)
            if kind != ("files" if is_directory else "dirs"):
                found[path.rstrip("/") + "/" * is_directory] = None
    if not found:
        raise SubmitError(place, f"queue: nothing here matches {' '.join(patterns)!r} (in {os.getcwd()!r})")
    return list(found)
