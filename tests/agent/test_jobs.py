"""A job's life as data: ids that are read back, and tables without holes."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carod.control import Action
from carod.job import JobStatus
from qmf_agent.jobqueue.jobs import (
    FINAL,
    GRID_BITS,
    MAX_CLUSTER,
    MAX_LIFE,
    MAX_PROC,
    ORDERS,
    OVER,
    REPORTS,
    JobId,
    Order,
    Report,
    Stage,
    message_id,
    read_message_id,
    report,
    step,
)

grids = st.integers(0, (1 << GRID_BITS) - 1)
jobs = st.builds(JobId, st.integers(0, MAX_CLUSTER), st.integers(0, MAX_PROC))
lives = st.integers(0, MAX_LIFE)


@given(grids, jobs, lives)
def test_a_message_id_says_which_life_of_which_job_it_is(grid: int, job: JobId, life: int) -> None:
    text = message_id(grid, job, life)
    assert uuid.UUID(text).version == 8
    assert uuid.UUID(text).variant == uuid.RFC_4122
    assert read_message_id(grid, text) == (job, life)
    assert read_message_id(grid ^ 1, text) is None


@given(st.text() | st.uuids().map(str))
def test_other_messages_ids_are_no_jobs_of_ours(text: str) -> None:
    assert read_message_id(12345, text) is None


@given(jobs)
def test_a_job_is_found_again_by_its_row(job: JobId) -> None:
    assert JobId.from_row(job.row) == job


def test_ids_are_in_the_order_of_cluster_and_proc() -> None:
    assert JobId(1, MAX_PROC).row < JobId(2, 0).row < JobId(2, 1).row


@pytest.mark.parametrize(
    ("status", "state", "meant"),
    [
        (2, None, Report.RUNNING), (2, "Running", Report.UPDATE), (2, "Suspended", Report.SUSPENDED),
        (1, None, Report.REJECTED), (1, "Exited", Report.EVICTED), (3, "Exited", Report.REMOVED),
        (4, "Exited", Report.COMPLETED), (5, None, Report.HELD), (5, "Exited", Report.HELD), (6, None, None),
    ],
)  # fmt: skip
def test_replies_mean_what_the_contract_says(status: int, state: str | None, meant: Report | None) -> None:
    assert report(JobStatus(status), state) is meant


AT_A_NODE = [(status, Stage.STARTED) for status in (JobStatus.RUNNING, JobStatus.SUSPENDED)] + [
    (status, Stage.ENDING) for status, ending in REPORTS if ending
]


@pytest.mark.parametrize("said", FINAL)
@pytest.mark.parametrize(("status", "stage"), AT_A_NODE)
def test_after_a_final_reply_no_node_has_the_job(status: JobStatus, stage: Stage, said: Report) -> None:
    move = step(status, stage, said, present=True)
    assert move.stage in (Stage.WAITING, Stage.OVER)
    assert move.order is None


@pytest.mark.parametrize("said", Report)
def test_a_life_that_is_over_changes_nothing_but_is_ended_where_it_runs(said: Report) -> None:
    move = step(JobStatus.RUNNING, Stage.STARTED, said, present=False)
    assert (move.status, move.stage) == (None, None)
    runs = said in (Report.RUNNING, Report.UPDATE, Report.SUSPENDED)
    assert move.order is (Action.REMOVE if runs else None)


@pytest.mark.parametrize("order", Order)
def test_nothing_is_ordered_of_what_is_over(order: Order) -> None:
    assert not ORDERS[order].before & OVER
