"""The classes that the agent serves: their properties, statistics, methods and arguments, in one table.

Names and meanings are those of Condor's own schema (com.redhat.grid, 2009-2019) and of ClassAd attributes. A job shows
every scalar of its ad; the table names those that consoles which go by the schema are to see. Every class is served
alike under each of PACKAGES. Times are integers, seconds since the epoch, as in ads.
"""

from __future__ import annotations

from dataclasses import replace

from carod.qmf import Argument, Kind, Method, Property, SchemaClass, Statistic, Type
from qmf_agent.model import PACKAGES

DEFAULT_PACKAGE = "com.redhat.grid"
"""What a query without a package means, and where indications come from: each object is indicated once."""

SSTR, LSTR, MAP, LIST, REF = Type.SSTR, Type.LSTR, Type.MAP, Type.LIST, Type.REF
S64, U64, U32, DOUBLE, BOOL = Type.S64, Type.U64, Type.U32, Type.DOUBLE, Type.BOOL


def _index(name: str, desc: str) -> Property:
    return Property(name, SSTR, desc, index=True)


def _optional(kind: Type, names: str) -> tuple[Property, ...]:
    """Properties that an object may lack, and whose names say enough."""
    return tuple(Property(name, kind, optional=True) for name in names.split())


def _counts(names: str) -> tuple[Statistic, ...]:
    return tuple(Statistic(name, U32) for name in names.split())


def _out(name: str, kind: Type, desc: str = "", binary: bool = False) -> Argument:
    return Argument(name, kind, "O", desc, binary=binary)


ID = Argument("Id", SSTR, desc="SCHEDULER#CLUSTER.PROC, or CLUSTER.PROC")
REASON = Argument("Reason", LSTR, desc="kept with the job", default="")
AD = Argument("Ad", MAP, desc="the job ad, in either of its two forms")
SLICE = (
    Argument("File", LSTR, desc="a name in the job's result"),
    Argument("Start", S64, desc="first byte; negative: from the end"),
    Argument("End", S64, desc="first byte no more; 0: as far as one answer carries"),
)
DATA = (_out("Data", LSTR, binary=True), _out("Size", S64, "the whole file's"))
ECHO = Method(
    "echo",
    (
        Argument("sequence", U32, "IO"),
        Argument("body", LSTR, "IO"),
    ),
    "Answers its arguments",
)
SCHEDULER_REF = Property("schedulerRef", REF, "the scheduler it is of", reference="Scheduler")

SCHEDULER = SchemaClass(
    "",
    "Scheduler",
    (
        _index("Name", "the agent's name, first part of its jobs' ids"),
        Property("Pool", SSTR, "the job queue's name"),
        Property("System", SSTR, "the machine's kernel and release"),
        Property("Machine", SSTR),
        Property("MyAddress", SSTR, "the broker it is at", optional=True),
        Property("JobQueueBirthdate", S64, "when its first job was submitted", unit="s"),
        Property("MaxJobsRunning", U32, "how many jobs it has in the job queue at a time", optional=True),
    ),
    (
        *_counts("NumUsers TotalIdleJobs TotalRunningJobs TotalHeldJobs TotalRemovedJobs TotalJobAds"),
        *_counts("JobsSubmitted JobsCompleted JobsStarted JobsSubmittedCum JobsCompletedCum JobsStartedCum"),
        *(
            Statistic(name + cumulative, DOUBLE, unit=unit)
            for cumulative in ("", "Cum")
            for name, unit in (
                ("JobSubmissionRate", "1/s"),
                ("JobCompletionRate", "1/s"),
                ("JobStartRate", "1/s"),
                ("MeanTimeToStart", "s"),
                ("MeanRunningTime", "s"),
            )
        ),
    ),
    (
        Method("Submit", (AD, _out("Id", SSTR)), "Submit a job"),
        Method("SubmitJob", (AD, _out("Id", SSTR)), "Submit a job"),
        Method(
            "SubmitJobs",
            (
                Argument("Ads", LIST, desc="1 to 1,000 ads, each in either of the two forms"),
                Argument(
                    "Id", SSTR, "IO", "of create or of a job: its cluster and its input; out: the first job's", ""
                ),
                _out("Ids", LIST, "one for each ad"),
            ),
            "Submit many jobs as one cluster, all or none",
        ),
        Method(
            "SetJobAttribute",
            (ID, Argument("Name", SSTR), Argument("Value", LSTR, desc="ClassAd source text")),
            "Change an attribute of a job's ad",
        ),
        Method("HoldJob", (ID, REASON), "Keep a job from running until it is released"),
        Method("ReleaseJob", (ID, REASON), "Let a held job run"),
        Method("RemoveJob", (ID, REASON), "End a job for good"),
        Method("SuspendJob", (ID, REASON), "Stop a running job's processes where they are"),
        Method("ContinueJob", (ID, REASON), "Let a suspended job go on"),
        Method("create", (_out("Id", SSTR),), "Begin a submission that sends its input files"),
        Method(
            "createBeside",
            (Argument("Id", SSTR, "IO", "a job whose cluster this one joins; out: its own"),),
            "Begin a submission to a cluster that there is",
        ),
        Method(
            "send",
            (ID, Argument("Data", LSTR, desc="the next piece of the zip", binary=True), _out("Size", S64)),
            "Send a piece of the input files' archive",
        ),
        Method(
            "submit",
            (Argument("Id", SSTR, "IO"), AD),
            "Submit the job whose input files were sent",
        ),
        Method(
            "QueryJobs",
            (
                Argument("Constraint", LSTR, desc="a ClassAd expression; empty: all", default=""),
                Argument("Scope", SSTR, desc="queue: not over; history: over; all", default="all"),
                Argument("Attributes", LSTR, desc="names to be returned, comma-separated; none: all", default=""),
                Argument("After", S64, desc="Next of the answer before; 0: from the start", default=0),
                Argument("Limit", U32, desc="jobs at most; 0: 500", default=0),
                _out("Jobs", LIST, "an ad for each"),
                _out("Next", S64, "where to go on; 0: that was all"),
            ),
            "Ads of the jobs that match, a part at a time",
        ),
        Method("GetSteps", (ID, _out("Steps", LIST, "When (ns), JobStatus, Who, Why")), "A job's life so far"),
        ECHO,
    ),
)

JOB = SchemaClass(
    "",
    "Job",
    (
        _index("CustomId", "the Id that Submit returned"),
        Property("JobStatus", U32, "1 idle, 2 running, 3 removed, 4 completed, 5 held, 6 transferring, 7 suspended"),
        Property("GlobalJobId", LSTR),
        Property("ClusterId", U32),
        Property("ProcId", U32),
        Property("QDate", S64, "when it was submitted", unit="s"),
        Property("EnteredCurrentStatus", S64, unit="s"),
        Property("Submission", LSTR, "what it is grouped under"),
        Property("Owner", SSTR),
        Property("submissionRef", REF, optional=True, reference="Submission"),
        Property("schedulerRef", REF, optional=True, reference="Scheduler"),
        *_optional(
            LSTR,
            """Cmd Args Arguments Iwd In Out Err Env Environment Requirements Rank User UserLog KillSig RemoveKillSig
            HoldKillSig TransferInput TransferOutput TransferOutputRefused PeriodicHold PeriodicRelease PeriodicRemove
            OnExitHold OnExitRemove HoldReason ReleaseReason RemoveReason LastHoldReason RemoteHost LastRemoteHost
            ExitReason JobState AuthenticatedIdentity JobBatchName Title AccountingGroup""",
        ),
        *_optional(
            S64,
            """JobUniverse JobPrio RequestCpus RequestMemory RequestDisk JobStartDate JobCurrentStartDate
            CompletionDate HoldReasonCode HoldReasonSubCode ExitCode ExitSignal NumJobStarts MaxJobStarts NumPids JobPid
            ImageSize ResidentSetSize DiskUsage LastJobStatus AllowedExecuteDuration KillSigTimeout""",
        ),
        *_optional(DOUBLE, "RemoteUserCpu RemoteSysCpu RemoteWallClockTime JobDuration"),
        *_optional(BOOL, "ExitBySignal LeaveInQueue"),
    ),
    (),
    (
        Method("GetAd", (_out("Ad", MAP, "the whole ad, expressions named in !!descriptors"),), "The job's ad"),
        Method("Fetch", (*SLICE, *DATA), "A piece of a file of the job's result"),
    ),
)

SUBMISSION = SchemaClass(
    "",
    "Submission",
    (
        _index("Name", "Submission in its jobs' ads"),
        Property("Owner", SSTR, index=True),
        Property("QDate", S64, "when its first job was submitted", unit="s"),
        SCHEDULER_REF,
    ),
    _counts("Idle Running Held Completed Removed Suspended TransferringOutput"),
    (Method("GetJobSummaries", (_out("Jobs", LIST, "a map for each job"),), "Its jobs in brief"), ECHO),
)

JOB_SERVER = SchemaClass(
    "",
    "JobServer",
    (_index("Name", "the scheduler's"), Property("Machine", SSTR), Property("Pool", SSTR)),
    (),
    (
        Method("GetJobAd", (ID, _out("JobAd", MAP)), "A job's ad"),
        Method("FetchJobData", (ID, *SLICE, *DATA), "A piece of a file of a job's result"),
    ),
)

SUBMITTER = SchemaClass(
    "",
    "Submitter",
    (_index("Name", "Owner@scheduler"), Property("Owner", SSTR), SCHEDULER_REF),
    _counts("IdleJobs RunningJobs HeldJobs"),
)

SLOT = SchemaClass(
    "",
    "Slot",
    (
        _index("Name", "slotN@machine"),
        Property("State", SSTR),
        Property("Activity", SSTR),
        Property("Machine", SSTR),
        *_optional(SSTR, "OpSys Arch JobId RemoteOwner CarodVersion"),
        *_optional(S64, "Memory Cpus Disk SlotID TotalSlots EnteredCurrentState EnteredCurrentActivity"),
        *_optional(LSTR, "Start Rank"),
    ),
    (Statistic("LoadAvg", DOUBLE), Statistic("TotalTime", U64, unit="s")),
)

COLLECTOR = SchemaClass(
    "",
    "Collector",
    (_index("Name", "the job queue's name"),),
    _counts("RunningJobs IdleJobs HostsTotal HostsClaimed HostsUnclaimed HostsOwner"),
)

JOB_EVENT = SchemaClass(
    "",
    "JobStatusChange",
    (
        Property("CustomId", SSTR),
        Property("JobStatus", U32),
        Property("LastJobStatus", U32),
        Property("Owner", SSTR),
        Property("Reason", LSTR),
    ),
    kind=Kind.EVENT,
)

TABLE = (SCHEDULER, JOB, SUBMISSION, JOB_SERVER, SUBMITTER, SLOT, COLLECTOR, JOB_EVENT)

SCHEMA: dict[tuple[str, str], SchemaClass] = {
    (package, each.name.lower()): replace(each, package=package).hashed() for package in PACKAGES for each in TABLE
}
"""Every class by package and name in lower case, as consoles ask for it."""
