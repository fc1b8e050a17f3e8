"""The command `carod status`: the grid's slots, as condor_status lists them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

from carod.classad import ClassAd, ClassAdSyntaxError, matches, parse
from carod.control import Action
from carod_client.agent import Agent, NoAgent
from carod_client.census import NodeStatus, slot_ads
from carod_client.commands import job_tables, printing
from carod_client.commands.command import Code
from carod_client.commands.condor import (
    agent_options,
    condor_command,
    constraint_option,
    guarded,
    printer,
    printing_options,
    write,
)
from carod_client.control import CENSUS, Control


@condor_command("status", "List the grid's slots.")
@click.argument("names", metavar="[SLOT | MACHINE]...", nargs=-1)
@constraint_option
@printing_options
@click.option("--total", "-total", "total", is_flag=True, help="Only the totals.")
@click.option("--avail", "-avail", "available", is_flag=True, help="Slots that are free.")
@click.option("--claimed", "-claimed", "-run", "claimed", is_flag=True, help="Slots that have a job, and which.")
@agent_options
def status(
    names: tuple[str, ...],
    constraint: str,
    total: bool,
    available: bool,
    claimed: bool,
    agent_name: str,
    broker: str,
    queue: str,
    **options: Any,
) -> None:
    """List the slots of all nodes, and count them by state. The agent tells of them; without one the nodes are asked.

    \b
    Examples:
      carod status
      carod status node7 -claimed
      carod status -avail -constraint 'Memory >= 4096' -af Name Memory
      carod status -json | jq 'length'

    \b
    Exit code: 0 listed, 1 failed, 2 wrong usage, 3 nobody answers.
    """
    printed = printer(options)
    only = _condition(constraint, available, claimed)

    def work() -> Code:
        try:
            with Agent.find(broker, queue, agent_name) as agent:
                found = agent.slots()
        except NoAgent:
            if agent_name:
                raise
            found = [ad for node in asyncio.run(_nodes(broker, queue)) for ad in slot_ads(node)]
        ads = [ad for ad in found if _is_meant(ad, names) and matches(only, ad)]
        if printed.asked:
            write(printed.text(ads))
        elif claimed:
            write(_claimed(ads))
        else:
            write(job_tables.slot_lines(ads, time.time(), only_totals=total))
        return Code.DONE if found else Code.NOBODY

    guarded(work)


async def _nodes(broker: str, queue: str) -> list[NodeStatus]:
    async with Control(broker, queue, patience=CENSUS) as control:
        return [NodeStatus.from_answer(answer) for answer in await control.tell_all(Action.PING)]


def _condition(constraint: str, available: bool, claimed: bool) -> ClassAd:
    """An ad whose Requirements are what a slot must be like. Raises UsageError."""
    parts = [f"({constraint})"] if constraint else []
    parts += ['TARGET.State == "Unclaimed"'] if available else []
    parts += ['TARGET.State == "Claimed"'] if claimed else []
    try:
        if constraint:
            parse(constraint)
        return ClassAd({"Requirements": parse(" && ".join(parts) or "true")})
    except ClassAdSyntaxError as error:
        raise click.UsageError(f"-constraint: {error}") from None


def _is_meant(ad: ClassAd, names: Iterable[str]) -> bool:
    known = {str(ad.get("Name", "")).lower(), str(ad.get("Machine", "")).lower()}
    wanted = [name.lower() for name in names]
    return not wanted or any(name in known for name in wanted)


def _claimed(ads: Iterable[ClassAd]) -> Iterator[str]:
    """Slots and their jobs."""
    yield from job_tables.columns(
        ("Name", "Activity", "RemoteOwner", "JobId"),
        [
            tuple(printing.text(ad, name) for name in ("Name", "Activity", "RemoteOwner", "JobId"))
            for ad in sorted(ads, key=job_tables.slot_order)
        ],
    )
