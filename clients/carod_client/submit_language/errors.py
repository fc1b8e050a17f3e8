"""What is wrong in a submit description, and where."""

from __future__ import annotations

from dataclasses import dataclass

from carod_client.errors import BadJob


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a submit description: the file's name, the line counted from 1 (0: the file as such), and its text."""

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class SubmitError(BadJob):
    """A submit description that can't be read; the text names file, line, what stands there and the mend."""

    def __init__(self, place: Place, problem: str) -> None:
        text = place.text.strip()
        super().__init__(f"{place}: {problem}" + (f"\n    {text[:200]}" if text else ""))
        self.place, self.problem = place, problem
