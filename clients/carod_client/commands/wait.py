"""The command `carod wait`: wait until the jobs in a log are done, as condor_wait does. It needs no broker."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import click

from carod.eventlog import Event, EventKind, EventLogError, EventReader
from carod_client.agent import JobName
from carod_client.commands.command import Code
from carod_client.commands.condor import complain, condor_command
from carod_client.commands.tables import clean

LOOK = 0.1
"""Seconds between looks at the log: a program that writes it may be on another machine."""
OVER = frozenset({EventKind.TERMINATED, EventKind.ABORTED})


@dataclass(slots=True)
class Jobs:
    """The jobs that a log tells of, and how they are."""

    wanted: JobName | None
    pending: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    def take(self, event: Event) -> bool:
        """Whether the event is of a job that is meant."""
        if self.wanted is not None and not (
            event.cluster == self.wanted.cluster and self.wanted.proc in (None, event.proc)
        ):
            return False
        if event.kind in OVER:
            self.pending.discard(event.job)
            self.done.add(event.job)
        elif event.job not in self.done:
            self.pending.add(event.job)
        return True

    def enough(self, number: int | None) -> bool:
        if number is not None:
            return len(self.done) >= number
        return bool(self.done) and not self.pending


@condor_command("wait", "Wait until the jobs in a log are done.")
@click.argument("log", type=click.Path(dir_okay=False))
@click.argument("job", required=False)
@click.option("--wait", "-wait", "seconds", metavar="SECONDS", type=click.FloatRange(0), help="Give up after so long.")
@click.option("--num", "-num", "number", metavar="N", type=click.IntRange(1), help="Until so many jobs are done.")
@click.option("--status", "-status", "tell", is_flag=True, help="Print each event in a line.")
@click.option("--echo", "-echo", "echo", is_flag=True, help="Print the events as they stand in the log.")
def wait(log: str, job: str | None, seconds: float | None, number: int | None, tell: bool, echo: bool) -> None:
    """Wait until all jobs that LOG tells of have ended or were removed; or those of JOB, CLUSTER or CLUSTER.PROC.

    LOG is what `log = FILE` names in a submit description, in HTCondor's format. Held jobs are waited for.

    \b
    Examples:
      carod wait sweep.log
      carod wait -wait 600 sweep.log 12.3 || echo still running
      carod wait -status sweep.log

    \b
    Exit code: 0 done, 1 time is up or the log can't be read, 2 wrong usage.
    """
    wanted = JobName.read(job) if job else None
    if job and wanted is None:
        raise click.UsageError(f"{job!r} is neither a CLUSTER nor a CLUSTER.PROC")
    sys.exit(_wait(log, Jobs(wanted), seconds, number, tell, echo))


def _wait(log: str, jobs: Jobs, seconds: float | None, number: int | None, tell: bool, echo: bool) -> Code:
    reader = EventReader(log)
    end = None if seconds is None else time.monotonic() + seconds
    try:
        if not reader.path.exists():
            raise EventLogError(f"log {log!r} is not there; it is made when a job is submitted whose `log` it is")
        while True:
            for event in reader.new():
                if jobs.take(event):
                    _show(event, tell, echo)
            if jobs.enough(number):
                if not echo:
                    print("All jobs done." if number is None else f"{len(jobs.done)} job(s) done.")
                return Code.DONE
            if end is not None and time.monotonic() >= end:
                complain(_time_is_up(jobs, log))
                return Code.FAILED
            left = LOOK if end is None else max(0.0, min(LOOK, end - time.monotonic()))
            time.sleep(left)
    except EventLogError as error:
        complain(error)
        return Code.FAILED
    except KeyboardInterrupt:
        return Code.INTERRUPTED


def _time_is_up(jobs: Jobs, log: str) -> str:
    if not jobs.pending and not jobs.done:
        return f"log {log!r} tells of no such job"
    return f"time expired: {len(jobs.pending)} job(s) still to be done"


def _show(event: Event, tell: bool, echo: bool) -> None:
    lines = event.text.splitlines()
    if echo:
        shown = "\n".join(clean(line) if number == 0 else f"\t{clean(line)}" for number, line in enumerate(lines))
        print(f"{event.kind:03} ({event.cluster:03}.{event.proc:03}.000) {shown}\n...", flush=True)
    elif tell:
        detail = f": {clean(lines[1])}" if len(lines) > 1 and event.kind in (5, 9, 12) else ""
        print(f"{event.job} {clean(lines[0])}{detail}", flush=True)
