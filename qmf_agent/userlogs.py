"""The users' logs of their jobs (`log = FILE`), for which they submit on this machine.

Whoever submits begins the log, with the event that says so; the agent goes on with what is one already, and writes to
no other file: the ad, which anybody may have sent, only says where it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from functools import partial

from carod import eventlog
from carod.classad import ClassAd
from carod.eventlog import EventKind, EventLog, EventLogError
from carod.job import JobStatus
from carod.log import event
from qmf_agent.jobqueue import records
from qmf_agent.jobqueue.constraint import as_classad, full_ad
from qmf_agent.jobqueue.jobs import Change
from qmf_agent.jobqueue.queue import JobQueue

log = logging.getLogger("carod.userlogs")
MOST_WAITING = 100_000
"""Events that may wait for a slow disk; later ones are left out, and the agent's own log says so."""
TOLD = 1000
"""Logs that can't be written are complained of once, so many at most."""


class UserLogs:
    """Writes what becomes of jobs to their logs, in the order it happens. `run` does the work."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._waiting: asyncio.Queue[tuple[float, Change]] = asyncio.Queue(MOST_WAITING)
        self._complained: set[str] = set()
        queue.on_logged = self._noted

    def _noted(self, change: Change) -> None:
        try:
            self._waiting.put_nowait((time.time(), change))
        except asyncio.QueueFull:
            self._complain(change.log, "the disk does not keep up")

    async def run(self) -> None:
        while True:
            when, change = await self._waiting.get()
            await self._write(when, change)

    async def close(self) -> None:
        """Write what waits; `run` has ended."""
        while not self._waiting.empty():
            await self._write(*self._waiting.get_nowait())

    async def _write(self, when: float, change: Change) -> None:
        job = await self._queue.store.read(partial(records.load, job=change.id))
        ad = ClassAd() if job is None else as_classad(full_ad(job))
        found = _event(change, ad)
        if found is not None:
            await asyncio.to_thread(self._add, change, *found, when)

    def _add(self, change: Change, kind: EventKind, lines: list[str], when: float) -> None:
        path = change.log
        try:
            if not os.path.isabs(path) or "\0" in path:
                raise EventLogError(f"log {path[:200]!r} is no absolute path")
            with EventLog(path, only_begun=True) as file:
                file.write(kind, change.id.cluster, change.id.proc, lines, when)
        except EventLogError as error:
            self._complain(path, str(error))

    def _complain(self, path: str, reason: str) -> None:
        if path not in self._complained and len(self._complained) < TOLD:
            self._complained.add(path)
            event(log, "user log not written", logging.WARNING, log=path, reason=reason)


def _event(change: Change, ad: ClassAd) -> tuple[EventKind, list[str]] | None:
    """What a log says of a change; None if nothing."""
    before, after = change.before, change.after
    reason = change.why
    match after:
        case JobStatus.RUNNING if before is JobStatus.SUSPENDED:
            return EventKind.UNSUSPENDED, eventlog.unsuspended()
        case JobStatus.RUNNING:
            return EventKind.EXECUTE, eventlog.executing(_text(ad, "RemoteHost"))
        case JobStatus.SUSPENDED:
            return EventKind.SUSPENDED, eventlog.suspended(_integer(ad, "NumPids"))
        case JobStatus.COMPLETED:
            return EventKind.TERMINATED, eventlog.terminated(ad)
        case JobStatus.REMOVED:
            return EventKind.ABORTED, eventlog.aborted(reason)
        case JobStatus.HELD:
            return EventKind.HELD, eventlog.held(reason, _integer(ad, "HoldReasonCode"))
        case JobStatus.IDLE if before is JobStatus.HELD:
            return EventKind.RELEASED, eventlog.released(reason)
        case JobStatus.IDLE if before is not None:
            return EventKind.EVICTED, eventlog.evicted(ad)
    return None


def _text(ad: ClassAd, name: str) -> str:
    value = ad.get(name)
    return value if isinstance(value, str) else ""


def _integer(ad: ClassAd, name: str) -> int:
    value = ad.get(name)
    return value if isinstance(value, int) else 0
