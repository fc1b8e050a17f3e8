"""A job's life in the queue, as data.

                       Submit, release
                             |
                             v
          +----------->  [ Idle ] --- a node starts it ---> [ Running ] <--- continue --- [ Suspended ]
          |               |    ^---- evicted, rejected ------'    |    ---- suspend --->      |
       release            |                                       |                           |
          |             hold                                hold; the node             hold, remove
          |               v                                 holds it; ends                    |
          +---------- [ Held ] <----------------------------------+                           |
                          |                                       v                           |
                          '---- remove ---> [ Removed ]    [ Completed ] <--------------------'

Where a job's message is (`Stage`) is another question than what the job's status is: a job may be held here while the
node that runs it still has KillSigTimeout to end it. Each time that a job is sent to the grid anew, though not when a
broker or node passes it on, is a *life* of its own with a message id of its own, so that a message of an earlier life
is known for what it is, wherever it turns up.

ORDERS says what users can do to a job, REPORTS what becomes of it when a node reports.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from carod.amqp import HeaderValue
from carod.control import Action
from carod.job import JobStatus

IDLE, RUNNING, REMOVED, COMPLETED = JobStatus.IDLE, JobStatus.RUNNING, JobStatus.REMOVED, JobStatus.COMPLETED
HELD, TRANSFERRING, SUSPENDED = JobStatus.HELD, JobStatus.TRANSFERRING_OUTPUT, JobStatus.SUSPENDED
OVER = frozenset((REMOVED, COMPLETED))
"""Statuses that end a job: it is history then."""


class Stage(IntEnum):
    """Where the message of a job's present life is."""

    WAITING = 0
    """Here: it has not been sent, or is not to be run any more."""
    INTENT = 1
    """About to be sent, or sent: the broker has not confirmed it."""
    SENT = 2
    """With the broker, or a node that has not said that it runs it."""
    STARTED = 3
    """With the node that runs it."""
    ENDING = 4
    """With a node that was told to end it; its final reply will come."""
    OVER = 5
    """Nowhere: answered or removed."""


OUT = frozenset((Stage.INTENT, Stage.SENT, Stage.STARTED, Stage.ENDING))


class Report(Enum):
    """What a node can say of a job (wire contract, section 3)."""

    RUNNING = "running"
    UPDATE = "update"
    SUSPENDED = "suspended"
    REJECTED = "rejected"
    EVICTED = "evicted"
    COMPLETED = "completed"
    REMOVED = "removed"
    HELD = "held"


FINAL = frozenset((Report.COMPLETED, Report.REMOVED, Report.HELD))


@dataclass(frozen=True, slots=True)
class Step:
    """What a report changes: None leaves a thing as it is. `order` is what its node is told at once.

    `again` begins a new life: the job goes back among those that wait.
    """

    status: JobStatus | None = None
    stage: Stage | None = None
    order: Action | None = None
    again: bool = False


KEEP = Step()
_AT_LARGE = {  # Idle, Running or Suspended here, and its message is out there
    Report.RUNNING: Step(RUNNING, Stage.STARTED),
    Report.UPDATE: Step(RUNNING, Stage.STARTED),
    Report.SUSPENDED: Step(SUSPENDED, Stage.STARTED),
    Report.REJECTED: Step(IDLE, Stage.SENT),
    Report.EVICTED: Step(IDLE, Stage.SENT),
    Report.COMPLETED: Step(COMPLETED, Stage.OVER),
    Report.REMOVED: Step(REMOVED, Stage.OVER),
    Report.HELD: Step(HELD, Stage.WAITING),
}
REPORTS: dict[tuple[JobStatus, bool], dict[Report, Step]] = {
    (IDLE, False): _AT_LARGE,
    (RUNNING, False): _AT_LARGE,
    (SUSPENDED, False): _AT_LARGE,
    # Released while its node still ends it: it runs again when that is done, unless it was done anyway.
    (IDLE, True): {
        Report.EVICTED: Step(stage=Stage.WAITING, again=True),
        Report.COMPLETED: Step(COMPLETED, Stage.OVER),
        Report.REMOVED: Step(stage=Stage.WAITING, again=True),
        Report.HELD: Step(stage=Stage.WAITING, again=True),
    },
    # Held while its message waited for a node: the node that takes it is told at once.
    (HELD, False): {
        Report.RUNNING: Step(stage=Stage.ENDING, order=Action.HOLD),
        Report.UPDATE: Step(stage=Stage.ENDING, order=Action.HOLD),
        Report.SUSPENDED: Step(stage=Stage.ENDING, order=Action.HOLD),
        Report.COMPLETED: Step(COMPLETED, Stage.OVER),
    },
    (HELD, True): {
        Report.RUNNING: Step(order=Action.HOLD),
        Report.EVICTED: Step(stage=Stage.WAITING),
        Report.COMPLETED: Step(COMPLETED, Stage.OVER),
        Report.REMOVED: Step(REMOVED, Stage.OVER),
        Report.HELD: Step(stage=Stage.WAITING),
    },
    (REMOVED, False): {
        Report.RUNNING: Step(order=Action.REMOVE),
        Report.UPDATE: Step(order=Action.REMOVE),
        Report.SUSPENDED: Step(order=Action.REMOVE),
    },
    (REMOVED, True): {
        Report.RUNNING: Step(order=Action.REMOVE),
        Report.EVICTED: Step(stage=Stage.OVER),
        Report.COMPLETED: Step(stage=Stage.OVER),
        Report.REMOVED: Step(stage=Stage.OVER),
        Report.HELD: Step(stage=Stage.OVER),
    },
    (COMPLETED, False): {Report.RUNNING: Step(order=Action.REMOVE)},
}
"""By status and whether its node was told to end it (ENDING). What is not named changes nothing."""

EARLIER_LIFE = {
    Report.RUNNING: Step(order=Action.REMOVE),
    Report.UPDATE: Step(order=Action.REMOVE),
    Report.SUSPENDED: Step(order=Action.REMOVE),
}
"""Reports of a life that is not the present one."""


def step(status: JobStatus, stage: Stage, report: Report, *, present: bool) -> Step:
    """What a report of a job's present life, or of an earlier one, changes."""
    if not present:
        return EARLIER_LIFE.get(report, KEEP)
    return REPORTS[status, stage is Stage.ENDING].get(report, KEEP)


def report(status: JobStatus, state: str | None) -> Report | None:
    """What a reply says; None if it is none that a node sends."""
    match status, state:
        case JobStatus.RUNNING, None:
            return Report.RUNNING
        case JobStatus.RUNNING, "Suspended":
            return Report.SUSPENDED
        case JobStatus.RUNNING, _:
            return Report.UPDATE
        case JobStatus.IDLE, "Exited":
            return Report.EVICTED
        case JobStatus.IDLE, _:
            return Report.REJECTED
        case JobStatus.COMPLETED, _:
            return Report.COMPLETED
        case JobStatus.REMOVED, _:
            return Report.REMOVED
        case JobStatus.HELD, _:
            return Report.HELD
    return None


class Order(Enum):
    """What a user can do to a job."""

    HOLD = "hold"
    RELEASE = "release"
    REMOVE = "remove"
    SUSPEND = "suspend"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True)
class Rule:
    """An order: from which statuses to which, and what a node that runs the job is told.

    `keep` orders count also if no node could be told; the others are then not done.
    """

    before: frozenset[JobStatus]
    after: JobStatus
    action: Action | None
    keep: bool
    past: str


ORDERS = {
    Order.HOLD: Rule(frozenset((IDLE, RUNNING, SUSPENDED)), HELD, Action.HOLD, True, "held"),
    Order.RELEASE: Rule(frozenset((HELD,)), IDLE, None, True, "released"),
    Order.REMOVE: Rule(frozenset((IDLE, RUNNING, SUSPENDED, HELD)), REMOVED, Action.REMOVE, True, "removed"),
    Order.SUSPEND: Rule(frozenset((RUNNING,)), SUSPENDED, Action.SUSPEND, False, "suspended"),
    Order.CONTINUE: Rule(frozenset((SUSPENDED,)), RUNNING, Action.CONTINUE, False, "continued"),
}

NAMES = {
    IDLE: "Idle", RUNNING: "Running", REMOVED: "Removed", COMPLETED: "Completed", HELD: "Held",
    TRANSFERRING: "TransferringOutput", SUSPENDED: "Suspended",
}  # fmt: skip


# -- ids -------------------------------------------------------------------------------------------------------


PROC_BITS, CLUSTER_BITS, LIFE_BITS, GRID_BITS = 20, 36, 18, 48
MAX_PROC, MAX_CLUSTER, MAX_LIFE = (1 << PROC_BITS) - 1, (1 << CLUSTER_BITS) - 1, (1 << LIFE_BITS) - 1


@dataclass(frozen=True, slots=True, order=True)
class JobId:
    """HTCondor's id of a job: `cluster.proc`."""

    cluster: int
    proc: int

    @classmethod
    def from_row(cls, row: int) -> JobId:
        return cls(row >> PROC_BITS, row & MAX_PROC)

    @property
    def row(self) -> int:
        """The job's key in the store, in the order of ids."""
        return self.cluster << PROC_BITS | self.proc

    def __str__(self) -> str:
        return f"{self.cluster}.{self.proc}"


def message_id(grid: int, job: JobId, life: int) -> str:
    """The message id of a life of a job: always the same, and read back by `read_message_id`.

    A uuid of version 8 (RFC 9562): 48 bits `grid`, which tell this queue's jobs from others', then life, cluster and
    proc. A job that is sent twice, as after a crash, is one job to the nodes.
    """
    low = (life & 0x3F) << (PROC_BITS + CLUSTER_BITS) | job.cluster << PROC_BITS | job.proc
    return str(uuid.UUID(int=grid << 80 | 8 << 76 | (life >> 6) << 64 | 2 << 62 | low))


def read_message_id(grid: int, text: str) -> tuple[JobId, int] | None:
    """The job and life of a message id; None if it is none of this queue."""
    try:
        value = uuid.UUID(text).int
    except ValueError:
        return None
    if value >> 76 != grid << 4 | 8 or value >> 62 & 3 != 2:
        return None
    life = (value >> 64 & 0xFFF) << 6 | value >> (PROC_BITS + CLUSTER_BITS) & 0x3F
    return JobId(value >> PROC_BITS & MAX_CLUSTER, value & MAX_PROC), life


# -- what is kept of a job ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class JobRecord:
    """A job as the store has it. Times are seconds, `created` and `updated` nanoseconds since the epoch.

    `identity` is whom the broker knew the submitter as (None: it did not say), `input` and `result` are sizes in bytes
    (None: there is none), `ad` is the ad as it was submitted and what nodes added.
    """

    id: JobId
    status: JobStatus
    stage: Stage
    life: int
    prio: int
    qdate: int
    entered: int
    owner: str
    identity: str | None
    submission: str
    created: int
    updated: int
    input: int | None = None
    result: int | None = None
    ad: dict[str, HeaderValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """What a committed transaction did to a job. `before` None: it is new; `after` None: it was forgotten.

    `seconds` is how long it was in the status that it left, `log` the user's log of the job, if it has one.
    """

    id: JobId
    owner: str
    submission: str
    before: JobStatus | None
    after: JobStatus | None
    stage_before: Stage | None
    stage_after: Stage | None
    why: str = ""
    who: str = ""
    seconds: int = 0
    log: str = ""
