"""What is read from the job queue's tables: works for `store.Store.read`, a page at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from carod.job import JobStatus
from qmf_agent.jobqueue.jobs import MAX_CLUSTER, MAX_PROC, PROC_BITS, JobId, JobRecord, Stage
from qmf_agent.jobqueue.records import COLUMNS, FROM, record

PAGE = 250
"""Jobs in one page: some hundred KB, and a few ms of the reader's time."""
LAST_ROW = 1 << 62


@dataclass(frozen=True, slots=True)
class Condition:
    """A WHERE clause that an index serves, and what of the wanted properties is left to be compared."""

    sql: str
    values: tuple[Any, ...]
    rest: dict[str, Any]


def job_condition(where: Mapping[str, Any], scheduler: str) -> Condition | None:
    """How to look up jobs with these properties; None if no job can have them."""
    parts: list[str] = []
    values: list[Any] = []
    rest: dict[str, Any] = {}
    for name, value in where.items():
        match name.lower():
            case "customid":
                job = read_id(str(value), scheduler)
                if job is None:
                    return None
                parts.append("job.id = ?")
                values.append(job.row)
            case "globaljobid":
                job = read_id(str(value).rpartition("#")[0], scheduler)
                if job is None:
                    return None
                parts.append("job.id = ?")
                values.append(job.row)
                rest[name] = value
            case "clusterid":
                if not isinstance(value, int) or not 0 <= value <= MAX_CLUSTER:
                    return None
                parts.append("job.id BETWEEN ? AND ?")
                values += [value << PROC_BITS, value << PROC_BITS | MAX_PROC]
            case "owner":
                parts.append("job.owner = ?")
                values.append(str(value))
            case "jobstatus":
                if not isinstance(value, int) or not -LAST_ROW < value < LAST_ROW:
                    return None
                parts.append("job.status = ?")
                values.append(value)
            case "submission":
                parts.append("job.submission IN (SELECT id FROM submission WHERE name = ?)")
                values.append(str(value))
            case _:
                rest[name] = value
    return Condition(" AND ".join(parts) or "TRUE", tuple(values), rest)


def read_id(text: str, scheduler: str) -> JobId | None:
    """The job that `SCHEDULER#CLUSTER.PROC` or `CLUSTER.PROC` names; None if it can't be one of this scheduler."""
    name, sharp, number = text.rpartition("#")
    if sharp and name != scheduler:
        return None
    cluster, dot, proc = number.partition(".")
    if not (dot and _is_number(cluster) and _is_number(proc)):
        return None
    job = JobId(int(cluster), int(proc))
    return job if job.cluster <= MAX_CLUSTER and job.proc <= MAX_PROC else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 12


def jobs(db: sqlite3.Connection, condition: Condition, after: int, count: int = PAGE) -> list[JobRecord]:
    """The next jobs, by id, after a row."""
    query = f"SELECT {COLUMNS} {FROM} WHERE {condition.sql} AND job.id > ? ORDER BY job.id LIMIT ?"
    return [record(row) for row in db.execute(query, (*condition.values, after, count))]


@dataclass(frozen=True, slots=True)
class SubmissionRecord:
    """A group of jobs; `counts` by status, `updated` in nanoseconds since the epoch."""

    row: int
    name: str
    owner: str
    qdate: int
    updated: int
    counts: dict[JobStatus, int]


_GROUP = "id, name, owner, qdate, updated, n1, n2, n3, n4, n5, n6, n7"


def _submission(row: tuple[Any, ...]) -> SubmissionRecord:
    counts = {JobStatus(number): count for number, count in enumerate(row[5:], 1)}
    number, name, owner, qdate, updated = row[:5]
    return SubmissionRecord(number, name, owner, qdate, updated, counts)


def submissions(
    db: sqlite3.Connection, name: str | None, owner: str | None, after: int, count: int = PAGE
) -> list[SubmissionRecord]:
    """The next submissions after a row, of a name or an owner if given."""
    parts = ["id > ?"]
    values: list[Any] = [after]
    for column, value in (("name", name), ("owner", owner)):
        if value is not None:
            parts.append(f"{column} = ?")
            values.append(value)
    query = f"SELECT {_GROUP} FROM submission WHERE {' AND '.join(parts)} ORDER BY id LIMIT ?"
    return [_submission(row) for row in db.execute(query, (*values, count))]


def totals(db: sqlite3.Connection) -> list[tuple[str, int, int, int]]:
    """How many jobs there are by owner, status and stage."""
    return db.execute("SELECT owner, status, stage, count(*) FROM job GROUP BY owner, status, stage").fetchall()


def bytes_kept(db: sqlite3.Connection) -> int:
    """What inputs, results and drafts take."""
    kept = db.execute("SELECT ifnull(sum(input), 0) + ifnull(sum(result), 0) FROM job").fetchone()[0]
    return int(kept + db.execute("SELECT ifnull(sum(size), 0) FROM draft").fetchone()[0])


def steps(db: sqlite3.Connection, job: JobId) -> list[tuple[int, int, str, str]]:
    """A job's life so far: when (ns), its new status, who, why."""
    return db.execute("SELECT at, status, who, why FROM step WHERE job = ? ORDER BY rowid", (job.row,)).fetchall()


def small_result(db: sqlite3.Connection, job: JobId) -> bytes | None:
    """A result that is kept in the database."""
    row = db.execute("SELECT body FROM result WHERE job = ?", (job.row,)).fetchone()
    return None if row is None else bytes(row[0])


def has_files(db: sqlite3.Connection, job: JobId) -> bool:
    """Whether there is a job or a draft that the files of this id belong to."""
    tables = ("job", "draft")
    return any(db.execute(f"SELECT 1 FROM {table} WHERE id = ?", (job.row,)).fetchone() for table in tables)


def silent(db: sqlite3.Connection, stage: Stage, before: int, count: int = PAGE) -> list[JobRecord]:
    """Jobs at a stage of which nothing was heard since then (ns)."""
    query = f"SELECT {COLUMNS} {FROM} WHERE stage = ? AND stage BETWEEN 1 AND 4 AND job.updated < ? LIMIT ?"
    return [record(row) for row in db.execute(query, (stage, before, count))]


def owners(db: sqlite3.Connection, jobs: Collection[JobId]) -> dict[JobId, str]:
    """Whose these jobs are, those that are known."""
    found = {}
    for job in jobs:
        row = db.execute("SELECT owner FROM job WHERE id = ?", (job.row,)).fetchone()
        if row is not None:
            found[job] = row[0]
    return found
