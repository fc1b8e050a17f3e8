"""The queue's tables: whatever is ordered and reported, in whatever order, counts and stages stay true."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from carod.amqp import HeaderValue
from carod.job import JobStatus
from qmf_agent.jobqueue import lookup, records
from qmf_agent.jobqueue.constraint import Constraint
from qmf_agent.jobqueue.jobs import OVER, Change, JobId, JobRecord, Order, Report, Stage
from qmf_agent.jobqueue.records import NewJob
from qmf_agent.jobqueue.totals import Totals
from qmf_agent.model import Code, MethodError

LEGAL = {
    JobStatus.IDLE: {Stage.WAITING, Stage.INTENT, Stage.SENT, Stage.ENDING},
    JobStatus.RUNNING: {Stage.STARTED},
    JobStatus.SUSPENDED: {Stage.STARTED},
    JobStatus.HELD: {Stage.WAITING, Stage.ENDING},
    JobStatus.REMOVED: {Stage.OVER, Stage.ENDING},
    JobStatus.COMPLETED: {Stage.OVER},
}


def anybody(_: JobRecord) -> None:
    pass


def a_job(owner: str = "jane", submission: str | None = None, key: str | None = None, prio: int = 0) -> NewJob:
    ad: dict[str, HeaderValue] = {"Cmd": '"/bin/true"', "Owner": f'"{owner}"', "JobPrio": prio}
    return NewJob(ad, owner, None, submission, prio, key)


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(records.SCHEMA)
    records.grid_number(db)
    yield db
    db.close()


class Life(RuleBasedStateMachine):
    """Some jobs, and whatever users and nodes may do to them."""

    @initialize()
    def make(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.executescript(records.SCHEMA)
        records.grid_number(self.db)
        self.totals = Totals([])
        self.jobs: list[JobId] = []
        self.sent: list[tuple[JobId, int]] = []

    def count(self, changes: list[Change]) -> None:
        for change in changes:
            self.totals.apply(change)

    @rule(owner=st.sampled_from(["jane", "joe"]), group=st.sampled_from([None, "sweep"]), count=st.integers(1, 3))
    def submit(self, owner: str, group: str | None, count: int) -> None:
        ids, changes = records.insert(self.db, "s", [a_job(owner, group)] * count)
        self.jobs += ids
        self.count(changes)

    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        jobs, changes = records.take(self.db, count)
        self.sent += [(job.id, job.life) for job in jobs]
        self.count(changes)

    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        if self.sent:
            self.count(records.confirmed(self.db, [data.draw(st.sampled_from(self.sent))]))

    @rule(data=st.data(), report=st.sampled_from(Report))
    def report(self, data: st.DataObject, report: Report) -> None:
        if self.sent:
            job, life = data.draw(st.sampled_from(self.sent))
            reported = records.apply_report(self.db, job, life, report, {"RemoteHost": '"slot1@n"'}, None, None)
            self.count(reported.changes)

    @rule(data=st.data(), order=st.sampled_from(Order), reached=st.sampled_from(["told", "nobody"]))
    def order(self, data: st.DataObject, order: Order, reached: str) -> None:
        if not self.jobs:
            return
        job = data.draw(st.sampled_from(self.jobs))
        try:
            done = records.apply_order(self.db, job, order, anybody, "u", "r")
            if done.ask is not None and (reached == "told" or order in (Order.HOLD, Order.REMOVE)):
                done = records.apply_order(
                    self.db, job, order, anybody, "u", "r", told=done.ask if reached == "told" else None,
                    unreached=reached == "nobody",
                )  # fmt: skip
            self.count(done.changes)
        except MethodError as error:
            assert error.code in (Code.WRONG_STATE, Code.UNKNOWN_JOB)

    @rule(data=st.data(), told=st.booleans())
    def change(self, data: st.DataObject, told: bool) -> None:
        if not self.jobs:
            return
        job = data.draw(st.sampled_from(self.jobs))
        try:
            done = records.set_attribute(self.db, job, "Foo", 1, anybody)
            if done.ask is not None:
                done = records.set_attribute(
                    self.db, job, "Foo", 1, anybody, told=done.ask if told else None, waits=None if told else done.ask
                )
            self.count(done.changes)
        except MethodError as error:
            assert error.code in (Code.WRONG_STATE, Code.UNKNOWN_JOB)

    @rule()
    def forget(self) -> None:
        changes, _ = records.forget(self.db, 0, 2, 10)
        self.count(changes)

    @invariant()
    def stages_fit_statuses(self) -> None:
        for status, stage in self.db.execute("SELECT status, stage FROM job"):
            assert Stage(stage) in LEGAL[JobStatus(status)], (JobStatus(status), Stage(stage))

    @invariant()
    def counts_are_true(self) -> None:
        counted = Totals(lookup.totals(self.db))
        assert +self.totals.by_status == +counted.by_status
        assert +self.totals.by_stage == +counted.by_stage
        for group in lookup.submissions(self.db, None, None, 0):
            rows = self.db.execute("SELECT status FROM job WHERE submission = ?", (group.row,))
            assert Counter(JobStatus(row[0]) for row in rows) == +Counter(group.counts)

    @invariant()
    def what_is_over_has_an_end(self) -> None:
        for status, ended in self.db.execute("SELECT status, ended FROM job"):
            assert (JobStatus(status) in OVER) == (ended is not None)

    def teardown(self) -> None:
        self.db.close()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_jobs_go_out_by_priority_then_in_the_order_they_came(db: sqlite3.Connection) -> None:
    for prio in (0, 5, 0, 9, 5):
        records.insert(db, "s", [a_job(prio=prio)])
    jobs, _ = records.take(db, 4)
    assert [job.id.cluster for job in jobs] == [4, 2, 5, 1]
    jobs, _ = records.take(db, 4)
    assert [job.id.cluster for job in jobs] == [3]


def test_a_job_of_the_same_key_is_the_same_job(db: sqlite3.Connection) -> None:
    (first,), _ = records.insert(db, "s", [a_job(key="a")])
    (again,), changes = records.insert(db, "s", [a_job(key="a")])
    (other,), _ = records.insert(db, "s", [a_job("joe", key="a")])
    assert first == again != other
    assert changes == []


def test_a_submit_is_a_cluster_and_many_jobs_are_its_procs(db: sqlite3.Connection) -> None:
    assert records.insert(db, "s", [a_job()])[0] == [JobId(1, 0)]
    assert records.insert(db, "s", [a_job()] * 3)[0] == [JobId(2, 0), JobId(2, 1), JobId(2, 2)]


def test_a_job_without_submission_belongs_to_the_one_named_like_its_cluster(db: sqlite3.Connection) -> None:
    records.insert(db, "s", [a_job()])
    (group,) = lookup.submissions(db, None, None, 0)
    assert group.name == "s#1"


def test_a_released_job_is_another_life(db: sqlite3.Connection) -> None:
    (job,), _ = records.insert(db, "s", [a_job()])
    (taken,), _ = records.take(db, 1)
    records.apply_order(db, job, Order.HOLD, anybody, "u", "r")
    records.apply_order(db, job, Order.RELEASE, anybody, "u", "r")
    (again,), _ = records.take(db, 1)
    assert (taken.life, again.life) == (0, 1)
    old = records.apply_report(db, job, 0, Report.RUNNING, {}, None, None)
    assert old.order is not None
    assert old.changes == []
    new = records.apply_report(db, job, 1, Report.RUNNING, {}, None, None)
    assert (new.order, [change.after for change in new.changes]) == (None, [JobStatus.RUNNING])


def test_what_a_job_went_through_is_noted_with_who_and_why(db: sqlite3.Connection) -> None:
    (job,), _ = records.insert(db, "s", [a_job()])
    records.take(db, 1)
    records.apply_report(db, job, 0, Report.RUNNING, {"RemoteHost": '"slot1@n"'}, None, None)
    records.apply_report(
        db, job, 0, Report.COMPLETED, {"RemoteHost": '"slot1@n"', "ExitReason": '"exited with 0"'}, None, None
    )
    steps = [(status, who, why) for _, status, who, why in lookup.steps(db, job)]
    assert steps == [(1, "jane", "submitted"), (2, "slot1@n", "running"), (4, "slot1@n", "exited with 0")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", 20), ("TRUE", 20), ("FALSE", 0), ("JobPrio > 5", 8), ("JobPrio == 3 && Owner == \"JANE\"", 1),
        ('Owner == "joe"', 10), ("JobPrio =?= 3", 2), ("ClusterId == 4 || ClusterId == 5", 2),
        ("!(ClusterId == 4)", 19), ("Nothing == 1", 0), ("Nothing =?= undefined", 20), ("Twice == 6", 2),
        ("(JobStatus == 1)", 20), ("JobStatus == 5", 0), ("regexp(\"^/bin\", Cmd)", 20), ("ProcId", 0), ("1", 20),
    ],
)  # fmt: skip
def test_a_constraint_finds_what_the_whole_ad_would(db: sqlite3.Connection, text: str, found: int) -> None:
    for owner in ("jane", "joe"):
        for prio in range(10):
            new = a_job(owner, prio=prio)
            records.insert(db, "s", [NewJob({**new.ad, "Twice": "2 * JobPrio"}, owner, None, None, prio)])
    jobs, following = Constraint(text).look(db, -1, 1000)
    assert len(jobs) == found
    assert following == 0


def test_a_query_goes_on_where_it_ended(db: sqlite3.Connection) -> None:
    records.insert(db, "s", [a_job()] * 10)
    constraint = Constraint("ProcId != 3")
    found, after = [], -1
    while after:
        page, after = constraint.look(db, after, 4)
        found += [job.id.proc for job in page]
    assert found == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_a_constraint_that_is_no_expression_is_refused_with_its_place() -> None:
    with pytest.raises(MethodError, match="column"):
        Constraint("Owner == ")


@pytest.mark.parametrize(
    ("text", "job"),
    [("s#1.0", JobId(1, 0)), ("1.0", JobId(1, 0)), ("other#1.0", None), ("1", None), ("", None), ("s#x.0", None),
     ("s#1.-1", None), ("s#1.0.0", None), ("s#99999999999999999.0", None), ("s#\u0661.0", None)],
)  # fmt: skip
def test_ids_are_read_with_or_without_the_scheduler(text: str, job: JobId | None) -> None:
    assert lookup.read_id(text, "s") == job
