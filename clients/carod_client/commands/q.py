"""The commands `carod q` and `carod history`: the agent's jobs, as condor_q and condor_history list them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import click

from carod.classad import ClassAd, ClassAdSyntaxError, parse, unparse
from carod_client.agent import Agent, JobName, status_of
from carod_client.commands import job_tables
from carod_client.commands.command import Code
from carod_client.commands.condor import (
    agent_options,
    condor_command,
    constraint_option,
    printer,
    printing_options,
    run_agent,
    write,
)

SHOWN = (
    "ClusterId", "ProcId", "Owner", "QDate", "JobStatus", "JobPrio", "Cmd", "Args", "Arguments", "JobStartDate",
    "JobCurrentStartDate", "JobDuration", "RemoteWallClockTime", "ImageSize", "ResidentSetSize", "RemoteHost",
    "HoldReason", "EnteredCurrentStatus", "CompletionDate",
)  # fmt: skip
"""What the tables need of an ad."""

restrictions = click.argument("restrictions", metavar="[ID | CLUSTER | OWNER]...", nargs=-1)


def constraint_of(words: Iterable[str], constraint: str, *more: str) -> str:
    """The jobs, clusters and owners that are named, and what the others say of them, as one expression.

    Raises UsageError for a constraint that is none.
    """
    if constraint:
        try:
            parse(constraint)
        except ClassAdSyntaxError as error:
            raise click.UsageError(f"-constraint: {error}") from None
    named = []
    for word in words:
        job = JobName.read(word)
        named.append(job.constraint if job else f"Owner == {unparse(word)}")
    parts = [f"({constraint})" if constraint else "", *more]
    if named:
        parts.append(f"({' || '.join(named)})" if len(named) > 1 else named[0])
    return " && ".join(part for part in parts if part)


@condor_command("q", "List the agent's jobs.")
@restrictions
@constraint_option
@printing_options
@click.option("--run", "-run", "-r", "running", is_flag=True, help="Jobs that run, and where.")
@click.option("--hold", "-hold", "-held", "held", is_flag=True, help="Jobs that are held, since when and why.")
@click.option("--totals", "-totals", is_flag=True, help="Only the last line.")
@click.option("--limit", "-limit", metavar="N", type=click.IntRange(1), help="At most so many jobs.")
@click.option("--wide", "-wide", "-w", is_flag=True, help="Don't cut off commands and reasons.")
@click.option("-nobatch", "-nob", "-allusers", is_flag=True, hidden=True, expose_value=False)
@agent_options
def q(
    restrictions: tuple[str, ...],
    constraint: str,
    running: bool,
    held: bool,
    totals: bool,
    limit: int | None,
    wide: bool,
    **options: Any,
) -> None:
    """List the jobs that the agent keeps and that are not over, oldest first; of all, or of these ids or owners.

    \b
    ST: I idle, R running, H held, S suspended, > transferring output.
    SIZE is the memory that the job uses, in MiB. RUN_TIME is days+hours:minutes:seconds.

    \b
    Examples:
      carod q
      carod q 12 ann -run
      carod q -constraint 'JobPrio > 5 && Project == "risk"'
      carod q -af ClusterId ProcId RemoteHost
      carod q -format '%d.' ClusterId -format '%d: ' ProcId -format '%s\\n' Cmd
      carod q -long 12.3
      carod q -json | jq -r '.[] | select(.JobStatus == 5).HoldReason'

    \b
    Exit code: 0 listed, 1 failed, 2 wrong usage, 3 no agent answers.
    """
    printed = printer(options)
    only = "JobStatus == 5" if held else "(JobStatus == 2 || JobStatus == 6 || JobStatus == 7)" if running else ""
    wanted = constraint_of(restrictions, constraint, only)

    def work(agent: Agent) -> Code:
        names = printed.names if printed.asked else ("JobStatus",) if totals else SHOWN
        ads = agent.jobs(wanted, names=names, limit=limit)
        if printed.asked:
            write(printed.text(ads))
            return Code.DONE
        write([f"\n\n-- Schedd: {agent.name} : <{_place(agent.address)}> @ {time.strftime('%m/%d/%y %H:%M:%S')}\n"])
        statuses: list[int] = []
        noted = _noting(ads, statuses)
        if totals:
            for _ in noted:
                pass
        else:
            heading, row = job_tables.QUEUE_HEADING, job_tables.queue_row
            if running:
                heading, row = job_tables.RUN_HEADING, job_tables.run_row
            if held:
                heading, row = job_tables.HOLD_HEADING, job_tables.hold_row
            write(job_tables.lines(heading, row, noted, time.time(), wide))
        write([f"\n{job_tables.totals(statuses)}\n"])
        return Code.DONE

    run_agent(work, **options)


@condor_command("history", "List jobs that are over.")
@restrictions
@constraint_option
@printing_options
@click.option("--limit", "-limit", "-match", metavar="N", type=click.IntRange(1), help="At most so many jobs.")
@click.option("--forwards", "-forwards", is_flag=True, help="Oldest first.")
@click.option("--wide", "-wide", "-w", is_flag=True, help="Don't cut off commands.")
@agent_options
def history(
    restrictions: tuple[str, ...], constraint: str, limit: int | None, forwards: bool, wide: bool, **options: Any
) -> None:
    """List jobs that completed or were removed, newest first, as long as the agent remembers them.

    \b
    ST: C completed, X removed.

    \b
    Examples:
      carod history -limit 10
      carod history ann -constraint 'ExitCode != 0' -af:j ExitCode RemoteHost
      carod history -json 12 | jq '.[].RemoteUserCpu'

    \b
    Exit code: 0 listed, 1 failed, 2 wrong usage, 3 no agent answers.
    """
    printed = printer(options)
    wanted = constraint_of(restrictions, constraint)

    def work(agent: Agent) -> Code:
        names = [*printed.names, "CompletionDate", "EnteredCurrentStatus"] if printed.names else []
        found = agent.jobs(wanted, scope="history", names=names if printed.asked else SHOWN)
        ads: Iterable[ClassAd] = found
        if not forwards:
            ads = sorted(found, key=lambda ad: ad.evaluate("EnteredCurrentStatus") or 0, reverse=True)  # type: ignore
        ads = itertools.islice(ads, limit)
        if printed.asked:
            write(printed.text(ads))
        else:
            write(job_tables.lines(job_tables.HISTORY_HEADING, job_tables.history_row, ads, time.time(), wide))
        return Code.DONE

    run_agent(work, **options)


def _noting(ads: Iterable[ClassAd], statuses: list[int]) -> Iterator[ClassAd]:
    for ad in ads:
        statuses.append(status_of(ad))
        yield ad


def _place(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
