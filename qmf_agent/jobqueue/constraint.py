"""Queries of the queue by a ClassAd expression, as `carod q -constraint` asks.

Each job's ad would have to be read for that. Three things make it cheap. Of a conjunction, terms about what has a
column are left to the database. Terms that compare another attribute with a string are looked up in the ad's text as it
is stored, which tells in most cases without reading it that the job does not match. And of an ad that is read only
those attributes are looked at that the expression depends on.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from carod.amqp import HeaderValue
from carod.classad import ClassAd, ClassAdSyntaxError, Expr, parse_value
from carod.classad.expr import Attribute, Binary, Literal, Parentheses
from qmf_agent.jobqueue.jobs import JobRecord
from qmf_agent.jobqueue.records import COLUMNS, FROM, record
from qmf_agent.model import Code, MethodError

SLICE = 0.05
"""Seconds that one look at the jobs may take before others have their turn."""
PAGE = 500
NUMBERS = {
    "clusterid": "(job.id >> 20)", "procid": "(job.id & 1048575)", "jobstatus": "job.status", "jobprio": "job.prio",
    "qdate": "job.qdate", "enteredcurrentstatus": "job.entered",
}  # fmt: skip
TEXTS = {"owner": "job.owner", "submission": "submission.name"}
COMPARED = {"==": "=", "=?=": "=", "!=": "<>", "=!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|'[^']+'")
_AD = COLUMNS.replace("\n", " ").replace(" ", "").split(",").index("job.ad")


@dataclass(frozen=True, slots=True)
class Needle:
    """An attribute that must be this string, in lower case (None: must be there at all), for a job to match."""

    key: str
    text: str | None

    def may_be_in(self, stored: str) -> bool:
        """Whether an ad's text, in lower case, may be that of a match; only a plain string is known to be another."""
        at = stored.find(self.key)
        if at < 0:
            return False
        if self.text is None or stored.find(self.key, at + 1) >= 0:
            return True
        start = at + len(self.key) + 3
        if stored[start - 3 : start] != '"\\"':
            return True
        end = stored.find("\\", start)
        return stored[end : end + 3] != '\\""' or stored[start:end] == self.text


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
        self._names = _names_in(text)
        self._needles: list[Needle] = []
        conditions, self._values = [only], [*values]
        for term in _terms(self._expr):
            condition = self._condition(*term)
            if condition is not None:
                conditions.append(condition)
        where = " AND ".join([*conditions, "job.id > ?"])
        self._query = f"SELECT {COLUMNS} {FROM} WHERE {where} ORDER BY job.id LIMIT {PAGE}"

    def _condition(self, name: str, symbol: str, value: Any) -> str | None:
        """What a term is to the database; one that it can't decide may become a needle."""
        if name in NUMBERS:
            if type(value) is not int or abs(value) >= 1 << 62:
                return None
            self._values.append(value)
            return f"{NUMBERS[name]} {COMPARED[symbol]} ?"
        if symbol in ("=!=", "=?=") and type(value) is not str:
            return None
        plain = type(value) is str and value.isascii()
        if name in TEXTS:
            if symbol not in ("==", "=?=") or not plain:
                return None
            self._values.append(value)
            return f"{TEXTS[name]} = ?{' COLLATE NOCASE' if symbol == '==' else ''}"
        if symbol != "=!=" and name.isascii() and name.isidentifier():
            as_stored = plain and value.isprintable() and not set(value) & {'"', "\\"}
            sought = value.lower() if as_stored and symbol in ("==", "=?=") else None
            self._needles.append(Needle(f'"{name}":', sought))
        return None

    def look(self, db: sqlite3.Connection, after: int, limit: int) -> tuple[list[JobRecord], int]:
        """Matching jobs after a row, and the row to go on after; 0 when all have been looked at."""
        found: list[JobRecord] = []
        if self._expr is None and not self._always:
            return found, 0
        end = time.monotonic() + SLICE
        while len(found) < limit:
            page = db.execute(self._query, (*self._values, after)).fetchall()
            for row in page:
                after = row[0]
                if self._may_match(row[_AD]) and self.matches(job := record(row)):
                    found.append(job)
                    if len(found) >= limit:
                        return found, after
            if len(page) < PAGE:
                return found, 0
            if time.monotonic() > end:
                break
        return found, after

    def _may_match(self, stored: str) -> bool:
        if not self._needles:
            return True
        lower = stored.lower()
        return all(needle.may_be_in(lower) for needle in self._needles)

    def matches(self, job: JobRecord) -> bool:
        if self._expr is None:
            return self._always
        value = self._expr.evaluate(self._ad_of(job))
        return value is True or (isinstance(value, int | float) and not isinstance(value, bool) and value != 0)

    def _ad_of(self, job: JobRecord) -> ClassAd:
        """What the expression depends on: the attributes that it names, those that these name, and so on."""
        values = full_ad(job)
        spelt = {name.lower(): name for name in values}
        ad = ClassAd()
        wanted = list(self._names)
        while wanted:
            name = spelt.pop(wanted.pop(), None)
            if name is None:
                continue
            value = values[name]
            ad[name] = parsed = parse_value(value) if isinstance(value, str) else value
            if isinstance(parsed, Expr):
                wanted += _names_in(str(value))
        return ad


def _names_in(text: str) -> set[str]:
    """What may be an attribute's name in an expression, in lower case; `'odd name'` is one, too."""
    return {name.strip("'").lower() for name in _NAME.findall(text)}


def _terms(expr: Expr | None) -> Iterator[tuple[str, str, Any]]:
    """Of what must all be true the comparisons of an attribute, in lower case, with a literal."""
    while isinstance(expr, Parentheses):
        expr = expr.inner
    if not isinstance(expr, Binary):
        return
    if expr.symbol == "&&":
        yield from _terms(expr.left)
        yield from _terms(expr.right)
    elif expr.symbol in COMPARED:
        left, right, symbol = expr.left, expr.right, expr.symbol
        if isinstance(left, Literal):
            left, right, symbol = right, left, MIRRORED.get(symbol, symbol)
        if isinstance(left, Attribute) and isinstance(right, Literal) and _is_own(left):
            yield left.name.lower(), symbol, right.value


def _is_own(attribute: Attribute) -> bool:
    """Whether it is the job's: `Name` or `MY.Name`."""
    base = attribute.base
    if base is None:
        return not attribute.absolute
    return isinstance(base, Attribute) and base.base is None and base.name.lower() == "my" and not base.absolute


def full_ad(job: JobRecord) -> dict[str, HeaderValue]:
    """A job's ad with what the store keeps beside it."""
    return job.ad | {
        "JobStatus": int(job.status), "JobPrio": job.prio, "QDate": job.qdate, "EnteredCurrentStatus": job.entered,
    }  # fmt: skip


def as_classad(values: Mapping[str, HeaderValue]) -> ClassAd:
    return ClassAd({name: parse_value(value) if isinstance(value, str) else value for name, value in values.items()})


def projected(values: dict[str, HeaderValue], names: Collection[str]) -> dict[str, HeaderValue]:
    """Of an ad these attributes; all of it if none are named."""
    if not names:
        return values
    wanted = {name.lower() for name in names}
    return {name: value for name, value in values.items() if name.lower() in wanted}
