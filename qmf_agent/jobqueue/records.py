"""The job queue's tables, and what is done in them: works for `store.Store`, each within one transaction.

`stage`, `life` and what an order or a report changes are explained in jobs.py. Counts of a submission's jobs are kept
with every change, so that nothing has to be counted when somebody asks.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from carod.amqp import HeaderValue
from carod.control import Action
from carod.job import NODE_ATTRIBUTES, JobStatus
from qmf_agent.jobqueue.ads import PROTECTED, Ad, quoted, text_of
from qmf_agent.jobqueue.jobs import (
    FINAL,
    GRID_BITS,
    MAX_LIFE,
    NAMES,
    ORDERS,
    OVER,
    Change,
    JobId,
    JobRecord,
    Order,
    Report,
    Stage,
    step,
)
from qmf_agent.model import Code, MethodError

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS submission (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, owner TEXT NOT NULL, qdate INTEGER NOT NULL,
    n1 INTEGER NOT NULL DEFAULT 0, n2 INTEGER NOT NULL DEFAULT 0, n3 INTEGER NOT NULL DEFAULT 0,
    n4 INTEGER NOT NULL DEFAULT 0, n5 INTEGER NOT NULL DEFAULT 0, n6 INTEGER NOT NULL DEFAULT 0,
    n7 INTEGER NOT NULL DEFAULT 0, updated INTEGER NOT NULL, UNIQUE (name, owner)
);
CREATE TABLE IF NOT EXISTS job (
    id INTEGER PRIMARY KEY, status INTEGER NOT NULL, stage INTEGER NOT NULL, life INTEGER NOT NULL,
    prio INTEGER NOT NULL, qdate INTEGER NOT NULL, entered INTEGER NOT NULL, owner TEXT NOT NULL, identity TEXT,
    submission INTEGER NOT NULL REFERENCES submission, created INTEGER NOT NULL, updated INTEGER NOT NULL,
    input INTEGER, result INTEGER, submit_key TEXT, ended INTEGER, ad TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS job_waiting ON job (prio DESC, id) WHERE status = 1 AND stage = 0;
CREATE INDEX IF NOT EXISTS job_out ON job (stage) WHERE stage BETWEEN 1 AND 4;
CREATE INDEX IF NOT EXISTS job_status ON job (status);
CREATE INDEX IF NOT EXISTS job_owner ON job (owner);
CREATE INDEX IF NOT EXISTS job_submission ON job (submission);
CREATE INDEX IF NOT EXISTS job_ended ON job (ended) WHERE ended IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS job_key ON job (submit_key, owner) WHERE submit_key IS NOT NULL;
CREATE TABLE IF NOT EXISTS step (
    job INTEGER NOT NULL, at INTEGER NOT NULL, status INTEGER NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS step_job ON step (job);
CREATE TABLE IF NOT EXISTS result (job INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS draft (
    id INTEGER PRIMARY KEY, identity TEXT, touched INTEGER NOT NULL, size INTEGER NOT NULL
);
"""
COLUMNS = """job.id, job.status, job.stage, job.life, job.prio, job.qdate, job.entered, job.owner, job.identity,
    submission.name, job.created, job.updated, job.input, job.result, job.ad"""
FROM = "FROM job JOIN submission ON submission.id = job.submission"
NOT_SUBMITTED = PROTECTED | {"authenticatedidentity"}
"""What a submitter's ad does not decide, in lower case: it is dropped, as in an ad that was read from a queue."""
NODES_OWN = NODE_ATTRIBUTES - {"authenticatedidentity"} | {"numjobstarts", "jobstartdate", "wf_req_slot"}
"""What nodes may change in an ad, in lower case."""
FORGOTTEN = NODE_ATTRIBUTES - {"authenticatedidentity"}
"""What an earlier life left in an ad, and a new one begins without."""
MAX_STEP_TEXT = 1000


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be submitted; `input` is the size of its spooled input (None: none), `held` if it waits for release."""

    ad: Ad
    owner: str
    identity: str | None
    submission: str | None
    prio: int
    submit_key: str | None = None
    input: int | None = None
    held: bool = False


@dataclass(frozen=True, slots=True)
class Reported:
    """What became of a node's report."""

    changes: list[Change] = field(default_factory=list)
    order: Action | None = None
    known: bool = True
    kept_result: bool = False


@dataclass(frozen=True, slots=True)
class Ordered:
    """What became of an order: what changed; or which life's node has to be asked first; whom to tell to let go."""

    changes: list[Change] = field(default_factory=list)
    ask: int | None = None
    stray: int | None = None
    past: str = ""


def grid_number(db: sqlite3.Connection) -> int:
    """The number that this queue's message ids begin with; made once, by chance."""
    row = db.execute("SELECT value FROM meta WHERE name = 'grid'").fetchone()
    if row is not None:
        return int(row[0])
    number = secrets.randbits(GRID_BITS)
    now = int(time.time())
    db.executemany("INSERT INTO meta VALUES (?, ?)", [("grid", number), ("cluster", 0), ("birth", now), ("version", 1)])
    return number


def birth(db: sqlite3.Connection) -> int:
    """When the queue was made, seconds since the epoch."""
    return int(db.execute("SELECT value FROM meta WHERE name = 'birth'").fetchone()[0])


def next_cluster(db: sqlite3.Connection) -> int:
    row = db.execute("UPDATE meta SET value = value + 1 WHERE name = 'cluster' RETURNING value").fetchone()
    return int(row[0])


# -- submitting --------------------------------------------------------------------------------------------------


def insert(
    db: sqlite3.Connection,
    scheduler: str,
    jobs: Sequence[NewJob],
    cluster: int | None = None,
    procs: Sequence[int] = (),
) -> tuple[list[JobId], list[Change]]:
    """Put jobs into the queue as one cluster: their ids. A job whose SubmitKey is there has that job's id.

    `procs` are the jobs' numbers in a cluster that is there already.
    """
    now_ns = time.time_ns()
    now = now_ns // 1_000_000_000
    ids: list[JobId] = []
    changes: list[Change] = []
    groups: Counter[tuple[int, JobStatus]] = Counter()
    for job in jobs:
        if job.submit_key is not None and (earlier := _with_key(db, job.submit_key, job.owner)) is not None:
            ids.append(earlier)
            continue
        if cluster is None:
            cluster = next_cluster(db)
        job_id = JobId(cluster, procs[len(changes)] if procs else len(changes))
        name = job.submission or f"{scheduler}#{cluster}"
        group = _submission(db, name, job.owner, now, now_ns)
        status = JobStatus.HELD if job.held else JobStatus.IDLE
        groups[group, status] += 1
        ad = job.ad | {
            "ClusterId": job_id.cluster, "ProcId": job_id.proc, "QDate": now, "Submission": quoted(name),
            "GlobalJobId": quoted(f"{scheduler}#{job_id}#{now}"),
        }  # fmt: skip
        db.execute(
            """INSERT INTO job (id, status, stage, life, prio, qdate, entered, owner, identity, submission, created,
                updated, input, submit_key, ad) VALUES (?, ?, 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                job_id.row, int(status), job.prio, now, now, job.owner, job.identity, group, now_ns, now_ns, job.input,
                job.submit_key, _dump(ad),
            ),
        )  # fmt: skip
        _note(db, job_id, now_ns, status, job.identity or job.owner, "submitted")
        ids.append(job_id)
        changes.append(Change(job_id, job.owner, name, None, status, None, Stage.WAITING, "submitted"))
    for (group, status), count in groups.items():
        _count(db, group, None, status, count)
    return ids, changes


def _with_key(db: sqlite3.Connection, key: str, owner: str) -> JobId | None:
    row = db.execute("SELECT id FROM job WHERE submit_key = ? AND owner = ?", (key, owner)).fetchone()
    return None if row is None else JobId.from_row(row[0])


def _submission(db: sqlite3.Connection, name: str, owner: str, now: int, now_ns: int) -> int:
    found = db.execute("SELECT id FROM submission WHERE name = ? AND owner = ?", (name, owner)).fetchone()
    if found is not None:
        return int(found[0])
    made = db.execute(
        "INSERT INTO submission (name, owner, qdate, updated) VALUES (?, ?, ?, ?)", (name, owner, now, now_ns)
    )
    return int(made.lastrowid or 0)


# -- to the grid -------------------------------------------------------------------------------------------------


def take(db: sqlite3.Connection, count: int) -> tuple[list[JobRecord], list[Change]]:
    """The jobs that are next, by priority, then in the order they came; their messages are about to be sent."""
    query = f"SELECT {COLUMNS} {FROM} WHERE status = 1 AND stage = 0 ORDER BY prio DESC, job.id LIMIT ?"
    jobs = [record(row) for row in db.execute(query, (count,))]
    db.executemany("UPDATE job SET stage = 1 WHERE id = ?", [(job.id.row,) for job in jobs])
    changes = [_moved(job, job.status, Stage.INTENT) for job in jobs]
    return [replace(job, stage=Stage.INTENT) for job in jobs], changes


def uncertain(db: sqlite3.Connection, among: Iterable[JobId] | None = None) -> list[JobRecord]:
    """Jobs whose messages may or may not have reached the broker."""
    rows = [record(row) for row in db.execute(f"SELECT {COLUMNS} {FROM} WHERE stage = 1 AND status = 1")]
    return rows if among is None else [row for row in rows if row.id in set(among)]


def confirmed(db: sqlite3.Connection, jobs: Sequence[tuple[JobId, int]]) -> list[Change]:
    """The broker has these lives' messages."""
    changes = []
    for job, life in jobs:
        found = db.execute(
            "UPDATE job SET stage = 2 WHERE id = ? AND life = ? AND stage = 1 RETURNING owner, status", (job.row, life)
        ).fetchone()
        if found is not None:
            status = JobStatus(found[1])
            changes.append(Change(job, found[0], "", status, status, Stage.INTENT, Stage.SENT))
    return changes


def not_sendable(db: sqlite3.Connection, job_id: JobId, life: int, reason: str, code: int) -> list[Change]:
    """Hold a job whose message no broker takes."""
    job = load(db, job_id)
    if job is None or job.life != life or job.stage is not Stage.INTENT:
        return []
    ad = job.ad | {"HoldReason": quoted(reason), "HoldReasonCode": code}
    return [_save(db, replace(job, ad=ad), JobStatus.HELD, Stage.WAITING, "agent", reason)]


def lost(db: sqlite3.Connection, job_id: JobId, life: int) -> list[Change]:
    """Nobody has a job's message any more: it is as uncertain as before it was sent. What was ending has ended."""
    job = load(db, job_id)
    if job is None or job.life != life or job.stage not in (Stage.SENT, Stage.STARTED, Stage.ENDING):
        return []
    why = "no node has it, and it does not wait on the broker"
    if job.stage is not Stage.ENDING:
        return [_save(db, job, JobStatus.IDLE, Stage.INTENT, "agent", why)]
    if job.status is JobStatus.IDLE:
        job = _new_life(job)
    return [_save(db, job, job.status, Stage.OVER if job.status in OVER else Stage.WAITING, "", "")]


# -- what nodes report -------------------------------------------------------------------------------------------


def apply_report(
    db: sqlite3.Connection, job_id: JobId, life: int, report: Report, said: Ad, size: int | None, body: bytes | None
) -> Reported:
    """Note what a node said of a life of a job; a result of `size` bytes came along, `body` if it is kept here."""
    job = load(db, job_id)
    if job is None:
        return Reported(known=False)
    present = life == job.life
    move = step(job.status, job.stage, report, present=present)
    if not present or (job.status in OVER and job.stage is Stage.OVER):
        return Reported(order=move.order)
    job.ad = _merge(job.ad, said)
    kept = size is not None and report in FINAL
    if kept:
        job.result = size
        if body is not None:
            db.execute("INSERT OR REPLACE INTO result VALUES (?, ?)", (job_id.row, body))
    who = str(said.get("RemoteHost", job.ad.get("RemoteHost", "node"))).strip('"')
    if move.again:
        job = _new_life(job)
    why = _why(report, said)
    status, stage = move.status or job.status, job.stage if move.stage is None else move.stage
    if status is job.status:
        why = ""
    return Reported([_save(db, job, status, stage, who, why)], move.order, kept_result=kept)


def _merge(ad: Ad, said: Mapping[str, HeaderValue]) -> Ad:
    """An ad with what a node added: its own attributes, and those that are new; the slot's are not among them."""
    names = {name.lower(): name for name in ad}
    merged = dict(ad)
    for name, value in said.items():
        lower = name.lower()
        if lower in NODES_OWN:
            old = names.get(lower)
            if old is not None and old != name:
                merged.pop(old)
            merged[name] = value
    return merged


def _why(report: Report, said: Ad) -> str:
    for name in ("HoldReason", "RemoveReason", "ExitReason", "LastRejMatchReason"):
        if report is not Report.RUNNING and isinstance(value := said.get(name), str):
            return value.strip('"')
    return report.value


# -- what users order --------------------------------------------------------------------------------------------


def apply_order(
    db: sqlite3.Connection,
    job_id: JobId,
    order: Order,
    may: Callable[[JobRecord], None],
    who: str,
    reason: str,
    told: int | None = None,
    unreached: bool = False,
) -> Ordered:
    """Do what a user ordered. If a node has the job and was not told, nothing is done: the life comes back in `ask`.

    `told` is the life that a node was told of; `unreached` says that none answered. `may` raises MethodError for who
    may not. Raises MethodError for a job that is unknown or in the wrong state.
    """
    job = known(db, job_id)
    may(job)
    rule = ORDERS[order]
    if told is not None and job.status is rule.after:
        return Ordered(past=rule.past)  # the node has said so itself meanwhile
    if job.status not in rule.before or (order is Order.CONTINUE and job.stage is not Stage.STARTED):
        raise MethodError(Code.WRONG_STATE, _wrong_state(job, order))
    stage, stray = job.stage, None
    match order:
        case Order.RELEASE:
            if job.life >= MAX_LIFE:
                raise MethodError(Code.QUOTA, f"job {job_id} was released {MAX_LIFE} times; submit it anew")
            if stage is Stage.WAITING:
                job = _new_life(job)
            else:  # its node still ends it; it runs again when that is done
                job.ad = _released(job.ad)
            job.ad["ReleaseReason"] = quoted(reason)
        case Order.SUSPEND | Order.CONTINUE:
            if told != job.life:
                return Ordered(ask=job.life)
        case Order.HOLD | Order.REMOVE:
            gone = Stage.OVER if order is Order.REMOVE else Stage.WAITING
            if stage is Stage.STARTED and told != job.life:
                if not unreached:
                    return Ordered(ask=job.life)
                stage = gone
            elif stage is Stage.STARTED:
                stage = Stage.ENDING
            elif stage in (Stage.INTENT, Stage.SENT):
                stage, stray = gone, job.life
            elif stage is Stage.WAITING:
                stage = gone
            job.ad |= _ended_by(order, reason)
    return Ordered([_save(db, job, rule.after, stage, who, reason or rule.past)], stray=stray, past=rule.past)


def _ended_by(order: Order, reason: str) -> Ad:
    if order is Order.HOLD:
        return {"HoldReason": quoted(reason), "HoldReasonCode": 1}
    return {"RemoveReason": quoted(reason)}


def _wrong_state(job: JobRecord, order: Order) -> str:
    wanted = " or ".join(sorted(NAMES[status] for status in ORDERS[order].before))
    if order is Order.REMOVE:
        return f"job {job.id} is {NAMES[job.status]} already"
    return f"job {job.id} is {NAMES[job.status]}; only a job that is {wanted} can be {ORDERS[order].past}"


def set_attribute(
    db: sqlite3.Connection,
    job_id: JobId,
    name: str,
    value: HeaderValue,
    may: Callable[[JobRecord], None],
    told: int | None = None,
    waits: int | None = None,
) -> Ordered:
    """Change a job's ad. What is out there has the old one: `ask` is the life whose node is to be told first.

    `told` is the life that a node was told of, `waits` one that no node has: its message is a stray then, and the job
    is sent anew, with the changed ad.
    """
    job = known(db, job_id)
    may(job)
    if job.status in OVER:
        raise MethodError(Code.WRONG_STATE, f"job {job_id} is {NAMES[job.status]}; its ad does not change any more")
    prio = name.lower() == "jobprio"
    stage, stray = job.stage, None
    if job.status is JobStatus.IDLE and job.stage in (Stage.INTENT, Stage.SENT) and not prio:
        if waits == job.life < MAX_LIFE:
            stage, stray = Stage.WAITING, job.life
            job.life += 1
        elif told != job.life:
            return Ordered(ask=job.life)
    elif job.stage is Stage.STARTED and told != job.life:
        return Ordered(ask=job.life)
    for old in [old for old in job.ad if old.lower() == name.lower()]:
        del job.ad[old]
    job.ad[name] = value
    if prio and isinstance(value, int):
        job.prio = value
    return Ordered([_save(db, job, job.status, stage, "", "")], stray=stray)


def _new_life(job: JobRecord) -> JobRecord:
    return replace(job, life=job.life + 1, ad=_released(job.ad), result=None)


def _released(ad: Ad) -> Ad:
    """An ad as its next life begins with it: what the last one left is gone, but for why it was held."""
    kept = {name: value for name, value in ad.items() if name.lower() not in FORGOTTEN}
    if "HoldReason" in ad:
        kept["LastHoldReason"] = ad["HoldReason"]
    if "RemoteHost" in ad:
        kept["LastRemoteHost"] = ad["RemoteHost"]
    return kept


# -- one job -----------------------------------------------------------------------------------------------------


def record(row: Sequence[Any]) -> JobRecord:
    """A job from the values of COLUMNS."""
    (
        row_id, status, stage, life, prio, qdate, entered, owner, identity, submission, created, updated, given, result,
        ad,
    ) = row  # fmt: skip
    return JobRecord(
        JobId.from_row(row_id), JobStatus(status), Stage(stage), life, prio, qdate, entered, owner, identity,
        submission, created, updated, given, result, json.loads(ad),
    )  # fmt: skip


def load(db: sqlite3.Connection, job: JobId) -> JobRecord | None:
    row = db.execute(f"SELECT {COLUMNS} {FROM} WHERE job.id = ?", (job.row,)).fetchone()
    return None if row is None else record(row)


def known(db: sqlite3.Connection, job: JobId) -> JobRecord:
    """A job. Raises MethodError if there is none of that id."""
    found = load(db, job)
    if found is None:
        raise MethodError(Code.UNKNOWN_JOB, f"job {job} is unknown: never submitted here, or over and forgotten")
    return found


def _save(db: sqlite3.Connection, job: JobRecord, status: JobStatus, stage: Stage, who: str, why: str) -> Change:
    """Write a job back, in a status and stage that may be new."""
    before, stage_before = job.status, job.stage
    now_ns = time.time_ns()
    now = now_ns // 1_000_000_000
    seconds = 0
    if status is not before:
        seconds, job.entered = max(0, now - job.entered), now
        job.ad["LastJobStatus"] = int(before)
        group = db.execute("SELECT submission FROM job WHERE id = ?", (job.id.row,)).fetchone()[0]
        _count(db, group, before, status, 1)
        _note(db, job.id, now_ns, status, who, why)
    db.execute(
        """UPDATE job SET status = ?, stage = ?, life = ?, prio = ?, entered = ?, updated = ?, result = ?, ad = ?,
            ended = ? WHERE id = ?""",
        (
            status, stage, job.life, job.prio, job.entered, now_ns, job.result, _dump(job.ad),
            now if status in OVER else None, job.id.row,
        ),
    )  # fmt: skip
    user_log = text_of(job.ad, "UserLog") or ""
    return Change(job.id, job.owner, job.submission, before, status, stage_before, stage, why, who, seconds, user_log)


def _moved(job: JobRecord, status: JobStatus, stage: Stage) -> Change:
    return Change(job.id, job.owner, job.submission, job.status, status, job.stage, stage)


def _note(db: sqlite3.Connection, job: JobId, now: int, status: JobStatus, who: str, why: str) -> None:
    values = (job.row, now, status, who[:MAX_STEP_TEXT], why[:MAX_STEP_TEXT])
    db.execute("INSERT INTO step VALUES (?, ?, ?, ?, ?)", values)


def _count(db: sqlite3.Connection, group: int, before: JobStatus | None, after: JobStatus | None, count: int) -> None:
    """Keep a submission's counts: so many of its jobs went from one status to another."""
    terms = ([f"n{int(before)} = n{int(before)} - {count}"] if before else []) + (
        [f"n{int(after)} = n{int(after)} + {count}"] if after else []
    )
    db.execute(f"UPDATE submission SET {', '.join(terms)}, updated = ? WHERE id = ?", (time.time_ns(), group))


def _dump(ad: Ad) -> str:
    return json.dumps(ad, separators=(",", ":"))


# -- history -----------------------------------------------------------------------------------------------------


def forget(db: sqlite3.Connection, before: int, keep: int, at_once: int) -> tuple[list[Change], int]:
    """Forget jobs that ended before then, and of more than `keep` the oldest; at most so many at once.

    What comes back are their changes, whose files can go, and the bytes that they took.
    """
    number = db.execute("SELECT count(*) FROM job WHERE ended IS NOT NULL").fetchone()[0]
    query = f"SELECT {COLUMNS}, job.submission {FROM} WHERE ended IS NOT NULL AND stage = 5 ORDER BY ended LIMIT ?"
    changes: list[Change] = []
    freed = 0
    for *row, group in db.execute(query, (at_once,)).fetchall():
        job = record(row)
        if job.entered >= before and number - len(changes) <= keep:
            break
        for table, column in (("job", "id"), ("step", "job"), ("result", "job")):
            db.execute(f"DELETE FROM {table} WHERE {column} = ?", (job.id.row,))
        _count(db, group, job.status, None, 1)
        db.execute("DELETE FROM submission WHERE id = ? AND n1+n2+n3+n4+n5+n6+n7 = 0", (group,))
        changes.append(Change(job.id, job.owner, job.submission, job.status, None, job.stage, None))
        freed += (job.input or 0) + (job.result or 0)
    return changes, freed
