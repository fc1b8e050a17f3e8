"""Clusters that grow: further jobs for one that is there, with the input of one of its jobs.

A submit description of thousands of jobs comes in several requests, and sends the files that they share once. Works for
`store.Store.write`, each within one transaction.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from qmf_agent.jobqueue import drafts, records
from qmf_agent.jobqueue.jobs import MAX_PROC, Change, JobId
from qmf_agent.jobqueue.records import NewJob
from qmf_agent.model import Code, MethodError

Share = Callable[[JobId, JobId], None]
"""Give the input of one job to another, too; raises OSError."""


def make_draft(db: sqlite3.Connection, cluster: int, identity: str | None) -> JobId:
    """Reserve the next job of a cluster, whose input comes before its ad. Raises MethodError for a full one."""
    (proc,) = _next_procs(db, cluster, 1)
    job = JobId(cluster, proc)
    db.execute("INSERT INTO draft VALUES (?, ?, ?, 0)", (job.row, identity, int(time.time())))
    return job


def join(
    db: sqlite3.Connection, scheduler: str, of: JobId, jobs: Sequence[NewJob], share: Share
) -> tuple[list[JobId], list[Change], int]:
    """Add jobs to a cluster: their ids, and the bytes by which their inputs count more. A draft becomes the first.

    Raises MethodError if neither draft nor job is there any more, OSError if the input is not.
    """
    kept = drafts.load(db, of)
    if kept is not None:
        size = kept[1] or None
        db.execute("DELETE FROM draft WHERE id = ?", (of.row,))
        procs = [of.proc, *_next_procs(db, of.cluster, len(jobs) - 1, after=of.proc)]
    else:
        size = records.known(db, of).input
        procs = _next_procs(db, of.cluster, len(jobs))
    ready = [replace(job, input=size, submit_key=None) for job in jobs]
    added = [JobId(of.cluster, proc) for proc in procs if proc != of.proc]
    if size:
        for job in added:
            share(of, job)
    ids, changes = records.insert(db, scheduler, ready, of.cluster, procs)
    return ids, changes, len(added) * (size or 0)


def _next_procs(db: sqlite3.Connection, cluster: int, count: int, after: int = -1) -> list[int]:
    """The numbers that a cluster's next jobs have."""
    first, last = JobId(cluster, 0).row, JobId(cluster, MAX_PROC).row
    for table in ("job", "draft"):
        found = db.execute(f"SELECT max(id) FROM {table} WHERE id BETWEEN ? AND ?", (first, last)).fetchone()[0]
        after = max(after, -1 if found is None else JobId.from_row(found).proc)
    if after + count > MAX_PROC:
        raise MethodError(Code.QUOTA, f"cluster {cluster} has {after + 1} jobs; at most {MAX_PROC + 1} fit one")
    return list(range(after + 1, after + 1 + count))
