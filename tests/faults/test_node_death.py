"""A node that dies: its jobs run again elsewhere, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

from tests.faults.grid import Grid, kill, until
from tests.node.conftest import Node, gone

ORPHAN_SECONDS = 3.0
"""What the guarantees promise: so long after its node's death no process of a job is left."""
WANDERING = "(setsid sleep 600 &); (setsid sh -c 'sleep 600 & sleep 600' &)"
FORKING = "(setsid sleep 600 &); (sleep 600 &); sleep 6"


async def test_jobs_of_a_killed_node_run_again_and_say_so(grid: Grid) -> None:
    left, killed = await asyncio.gather(*(asyncio.to_thread(grid.start, name, 8) for name in ("left", "killed")))
    async with grid.client() as client:
        jobs = await client.submit_all(grid.job(FORKING) for _ in range(16))
        await grid.started(jobs)
        await killed.seen("job running", 8)
        victims = [event["job"] for event in killed.events("job running")]
        processes = grid.processes("killed")
        assert len(victims) == 8
        assert len(processes) >= 3 * 8
        kill(killed)
        await until(lambda: all(map(gone, processes)), "the killed node's jobs end", ORPHAN_SECONDS)
        await client.all_final(jobs)
        await grid.settled()
        assert {job: client.final(job).ad["NumJobStarts"] for job in jobs} == {
            job: 2 if job in victims else 1 for job in jobs
        }
        assert grid.starts() == {job: 2 if job in victims else 1 for job in jobs}
        assert {client.final(job).status for job in jobs} == {4}
    assert left.events("job has lost its node")


async def test_a_node_killed_with_its_spawners_sweeps_when_it_starts_again(grid: Grid) -> None:
    node = grid.start("phoenix", 4)
    async with grid.client() as client:
        jobs = await client.submit_all(grid.job(f"{WANDERING}; sleep 4") for _ in range(4))
        await asyncio.gather(*(client.seen(job, lambda reply: reply.status == 2) for job in jobs))
        await grid.started(jobs)
        processes = grid.processes("phoenix")
        kill_with_spawners(node, processes)
        assert not all(map(gone, processes)), "nobody is left to end them: that is what the sweep is for"
        again = grid.start("phoenix", 4)
        assert all(map(gone, processes))
        assert again.events("killed what an earlier life left running")
        await client.all_final(jobs)
        await grid.settled()
        assert [client.final(job).ad["NumJobStarts"] for job in jobs] == [2] * 4
        assert grid.starts() == dict.fromkeys(jobs, 2)


def kill_with_spawners(node: Node, jobs: set[int]) -> None:
    """SIGKILL to a node and whatever it started, but not to its jobs."""
    family = [process.pid for process in psutil.Process(node.pid).children(recursive=True) if process.pid not in jobs]
    for pid in [*family, node.pid]:
        os.kill(pid, signal.SIGSTOP)
    for pid in [node.pid, *family]:
        os.kill(pid, signal.SIGKILL)
    node.process.wait()


@pytest.mark.parametrize("limit_of", ["job", "node"])
async def test_a_job_that_kills_its_nodes_is_held_after_max_job_starts(grid: Grid, limit_of: str) -> None:
    knobs = {"ADOPTION_WAIT": 1} | ({"MAX_JOB_STARTS": 2} if limit_of == "node" else {})
    async with grid.client() as client:
        headers = {"MaxJobStarts": 2} if limit_of == "job" else {}
        job, ad = grid.job("sleep 600", **headers)
        await client.submit(ad, message_id=job)
        for start in (1, 2):
            node = await asyncio.to_thread(grid.start, "victim", 1, **knobs)
            await grid.started([job], start)
            kill(node)
        await asyncio.to_thread(grid.start, "victim", 1, **knobs)
        await client.all_final([job])
        await grid.settled()
        held = client.final(job)
        assert held.status == 5
        assert held.ad["NumJobStarts"] == 2
        assert "MaxJobStarts is 2" in held.ad["HoldReason"]
        assert grid.starts() == {job: 2}
        assert await grid.dead_reasons(job) == [held.ad["HoldReason"].strip('"')]
