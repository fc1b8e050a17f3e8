"""The command `carod qedit`: change attributes of the agent's jobs, as condor_qedit does."""

from __future__ import annotations

from typing import Any

import click

from carod.classad import ClassAdSyntaxError, parse, unparse
from carod_client.agent import UNKNOWN_JOB, Agent, JobName
from carod_client.commands.command import Code, Out
from carod_client.commands.condor import agent_options, condor_command, constraint_option, run_agent
from carod_client.commands.orders import matching
from carod_client.commands.q import constraint_of

NOT_OVER = frozenset({1, 2, 5, 6, 7})


@condor_command("qedit", "Change attributes of the agent's jobs.", ignore_unknown_options=True)
@click.argument("words", metavar="[ID | CLUSTER | OWNER] NAME EXPR [NAME EXPR]...", nargs=-1, type=click.UNPROCESSED)
@constraint_option
@click.option("--json", "-json", "as_json", is_flag=True, help="Print one JSON object a line.")
@agent_options
def qedit(words: tuple[str, ...], constraint: str, as_json: bool, **options: Any) -> None:
    """Set attributes of jobs to ClassAd expressions; a string needs its quotes.

    Of a job that waits, the next node gets the new ad; of one that runs, its node is told. Attributes that are not the
    user's (ClusterId, Owner, JobStatus, ...) are refused.

    \b
    Examples:
      carod qedit 12.3 JobPrio 10
      carod qedit 12 Requirements 'TARGET.Memory >= 4096' RequestMemory 4096
      carod qedit -constraint 'Project == "risk"' Note '"seen by ann"'

    \b
    Exit code: 0 all set, 1 something was refused or failed, 2 wrong usage,
    3 there is no such job, or no agent.
    """
    who, pairs = (None, list(words)) if constraint else (words[:1], list(words[1:]))
    if not pairs or len(pairs) % 2 or who == ():
        raise click.UsageError(
            "write ID NAME EXPR, or -constraint EXPR NAME EXPR; further pairs of NAME EXPR may follow"
        )
    settings = [(name, _source(name, text)) for name, text in zip(pairs[::2], pairs[1::2], strict=True)]
    wanted = constraint_of(who or (), constraint)

    def work(agent: Agent) -> Code:
        out = Out(as_json)
        one = JobName.read(who[0]) if who else None
        jobs = [one] if one is not None and one.proc is not None else matching(agent, wanted, NOT_OVER)
        if not jobs:
            out.failed(_none(wanted))
            return Code.NOBODY
        code = Code.DONE
        for name, source in settings:
            outcomes = agent.set_attribute(jobs, name, source)
            done = 0
            for job, outcome in zip(jobs, outcomes, strict=True):
                if outcome is not None:
                    out.failed(outcome, action="qedit", job=str(job))
                    missing = outcome.status == UNKNOWN_JOB and code is not Code.FAILED
                    code = Code.NOBODY if missing else Code.FAILED
                    continue
                done += 1
                if as_json:
                    out.object(action="qedit", job=str(job), name=name, ok=True)
            if done and not as_json:
                print(f'Set attribute "{name}" for {done} matching job{"s" if done != 1 else ""}.', flush=True)
        return code

    run_agent(work, **options)


def _source(name: str, text: str) -> str:
    try:
        return unparse(parse(text))
    except ClassAdSyntaxError as error:
        raise click.UsageError(f"{name}: {error}; a string needs its quotes: '\"{text}\"'") from None


def _none(wanted: str) -> Exception:
    return click.ClickException(f"no job in the queue matches {wanted}")
