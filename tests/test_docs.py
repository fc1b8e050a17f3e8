"""What is written about the knobs is what the code says.

`python tests/test_docs.py --write` puts the table of all knobs into docs/reference/configuration.md anew.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import carod.config
import qmf_agent.config
from carod.config import Setting, Settings

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "reference" / "configuration.md"


class Daemon(NamedTuple):
    """Whose knobs they are: where they are written down, and how they are read."""

    sample: Path
    mark: str
    load: Callable[..., Settings[Any]]

    @property
    def begin(self) -> str:
        return f"<!-- {self.mark}: written by tests/test_docs.py --write -->\n"

    @property
    def end(self) -> str:
        return f"<!-- end of {self.mark} -->\n"


NODE = Daemon(ROOT / "conf" / "carod.conf", "knobs", carod.config.load)
AGENT = Daemon(ROOT / "conf" / "qmf-agent.conf", "agent's knobs", qmf_agent.config.load)
both = pytest.mark.parametrize("daemon", [NODE, AGENT], ids=["node", "agent"])


def shown(default: Any, kind: str) -> str:
    """A default as one writes it in a configuration file."""
    if isinstance(default, bool):
        return str(default).upper()
    if kind.endswith("bytes"):
        for letter, shift in (("G", 30), ("M", 20), ("K", 10)):
            if default and default % (1 << shift) == 0:
                return f"{default >> shift}{letter}"
    return f"{default:g}" if isinstance(default, float) else str(default)


def knobs(daemon: Daemon) -> list[Setting]:
    """With a file of defaults only, so that no machine's own is read."""
    return daemon.load(str(daemon.sample), environ={}).table


def table(daemon: Daemon) -> str:
    lines = ["| knob | type | default | meaning |", "| --- | --- | --- | --- |"]
    for knob in knobs(daemon):
        default = shown(knob.default, knob.kind)
        meaning = knob.meaning.replace("|", "\\|")
        lines.append(f"| `{knob.name}` | {knob.kind} | {f'`{default}`' if default else 'empty'} | {meaning} |")
    return "\n".join(lines) + "\n"


def sample_lines(daemon: Daemon) -> list[tuple[str, str]]:
    """Name and value of every knob in the sample, commented out or not."""
    return re.findall(r"^#?([A-Z][A-Z0-9_]+) =[ \t]*(.*)$", daemon.sample.read_text(), re.MULTILINE)


@both
def test_the_reference_lists_every_knob_as_the_code_has_it(daemon: Daemon) -> None:
    written = DOC.read_text().partition(daemon.begin)[2].partition(daemon.end)[0]
    assert written == table(daemon), "run: python tests/test_docs.py --write"


@both
def test_the_sample_configuration_has_every_knob_with_its_default(daemon: Daemon) -> None:
    expected = {knob.name: shown(knob.default, knob.kind) for knob in knobs(daemon)}
    assert dict(sample_lines(daemon)) == expected
    assert len(sample_lines(daemon)) == len(expected)


@both
def test_the_sample_configuration_loads_as_it_is_and_with_all_lines_in_force(daemon: Daemon, tmp_path: Path) -> None:
    in_force = tmp_path / "carod.conf"
    in_force.write_text("".join(f"{name} = {value}\n" for name, value in sample_lines(daemon)))
    for file in (daemon.sample, in_force):
        settings = daemon.load(str(file), environ={})
        assert settings.warnings == []
        assert {each.name: each.value for each in settings.table} == {
            each.name: each.default for each in settings.table
        }


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    for each in (NODE, AGENT):
        before, _, rest = DOC.read_text().partition(each.begin)
        DOC.write_text(before + each.begin + table(each) + each.end + rest.partition(each.end)[2])
