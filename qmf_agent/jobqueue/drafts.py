"""Jobs whose input comes before their ad: works for `store.Store`, each within one transaction."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace

from qmf_agent.jobqueue import records
from qmf_agent.jobqueue.jobs import Change, JobId
from qmf_agent.jobqueue.records import NewJob
from qmf_agent.model import Code, MethodError


def make(db: sqlite3.Connection, identity: str | None) -> JobId:
    """Reserve a cluster for a job whose input comes before its ad."""
    job = JobId(records.next_cluster(db), 0)
    db.execute("INSERT INTO draft VALUES (?, ?, ?, 0)", (job.row, identity, int(time.time())))
    return job


def load(db: sqlite3.Connection, job: JobId) -> tuple[str | None, int] | None:
    """Whose a draft is, and how many bytes of input it has; None if there is none."""
    row = db.execute("SELECT identity, size FROM draft WHERE id = ?", (job.row,)).fetchone()
    return None if row is None else (row[0], int(row[1]))


def grow(db: sqlite3.Connection, job: JobId, size: int) -> None:
    db.execute("UPDATE draft SET size = ?, touched = ? WHERE id = ?", (size, int(time.time()), job.row))


def submit(db: sqlite3.Connection, scheduler: str, draft_id: JobId, job: NewJob) -> tuple[list[JobId], list[Change]]:
    """Make a draft the job that it was begun for. Raises MethodError if it is gone meanwhile."""
    kept = load(db, draft_id)
    if kept is None:
        raise MethodError(Code.UNKNOWN_JOB, f"job {draft_id}: create did not return this id, or it was too long ago")
    db.execute("DELETE FROM draft WHERE id = ?", (draft_id.row,))
    return records.insert(db, scheduler, [replace(job, input=kept[1] or None, submit_key=None)], draft_id.cluster)


def forget(db: sqlite3.Connection, before: int) -> list[tuple[JobId, int]]:
    """Give up drafts that nobody has touched since: their ids and sizes."""
    rows = db.execute("DELETE FROM draft WHERE touched < ? RETURNING id, size", (before,)).fetchall()
    return [(JobId.from_row(row), size) for row, size in rows]
