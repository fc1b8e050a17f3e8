"""Queries of the queue by a ClassAd expression, as `carod q -constraint` asks.

Each job's ad would have to be read for that. Two things make it cheap: conditions on what has a column are left to the
database, and of an ad only the attributes that the expression names are looked at, unless these are expressions
themselves.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Collection, Mapping
from typing import Any

from carod.amqp import HeaderValue
from carod.classad import ClassAd, ClassAdSyntaxError, Expr, parse_value
from qmf_agent.jobqueue.jobs import JobRecord
from qmf_agent.jobqueue.lookup import Condition, jobs
from qmf_agent.model import Code, MethodError

SLICE = 0.05
"""Seconds that one look at the jobs may take before others have their turn."""
_TERM = re.compile(
    r"\s*\(*\s*(ClusterId|ProcId|JobStatus|Owner|Submission|JobPrio|QDate)\s*(==|=\?=)\s*"
    r'(\d{1,18}|"[^"\\]*")\s*\)*\s*',
    re.IGNORECASE,
)
_COLUMNS = {
    "clusterid": "(job.id >> 20)", "procid": "(job.id & 1048575)", "jobstatus": "job.status", "owner": "job.owner",
    "submission": "submission.name", "jobprio": "job.prio", "qdate": "job.qdate",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Constraint:
    """A parsed constraint. Raises MethodError for text that is no expression."""

    def __init__(self, text: str, only: str = "TRUE", values: tuple[Any, ...] = ()) -> None:
        self.text = text
        try:
            parsed = parse_value(text) if text.strip() else True
        except ClassAdSyntaxError as error:
            raise MethodError(Code.BAD_VALUE, f"constraint: {error}") from None
        self._expr = parsed if isinstance(parsed, Expr) else None
        self._always = parsed is True or (isinstance(parsed, int | float) and parsed != 0)
        self._names = frozenset(name.lower() for name in _NAME.findall(text))
        sql, found = _conditions(text) if self._expr is not None else ([], [])
        self._condition = Condition(" AND ".join([only, *sql]), (*values, *found), {})

    def look(self, db: sqlite3.Connection, after: int, limit: int) -> tuple[list[JobRecord], int]:
        """Matching jobs after a row, and the row to go on after; 0 when all have been looked at."""
        found: list[JobRecord] = []
        if self._expr is None and not self._always:
            return found, 0
        end = time.monotonic() + SLICE
        while len(found) < limit:
            page = jobs(db, self._condition, after)
            for job in page:
                after = job.id.row
                if self.matches(job):
                    found.append(job)
                    if len(found) >= limit:
                        return found, after
            if not page:
                return found, 0
            if time.monotonic() > end:
                break
        return found, after

    def matches(self, job: JobRecord) -> bool:
        if self._expr is None:
            return self._always
        value = self._expr.evaluate(self._ad_of(job))
        return value is True or (isinstance(value, int | float) and not isinstance(value, bool) and value != 0)

    def _ad_of(self, job: JobRecord) -> ClassAd:
        values = full_ad(job)
        ad = ClassAd()
        for name, value in values.items():
            if name.lower() in self._names:
                ad[name] = parsed = parse_value(value) if isinstance(value, str) else value
                if isinstance(parsed, Expr):
                    return as_classad(values)
        return ad


def full_ad(job: JobRecord) -> dict[str, HeaderValue]:
    """A job's ad with what the store keeps beside it."""
    return job.ad | {
        "JobStatus": int(job.status), "JobPrio": job.prio, "QDate": job.qdate, "EnteredCurrentStatus": job.entered,
    }  # fmt: skip


def as_classad(values: Mapping[str, HeaderValue]) -> ClassAd:
    return ClassAd({name: parse_value(value) if isinstance(value, str) else value for name, value in values.items()})


def _conditions(text: str) -> tuple[list[str], list[Any]]:
    """Terms of a conjunction that a column answers; equal strings are so in any case, as ClassAds have it."""
    if "||" in text or "?" in text.replace("=?=", "") or "!(" in text.replace(" ", ""):
        return [], []
    sql, values = [], []
    for term in text.split("&&"):
        matched = _TERM.fullmatch(term)
        if matched is None or term.count("(") != term.count(")"):
            continue
        column, text_value = _COLUMNS[matched[1].lower()], matched[3]
        if text_value.startswith('"'):
            if column.startswith("(") or column in ("job.status", "job.prio", "job.qdate"):
                continue
            sql.append(f"{column} = ? COLLATE NOCASE")
            values.append(text_value[1:-1])
        elif column not in ("job.owner", "submission.name"):
            sql.append(f"{column} = ?")
            values.append(int(text_value))
    return sql, values


def projected(values: dict[str, HeaderValue], names: Collection[str]) -> dict[str, HeaderValue]:
    """Of an ad these attributes; all of it if none are named."""
    if not names:
        return values
    wanted = {name.lower() for name in names}
    return {name: value for name, value in values.items() if name.lower() in wanted}
