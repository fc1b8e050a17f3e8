"""The commands for jobs that run, and for those of the agent: hold, rm, suspend, continue, vacate, setattr, query."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import click

from carod.classad import ClassAd, unparse
from carod_client.agent import Order
from carod_client.commands.command import Out, grid_options, operator_command, patience_option, run
from carod_client.commands.condor import condor_command
from carod_client.commands.orders import give_order, jobs_argument, select, selection_options
from carod_client.commands.tables import clean
from carod_client.control import Control
from carod_client.errors import GridError

running_argument = click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; the job's owner is told.")


def _order(
    action: str, said: str, order: Callable[[Control, str], Awaitable[str]], jobs: Iterable[str], **options: Any
) -> None:
    """Give one order about each job, to all at once, and tell of them in turn."""

    async def work(control: Control, out: Out) -> None:
        ids = list(dict.fromkeys(jobs))
        outcomes = await asyncio.gather(*(order(control, job) for job in ids), return_exceptions=True)
        for job, outcome in zip(ids, outcomes, strict=True):
            if isinstance(outcome, GridError):
                out.failed(outcome, action=action, job=job)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                out.done(f"job {job}: {said.format(node=outcome)}", action=action, job=job, node=outcome)

    run(work, **options)


@condor_command("hold", "Keep jobs from running until they are released.")
@jobs_argument
@selection_options
@reason_option
@grid_options
@patience_option
def hold(jobs: tuple[str, ...], everything: bool, constraint: str, reason: str, **options: Any) -> None:
    """Hold jobs: those that wait stay where they are, those that run are stopped, until `carod release`.

    ID and CLUSTER name jobs of the agent, as `carod q` lists them; -all and -constraint mean the agent's jobs, too.
    JOB is the message id of a running job, as `carod nodes` shows it; held, it is in the dead-letter queue
    (`carod dead`). A running job gets its HoldKillSig and KillSigTimeout to end.

    \b
    Examples:
      carod hold 12.3
      carod hold 12 --reason 'licence server is down'
      carod hold -constraint 'Owner == "ann" && JobPrio < 0'
      carod hold 3f0c1a52-7c80-4b5d-9a3e-52a1be3d0f11

    \b
    Exit code: 0 all held, 1 something was refused or failed, 2 wrong usage,
    3 there is no such job, or no agent.
    """
    selection = select(jobs, everything, constraint)

    def to_nodes(ids: Sequence[str]) -> None:
        order = "node {node} stops and holds it"
        _order("hold", order, lambda control, job: control.hold(job, reason), ids, **_direct(options))

    give_order(Order.HOLD, selection, reason, to_nodes, **options)


@condor_command("rm", "Remove jobs for good.")
@jobs_argument
@selection_options
@reason_option
@grid_options
@patience_option
def rm(jobs: tuple[str, ...], everything: bool, constraint: str, reason: str, **options: Any) -> None:
    """Remove jobs, whether they wait, run or are held.

    ID and CLUSTER name jobs of the agent, as `carod q` lists them; -all and -constraint mean the agent's jobs, too.
    JOB is the message id of a running job, as `carod nodes` shows it. A running job gets its RemoveKillSig and
    KillSigTimeout to end; its owner gets the files that it left.

    \b
    Examples:
      carod rm 12 13.1
      carod rm -constraint 'JobStatus == 5'
      carod rm -all
      carod nodes --json | jq -r '.slots[].job | select(.owner == "ann").id' | xargs -r carod rm

    \b
    Exit code: 0 all removed, 1 something was refused or failed, 2 wrong usage,
    3 there is no such job, or no agent.
    """
    selection = select(jobs, everything, constraint)

    def to_nodes(ids: Sequence[str]) -> None:
        order = "node {node} stops and removes it"
        _order("rm", order, lambda control, job: control.remove(job, reason), ids, **_direct(options))

    give_order(Order.REMOVE, selection, reason, to_nodes, **options)


@condor_command("suspend", "Stop running jobs where they are.")
@jobs_argument
@selection_options
@reason_option
@grid_options
@patience_option
def suspend(jobs: tuple[str, ...], everything: bool, constraint: str, reason: str, **options: Any) -> None:
    """Stop all processes of running jobs where they are; they keep their slots and their memory.

    ID and CLUSTER name jobs of the agent; JOB is the message id of a running job.

    \b
    Examples:
      carod suspend 12.3; sleep 60; carod continue 12.3
      carod suspend -constraint 'Owner == "ann"'

    \b
    Exit code: 0 all suspended, 1 something was refused or failed, 2 wrong usage,
    3 there is no such job, or no agent.
    """
    selection = select(jobs, everything, constraint)

    def to_nodes(ids: Sequence[str]) -> None:
        order = "suspended on node {node}"
        _order("suspend", order, lambda control, job: control.suspend(job), ids, **_direct(options))

    give_order(Order.SUSPEND, selection, reason, to_nodes, **options)


@condor_command("continue", "Let suspended jobs go on.")
@jobs_argument
@selection_options
@reason_option
@grid_options
@patience_option
def continue_(jobs: tuple[str, ...], everything: bool, constraint: str, reason: str, **options: Any) -> None:
    """Let suspended jobs go on.

    ID and CLUSTER name jobs of the agent; JOB is the message id of a running job.

    \b
    Examples:
      carod continue 12.3
      carod continue -all

    \b
    Exit code: 0 all go on, 1 something was refused or failed, 2 wrong usage,
    3 there is no such job, or no agent.
    """
    selection = select(jobs, everything, constraint)

    def to_nodes(ids: Sequence[str]) -> None:
        order = "continues on node {node}"
        _order("continue", order, lambda control, job: control.resume_job(job), ids, **_direct(options))

    give_order(Order.CONTINUE, selection, reason, to_nodes, **options)


def _direct(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "agent_name"}


@operator_command("vacate", "Stop running jobs and put them back into the queue.")
@running_argument
@reason_option
@grid_options
@patience_option
def vacate(jobs: tuple[str, ...], reason: str, **options: Any) -> None:
    """Stop running jobs and put them back into the queue; any node may run them next, the same one too.

    \b
    Example:
      carod drain node7 && carod vacate JOB      # off this node, to another

    \b
    Exit code: 0 all ordered, 1 something was refused or failed, 2 wrong usage,
    3 no node has a job.
    """
    _order(
        "vacate", "node {node} stops it and puts it back into the queue",
        lambda control, job: control.vacate(job, reason), jobs, **options,
    )  # fmt: skip


@operator_command("setattr", "Set an attribute of a running job's ad.", ignore_unknown_options=True)
@click.argument("job")
@click.argument("name")
@click.argument("expression", metavar="EXPR")
@grid_options
@patience_option
def setattr_(job: str, name: str, expression: str, **options: Any) -> None:
    """Set attribute NAME of a running job's ad to the ClassAd expression EXPR; a string needs its quotes.

    Attributes that are the node's to set (JobStatus, Owner, RemoteHost, ...) are refused.

    \b
    Examples:
      carod setattr JOB Progress 75
      carod setattr JOB Note '"seen by ann"'
      carod setattr JOB Offset -5

    \b
    Exit code: 0 set, 1 refused or failed, 2 wrong usage, 3 no node has the job.
    """
    _order(
        "setattr", f"{name} set on node {{node}}",
        lambda control, job: control.set_attribute(job, name, expression), [job], **options,
    )  # fmt: skip


@operator_command("query", "Print the ads of running jobs.")
@running_argument
@click.option("-a", "--attr", "names", multiple=True, metavar="NAME", help="Only this attribute's value. Repeatable.")
@grid_options
@patience_option
def query(jobs: tuple[str, ...], names: tuple[str, ...], **options: Any) -> None:
    """Print the ads of running jobs as their nodes have them, sorted by attribute.

    With --attr, only values: one line a job, tabs between them, strings without their quotes, `undefined` for what
    the ad does not have.

    \b
    Examples:
      carod query JOB
      carod query JOB --attr RemoteHost --attr JobPid
      carod query --json JOB | jq .ad.NumJobStarts

    \b
    Exit code: 0 all printed, 1 something was refused or failed, 2 wrong usage,
    3 no node has a job.
    """

    async def work(control: Control, out: Out) -> None:
        ids = list(dict.fromkeys(jobs))
        outcomes = await asyncio.gather(*(control.query(job) for job in ids), return_exceptions=True)
        for index, (job, outcome) in enumerate(zip(ids, outcomes, strict=True)):
            if isinstance(outcome, GridError):
                out.failed(outcome, action="query", job=job)
            elif isinstance(outcome, BaseException):
                raise outcome
            elif out.as_json:
                chosen = {name: outcome.get(name) for name in names or sorted(outcome, key=str.lower)}
                ad = {name: _json_value(value) for name, value in chosen.items()}
                out.object(action="query", job=job, ok=True, ad=ad)
            else:
                _print_ad(outcome, names, apart=index > 0)

    run(work, **options)


def _print_ad(ad: ClassAd, names: tuple[str, ...], apart: bool) -> None:
    if names:
        print(*(_bare(ad, name) for name in names), sep="\t", flush=True)
        return
    if apart:
        print()
    for name in sorted(ad, key=str.lower):
        print(f"{clean(name)} = {unparse(ad[name])}", flush=True)


def _bare(ad: ClassAd, name: str) -> str:
    value = ad.get(name)
    if value is None:
        return "undefined"
    return clean(value) if isinstance(value, str) else unparse(value)


def _json_value(value: Any) -> Any:
    """Numbers, booleans and strings as such, all else as ClassAd source text."""
    return value if value is None or isinstance(value, str | int | float) else unparse(value)
