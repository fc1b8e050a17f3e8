"""The agent's objects as consoles see them: each class one function, its values by name; see also schema.py."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any

from carod.job import JobStatus
from qmf_agent.dispatch import Dispatcher
from qmf_agent.jobqueue import lookup, records
from qmf_agent.jobqueue.ads import show
from qmf_agent.jobqueue.constraint import full_ad
from qmf_agent.jobqueue.jobs import JobId, JobRecord, read_message_id
from qmf_agent.jobqueue.lookup import PAGE, SubmissionRecord, job_condition, read_id
from qmf_agent.jobqueue.queue import JobQueue
from qmf_agent.jobqueue.totals import Tally
from qmf_agent.model import ManagedObject, Reference
from qmf_agent.pool import Slot

Pages = AsyncGenerator[list[ManagedObject], None]
IDLE, RUNNING, HELD, REMOVED = JobStatus.IDLE, JobStatus.RUNNING, JobStatus.HELD, JobStatus.REMOVED
COUNTED = {
    "Idle": IDLE, "Running": RUNNING, "Held": HELD, "Completed": JobStatus.COMPLETED, "Removed": REMOVED,
    "Suspended": JobStatus.SUSPENDED, "TransferringOutput": JobStatus.TRANSFERRING_OUTPUT,
}  # fmt: skip
LONG = 65_000
"""Bytes of a property at most: no string in a map has more than 65,535."""


class Objects:
    """Looks up and describes objects; `Model.objects` and `Model.find` are these."""

    def __init__(self, queue: JobQueue, dispatcher: Dispatcher, address: str) -> None:
        self._queue, self._dispatcher, self._address = queue, dispatcher, address
        self._started = time.time_ns()
        self._pool_name = queue.config.carod_broker_queue
        self._scheduler_ref = Reference("Scheduler", queue.scheduler)
        self._few: dict[str, Callable[[], list[ManagedObject]]] = {
            "Scheduler": lambda: [self._scheduler()],
            "JobServer": lambda: [self._job_server()],
            "Submitter": self._submitters,
            "Collector": lambda: [self._collector()],
        }

    async def objects(self, class_name: str, where: Mapping[str, Any] | None = None, limit: int | None = None) -> Pages:
        """See `model.Model.objects`."""
        left = limit
        pages = self._pages(class_name, where or {})
        try:
            async for page in pages:
                if left is not None:
                    page = page[:left]
                    left -= len(page)
                if page:
                    yield page
                if left == 0:
                    return
        finally:
            await pages.aclose()

    async def _pages(self, class_name: str, where: Mapping[str, Any]) -> Pages:
        if class_name == "Job":
            jobs = self._jobs(where)
        elif class_name == "Submission":
            jobs = self._submissions(where)
        else:
            few = await self._slots() if class_name == "Slot" else self._few.get(class_name, list)()
            if found := [each for each in few if _has(each.values, where)]:
                yield found
            return
        try:
            async for page in jobs:
                yield page
        finally:
            await jobs.aclose()

    async def find(self, class_name: str, name: str) -> ManagedObject | None:
        """See `model.Model.find`."""
        match class_name:
            case "Job":
                job = await self.job(name)
                return None if job is None else self._job(job)
            case "Submission":
                owner, _, submission = name.partition("/")
                found = await self._queue.store.read(lambda db: lookup.submissions(db, submission, owner, 0, 1))
                return self._submission(found[0]) if found else None
            case "Slot":
                few = await self._slots(name)
            case _:
                few = self._few.get(class_name, list)()
        return next((each for each in few if each.name == name), None)

    async def job(self, name: str) -> JobRecord | None:
        """The job of a name; None if there is none."""
        job = read_id(name, self._queue.scheduler)
        return None if job is None else await self._queue.store.read(lambda db: records.load(db, job))

    # -- jobs and submissions ----------------------------------------------------------------------------------

    async def _jobs(self, where: Mapping[str, Any]) -> Pages:
        condition = job_condition(where, self._queue.scheduler)
        after = -1
        while condition is not None:
            page = await self._queue.store.read(partial(lookup.jobs, condition=condition, after=after))
            found = [each for job in page if _has((each := self._job(job)).values, condition.rest)]
            if found:
                yield found
            if len(page) < PAGE:
                break
            after = page[-1].id.row

    def _job(self, job: JobRecord) -> ManagedObject:
        name = self._queue.name_of(job.id)
        values: dict[str, Any] = {}
        for attribute, value in full_ad(job).items():
            shown, _ = show(value)
            values[attribute] = _short(shown) if isinstance(shown, str) else shown
        values |= {
            "CustomId": name, "Owner": job.owner, "Submission": job.submission, "schedulerRef": self._scheduler_ref,
            "submissionRef": Reference("Submission", f"{job.owner}/{job.submission}"),
        }  # fmt: skip
        if job.result is not None:
            values["ResultSize"] = job.result
        return ManagedObject("Job", name, values, job.created, job.updated)

    async def _submissions(self, where: Mapping[str, Any]) -> Pages:
        after = 0
        name, owner = (str(where[key]) if key in where else None for key in ("Name", "Owner"))
        while True:
            page = await self._queue.store.read(partial(lookup.submissions, name=name, owner=owner, after=after))
            found = [each for group in page if _has((each := self._submission(group)).values, where)]
            if found:
                yield found
            if len(page) < PAGE:
                return
            after = page[-1].row

    def _submission(self, group: SubmissionRecord) -> ManagedObject:
        values: dict[str, Any] = {
            "Name": group.name, "Owner": group.owner, "QDate": group.qdate, "schedulerRef": self._scheduler_ref,
        }  # fmt: skip
        values |= {name: group.counts[status] for name, status in COUNTED.items()}
        return ManagedObject(
            "Submission", f"{group.owner}/{group.name}", values, group.qdate * 1_000_000_000, group.updated
        )

    # -- the agent itself --------------------------------------------------------------------------------------

    def _scheduler(self) -> ManagedObject:
        queue, totals = self._queue, self._queue.totals
        by = totals.by_status
        values: dict[str, Any] = {
            "Name": queue.scheduler,
            "Pool": self._pool_name,
            "System": f"{platform.system()} {platform.release()}",
            "Machine": socket.getfqdn(),
            "MyAddress": self._address,
            "JobQueueBirthdate": queue.birth,
            "MaxJobsRunning": queue.config.max_jobs_running,
            "NumUsers": len(totals.by_owner),
            "TotalIdleJobs": by[IDLE],
            "TotalRunningJobs": by[RUNNING] + by[JobStatus.SUSPENDED],
            "TotalHeldJobs": by[HELD],
            "TotalRemovedJobs": by[REMOVED],
            "TotalJobAds": sum(by.values()),
            "ServerPid": os.getpid(),
        }
        seconds = max(1.0, time.monotonic() - totals.started_at)
        for plural, rate, tally in (
            ("JobsSubmitted", "JobSubmissionRate", totals.submitted),
            ("JobsStarted", "JobStartRate", totals.begun),
            ("JobsCompleted", "JobCompletionRate", totals.completed),
        ):
            values |= _rates(plural, rate, tally, seconds)
        values |= _means("MeanTimeToStart", totals.begun)
        values |= _means("MeanRunningTime", totals.completed)
        return ManagedObject("Scheduler", queue.scheduler, values, self._started, time.time_ns())

    def _job_server(self) -> ManagedObject:
        values = {"Name": self._queue.scheduler, "Machine": socket.getfqdn(), "Pool": self._pool_name}
        return ManagedObject("JobServer", self._queue.scheduler, values, self._started, self._started)

    def _submitters(self) -> list[ManagedObject]:
        now = time.time_ns()
        return [
            ManagedObject(
                "Submitter",
                f"{owner}@{self._queue.scheduler}",
                {
                    "Name": f"{owner}@{self._queue.scheduler}",
                    "Owner": owner,
                    "Machine": socket.getfqdn(),
                    "IdleJobs": counts[IDLE],
                    "RunningJobs": counts[RUNNING] + counts[JobStatus.SUSPENDED],
                    "HeldJobs": counts[HELD],
                    "schedulerRef": self._scheduler_ref,
                },
                self._started,
                now,
            )
            for owner, counts in sorted(self._queue.totals.by_owner.items())
        ]

    # -- the pool ----------------------------------------------------------------------------------------------

    def _collector(self) -> ManagedObject:
        slots = self._dispatcher.pool.slots.values()
        claimed = sum(slot.said.get("State") == "Claimed" for slot in slots)
        by = self._queue.totals.by_status
        values = {
            "Name": self._pool_name,
            "RunningJobs": by[RUNNING] + by[JobStatus.SUSPENDED],
            "IdleJobs": by[IDLE],
            "HostsTotal": len(slots),
            "HostsClaimed": claimed,
            "HostsUnclaimed": sum(slot.said.get("State") == "Unclaimed" for slot in slots),
            "HostsOwner": sum(slot.said.get("State") == "Owner" for slot in slots),
        }
        return ManagedObject("Collector", self._pool_name, values, self._started, time.time_ns())

    async def _slots(self, name: str | None = None) -> list[ManagedObject]:
        slots = self._dispatcher.pool.slots
        chosen = [slots[name]] if name in slots else [] if name is not None else list(slots.values())
        jobs = {job for slot in chosen if (job := self._job_on(slot)) is not None}
        owners = await self._queue.store.read(lambda db: lookup.owners(db, jobs)) if jobs else {}
        return [self._slot(slot, owners) for slot in chosen]

    def _slot(self, slot: Slot, owners: Mapping[JobId, str]) -> ManagedObject:
        said, job = slot.said, self._job_on(slot)
        values: dict[str, Any] = {
            "Name": slot.name,
            "Node": slot.node,
            "Machine": said.get("Machine") or slot.name.rpartition("@")[2],
            "State": said.get("State"),
            "Activity": said.get("Activity"),
            "EnteredCurrentState": slot.state_since,
            "TotalTime": max(0, int(time.time()) - slot.created // 1_000_000_000),
        }
        values |= {name: said[name] for name in ("OpSys", "Arch", "Memory", "Cpus", "LoadAvg", "Disk") if name in said}
        if said.get("JobId"):
            values["JobId"] = self._queue.name_of(job) if job is not None and job in owners else said["JobId"]
            values["RemoteOwner"] = owners.get(job) if job in owners else said.get("Owner")  # type: ignore[arg-type]
            values["JobStart"] = int(said.get("JobStartDate") or 0)
        return ManagedObject("Slot", slot.name, values, slot.created, slot.updated)

    def _job_on(self, slot: Slot) -> JobId | None:
        known = read_message_id(self._queue.grid, str(slot.said.get("JobId", "")))
        return None if known is None else known[0]


def _has(values: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(name in values and values[name] == wanted for name, wanted in where.items())


def _short(text: str) -> str:
    if len(text) < LONG // 4:
        return text
    return text if len(text.encode()) <= LONG else text.encode()[:LONG].decode("utf-8", "ignore")


def _rates(plural: str, rate: str, tally: Tally, seconds: float) -> dict[str, Any]:
    recent, _ = tally.recent()
    window = min(seconds, 300.0)
    return {
        plural: recent, f"{plural}Cum": tally.count, rate: recent / window, f"{rate}Cum": tally.count / seconds,
    }  # fmt: skip


def _means(name: str, tally: Tally) -> dict[str, float]:
    recent, total = tally.recent()
    return {name: total / recent if recent else 0.0, f"{name}Cum": tally.total / tally.count if tally.count else 0.0}
