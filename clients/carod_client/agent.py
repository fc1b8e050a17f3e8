"""The management agent, for commands: its job queue asked, ordered and fed through `qmf.console`. Calls block.

with Agent.find(url, "grid") as agent:
    for ad in agent.jobs('Owner == "ann"'):
        print(ad["ClusterId"], ad["JobStatus"])
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self

from qmf.console import MethodResult, Object, QmfError, Session

from carod.amqp import Body
from carod.classad import ClassAd, ClassAdSyntaxError, Expr, parse, unparse
from carod.job import JobStatus
from carod_client.errors import BrokerLost, GridError
from carod_client.results import Results

PACKAGE = "com.redhat.grid"
PRODUCT = "com.redhat.grid:scheduler:"
EXPRESSION = "com.redhat.grid.Expression"
DESCRIPTORS = "!!descriptors"
UNKNOWN_JOB, WRONG_STATE = 65_537, 65_538
"""Two of the agent's status codes (docs/reference/agent.md)."""
PIECE = 45_000
"""Bytes of input files that go in one `send`: the agent takes at most 48,000."""
ADS_AT_ONCE = 200
"""Jobs in one SubmitJobs: the agent takes at most 1,000."""
_ID = re.compile(r"(?:(?P<scheduler>[^#\s]+)#)?(?P<cluster>\d{1,12})(?:\.(?P<proc>\d{1,7}))?\Z")


class NoAgent(GridError):
    """No agent answers for this job queue."""


class AgentRefused(GridError):
    """The agent did not do it: `status` is its code, the text its words."""

    def __init__(self, text: str, status: int, job_id: str = "") -> None:
        super().__init__(text)
        self.status, self.job_id = status, job_id


@dataclass(frozen=True, slots=True)
class JobName:
    """What a user names jobs by: a cluster, or one job of it; `proc` None means all of the cluster."""

    cluster: int
    proc: int | None
    scheduler: str = ""

    @classmethod
    def read(cls, text: str) -> JobName | None:
        """None for a text that is no such name: then it is a message id."""
        match = _ID.match(text)
        if match is None:
            return None
        proc = match["proc"]
        return cls(int(match["cluster"]), None if proc is None else int(proc), match["scheduler"] or "")

    def __str__(self) -> str:
        return f"{self.cluster}" if self.proc is None else f"{self.cluster}.{self.proc}"

    @property
    def constraint(self) -> str:
        proc = "" if self.proc is None else f" && ProcId == {self.proc}"
        return f"ClusterId == {self.cluster}{proc}"


class Order(Enum):
    """What can be ordered: the method, in which states a job must be, and how that is called when it is done."""

    HOLD = ("HoldJob", frozenset({1, 2, 7}), "held")
    RELEASE = ("ReleaseJob", frozenset({5}), "released")
    REMOVE = ("RemoveJob", frozenset({1, 2, 5, 7}), "marked for removal")
    SUSPEND = ("SuspendJob", frozenset({2}), "suspended")
    CONTINUE = ("ContinueJob", frozenset({7}), "continued")

    @property
    def method(self) -> str:
        return self.value[0]

    @property
    def before(self) -> frozenset[int]:
        return self.value[1]

    @property
    def past(self) -> str:
        return self.value[2]


class Agent:
    """An agent and the connection to it. Use with `with`. Methods raise AgentRefused, BrokerLost, GridError."""

    def __init__(self, session: Session, scheduler: Object) -> None:
        self._session, self._scheduler = session, scheduler
        self.name = str(scheduler.Name)
        self.machine = str(scheduler.Machine or "")
        self.address = str(scheduler.MyAddress or "")

    @classmethod
    def find(cls, url: str, queue: str, name: str = "") -> Self:
        """The agent of a job queue. Raises NoAgent, BrokerLost, BadEndpoint; GridError if there are several."""
        session = Session()
        try:
            try:
                broker = session.addBroker(url)
            except QmfError as error:
                raise BrokerLost(f"{error}; is a broker running there? (CAROD_BROKER names another)") from None
            found = []
            for agent in session.getAgents():
                if agent.getAgentBank().startswith(PRODUCT):
                    found += agent.getObjects(_class="scheduler", _package=PACKAGE)
            fitting = [each for each in found if (not name and each.Pool == queue) or name == each.Name]
            if len(fitting) == 1:
                return cls(session, fitting[0])
            raise _not_found(fitting, found, queue, name, broker.getFullUrl())
        except QmfError as error:
            session.close()
            raise NoAgent(str(error)) from None
        except BaseException:
            session.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    # -- looking ---------------------------------------------------------------------------------------------------

    def jobs(
        self, constraint: str = "", *, scope: str = "queue", names: Iterable[str] = (), limit: int | None = None
    ) -> Iterator[ClassAd]:
        """Ads of the jobs that a constraint is true for, in the order of their ids; a part is asked for at a time.

        `scope` is `queue` (not over), `history` (over) or `all`; with `names` the ads have only those attributes.
        """
        after, left = 0, limit
        wanted = ",".join(names)
        while left is None or left > 0:
            most = 0 if left is None else min(left, 500)
            part, following = self._part(constraint, scope, wanted, after, most)
            if wanted and any(isinstance(value, Expr) for ad in part for value in ad.values()):
                wanted = ""  # what an expression comes to depends on the others
                continue
            yield from part
            after = following
            if not after:
                return
            if left is not None:
                left -= len(part)

    def _part(self, constraint: str, scope: str, names: str, after: int, limit: int) -> tuple[list[ClassAd], int]:
        said = self._call(
            "QueryJobs", Constraint=constraint, Scope=scope, Attributes=names, After=after, Limit=limit
        ).outArgs  # fmt: skip
        return [read_ad(shown) for shown in said.get("Jobs") or []], int(said.get("Next") or 0)

    def job(self, name: JobName) -> ClassAd:
        """A job's ad. Raises AgentRefused if there is none."""
        self._check(name)
        for ad in self.jobs(name.constraint, scope="all", limit=1):
            return ad
        raise AgentRefused(
            f"job {name} is unknown to agent {self.name}: never submitted there, or over and forgotten", UNKNOWN_JOB
        )

    def slots(self) -> list[ClassAd]:
        """The slots of the grid, as their nodes described them last."""
        try:
            found = self._scheduler.getAgent().getObjects(_class="slot", _package=PACKAGE)
        except QmfError as error:
            raise GridError(f"agent {self.name}: {error}") from None
        ads = []
        for each in found:
            pairs: list[tuple[Any, Any]] = [*each.getProperties(), *each.getStatistics()]
            values = {described.name: value for described, value in pairs}
            ads.append(ClassAd({name: value for name, value in values.items() if value is not None}))
        return ads

    # -- submitting --------------------------------------------------------------------------------------------------

    def begin(self, beside: JobName | None = None) -> JobName:
        """Reserve a cluster, or the next job of one; what is sent and submitted with that name belongs to it."""
        made = self._call("create") if beside is None else self._call("createBeside", Id=str(beside))
        return _job_of(made.outArgs["Id"])

    def send(self, job: JobName, body: Body) -> None:
        """The input files' zip, for the jobs that are submitted with this name."""
        file = io.BytesIO(body) if isinstance(body, bytes) else body
        while piece := file.read(PIECE):
            self._call("send", Id=str(job), Data=piece)

    def submit(self, ads: Sequence[ClassAd], job: JobName) -> list[JobName]:
        """Submit jobs: the first is the one that was begun, unless it was submitted already; the others follow it."""
        names: list[JobName] = []
        for at in range(0, len(ads), ADS_AT_ONCE):
            part = [shown_ad(ad) for ad in ads[at : at + ADS_AT_ONCE]]
            names += map(_job_of, self._call("SubmitJobs", Ads=part, Id=str(job)).outArgs["Ids"])
        return names

    # -- orders ------------------------------------------------------------------------------------------------------

    def order(self, order: Order, jobs: Sequence[JobName], reason: str) -> list[AgentRefused | None]:
        """Order something about each job; None for those where it was done."""
        for job in jobs:
            self._check(job)
        many = getattr(self._scheduler, order.method + "Many")
        with_reason = [(str(job), reason) for job in jobs]
        return self._outcomes(jobs, many(with_reason)) if jobs else []

    def set_attribute(self, jobs: Sequence[JobName], name: str, source: str) -> list[AgentRefused | None]:
        """Set an attribute to a ClassAd expression in each job's ad."""
        many = self._scheduler.SetJobAttributeMany
        return self._outcomes(jobs, many([(str(job), name, source) for job in jobs])) if jobs else []

    def _outcomes(self, jobs: Sequence[JobName], results: Iterable[MethodResult]) -> list[AgentRefused | None]:
        return [
            AgentRefused(str(result.text), result.status, str(job)) if result.status else None
            for job, result in zip(jobs, results, strict=True)
        ]

    def _check(self, name: JobName) -> None:
        if name.scheduler and name.scheduler != self.name:
            raise AgentRefused(
                f"job {name.scheduler}#{name} is of another agent; this one is {self.name}", UNKNOWN_JOB, str(name)
            )

    # -- files -------------------------------------------------------------------------------------------------------

    def fetch(self, name: JobName, file: str = "", start: int = 0) -> Iterator[bytes]:
        """A file of a job's result from a byte on, piece by piece; with no name the whole zip. Raises AgentRefused."""
        at = start
        while True:
            result = self._job_server("FetchJobData", Id=str(name), File=file, Start=at, End=0)
            data = _bytes(result.outArgs.get("Data"))
            size = int(result.outArgs.get("Size") or 0)
            if at < 0:
                at = max(0, size + at)
            at += len(data)
            if data:
                yield data
            if not data or at >= size:
                return

    def results(self, name: JobName) -> Results:
        """All files of a job's result. Raises AgentRefused, BadArchive."""
        return Results(b"".join(self.fetch(name)))

    def _job_server(self, method: str, **arguments: Any) -> MethodResult:
        found = self._scheduler.getAgent().getObjects(_class="jobserver", _package=PACKAGE)
        if not found:
            raise GridError(f"agent {self.name} has no JobServer")
        return self._checked(getattr(found[0], method)(**arguments))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _call(self, method: str, **arguments: Any) -> MethodResult:
        try:
            return self._checked(getattr(self._scheduler, method)(**arguments))
        except QmfError as error:
            raise GridError(f"agent {self.name}: {error}") from None

    def _checked(self, result: MethodResult) -> MethodResult:
        if result.status:
            raise AgentRefused(str(result.text), result.status)
        return result


def read_ad(shown: Mapping[str, Any]) -> ClassAd:
    """An ad as GetAd and QueryJobs answer it: expressions are named in `!!descriptors`."""
    expressions = shown.get(DESCRIPTORS)
    expressions = expressions if isinstance(expressions, dict) else {}
    ad = ClassAd()
    for name, value in shown.items():
        if name == DESCRIPTORS:
            continue
        if expressions.get(name) == EXPRESSION and isinstance(value, str):
            try:
                ad[name] = parse(value)
                continue
            except ClassAdSyntaxError:
                pass
        ad[name] = value
    return ad


def shown_ad(ad: ClassAd) -> dict[str, Any]:
    """An ad as SubmitJobs takes it."""
    shown: dict[str, Any] = {}
    expressions = {}
    for name, value in ad.items():
        if isinstance(value, bool | int | float | str) and not isinstance(value, Expr):
            shown[name] = value
        else:
            shown[name] = unparse(value)
            expressions[name] = EXPRESSION
    return shown | ({DESCRIPTORS: expressions} if expressions else {})


def status_of(ad: ClassAd) -> int:
    value = ad.get("JobStatus")
    return value if isinstance(value, int) else int(JobStatus.IDLE)


def _job_of(text: str) -> JobName:
    name = JobName.read(text)
    if name is None:
        raise GridError(f"the agent's answer {text!r} is no job's id")
    return name


def _bytes(data: Any) -> bytes:
    return data if isinstance(data, bytes) else str(data or "").encode()


def _not_found(fitting: list[Object], found: list[Object], queue: str, name: str, url: str) -> GridError:
    if len(fitting) > 1:
        names = ", ".join(sorted(str(each.Name) for each in fitting))
        return GridError(f"several agents keep jobs for queue {queue}: {names}; choose one with --name")
    others = ", ".join(sorted(f"{each.Name} (queue {each.Pool})" for each in found))
    wanted = f"agent {name}" if name else f"agent for queue {queue}"
    mend = f"those that answer: {others}" if others else "start one: qmf-agent start"
    return NoAgent(f"no {wanted} answers at broker {url}; {mend}")
