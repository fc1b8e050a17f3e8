"""What `carod submit FILE.sub` does without an agent: its jobs go to the queue, and their files and logs come home."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from carod import eventlog
from carod.classad import ClassAd
from carod.control import Action
from carod.eventlog import EventKind, EventLog, EventLogError
from carod.job import JobStatus, Reply
from carod_client.clusters import next_cluster
from carod_client.commands.report import Report
from carod_client.commands.submission import REMOVAL_PATIENCE, LeftBehind, exit_code_of
from carod_client.description import Parcel
from carod_client.errors import GridError, JobHeld, JobRemoved
from carod_client.grid import Grid
from carod_client.handle import Handle
from carod_client.results import Result, Results
from carod_client.submit_language import Description, SubmitJob
from carod_client.submit_language.shipment import Packer, bring_home, check_home

MOST_PRIORITY = 255
"""AMQP's; a larger JobPrio is as urgent as that."""


def check(description: Description) -> tuple[int, SubmitJob | None]:
    """How many jobs a description makes, and the first of them that is to be held.

    All are looked at before any is submitted, as condor_submit does. Raises SubmitError for one that can't be sent.
    """
    held: SubmitJob | None = None
    jobs = 0
    cluster = 0

    def count() -> int:
        nonlocal cluster
        cluster += 1
        return cluster

    with closing(Packer()) as packer:
        for job in description.jobs(count):
            packer.shipment(job)
            check_home(job)
            jobs += 1
            if held is None and job.ad.get("JobStatus") == JobStatus.HELD:
                held = job
    return jobs, held


@dataclass(slots=True)
class Diary:
    """Writes the user log of one job, by what its node reports."""

    job: SubmitJob
    host: str
    complain: Any
    _running: bool = False
    _suspended: bool = False
    _over: bool = False

    def submitted(self) -> None:
        self._write(EventKind.SUBMIT, eventlog.submitted(self.host, _text(self.job.ad, "SubmitEventNotes")))

    def take(self, reply: Reply) -> None:
        ad = reply.ad
        match reply.status, reply.state:
            case JobStatus.RUNNING, "Suspended":
                if not self._suspended:
                    self._write(EventKind.SUSPENDED, eventlog.suspended(_integer(ad, "NumPids")))
                self._suspended = True
            case JobStatus.RUNNING, _:
                if not self._running:
                    self._write(EventKind.EXECUTE, eventlog.executing(_text(ad, "RemoteHost")))
                if self._suspended:
                    self._write(EventKind.UNSUSPENDED, eventlog.unsuspended())
                self._running, self._suspended = True, False
            case JobStatus.IDLE, "Exited":
                self._write(EventKind.EVICTED, eventlog.evicted(ad))
                self._running = self._suspended = False
            case JobStatus.COMPLETED, _:
                self._write(EventKind.TERMINATED, eventlog.terminated(ad))
            case JobStatus.REMOVED, _:
                self.aborted(_text(ad, "RemoveReason") or "removed")
            case JobStatus.HELD, _:
                reason = _text(ad, "HoldReason") or reply.body[:1000].decode("utf-8", "replace")
                self._write(EventKind.HELD, eventlog.held(reason, _integer(ad, "HoldReasonCode")))

    def aborted(self, reason: str) -> None:
        """The job was removed; the node may say so, too."""
        if not self._over:
            self._write(EventKind.ABORTED, eventlog.aborted(reason))
        self._over = True

    def _write(self, kind: EventKind, lines: list[str]) -> None:
        path = _text(self.job.ad, "UserLog")
        if not path or path == os.devnull:
            return
        try:
            with EventLog(path) as log:
                log.write(kind, self.job.cluster, self.job.proc, lines)
        except EventLogError as error:  # the job goes on all the same
            self.complain(str(error))


@dataclass(slots=True)
class Batch:
    """One call of `carod submit FILE.sub`, straight to the queue: it ends with the last job."""

    description: Description
    report: Report
    in_flight: int
    timeout: float | None = None
    expires: float | None = None
    left_behind: LeftBehind = field(default_factory=LeftBehind)
    clusters: dict[int, int] = field(default_factory=dict)
    """How many jobs each cluster has."""
    on_sent: Callable[[Mapping[int, int]], None] | None = None
    """Called once all are submitted, with `clusters`."""
    _waiting: dict[str, tuple[SubmitJob, Handle, Diary]] = field(default_factory=dict)
    _complained: set[str] = field(default_factory=set)

    async def run(self, grid: Grid, jobs: Iterator[SubmitJob] | None = None) -> int:
        """Run all jobs, so many at a time; the highest exit code. Cancelled, it removes those that run."""
        codes = [0]
        done: asyncio.Queue[str] = asyncio.Queue()
        numbers: dict[str, int] = {}
        try:
            with self.report, closing(Packer()) as packer:
                for job in jobs or self.description.jobs(next_cluster):
                    while len(self._waiting) >= self.in_flight:
                        codes.append(await self._over(await done.get(), numbers))
                    handle = await self._send(grid, job, packer, done)
                    numbers[handle.id] = sum(self.clusters.values())
                    self.clusters[job.cluster] = self.clusters.get(job.cluster, 0) + 1
                if self.on_sent is not None:
                    self.on_sent(self.clusters)
                while self._waiting:
                    codes.append(await self._over(await done.get(), numbers))
        except asyncio.CancelledError:
            await self._remove_all(grid)
            raise
        self.report.summary()
        return max(codes)

    async def _send(self, grid: Grid, job: SubmitJob, packer: Packer, done: asyncio.Queue[str]) -> Handle:
        shipment = packer.shipment(job)
        body = packer.body(shipment) if shipment.at_once else await asyncio.to_thread(packer.body, shipment)
        ad = shipment.ad
        diary = Diary(job, f"{grid.endpoint.host}:{grid.endpoint.port}", self._complain)
        diary.submitted()

        def heard(reply: Reply) -> None:
            self.report.update(reply)
            diary.take(reply)

        priority = _integer(ad, "JobPrio")
        handle = await grid.send(
            Parcel(str(ad.pop("Cmd")), shipment.members, False), (), body,
            {
                "attributes": ad, "timeout": self.timeout, "expires": self.expires, "on_update": heard,
                "priority": min(priority, MOST_PRIORITY) if priority > 0 else None,
            },
            lambda handle: done.put_nowait(handle.id),
        )  # fmt: skip
        self._waiting[handle.id] = job, handle, diary
        return handle

    async def _over(self, job_id: str, numbers: dict[str, int]) -> int:
        """A job has ended: its files are brought home. Its exit code."""
        job, handle, _ = self._waiting.pop(job_id)
        number = numbers.pop(job_id)
        try:
            result = handle.result
        except GridError as error:
            if isinstance(error, JobHeld | JobRemoved):
                await self._bring_home(error.ad or job.ad, error.results, job)
            self.report.failed(error, number, None)
            return exit_code_of(error)
        complete = await self._bring_home(result.ad, result.results, job)
        self.report.result(result, number, None)
        return _code(result) if complete else max(_code(result), 1)

    async def _bring_home(self, ad: ClassAd, results: Results, job: SubmitJob) -> bool:
        try:
            await asyncio.to_thread(bring_home, ad, results)
        except (OSError, GridError) as error:
            self._complain(f"job {job.cluster}.{job.proc}: its files can't be written: {error}")
            return False
        return True

    def _complain(self, text: str) -> None:
        if text not in self._complained:
            self._complained.add(text)
            self.report.complain(text)

    async def _remove_all(self, grid: Grid) -> None:
        left = self.left_behind

        async def remove(job_id: str, diary: Diary) -> None:
            try:
                await grid.control(Action.REMOVE, job_id, reason="interrupted", timeout=REMOVAL_PATIENCE)
            except GridError:
                left.running += 1
            else:
                left.removed += 1
                diary.aborted("carod submit was interrupted")

        async with asyncio.TaskGroup() as group:
            for job_id, (_, handle, diary) in self._waiting.items():
                if handle.status is JobStatus.IDLE:
                    left.queued += 1
                elif not handle.done:
                    with suppress(GridError):
                        group.create_task(remove(job_id, diary))


def _code(result: Result) -> int:
    return result.returncode


def _text(ad: ClassAd, name: str) -> str:
    value = ad.get(name)
    return value if isinstance(value, str) else ""


def _integer(ad: ClassAd, name: str) -> int:
    value = ad.get(name)
    return value if isinstance(value, int) else 0
