"""The command `carod top`: nodes and jobs, live."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from carod_client.census import NodeStatus
from carod_client.commands.command import Out, census_option, grid_options, operator_command, run
from carod_client.commands.nodes import node_object, show_nodes
from carod_client.commands.tables import clean, jobs_table, nodes_table
from carod_client.control import Control

REFRESH = 1.0
"""Seconds from one look to the next."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A grid at one moment: `waiting` jobs in the queue, `dead` messages; None where there is no such queue."""

    time: float
    queue: str
    waiting: int | None
    dead: int | None
    nodes: list[NodeStatus]

    @property
    def headline(self) -> str:
        count, busy = len(self.nodes), sum(node.busy for node in self.nodes)
        total = sum(node.total for node in self.nodes)
        waiting = "no such queue" if self.waiting is None else f"{self.waiting} waiting"
        dead = f", {self.dead} dead" if self.dead else ""
        clock = time.strftime("%H:%M:%S", time.localtime(self.time))
        return (
            f"{clock}  {clean(self.queue)}: {count} node{'s' if count != 1 else ''}, "
            f"{busy} of {total} slots busy, {waiting}{dead}"
        )


@operator_command("top", "Watch nodes and jobs live.")
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Look N times, then end.")
@census_option
@grid_options
def top(count: int | None, wait: float, **options: Any) -> None:
    """Watch nodes and running jobs, looking again every second; q or Ctrl-C ends it.

    Where the output is no terminal, and with --json, it looks once, or N times.

    \b
    Examples:
      carod top
      carod top --count 1 | grep suspended
      carod top --json --count 60 | jq .waiting

    \b
    Exit code: 0 ended as asked, 1 failed, 2 wrong usage.
    """

    async def work(control: Control, out: Out) -> None:
        with suppress(asyncio.CancelledError):  # Ctrl-C is a way to end it like any other
            if out.as_json or not out.console.is_terminal or out.console.is_dumb_terminal:
                await _in_turn(control, out, wait, count or 1)
            else:
                await _live(control, out, wait, count)

    run(work, **options)


async def _look(control: Control, wait: float) -> Snapshot:
    nodes, waiting, dead = await asyncio.gather(control.nodes(wait), control.waiting(), control.held())
    return Snapshot(time.time(), control.queue, waiting, dead, nodes)


async def _in_turn(control: Control, out: Out, wait: float, count: int) -> None:
    """One look after the other, as plain text or JSON."""
    for number in range(count):
        if number:
            await asyncio.sleep(REFRESH - wait)
        seen = await _look(control, wait)
        if out.as_json:
            out.object(
                time=seen.time, queue=seen.queue, waiting=seen.waiting, dead=seen.dead,
                nodes=[node_object(node) for node in seen.nodes],
            )  # fmt: skip
            continue
        if number:
            print()
        print(seen.headline, flush=True)
        if seen.nodes:
            print()
            show_nodes(out, seen.nodes)


async def _live(control: Control, out: Out, wait: float, count: int | None) -> None:
    """On the whole terminal, until somebody presses q; the last look stays when it is over."""
    shown: RenderableType = Text("looking for nodes ...", "dim")
    left = count
    with _q_pressed() as quit_, Live(shown, console=out.console, screen=True, auto_refresh=False) as live:
        while not quit_.is_set() and left != 0:
            look = asyncio.create_task(_look(control, wait))
            if not await _unless(quit_, look):
                break
            shown = _screen(look.result())
            live.update(shown, refresh=True)
            left = None if left is None else left - 1
            if left != 0:
                await _unless(quit_, asyncio.create_task(asyncio.sleep(REFRESH - wait)))
    out.console.print(shown)


async def _unless(stop: asyncio.Event, task: asyncio.Task[Any]) -> bool:
    """Wait for a task, but no longer than until `stop` is set; whether the task is done."""
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        stopped.cancel()
        task.cancel()
        await asyncio.gather(stopped, task, return_exceptions=True)


def _screen(seen: Snapshot) -> RenderableType:
    parts: list[RenderableType] = [Text(seen.headline, "bold"), ""]
    if not seen.nodes:
        return Group(*parts, Text("no node answers; is one running? (carod start)", "yellow"))
    parts.append(nodes_table(seen.nodes))
    jobs = jobs_table(seen.nodes)
    if jobs.row_count:
        parts += ["", jobs]
    return Group(*parts)


@contextmanager
def _q_pressed() -> Iterator[asyncio.Event]:
    """An event that is set when somebody presses q; Ctrl-C stays what it is."""
    pressed = asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def read() -> None:
        keys = os.read(terminal, 64)
        if not keys or b"q" in keys.lower():
            pressed.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
