"""What is written about the knobs is what the code says.

`python tests/test_docs.py --write` puts the table of all knobs into docs/reference/configuration.md anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from carod.config import KNOBS, Setting, load

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "reference" / "configuration.md"
SAMPLE = ROOT / "conf" / "carod.conf"
BEGIN, END = "<!-- knobs: written by tests/test_docs.py --write -->\n", "<!-- end of knobs -->\n"


def shown(default: Any, kind: str) -> str:
    """A default as one writes it in a configuration file."""
    if isinstance(default, bool):
        return str(default).upper()
    if kind.endswith("bytes"):
        for letter, shift in (("G", 30), ("M", 20), ("K", 10)):
            if default and default % (1 << shift) == 0:
                return f"{default >> shift}{letter}"
    return f"{default:g}" if isinstance(default, float) else str(default)


def knobs() -> list[Setting]:
    return load(str(SAMPLE), environ={}).table  # a file with defaults only, so that no machine's own is read


def table() -> str:
    lines = ["| knob | type | default | meaning |", "| --- | --- | --- | --- |"]
    for knob in knobs():
        default = shown(knob.default, knob.kind)
        meaning = knob.meaning.replace("|", "\\|")
        lines.append(f"| `{knob.name}` | {knob.kind} | {f'`{default}`' if default else 'empty'} | {meaning} |")
    return "\n".join(lines) + "\n"


def sample_lines() -> list[tuple[str, str]]:
    """Name and value of every knob in the sample, commented out or not."""
    return re.findall(r"^#?([A-Z][A-Z0-9_]+) =[ \t]*(.*)$", SAMPLE.read_text(), re.MULTILINE)


def test_the_reference_lists_every_knob_as_the_code_has_it() -> None:
    written = DOC.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == table(), "run: python tests/test_docs.py --write"


def test_the_sample_configuration_has_every_knob_with_its_default() -> None:
    expected = {knob.name: shown(knob.default, knob.kind) for knob in knobs()}
    assert dict(sample_lines()) == expected
    assert len(sample_lines()) == len(expected)


def test_the_sample_configuration_loads_as_it_is_and_with_all_lines_in_force(tmp_path: Path) -> None:
    in_force = tmp_path / "carod.conf"
    in_force.write_text("".join(f"{name} = {value}\n" for name, value in sample_lines()))
    for file in (SAMPLE, in_force):
        settings = load(str(file), environ={})
        assert settings.warnings == []
        assert {each.name: each.value for each in settings.table} == {name: KNOBS[name].default for name in KNOBS}


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    before, _, rest = DOC.read_text().partition(BEGIN)
    DOC.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
