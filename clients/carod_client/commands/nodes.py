"""The operator's commands for nodes: nodes, drain, resume, ping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import click

from carod.control import Action
from carod_client.census import NodeStatus, SlotStatus
from carod_client.commands.command import Out, census_option, grid_options, operator_command, run
from carod_client.commands.tables import jobs_table, nodes_table, show, slots_table
from carod_client.control import CENSUS, PATIENCE, Control, NoSuchNode, RequestRefused
from carod_client.errors import GridError


@operator_command("nodes", "List nodes, their slots, and what runs on them.")
@click.argument("names", metavar="[NODE]...", nargs=-1)
@click.option("--slots", is_flag=True, help="Show every slot, idle ones too.")
@census_option
@grid_options
def nodes(names: tuple[str, ...], slots: bool, wait: float, **options: Any) -> None:
    """List the nodes that answer, and the jobs that run on them; or only the nodes named.

    BUSY is how many of a node's slots have a job, LOAD its load average of one minute. A job's state ST is R, running,
    or S, suspended.

    \b
    Examples:
      carod nodes
      carod nodes --slots node7
      carod nodes --json | jq -r 'select(.state == "drained").node'

    \b
    Exit code: 0 listed, 1 failed, 2 wrong usage, 3 no node answered, or not all
    of those named.
    """

    async def work(control: Control, out: Out) -> None:
        found = await _named(control, out, names) if names else await control.nodes(wait)
        if not found and not names:
            raise NoSuchNode(f"no node of queue {control.queue} answered within {wait:g} s on broker "
                             f"{control.endpoint.safe_url}; is one running? (carod start)")  # fmt: skip
        if out.as_json:
            for node in found:
                out.object(**node_object(node))
        elif found:
            show_nodes(out, found, slots)

    run(work, **options, wait=wait)


async def _named(control: Control, out: Out, names: Iterable[str]) -> list[NodeStatus]:
    unique = list(dict.fromkeys(names))
    answers = await asyncio.gather(*(control.ping(name) for name in unique), return_exceptions=True)
    found = []
    for name, answer in zip(unique, answers, strict=True):
        if isinstance(answer, GridError):
            out.failed(answer, node=name)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found.append(answer)
    return found


def show_nodes(out: Out, found: list[NodeStatus], slots: bool = False) -> None:
    """The nodes, then their slots if asked for, then what runs."""
    for number, table in enumerate((nodes_table(found), *([slots_table(found)] if slots else []), jobs_table(found))):
        if table.row_count:
            if number:
                out.console.print()
            show(out.console, table)


def node_object(node: NodeStatus) -> dict[str, Any]:
    """A node for machines."""
    return {
        "node": node.name, "state": node.state, "busy": node.busy, "total": node.total, "load": node.load,
        "slots": [_slot_object(slot) for slot in node.slots],
    }  # fmt: skip


def _slot_object(slot: SlotStatus) -> dict[str, Any]:
    job = slot.job
    return {
        "name": slot.name, "state": slot.state, "activity": slot.activity, "memory": slot.memory,
        "job": None if job is None else {
            "id": job.id, "owner": job.owner, "cmd": job.cmd, "arguments": job.arguments,
            "started_at": job.started_at, "seconds": job.seconds,
        },
    }  # fmt: skip


names_argument = click.argument("names", metavar="[NODE]...", nargs=-1)
all_option = click.option("--all", "everybody", is_flag=True, help="All nodes that answer.")
wait_option = click.option(
    "--wait", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
    help=f"How long nodes have to answer. Default: {PATIENCE:g}; with --all {CENSUS:g}, all of it.",
)  # fmt: skip


@operator_command("drain", "Have nodes take no more jobs; those that run go on.")
@names_argument
@all_option
@grid_options
@wait_option
def drain(names: tuple[str, ...], everybody: bool, **options: Any) -> None:
    """Have nodes take no more jobs; those that run go on. A node that is started anew takes jobs again.

    \b
    Examples:
      carod drain node7                 # before maintenance; `carod nodes` says
                                        # `drained` when its last job is over
      carod drain --all

    \b
    Exit code: 0 all drain, 1 something was refused or failed, 2 wrong usage,
    3 no such node.
    """
    _tell(Action.DRAIN, "takes no more jobs", lambda control, name: control.drain(name), names, everybody, **options)


@operator_command("resume", "Have drained nodes take jobs again.")
@names_argument
@all_option
@grid_options
@wait_option
def resume(names: tuple[str, ...], everybody: bool, **options: Any) -> None:
    """Have drained nodes take jobs again.

    \b
    Examples:
      carod resume node7
      carod resume --all

    \b
    Exit code: 0 all take jobs, 1 something was refused or failed, 2 wrong usage,
    3 no such node.
    """
    _tell(Action.RESUME, "takes jobs", lambda control, name: control.resume(name), names, everybody, **options)


def _tell(
    action: Action, said: str, order: Callable[[Control, str], Awaitable[None]],
    names: tuple[str, ...], everybody: bool, wait: float | None, **options: Any,
) -> None:  # fmt: skip
    """Give one order to each node named, or to all."""
    _check_names(names, everybody)
    verb = action.value.lower()

    async def work(control: Control, out: Out) -> None:
        outcomes: dict[str, object]
        if everybody:
            answers = await control.tell_all(action, wait or CENSUS)
            if not answers:
                raise _nobody(control)
            outcomes = {
                answer.node: RequestRefused(f"node {answer.node} refused {action.value}: {answer.error}")
                if answer.status else None
                for answer in sorted(answers, key=lambda answer: answer.node)
            }  # fmt: skip
        else:
            unique = list(dict.fromkeys(names))
            tasks = (order(control, name) for name in unique)
            outcomes = dict(zip(unique, await asyncio.gather(*tasks, return_exceptions=True), strict=True))
        for name, outcome in outcomes.items():
            if isinstance(outcome, GridError):
                out.failed(outcome, action=verb, node=name)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                out.done(f"node {name}: {said}", action=verb, node=name)

    run(work, **options, wait=wait or PATIENCE)


@operator_command("ping", "See whether nodes answer, and how fast.")
@names_argument
@all_option
@grid_options
@wait_option
def ping(names: tuple[str, ...], everybody: bool, wait: float | None, **options: Any) -> None:
    """See whether nodes answer, and how fast: one line a node.

    \b
    Examples:
      carod ping node7
      carod ping --all

    \b
    Exit code: 0 all answered, 1 failed, 2 wrong usage, 3 a node did not answer.
    """
    _check_names(names, everybody)

    async def work(control: Control, out: Out) -> None:
        wanted = [node.name for node in await control.nodes(wait or CENSUS)] if everybody else names
        if not wanted:
            raise _nobody(control)
        for name in dict.fromkeys(wanted):
            asked = time.perf_counter()
            try:
                node = await control.ping(name)
            except NoSuchNode as error:
                out.failed(error, action="ping", node=name)
                continue
            seconds = time.perf_counter() - asked
            if out.as_json:
                out.object(action="ping", node=name, ok=True, seconds=seconds)
            else:
                slots = f"{node.busy} of {node.total} slots busy"
                print(f"{name}: {node.state}, {slots}, answered in {seconds * 1e3:.1f} ms", flush=True)

    run(work, **options, wait=wait or PATIENCE)


def _check_names(names: tuple[str, ...], everybody: bool) -> None:
    if everybody == bool(names):
        raise click.UsageError("name the nodes, or give --all; `carod nodes` lists them")


def _nobody(control: Control) -> NoSuchNode:
    return NoSuchNode(f"no node of queue {control.queue} answered on broker {control.endpoint.safe_url}")
