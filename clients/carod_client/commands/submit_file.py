"""`carod submit FILE.sub`: read the description, then dump it, hand it to the agent, or run it from here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from carod.amqp import BadEndpoint
from carod.classad import unparse
from carod_client.agent import Agent, NoAgent
from carod_client.commands import batch
from carod_client.commands.agent_batch import AgentBatch
from carod_client.commands.batch import Batch
from carod_client.commands.printing import long_text
from carod_client.commands.report import OWN_FAILURE, Report
from carod_client.commands.submission import exit_code_of
from carod_client.commands.tables import clean
from carod_client.errors import GridError
from carod_client.grid import Grid
from carod_client.submit_language import Description, SubmitError

INTERRUPTED = 130
MOST_DOTS = 60


def submit_file(
    file: str,
    out: str | None,
    *,
    append: Iterable[str],
    attributes: Mapping[str, Any],
    dump: bool,
    direct: bool,
    agent_name: str,
    broker: str,
    queue: str,
    as_json: bool,
    quiet: bool,
    in_flight: int,
    timeout: float | None,
    expires: float | None,
) -> int:
    """Do it all, and return the exit code."""
    report = Report(as_json=as_json, quiet=quiet, sweep=0, forward=False)
    batched: Batch | None = None
    try:
        description = _read(file, [*append, *(f"+{name} = {unparse(value)}" for name, value in attributes.items())])
        if dump:
            return _dump(description, out)
        jobs, held = batch.check(description)
        _warn(description, report)
        silent = as_json or quiet
        if not direct:
            try:
                with Agent.find(broker, queue, agent_name) as agent:
                    return _to_agent(agent, description, jobs, report, as_json, silent)
            except NoAgent as error:
                if agent_name:
                    raise
                report.complain(
                    f"{str(error).partition(';')[0]}: the jobs go straight to queue {queue}, and this command stays "
                    "until they end"
                )
        if held is not None:
            raise SubmitError(held.place, "hold: a job on the queue can't be held; that is an agent's: qmf-agent start")
        report = Report(as_json=as_json, quiet=quiet, sweep=jobs, forward=False)
        batched = Batch(description, report, in_flight, timeout, expires)
        return asyncio.run(_direct(batched, jobs, broker, queue, silent))
    except (GridError, BadEndpoint) as error:
        report.own_failure(error)
        return exit_code_of(error)
    except KeyboardInterrupt:
        if batched is not None:
            report.interrupted(batched.left_behind)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13


def _to_agent(agent: Agent, description: Description, jobs: int, report: Report, as_json: bool, silent: bool) -> int:
    if not silent:
        print(f"Submitting job(s){'.' * min(jobs, MOST_DOTS)}", flush=True)
    handed = AgentBatch(agent, description, report.complain)
    try:
        handed.run()
    finally:  # also what is there when it failed half-way
        if as_json:
            for cluster, count in handed.clusters.items():
                print(json.dumps({"event": "submitted", "agent": agent.name, "cluster": cluster, "jobs": count}))
        elif not silent:
            _tell(handed.clusters)
    return 0


async def _direct(batched: Batch, jobs: int, broker: str, queue: str, silent: bool) -> int:
    async with Grid(broker, queue) as grid:
        if not silent:
            print(f"Submitting job(s){'.' * min(jobs, MOST_DOTS)}", flush=True)
            batched.on_sent = _tell
        return await batched.run(grid)


def _tell(clusters: Mapping[int, int]) -> None:
    for cluster, count in clusters.items():
        print(f"{count} job(s) submitted to cluster {cluster}.", flush=True)


def _read(file: str, lines: list[str]) -> Description:
    if file == "-":
        return Description(sys.stdin.read(), "<stdin>", lines)
    return Description.read(file, lines)


def _dump(description: Description, out: str | None) -> int:
    """Print the ads, an attribute a line, sorted, and a blank line after each, as condor_submit does."""
    texts = [long_text(job.ad) for job in description.jobs(_counter())]
    for warning in description.warnings:
        print(f"carod: {clean(warning)}", file=sys.stderr)
    if out is None or out == "-":
        sys.stdout.writelines(texts)
        sys.stdout.flush()
        return 0
    try:
        Path(out).write_text("".join(texts), encoding="utf-8")
    except OSError as error:
        print(f"carod: {out!r} can't be written: {error.strerror}", file=sys.stderr)
        return OWN_FAILURE
    print(f"Storing job ClassAd(s){'.' * min(len(texts), MOST_DOTS)}")
    return 0


def _counter() -> Any:
    numbers = iter(range(1, 1 << 31))
    return lambda: next(numbers)


def _warn(description: Description, report: Report) -> None:
    for warning in dict.fromkeys(description.warnings):
        report.complain(warning)
