"""Text of a submit description -> its statements (HTCondor manual, condor_submit, "submit description file").

A statement is a line; a backslash at its end goes on with the next one, white space before that left out. Lines that
begin with `#` are comments. `NAME @=TAG` takes all lines up to `@TAG` for its value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from carod_client.submit_language.errors import Place, SubmitError

LONGEST = 4 << 20
"""Characters of a description: a table of items belongs in a file of its own."""
_ASSIGNMENT = re.compile(r"(?P<name>[+]?[A-Za-z_][\w.]*|[A-Za-z_][\w.]*[$(].*?)\s*=\s*(?P<value>.*)\Z", re.DOTALL)
_BLOCK = re.compile(r"(?P<name>[+]?[A-Za-z_][\w.]*)\s*@=\s*(?P<tag>\w+)\s*\Z")
_QUEUE = re.compile(r"queue(?:\s+(?P<arguments>.*))?\Z", re.IGNORECASE | re.DOTALL)
_CONDITION = re.compile(r"(?P<word>if|elif|else|endif)\b\s*(?P<text>.*)\Z", re.IGNORECASE | re.DOTALL)
_OPENS = re.compile(
    r"(?:^|\s)(?:in|from|matching(?:\s+(?:files|dirs|any))?)\s*(?:\[[^\]]*\]\s*)?(?P<opens>\()", re.IGNORECASE
)
_DIRECTIVE = re.compile(r"(include|use|warning|error)\b[^=]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Assign:
    """`NAME = VALUE`; the name as it is written, `+Attr` and `MY.Attr` too."""

    place: Place
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Queue:
    """`queue ARGUMENTS`, and the lines between its parentheses, where it has any that span lines."""

    place: Place
    arguments: str
    rows: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """`if`, `elif`, `else` or `endif`, and what it depends on."""

    place: Place
    word: str
    text: str


Statement = Assign | Queue | Condition


def statements(text: str, file: str) -> Iterator[Statement]:
    """The statements in order. Raises SubmitError for a line that is none."""
    if len(text) > LONGEST:
        raise SubmitError(
            Place(file, 1), f"{len(text):,} characters, more than {LONGEST:,}; put items into a file: queue x from FILE"
        )
    if "\0" in text:
        raise SubmitError(
            Place(file, text[: text.index("\0")].count("\n") + 1),
            "a NUL character: this is no text; is it the program itself?",
        )
    reader = _Reader(text.splitlines(), file)
    while (found := reader.logical_line()) is not None:
        place, logical = found
        if logical:
            yield _statement(place, logical, reader)


@dataclass(slots=True)
class _Reader:
    lines: list[str]
    file: str
    at: int = field(default=0)

    def logical_line(self) -> tuple[Place, str] | None:
        """The next line with those that continue it; empty for a comment. None at the end."""
        if self.at >= len(self.lines):
            return None
        first = self.at
        line = self._physical()
        if line.startswith("#"):
            return Place(self.file, first + 1), ""
        while line.endswith("\\"):
            line = line[:-1]
            if self.at >= len(self.lines):
                break
            line += self._physical()
        return Place(self.file, first + 1, line), line.strip()

    def block(self, place: Place, ends: str, mend: str) -> Iterator[str]:
        """The raw lines up to the one that is `ends`."""
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if line.strip() == ends:
                return
            yield line
        raise SubmitError(place, f"the end of the file comes before the line {ends!r} that ends this; {mend}")

    def _physical(self) -> str:
        line = self.lines[self.at].strip()
        self.at += 1
        return line


def _statement(place: Place, line: str, reader: _Reader) -> Statement:
    if block := _BLOCK.match(line):
        end = f"@{block['tag']}"
        return Assign(place, block["name"], "\n".join(reader.block(place, end, f"write a line {end}")))
    if condition := _CONDITION.match(line):
        if not condition["text"].startswith("="):
            return Condition(place, condition["word"].lower(), condition["text"].strip())
    elif directive := _DIRECTIVE.match(line):
        raise SubmitError(place, f"{directive[1].lower()!r} is not supported; write its lines into this file")
    if queue := _QUEUE.match(line):
        arguments = (queue["arguments"] or "").strip()
        if not arguments.startswith("="):
            return _queue(place, arguments, reader)
    if assignment := _ASSIGNMENT.match(line):
        return Assign(place, assignment["name"], assignment["value"])
    raise SubmitError(place, "this is neither `NAME = VALUE` nor `queue ...` nor a comment (#)")


def _queue(place: Place, arguments: str, reader: _Reader) -> Queue:
    """A queue statement; an opening parenthesis that is not closed on its line goes on over the next ones."""
    opens = _OPENS.search(arguments)
    if opens is None or arguments.endswith(")"):
        return Queue(place, arguments)
    head, rest = arguments[: opens.start("opens")], arguments[opens.end() :]
    rows = [rest] if rest.strip() else []
    rows += reader.block(place, ")", "close the items with ')' on a line of its own")
    return Queue(place, head, rows)
