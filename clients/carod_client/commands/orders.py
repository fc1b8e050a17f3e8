"""Orders about jobs that the agent keeps, named as HTCondor's users name them: ids, clusters, -all, -constraint.

What is no such name is a message id, and goes to the nodes as it always did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from carod_client.agent import UNKNOWN_JOB, Agent, AgentRefused, JobName, NoAgent, Order, status_of
from carod_client.commands.command import Code, Out
from carod_client.commands.condor import constraint_option, guarded, name_option
from carod_client.commands.q import constraint_of

F = TypeVar("F", bound=Callable[..., Any])

jobs_argument = click.argument("jobs", metavar="[ID | CLUSTER | JOB]...", nargs=-1)


def selection_options(command: F) -> F:
    """-all, -constraint and -name."""
    everything = click.option("--all", "-all", "-a", "everything", is_flag=True, help="All jobs of the agent.")
    return everything(constraint_option(name_option(command)))


@dataclass(frozen=True, slots=True)
class Selection:
    """The jobs that are meant: `names` are the agent's, `messages` message ids. Made by `select`."""

    names: tuple[JobName, ...]
    messages: tuple[str, ...]
    everything: bool
    constraint: str

    @property
    def of_agent(self) -> bool:
        return bool(self.names or self.everything or self.constraint)


def select(jobs: Iterable[str], everything: bool, constraint: str) -> Selection:
    """Raises UsageError if nothing is named, or too much."""
    words = list(dict.fromkeys(jobs))
    if bool(words) + everything + bool(constraint) != 1:
        raise click.UsageError("name jobs (CLUSTER.PROC, CLUSTER or a message id), or give -all or -constraint EXPR")
    names = {word: JobName.read(word) for word in words}
    return Selection(
        tuple(name for name in names.values() if name is not None),
        tuple(word for word, name in names.items() if name is None),
        everything, constraint_of((), constraint)[1:-1],
    )  # fmt: skip


def give_order(
    order: Order,
    selection: Selection,
    reason: str,
    to_nodes: Callable[[Sequence[str]], None],
    *,
    agent_name: str,
    broker: str,
    queue: str,
    as_json: bool,
    **_: Any,
) -> None:
    """Have the agent do it to its jobs, and the nodes to those that are named by message id; then end.

    Where no agent answers, a number may be a message id after all, and all held jobs are those on the broker:
    `to_nodes` is called with no ids then.
    """
    out = Out(as_json)
    messages = list(selection.messages)
    if selection.of_agent:
        alone = False

        def work() -> Code:
            nonlocal alone
            try:
                with Agent.find(broker, queue, agent_name) as agent:
                    return _order(agent, order, selection, reason, out)
            except NoAgent:
                alone = bool(selection.names) or (selection.everything and order is Order.RELEASE)
                if not alone:
                    raise
                messages[:0] = map(str, selection.names)
                return Code.DONE

        code = _code_of(lambda: guarded(work))
        if not messages and not alone:
            sys.exit(code)
        sys.exit(max(code, _code_of(lambda: to_nodes(messages))))
    to_nodes(messages)


def _code_of(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _order(agent: Agent, order: Order, selection: Selection, reason: str, out: Out) -> Code:
    if selection.everything or selection.constraint:
        found = matching(agent, selection.constraint, order.before)
        what = "all jobs" if selection.everything else f"jobs matching {selection.constraint}"
        failed = _tell(agent.order(order, found, reason), found, order, out)
        if not out.as_json:
            if selection.everything and not failed and found:
                print(f"All jobs {order.past}.")
            elif found or not failed:
                print(f"{len(found) - failed} {what.removeprefix('all ')} {order.past}.")
        return Code.FAILED if failed else Code.DONE
    codes = {Code.DONE}
    for name in selection.names:
        codes.add(_one(agent, order, name, reason, out))
    return Code.FAILED if Code.FAILED in codes else max(codes)


def _one(agent: Agent, order: Order, name: JobName, reason: str, out: Out) -> Code:
    """A job, or the jobs of a cluster."""
    whole = name.proc is None
    found = matching(agent, name.constraint, order.before) if whole else [name]
    if not found:
        out.failed(_nothing_in(agent, name, order), action=order.name.lower(), job=str(name))
        return Code.NOBODY
    outcomes = agent.order(order, found, reason)
    if not _tell(outcomes, found, order, out):
        if not out.as_json:
            print(f"{'Cluster' if whole else 'Job'} {name} {order.past}.", flush=True)
        return Code.DONE
    unknown = all(outcome is None or outcome.status == UNKNOWN_JOB for outcome in outcomes)
    return Code.NOBODY if unknown else Code.FAILED


def matching(agent: Agent, constraint: str, statuses: Iterable[int]) -> list[JobName]:
    """The jobs that a constraint is true for and that are in one of these states."""
    wanted = frozenset(statuses)
    ads = agent.jobs(constraint, names=("ClusterId", "ProcId", "JobStatus"))
    return [JobName(int(ad["ClusterId"]), int(ad["ProcId"])) for ad in ads if status_of(ad) in wanted]


def _nothing_in(agent: Agent, name: JobName, order: Order) -> AgentRefused:
    present = [status_of(ad) for ad in agent.jobs(name.constraint, names=("JobStatus",), limit=1)]
    what = f"has no job that could be {order.past}" if present else "has no jobs in the queue"
    return AgentRefused(f"cluster {name} {what}; `carod q {name}` and `carod history {name}` list them", UNKNOWN_JOB)


def _tell(outcomes: Sequence[AgentRefused | None], jobs: Sequence[JobName], order: Order, out: Out) -> int:
    """Tell of each failure; with --json of each job. How many failed."""
    failed = 0
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome is not None:
            failed += 1
            out.failed(outcome, action=order.name.lower(), job=str(job))
        elif out.as_json:
            out.object(action=order.name.lower(), job=str(job), ok=True)
    return failed
