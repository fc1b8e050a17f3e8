"""What operators look at, as tables: for a terminal, or one line a row, uncut, for whoever reads the pipe."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from carod_client.census import NodeStatus, RunningJob
from carod_client.dead import DeadMessage

STATE_STYLES = {"serving": "green", "draining": "yellow", "drained": "dim"}
NO_LIMIT = 1_000_000
WIDEST = 40
"""Characters of a job's command that are shown: what fits beside a message id."""
"""Columns of a pipe."""


def nodes_table(nodes: Iterable[NodeStatus]) -> Table:
    """One line a node."""
    table = _table("NODE", "BUSY", "STATE", "LOAD", right=("BUSY", "LOAD"))
    for node in nodes:
        table.add_row(
            _text(node.name), Text(f"{node.busy}/{node.total}"),
            Text(node.state, STATE_STYLES[node.state]), Text("" if node.load is None else f"{node.load:.2f}"),
        )  # fmt: skip
    return table


def jobs_table(nodes: Iterable[NodeStatus]) -> Table:
    """One line a running job, those that run longest first. ST is R, running, or S, suspended."""
    table = _table("JOB", "OWNER", "ST", "RUN TIME", "SLOT", "COMMAND", right=("RUN TIME",))
    running = [(slot, slot.job) for node in nodes for slot in node.slots if slot.job is not None]
    for slot, job in sorted(running, key=lambda pair: -(pair[1].seconds or 0.0)):
        state = Text("S", "yellow") if slot.activity == "Suspended" else Text("R", "green")
        command = f"{_program(job.cmd)} {job.arguments}".rstrip()[:WIDEST]
        table.add_row(
            _text(job.id), _text(job.owner), state, Text(run_time(job)), _text(slot.name), _text(command)
        )  # fmt: skip
    return table


def slots_table(nodes: Iterable[NodeStatus]) -> Table:
    """One line a slot, idle ones too."""
    table = _table("SLOT", "STATE", "ACTIVITY", "MIB", "JOB", right=("MIB",))
    for node in nodes:
        for slot in node.slots:
            table.add_row(
                _text(slot.name), _text(slot.state), _text(slot.activity),
                Text("" if slot.memory is None else str(slot.memory)), _text(slot.job.id if slot.job else ""),
            )  # fmt: skip
    return table


def dead_table(messages: Iterable[DeadMessage]) -> Table:
    """One line a message in the dead-letter queue."""
    table = _table("JOB", "KIND", "SINCE", "OWNER", "COMMAND", "REASON")
    for dead in messages:
        table.add_row(
            _text(dead.id), Text(dead.kind.value), Text(date(dead.when)), _text(dead.owner), _text(_program(dead.cmd)),
            _text(dead.reason),
        )  # fmt: skip
    return table


def show(console: Console, table: Table) -> None:
    """Print a table, for whoever looks."""
    if console.is_terminal:
        console.print(table)
    else:
        console.file.write(plain(table))
        console.file.flush()


def plain(table: Table) -> str:
    """A table as text, nothing cut off."""
    text = io.StringIO()
    Console(file=text, width=NO_LIMIT, color_system=None, force_terminal=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def run_time(job: RunningJob) -> str:
    """`12:34:56`, after a day `1+12:34:56`, as HTCondor writes it."""
    if job.seconds is None:
        return "-"
    minutes, seconds = divmod(int(job.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}+' if days else ''}{hours:02}:{minutes:02}:{seconds:02}"


def date(when: float | None) -> str:
    try:
        return "-" if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (OverflowError, OSError, ValueError):
        return "-"


def clean(text: str) -> str:
    """Text from the wire as one line without control characters: a terminal obeys those."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """The last column is the one that gives way where a terminal is narrow, and is shown on several lines there."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name != columns[-1])
    return table


def _text(text: str) -> Text:
    return Text(clean(text) or "-")


def _program(cmd: str) -> str:
    """A command's last part, which is what fits beside a message id."""
    return cmd.rstrip("/").rpartition("/")[2]
