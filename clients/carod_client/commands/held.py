"""The operator's commands for held jobs: release, dead."""

from __future__ import annotations

import dataclasses
from contextlib import aclosing
from typing import Any

import click

from carod_client.commands.command import Out, grid_options, operator_command, run
from carod_client.commands.tables import dead_table, show
from carod_client.control import Control


@operator_command("release", "Send held jobs back to the queue.")
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All held jobs.")
@grid_options
def release(jobs: tuple[str, ...], everything: bool, **options: Any) -> None:
    """Send held jobs from the dead-letter queue back to the job queue, to run again.

    Their ad and inputs are what they were; NumJobStarts is kept, an expiry is not. Results that are in the
    dead-letter queue because their client was gone are no jobs, and stay there.

    \b
    Examples:
      carod release JOB JOB
      carod release --all
      carod dead --json | jq -r 'select(.owner == "ann" and .kind == "job").id' | xargs -r carod release

    \b
    Exit code: 0 all released, 1 something could not be, 2 wrong usage,
    3 no job of that id is held.
    """
    if everything == bool(jobs):
        raise click.UsageError("name the jobs to release, or give --all; `carod dead` lists what is held")

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
