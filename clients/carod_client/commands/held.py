"""The commands for held jobs: release, dead."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import click

from carod_client.agent import Order
from carod_client.commands.command import Out, grid_options, operator_command, run
from carod_client.commands.condor import condor_command
from carod_client.commands.orders import give_order, jobs_argument, select, selection_options
from carod_client.commands.tables import dead_table, show
from carod_client.control import Control


@condor_command("release", "Let held jobs run.")
@jobs_argument
@selection_options
@click.option("--reason", default="", metavar="TEXT", help="Why; kept with the job of an agent.")
@grid_options
def release(jobs: tuple[str, ...], everything: bool, constraint: str, reason: str, **options: Any) -> None:
    """Let held jobs run: those of the agent, or, by message id, those in the dead-letter queue.

    ID and CLUSTER name jobs of the agent, as `carod q -hold` lists them. JOB is a message id, as `carod dead` lists it:
    the job goes back to the job queue, with the ad and inputs it had; NumJobStarts is kept, an expiry is not.
    -all means the agent's jobs, and where no agent answers those in the dead-letter queue. Results that are there
    because their client was gone are no jobs, and stay there.

    \b
    Examples:
      carod release 12.3
      carod release -constraint 'HoldReasonCode == 1'
      carod release --all
      carod dead --json | jq -r 'select(.owner == "ann" and .kind == "job").id' | xargs -r carod release

    \b
    Exit code: 0 all released, 1 something could not be, 2 wrong usage,
    3 no such job is held, or no agent answers.
    """
    selection = select(jobs, everything, constraint)

    def from_queue(ids: Sequence[str]) -> None:
        _release_dead(ids, **{name: value for name, value in options.items() if name != "agent_name"})

    give_order(Order.RELEASE, selection, reason, from_queue, **options)


def _release_dead(jobs: Sequence[str], **options: Any) -> None:
    """Send jobs from the dead-letter queue back, all of them if none is named."""
    everything = not jobs

    async def work(control: Control, out: Out) -> None:
        count = 0
        async with aclosing(control.release_all(None if everything else jobs)) as outcomes:
            async for job, error in outcomes:
                if error is not None:
                    out.failed(error, action="release", job=job)
                    continue
                count += 1
                out.done(f"job {job}: back in queue {control.queue}", action="release", job=job)
        if everything and not count and not out.as_json:
            out.done("no job is held")

    run(work, **options)


@operator_command("dead", "List held jobs, and results that nobody took.")
@grid_options
def dead(**options: Any) -> None:
    """List what is in the dead-letter queue, oldest first; it stays there.

    \b
    Kinds:
      job       a held job; `carod release` sends it back to the queue
      result    a result whose client was gone
      unusable  a message that no node can run

    \b
    Examples:
      carod dead
      carod dead --json | jq -r 'select(.kind == "job").id'

    \b
    Exit code: 0 listed, 1 failed, 2 wrong usage, 3 no node ever served the queue.
    """

    async def work(control: Control, out: Out) -> None:
        messages = await control.dead_letters()
        if out.as_json:
            for message in messages:
                out.object(**dataclasses.asdict(message) | {"kind": message.kind.value})
        elif messages:
            show(out.console, dead_table(messages))
        else:
            out.done(f"{control.dead.name} is empty")

    run(work, **options)
