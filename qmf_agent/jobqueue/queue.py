"""The job queue: what is submitted, ordered and reported goes into the store, and who listens is told.

Knows nothing of brokers: `dispatch.py` takes what waits here to the grid, and brings back what nodes say.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from carod.job import HoldReasonCode, JobStatus
from carod.log import event
from qmf_agent.config import AgentConfig
from qmf_agent.jobqueue import clusters, drafts, lookup, records
from qmf_agent.jobqueue.ads import Ad
from qmf_agent.jobqueue.jobs import Change, JobId, JobRecord, Order, Report, message_id
from qmf_agent.jobqueue.records import NewJob, Ordered, Reported
from qmf_agent.jobqueue.spool import Spool
from qmf_agent.jobqueue.store import Store, Work
from qmf_agent.jobqueue.totals import Totals
from qmf_agent.model import Code, Event, Listener, MethodError

log = logging.getLogger("carod.queue")
T = TypeVar("T")
May = Callable[[JobRecord], None]
_SAID_AGAIN = (Report.RUNNING, Report.UPDATE)
"""Reports after which another one comes."""
FORGET_AT_ONCE = 200
"""Jobs forgotten in one transaction, which others wait for."""


class JobQueue:
    """All jobs of an agent. Made by `open`; coroutines raise MethodError where a user is at fault."""

    def __init__(self, config: AgentConfig, store: Store, spool: Spool, grid: int, birth: int, totals: Totals) -> None:
        self.config, self.store, self.spool = config, store, spool
        self.scheduler, self.grid, self.birth, self.totals = config.name, grid, birth, totals
        self.wake = asyncio.Event()
        """Set whenever there may be something to send."""
        self.room: Callable[[], int] = lambda: 0
        self.send: Callable[[list[JobRecord]], None] = lambda jobs: None
        """How many jobs may be sent now, and what sends them: a dispatcher's, while it is connected."""
        self._taking = 0
        self._listeners: list[Listener] = []
        self.on_logged: Callable[[Change], None] | None = None
        """Called when a job whose user keeps a log of it comes into another status."""
        self._files = ThreadPoolExecutor(1, "spool")

    @classmethod
    async def open(cls, config: AgentConfig) -> JobQueue:
        """Open, or make, the queue in the configured spool. Raises StoreError, OSError."""
        spool = Spool(config.directory, config.spool_quota, fsync=config.condor_fsync)
        store = Store(f"{config.directory}/queue.db", records.SCHEMA, fsync=config.condor_fsync)
        grid = await store.write(records.grid_number)
        birth = await store.read(records.birth)
        totals = Totals(await store.read(lookup.totals))
        spool.used = await store.read(lookup.bytes_kept)
        return cls(config, store, spool, grid, birth, totals)

    async def close(self) -> None:
        await asyncio.to_thread(self._files.shutdown)
        await self.store.close()

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def name_of(self, job: JobId) -> str:
        """The id that Submit returns."""
        return f"{self.scheduler}#{job}"

    def message_id(self, job: JobId, life: int) -> str:
        return message_id(self.grid, job, life)

    async def file_work(self, work: Callable[[], T]) -> T:
        """Do something with the spool's files, one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._files, work)

    # -- submitting --------------------------------------------------------------------------------------------

    async def submit(self, jobs: Sequence[NewJob]) -> list[JobId]:
        """Put jobs of one owner into the queue, as one cluster; once this returns they survive the agent's death."""
        self.check_room(jobs[0].owner, len(jobs))
        at_once = max(0, min(len(jobs), self.room() - self._taking))
        self._taking += at_once
        try:
            work = partial(_insert_and_take, scheduler=self.scheduler, jobs=jobs, count=at_once)
            ids, changes, taken = await self.store.write(work)
        finally:
            self._taking -= at_once
        self.applied(changes)
        if taken:
            self.send(taken)
        return ids

    def check_room(self, owner: str, count: int) -> None:
        """Whether so many more jobs may come. Raises MethodError."""
        config, totals = self.config, self.totals
        if totals.in_queue + count > config.max_jobs_submitted:
            raise _quota(f"{totals.in_queue} jobs are in the queue, MAX_JOBS_SUBMITTED = {config.max_jobs_submitted}")
        if config.max_jobs_per_owner and totals.owned(owner) + count > config.max_jobs_per_owner:
            had = totals.owned(owner)
            raise _quota(f"{owner} has {had} jobs in the queue, MAX_JOBS_PER_OWNER = {config.max_jobs_per_owner}")
        if self.spool.exceeded:
            raise _quota(f"inputs and results take {self.spool.used} bytes, SPOOL_QUOTA = {self.spool.quota}")

    async def create(self, identity: str | None) -> JobId:
        """Begin a submission whose input comes first."""
        if self.spool.exceeded:
            raise _quota(f"inputs and results take {self.spool.used} bytes, SPOOL_QUOTA = {self.spool.quota}")
        return await self.store.write(lambda db: drafts.make(db, identity))

    async def create_beside(self, job: JobId, identity: str | None) -> JobId:
        """Begin a submission as the next job of a cluster."""
        await self._may_join(job, identity)
        return await self.store.write(partial(clusters.make_draft, cluster=job.cluster, identity=identity))

    async def submit_beside(self, job: JobId, jobs: Sequence[NewJob]) -> list[JobId]:
        """Put jobs into the cluster of a draft, which the first of them is, or of a job. They have its input."""
        self.check_room(jobs[0].owner, len(jobs))
        await self._may_join(job, jobs[0].identity)
        work = partial(clusters.join, scheduler=self.scheduler, of=job, jobs=jobs, share=self.spool.share_input)
        try:
            ids, changes, size = await self.store.write(work)
        except OSError as error:
            raise MethodError(Code.FAILED, f"job {job}: its input can't be shared: {error}") from None
        self.spool.used += size
        self.applied(changes)
        return ids

    async def _may_join(self, job: JobId, user: str | None) -> None:
        if await self.store.write(lambda db: drafts.load(db, job)) is not None:
            await self._draft(job, user)
            return
        known = await self.store.read(lambda db: records.known(db, job))
        if known.identity != user:
            whose = known.identity or "a user's without name"
            raise MethodError(Code.FORBIDDEN, f"job {job} is {whose}, not {user}'s: others can't join its cluster")

    async def append(self, job: JobId, data: bytes, user: str | None) -> int:
        """Add a piece to a draft's input: how many bytes it has now."""
        size = await self._draft(job, user)
        if size + len(data) > self.config.max_input_size:
            raise _quota(f"job {job}: its input has more than MAX_INPUT_SIZE = {self.config.max_input_size} bytes")
        if self.spool.exceeded:
            raise _quota(f"inputs and results take {self.spool.used} bytes, SPOOL_QUOTA = {self.spool.quota}")
        try:
            grown = await self.file_work(lambda: self.spool.append(job, size, data))
        except OSError as error:
            raise MethodError(Code.FAILED, f"job {job}: its input can't be kept: {error}") from None
        await self.store.write(lambda db: drafts.grow(db, job, grown))
        self.spool.used += len(data)
        return grown

    async def submit_draft(self, job: JobId, new: NewJob) -> JobId:
        """Submit the job that a draft was begun for. One that is submitted already is not an error: it is that job."""
        self.check_room(new.owner, 1)
        if await self.store.read(lambda db: drafts.load(db, job)) is None:
            earlier = await self.store.read(lambda db: records.load(db, job))
            if earlier is not None and earlier.identity == new.identity:
                return job
        await self._draft(job, new.identity)
        ids, changes = await self.store.write(lambda db: drafts.submit(db, self.scheduler, job, new))
        self.applied(changes)
        return ids[0]

    async def _draft(self, job: JobId, user: str | None) -> int:
        kept = await self.store.write(lambda db: drafts.load(db, job))
        if kept is None:
            raise MethodError(Code.UNKNOWN_JOB, f"job {job}: create did not return this id, or it was too long ago")
        if kept[0] != user:
            raise MethodError(Code.FORBIDDEN, f"job {job} was begun by {kept[0] or 'a user without name'}, not {user}")
        return kept[1]

    # -- orders and reports ------------------------------------------------------------------------------------

    async def order(
        self, job: JobId, order: Order, may: May, who: str, reason: str, *, told: int | None = None,
        unreached: bool = False,
    ) -> Ordered:  # fmt: skip
        """Do to a job what a user ordered; see `records.apply_order`."""
        work = partial(
            records.apply_order, job_id=job, order=order, may=may, who=who, reason=reason, told=told,
            unreached=unreached,
        )  # fmt: skip
        ordered = await self.store.write(work)
        self.applied(ordered.changes)
        return ordered

    async def set_attribute(
        self, job: JobId, name: str, value: str | float | bool, may: May, *, told: int | None = None,
        waits: int | None = None,
    ) -> Ordered:  # fmt: skip
        """Change an attribute of a job; see `records.set_attribute`."""
        work = partial(records.set_attribute, job_id=job, name=name, value=value, may=may, told=told, waits=waits)
        ordered = await self.store.write(work)
        self.applied(ordered.changes)
        return ordered

    def report(
        self,
        job: JobId,
        life: int,
        report: Report,
        said: Ad,
        size: int | None,
        body: bytes | None,
        done: Callable[[Reported], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Note what a node said of a job; `done` is called once that is on the disk."""

        def finished(reported: Reported) -> None:
            if reported.kept_result and size:
                self.spool.used += size
            self.applied(reported.changes)
            done(reported)

        work = partial(records.apply_report, job_id=job, life=life, report=report, said=said, size=size, body=body)
        self.store.submit(work, finished, failed, durable=report not in _SAID_AGAIN)

    # -- to the grid -------------------------------------------------------------------------------------------

    async def take(self, count: int) -> list[JobRecord]:
        """The jobs to be sent next."""
        jobs, changes = await self.store.write(lambda db: records.take(db, count))
        self.applied(changes, wake=False)
        return jobs

    async def uncertain(self) -> list[JobRecord]:
        """Jobs that may or may not have reached the broker."""
        return await self.store.write(records.uncertain)

    def confirmed(self, jobs: Sequence[tuple[JobId, int]]) -> None:
        """The broker has them."""
        work: Work[list[Change]] = partial(records.confirmed, jobs=jobs)
        self.store.submit(work, self.applied, self._not_written, durable=False)

    async def not_sendable(self, job: JobId, life: int, reason: str) -> None:
        """No broker takes this one."""
        code = HoldReasonCode.TRANSFER_INPUT_ERROR
        self.applied(await self.store.write(lambda db: records.not_sendable(db, job, life, reason, code)))

    async def lost(self, job: JobId, life: int) -> None:
        """Nobody has it: it is uncertain whether it was ever sent."""
        self.applied(await self.store.write(lambda db: records.lost(db, job, life)))

    def _not_written(self, error: BaseException) -> None:  # then it is uncertain, as after a crash
        event(log, "not written", logging.ERROR, reason=str(error))

    # -- house-keeping -----------------------------------------------------------------------------------------

    async def forget(self) -> None:
        """Forget what is over for long enough, and what nobody went on with; with their files."""
        now = int(time.time())
        while True:
            before, keep = now - int(self.config.history_max_age), self.config.history_max_count
            changes, freed = await self.store.write(partial(_forget, before=before, keep=keep))
            self.spool.used -= freed
            self.applied(changes)
            await self._remove_files([change.id for change in changes])
            if len(changes) < FORGET_AT_ONCE:
                break
        given_up = await self.store.write(lambda db: drafts.forget(db, now - int(self.config.draft_lifetime)))
        self.spool.used -= sum(size for _, size in given_up)
        await self._remove_files([job for job, _ in given_up])

    async def remove_strays(self) -> None:
        """Remove files that no job has: an earlier life of the agent ended before it could."""
        for job, path in await self.file_work(lambda: list(self.spool.files())):
            if path.suffix == ".part" or not await self.store.read(partial(lookup.has_files, job=job)):
                await self.file_work(partial(path.unlink, missing_ok=True))

    async def _remove_files(self, jobs: Iterable[JobId]) -> None:
        for job in jobs:
            await self.file_work(partial(self.spool.remove, job))

    # -- telling -----------------------------------------------------------------------------------------------

    def applied(self, changes: Iterable[Change], *, wake: bool = True) -> None:
        """Count and tell what a transaction changed."""
        for change in changes:
            self._count(change)
            if change.before is change.after and not change.why and change.stage_before is not change.stage_after:
                continue  # on its way: nothing that anybody sees
            if change.log and change.before is not change.after and self.on_logged is not None:
                self.on_logged(change)
            for listener in self._listeners:
                self._tell(listener, change)
        if wake:
            self.wake.set()

    def _count(self, change: Change) -> None:
        totals = self.totals
        totals.apply(change)
        if change.before is None:
            totals.submitted.add()
        elif change.after is JobStatus.COMPLETED and change.before is not change.after:
            totals.completed.add(change.seconds)
        elif change.after is JobStatus.RUNNING and change.before is JobStatus.IDLE:
            totals.begun.add(change.seconds)

    def _tell(self, listener: Listener, change: Change) -> None:
        listener.changed("Job", self.name_of(change.id))
        if change.before is change.after:
            return
        if change.submission:
            listener.changed("Submission", f"{change.owner}/{change.submission}")
        listener.changed("Submitter", f"{change.owner}@{self.scheduler}")
        listener.changed("Scheduler", self.scheduler)
        if change.after is None:
            return
        values = {
            "CustomId": self.name_of(change.id), "JobStatus": int(change.after),
            "LastJobStatus": int(change.before or 0), "Owner": change.owner, "Reason": change.why,
        }  # fmt: skip
        listener.happened(Event("JobStatusChange", values, timestamp=time.time_ns()))

    def tell_changed(self, class_name: str, name: str) -> None:
        for listener in self._listeners:
            listener.changed(class_name, name)


def _insert_and_take(
    db: sqlite3.Connection, scheduler: str, jobs: Sequence[NewJob], count: int
) -> tuple[list[JobId], list[Change], list[JobRecord]]:
    """Put jobs into the queue, and have so many of those that are next sent: the disk is waited for once."""
    ids, changes = records.insert(db, scheduler, jobs)
    taken, moved = records.take(db, count) if count else ([], [])
    return ids, changes + moved, taken


def _forget(db: sqlite3.Connection, before: int, keep: int) -> tuple[list[Change], int]:
    return records.forget(db, before, keep, FORGET_AT_ONCE)


def _quota(text: str) -> MethodError:
    return MethodError(Code.QUOTA, text)
