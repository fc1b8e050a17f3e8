"""The commands `carod fetch` and `carod tail`: what the agent's jobs left, and what they print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from carod.classad import ClassAd
from carod_client.agent import WRONG_STATE, Agent, AgentRefused, JobName, status_of
from carod_client.commands.command import Code
from carod_client.commands.condor import agent_options, complain, condor_command, run_agent
from carod_client.errors import GridError
from carod_client.submit_language.shipment import DEFAULTS, bring_home

OVER = frozenset({3, 4})


@condor_command("fetch", "Get the files that the agent's jobs left.")
@click.argument("job", metavar="ID|CLUSTER")
@click.argument("file", required=False)
@click.option(
    "-o", "--output", "directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Put all files there, instead of where the submit description says; a cluster's into DIR/0, DIR/1, ...",
)  # fmt: skip
@click.option("--list", "-list", "as_list", is_flag=True, help="List the files of the result, get none.")
@agent_options
def fetch(job: str, file: str | None, directory: Path | None, as_list: bool, **options: Any) -> None:
    """Get the files of jobs that are over, as often as you like while the agent keeps them.

    Without FILE they go where the submit description says: output, error, and to the initial directory all that the job
    made or changed. With FILE, a name in the job's directory, that file comes out here.

    \b
    Examples:
      carod fetch 12.3
      carod fetch 12 -o results
      carod fetch 12.3 model.out | head
      carod fetch -list 12.3

    \b
    Exit code: 0 all fetched, 1 something could not be, 2 wrong usage,
    3 there is no such job, or no agent.
    """
    name = JobName.read(job)
    if name is None:
        raise click.UsageError(f"{job!r} is neither a CLUSTER nor a CLUSTER.PROC; `carod history` lists them")
    if name.proc is None and (file or as_list):
        raise click.UsageError(f"name one job of cluster {name}: {name}.0")

    def work(agent: Agent) -> Code:
        if file:
            return _one_file(agent, name, file)
        if as_list:
            for each in agent.results(name).names():
                print(each)
            return Code.DONE
        return _all_files(agent, name, directory)

    run_agent(work, **options)


@condor_command("tail", "Print the end of what a job of the agent prints.")
@click.argument("job", metavar="ID")
@click.argument("file", required=False)
@click.option("--stderr", "-stderr", "errors", is_flag=True, help="Its standard error, not its standard output.")
@click.option("--maxbytes", "-maxbytes", metavar="N", type=click.IntRange(1), default=1024, show_default=True,
              help="At most so much of the end.")  # fmt: skip
@agent_options
def tail(job: str, file: str | None, errors: bool, maxbytes: int, **options: Any) -> None:
    """Print the end of a job's standard output, or of another FILE of its directory, once it has ended.

    \b
    Examples:
      carod tail 12.3
      carod tail -stderr -maxbytes 10000 12.3

    \b
    Exit code: 0 printed, 1 failed, 2 wrong usage, 3 there is no such job, or no agent.
    """
    name = JobName.read(job)
    if name is None or name.proc is None:
        raise click.UsageError(f"{job!r} is no CLUSTER.PROC; `carod q` lists them")

    def work(agent: Agent) -> Code:
        ad = agent.job(name)
        for piece in agent.fetch(name, file or stream_name(ad, "Err" if errors else "Out"), -maxbytes):
            sys.stdout.buffer.write(piece)
        return Code.DONE

    run_agent(work, **options)


def stream_name(ad: ClassAd, attribute: str) -> str:
    """What a job's standard output or error is called in its directory."""
    given = ad.get(attribute)
    return given if isinstance(given, str) and given else DEFAULTS[attribute]


def _one_file(agent: Agent, name: JobName, file: str) -> Code:
    sys.stdout.flush()
    for piece in agent.fetch(name, file):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return Code.DONE


def _all_files(agent: Agent, name: JobName, directory: Path | None) -> Code:
    ads = list(agent.jobs(name.constraint, scope="all"))
    if not ads:
        agent.job(name if name.proc is not None else JobName(name.cluster, 0))  # says what is wrong
    code = Code.DONE
    for ad in ads:
        one = JobName(int(ad["ClusterId"]), int(ad["ProcId"]))
        where = directory if directory is None or name.proc is not None else directory / str(one.proc)
        try:
            if where is not None:
                where.mkdir(parents=True, exist_ok=True)
            elif not os.path.isdir(str(ad.get("SUBMIT_Iwd", ""))):
                raise GridError(
                    f"job {one}: its initial directory {ad.get('SUBMIT_Iwd', '')!r} is not here; give -o DIR"
                )
            written = bring_home(ad, agent.results(one), where)
        except AgentRefused as error:
            if name.proc is not None:
                raise
            if error.status != WRONG_STATE or status_of(ad) in OVER:
                complain(error)
                code = Code.FAILED
            continue
        except OSError as error:
            complain(f"job {one}: {error.filename!r} can't be written: {error.strerror}")
            code = Code.FAILED
            continue
        count = len(written)
        if sys.stderr.isatty():
            print(f"carod: job {one}: {count} file{'s' if count != 1 else ''}", file=sys.stderr)
    return code
