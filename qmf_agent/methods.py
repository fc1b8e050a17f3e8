"""The methods of the agent's objects, in one table: who calls what, what is checked, what is answered.

Every failure is a MethodError with a code of its own (model.Code). Who may do what: a job that was submitted by a user
whom the broker knows is that user's and QUEUE_SUPER_USERS' to change; a job without one is anybody's, as on the nodes.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from carod.control import Action
from carod.job import JobStatus
from carod.log import event
from qmf_agent.dispatch import Dispatcher
from qmf_agent.dispatch import log as dispatch_log
from qmf_agent.jobqueue import lookup, records
from qmf_agent.jobqueue.ads import Ad, check_ad, check_name, quoted, read_ad, read_value, shown_ad, text_of
from qmf_agent.jobqueue.constraint import Constraint, full_ad, projected
from qmf_agent.jobqueue.jobs import NAMES, ORDERS, OVER, JobId, JobRecord, Order
from qmf_agent.jobqueue.lookup import read_id
from qmf_agent.jobqueue.queue import JobQueue, May
from qmf_agent.jobqueue.records import NewJob
from qmf_agent.model import MAX_DATA, Code, Listener, ManagedObject, MethodError
from qmf_agent.objects import Objects, Pages

Arguments = Mapping[str, Any]
Handler = Callable[[str, Arguments, str | None], Awaitable[dict[str, Any]]]
MAX_ADS = 1000
"""Jobs in one SubmitJobs: some hundred KB of a message, some ten ms of the writer's time."""
MAX_FOUND = 500
SUBMITTED_ON_HOLD = 15
"""HTCondor's HoldReasonCode for a job that its submitter wants held from the start."""
OWNER = re.compile(r"[^\s/@\"'\\]{1,64}")
SUMMARY = ("GlobalJobId", "Cmd", "Args", "Arguments", "HoldReason", "ReleaseReason", "RemoveReason", "RemoteHost")


class Grid:
    """The model (`model.Model`) that the bus serves: objects from `Objects`, methods from here."""

    def __init__(self, queue: JobQueue, dispatcher: Dispatcher, objects: Objects) -> None:
        self._queue, self._dispatcher, self._objects = queue, dispatcher, objects
        config = queue.config
        self._super_users, self._trusted = config.super_users, config.queue_all_users_trusted
        scheduler: dict[str, Handler] = {
            "Submit": self._submit,
            "SubmitJob": self._submit,
            "SubmitJobs": self._submit_jobs,
            "create": self._create,
            "createBeside": self._create_beside,
            "send": self._send,
            "submit": self._submit_draft,
            "SetJobAttribute": self._set_attribute,
            "HoldJob": partial(self._order, Order.HOLD),
            "ReleaseJob": partial(self._order, Order.RELEASE),
            "RemoveJob": partial(self._order, Order.REMOVE),
            "SuspendJob": partial(self._order, Order.SUSPEND),
            "ContinueJob": partial(self._order, Order.CONTINUE),
            "QueryJobs": self._query,
            "GetSteps": self._steps,
            "echo": self._echo,
        }
        self._methods: dict[str, dict[str, Handler]] = {
            "Scheduler": scheduler,
            "Job": {"GetAd": self._get_ad, "Fetch": self._fetch},
            "Submission": {"GetJobSummaries": self._summaries, "echo": self._echo},
            "JobServer": {"GetJobAd": self._get_job_ad, "FetchJobData": self._fetch_job_data},
        }

    # -- the model ---------------------------------------------------------------------------------------------

    def objects(self, class_name: str, where: Mapping[str, Any] | None = None, limit: int | None = None) -> Pages:
        return self._objects.objects(class_name, where, limit)

    async def find(self, class_name: str, name: str) -> ManagedObject | None:
        return await self._objects.find(class_name, name)

    def listen(self, listener: Listener) -> None:
        self._queue.listen(listener)

    async def call(
        self, class_name: str, name: str, method: str, arguments: Arguments, user: str | None
    ) -> dict[str, Any]:
        handler = self._methods.get(class_name, {}).get(method)
        if handler is None:
            raise MethodError(Code.UNKNOWN_METHOD, f"{class_name} has no method {method[:60]!r}")
        if class_name in ("Scheduler", "JobServer") and name != self._queue.scheduler:
            raise MethodError(Code.UNKNOWN_OBJECT, f"there is no {class_name} {name[:100]!r} here")
        try:
            return await handler(name, arguments, user)
        except sqlite3.Error as error:
            event(dispatch_log, "job queue can't be used", 40, method=method, reason=str(error))
            raise MethodError(Code.FAILED, f"the agent can't use its job queue: {error}") from None

    # -- submitting --------------------------------------------------------------------------------------------

    async def _submit(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        new = self._new_job(arguments.get("Ad"), user)
        (job,) = await self._queue.submit([new])
        return {"Id": self._queue.name_of(job)}

    async def _submit_jobs(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        """One cluster of many jobs, or further jobs of a cluster that is there; all or none of them."""
        ads = arguments.get("Ads")
        if not isinstance(ads, list) or not 1 <= len(ads) <= MAX_ADS:
            raise _bad(f"Ads: a list of 1 to {MAX_ADS} ads is needed")
        jobs = []
        for number, ad in enumerate(ads):
            try:
                jobs.append(self._new_job(ad, user))
            except MethodError as error:
                raise MethodError(error.code, f"ad {number}: {error.text}") from None
        if len({job.owner for job in jobs}) > 1:
            raise _bad("Ads: the jobs of one cluster have one Owner")
        if arguments.get("Id"):
            ids = await self._queue.submit_beside(self._id(arguments), jobs)
        else:
            ids = await self._queue.submit(jobs)
        return {"Id": self._queue.name_of(ids[0]), "Ids": [self._queue.name_of(job) for job in ids]}

    async def _create(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        return {"Id": self._queue.name_of(await self._queue.create(user))}

    async def _create_beside(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        return {"Id": self._queue.name_of(await self._queue.create_beside(self._id(arguments), user))}

    async def _send(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        data = arguments.get("Data")
        data = data.encode() if isinstance(data, str) else data
        if not isinstance(data, bytes) or len(data) > MAX_DATA:
            raise _bad(f"Data: at most {MAX_DATA} bytes at a time")
        return {"Size": await self._queue.append(self._id(arguments), data, user)}

    async def _submit_draft(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        job = await self._queue.submit_draft(self._id(arguments), self._new_job(arguments.get("Ad"), user))
        return {"Id": self._queue.name_of(job)}

    def _new_job(self, given: object, user: str | None) -> NewJob:
        """The job that an ad describes, as its submitter may have it. Raises MethodError."""
        ad = read_ad(given)
        names = {name.lower(): name for name in ad}
        owner = self._owner(ad, names, user)
        submission = _given_text(ad, names, "submission")
        key = _given_text(ad, names, "submitkey")
        prio = ad.get(names.get("jobprio", ""), 0)
        held = ad.get(names.get("jobstatus", "")) == JobStatus.HELD
        ad = {name: value for name, value in ad.items() if name.lower() not in records.NOT_SUBMITTED}
        names = {name.lower(): name for name in ad}
        check_ad(ad)
        defaults: Ad = {"Requirements": True, "Iwd": quoted("."), "JobUniverse": 5, "JobPrio": 0}
        ad |= {name: value for name, value in defaults.items() if name.lower() not in names}
        ad["Owner"] = quoted(owner)
        if user is not None:
            ad["AuthenticatedIdentity"] = quoted(user)
        if held:  # as condor_submit has it for `hold = true`
            ad |= {"HoldReason": quoted("submitted on hold at user's request"), "HoldReasonCode": SUBMITTED_ON_HOLD}
        return NewJob(ad, owner, user, submission, prio if isinstance(prio, int) else 0, key, held=held)

    def _owner(self, ad: Ad, names: Mapping[str, str], user: str | None) -> str:
        """Owner: whom the broker knows the submitter as, else, or for those who are trusted, what the ad says."""
        given = _given_text(ad, names, "owner")
        if user is not None and not (self._trusted or user in self._super_users):
            given = user.partition("@")[0]
        if given is None:
            raise _bad("Owner is missing: the ad of a job says whose it is, unless the broker does")
        if not OWNER.fullmatch(given) or not given.isprintable():
            raise _bad(f"Owner: {given[:60]!r} is no user's name: 1 to 64 characters, no spaces, slashes, quotes or @")
        return given

    # -- orders ------------------------------------------------------------------------------------------------

    async def _order(self, order: Order, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        job = self._id(arguments)
        reason = _reason(arguments, order, user)
        may = self._may(user, order.value)
        who = user or "a console"
        ordered = await self._queue.order(job, order, may, who, reason)
        if ordered.ask is not None:
            await self._order_at_node(job, order, may, who, reason, ordered.ask)
        elif ordered.stray is not None and (action := ORDERS[order].action) is not None:
            self._dispatcher.stray(job, ordered.stray, action)
        return {}

    async def _order_at_node(self, job: JobId, order: Order, may: May, who: str, reason: str, life: int) -> None:
        """A node has the job: it is told first."""
        rule = ORDERS[order]
        assert rule.action is not None
        said = await self._dispatcher.ask(job, life, rule.action, reason=reason)
        if said is not None and said.status:
            raise MethodError(Code.WRONG_STATE, f"job {job}: node {said.node} refused: {said.error}")
        if said is not None:
            await self._queue.order(job, order, may, who, reason, told=life)
            return
        if not rule.keep:
            raise self._not_reached(job)
        await self._queue.order(job, order, may, who, reason, unreached=True)
        raise MethodError(
            Code.NOT_REACHED,
            f"job {job} is {NAMES[rule.after]}, but no node answered within {self._patience}: should it still run, "
            "it is ended as soon as a node says so",
        )

    async def _set_attribute(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        job = self._id(arguments)
        name = check_name(arguments.get("Name"))
        value = read_value(name, arguments.get("Value"))
        may = self._may(user, "change")
        if not isinstance(value, bool | int | float | str):
            raise _bad(f"{name}: {value!r:.60} can't be set")
        ordered = await self._queue.set_attribute(job, name, value, may)
        if ordered.ask is None:
            return {}
        life = ordered.ask
        said = await self._dispatcher.ask(job, life, Action.SET_ATTRIBUTE, name=name, value=value)
        if said is not None and said.status:
            raise MethodError(Code.BAD_VALUE, f"job {job}: node {said.node} refused: {said.error}")
        if said is not None:
            ordered = await self._queue.set_attribute(job, name, value, may, told=life)
        else:  # it waits on the broker: what is there is given up, and it is sent anew
            ordered = await self._queue.set_attribute(job, name, value, may, waits=life)
        if ordered.ask is not None:
            raise self._not_reached(job)
        if ordered.stray is not None:
            self._dispatcher.stray(job, ordered.stray, Action.REMOVE)
        return {}

    def _not_reached(self, job: JobId) -> MethodError:
        text = f"job {job} runs, but no node answered within {self._patience}; nothing was done"
        return MethodError(Code.NOT_REACHED, text)

    @property
    def _patience(self) -> str:
        return f"{self._queue.config.control_timeout:g} s"

    def _may(self, user: str | None, what: str) -> May:
        def may(job: JobRecord) -> None:
            if job.identity is not None and user != job.identity and user not in self._super_users:
                who = user or "a console whose user the broker does not say"
                raise MethodError(Code.FORBIDDEN, f"job {job.id} is {job.identity}'s; {who} may not {what} it")

        return may

    # -- looking -----------------------------------------------------------------------------------------------

    async def _get_ad(self, name: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        return {"Ad": shown_ad(full_ad(await self._job(name)))}

    async def _get_job_ad(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        return {"JobAd": shown_ad(full_ad(await self._job(str(arguments.get("Id", "")))))}

    async def _fetch(self, name: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        return await self._data(await self._job(name), arguments)

    async def _fetch_job_data(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        return await self._data(await self._job(str(arguments.get("Id", ""))), arguments)

    async def _data(self, job: JobRecord, arguments: Arguments) -> dict[str, Any]:
        file, start, end = arguments.get("File", ""), arguments.get("Start", 0), arguments.get("End", 0)
        if not isinstance(file, str) or not _is_integer(start) or not _is_integer(end):
            raise _bad("Fetch takes File, a string, and Start and End, integers")
        if file.startswith("/") or ".." in file.split("/") or "\0" in file:
            raise _bad(f"File: {file[:100]!r} is no name in a job's result; names are relative to the job's directory")
        if job.result is None:
            over = job.status in OVER
            code = Code.NOT_KEPT if over else Code.WRONG_STATE
            raise MethodError(code, f"job {job.id} is {NAMES[job.status]} and has no result{'' if over else ' yet'}")
        small = await self._queue.store.read(lambda db: lookup.small_result(db, job.id))
        data, size = await self._queue.file_work(
            lambda: self._queue.spool.fetch(job.id, small, file, int(start), int(end))
        )
        return {"Data": data, "Size": size}

    async def _summaries(self, name: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        found = await self._objects.find("Submission", name)
        if found is None:
            raise MethodError(Code.UNKNOWN_OBJECT, f"there is no submission {name[:100]!r}")
        jobs: list[dict[str, Any]] = []
        where = {"Submission": found.values["Name"], "Owner": found.values["Owner"]}
        async for page in self._objects.objects("Job", where):
            jobs += [_summary(each) for each in page]
        return {"Jobs": jobs}

    async def _query(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        """Ads of jobs that match a constraint, a part at a time: the next one begins after `Next`, 0 is the end."""
        text, scope = str(arguments.get("Constraint") or ""), str(arguments.get("Scope") or "all")
        names, after = str(arguments.get("Attributes") or ""), arguments.get("After", 0)
        if scope not in _SCOPES:
            raise _bad(f"Scope: {scope[:40]!r} is none of {', '.join(_SCOPES)}")
        if not _is_integer(after) or not 0 <= int(after) < lookup.LAST_ROW:
            raise _bad("After: the Next of the answer before is needed, 0 at first")
        constraint = Constraint(text, _SCOPES[scope])
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        limit = arguments.get("Limit") or MAX_FOUND
        limit = min(limit, MAX_FOUND) if _is_integer(limit) and limit > 0 else MAX_FOUND
        found, following = await self._queue.store.read(lambda db: constraint.look(db, int(after) or -1, limit))
        jobs = [shown_ad(projected(full_ad(job), wanted)) for job in found]
        return {"Jobs": jobs, "Next": following}

    async def _steps(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        job = await self._job(str(arguments.get("Id", "")))
        steps = await self._queue.store.read(lambda db: lookup.steps(db, job.id))
        return {"Steps": [{"When": at, "JobStatus": status, "Who": who, "Why": why} for at, status, who, why in steps]}

    async def _echo(self, _: str, arguments: Arguments, user: str | None) -> dict[str, Any]:
        return {"sequence": arguments.get("sequence"), "body": arguments.get("body")}

    # -- ids ---------------------------------------------------------------------------------------------------

    def _id(self, arguments: Arguments) -> JobId:
        text = str(arguments.get("Id", ""))
        job = read_id(text, self._queue.scheduler)
        if job is None:
            text = f"Id: {text[:100]!r} is no job of scheduler {self._queue.scheduler}, whose ids are "
            raise MethodError(Code.UNKNOWN_JOB, f"{text}{self._queue.scheduler}#CLUSTER.PROC")
        return job

    async def _job(self, name: str) -> JobRecord:
        job = self._id({"Id": name})
        return await self._queue.store.read(lambda db: records.known(db, job))


_SCOPES = {"all": "TRUE", "queue": "job.ended IS NULL", "history": "job.ended IS NOT NULL"}


def _given_text(ad: Ad, names: Mapping[str, str], lower: str) -> str | None:
    """A string that a submitter gave. Raises MethodError if it is something else."""
    if lower not in names:
        return None
    name = names[lower]
    text = text_of(ad, name)
    if not text or len(text) > 255 or not text.isprintable():
        raise _bad(f"{name}: {ad[name]!s:.60} is no string of 1 to 255 printable characters")
    return text


def _reason(arguments: Arguments, order: Order, user: str | None) -> str:
    reason = arguments.get("Reason") or ""
    if not isinstance(reason, str):
        raise _bad(f"Reason: a string is needed, not {type(reason).__name__}")
    return reason[:2000] or f"{ORDERS[order].past} by {user or 'a console'}"


def _summary(each: ManagedObject) -> dict[str, Any]:
    names = ("CustomId", "JobStatus", "QDate", "EnteredCurrentStatus", *SUMMARY)
    return {name: each.values[name] for name in names if name in each.values}


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(text: str) -> MethodError:
    return MethodError(Code.BAD_VALUE, text)
