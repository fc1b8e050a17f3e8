"""A network between node and broker that stalls and drops, for longer than the heartbeat."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.faults.grid import Grid
from tests.faults.proxy import Proxy

HEARTBEAT = 2
CONNECTING = {"channel.open": b"\x00\x14\x00\x0a", "queue.declare": b"\x00\x32\x00\x0a", "consume": b"\x00\x3c\x00\x14"}
"""Methods that a node sends while it connects: class and method, two bytes each."""


@pytest.mark.parametrize("method", CONNECTING)
async def test_a_network_that_stalls_while_a_node_connects_only_delays_it(grid: Grid, method: str) -> None:
    """What it waits for then never comes: neither may it wait for ever, nor end."""
    async with Proxy(grid.broker.url) as network, grid.client() as client:
        network.stall_at(CONNECTING[method])
        far = await asyncio.to_thread(grid.start, "far", 1, url=network.url, ready=False, BROKER_HEARTBEAT=1)
        await network.reached.wait()
        await far.seen("broker away")
        network.cut()
        network.flow()
        await far.seen("ready")
        await grid.each_ran_once(client, await client.submit_all([grid.job("true")]))
        far.send(signal.SIGTERM)
        assert await far.ended() == 0


async def test_jobs_run_once_when_the_network_stalls_for_less_than_the_adoption_wait(grid: Grid) -> None:
    """Longer than the heartbeat: broker and node give the connection up, but nobody gives up the node."""
    async with Proxy(grid.broker.url) as network, grid.client() as client:
        far = await asyncio.to_thread(
            grid.start, "far", 4, url=network.url, BROKER_HEARTBEAT=HEARTBEAT, ADOPTION_WAIT=10
        )
        jobs = await client.submit_all(grid.job("sleep 12") for _ in range(4))
        await grid.started(jobs)
        near = await asyncio.to_thread(grid.start, "near", 4, ADOPTION_WAIT=10)
        network.stall()
        await near.seen("job parked", 4)
        await far.seen("broker away")
        network.cut()
        network.flow()
        await far.seen("ready", 2)
        await grid.each_ran_once(client, jobs)
        assert not near.events("job running")


async def test_of_two_starts_in_a_partition_the_first_wins(grid: Grid) -> None:
    """The far node is away for so long that its jobs are started elsewhere: then it comes back, and they were its."""
    async with Proxy(grid.broker.url) as network, grid.client() as client:
        far = await asyncio.to_thread(grid.start, "far", 4, url=network.url, BROKER_HEARTBEAT=HEARTBEAT)
        going_on = await client.submit_all(grid.job("sleep 25") for _ in range(2))
        ended_meanwhile = await client.submit_all(grid.job("sleep 6") for _ in range(2))
        jobs = [*going_on, *ended_meanwhile]
        await grid.started(jobs)
        near = await asyncio.to_thread(grid.start, "near", 4)
        network.stall()
        await near.seen("job running", 4)
        await far.seen("broker away")
        await far.seen("job exited", 2)
        network.cut()
        network.flow()
        await far.seen("ready", 2)
        await client.all_final(jobs)
        await grid.settled()
        assert {job: len(client.finals[job]) for job in jobs} == dict.fromkeys(jobs, 1)
        assert {job: grid.starts()[job] for job in jobs} == dict.fromkeys(jobs, 2)
        await asyncio.gather(*(near.seen("job yielded", job=job) for job in going_on))
        for job in going_on:
            assert client.final(job).ad["RemoteHost"].startswith('"slot'), client.final(job).headers
            assert "@far" in client.final(job).ad["RemoteHost"]
            assert client.final(job).ad["DuplicateStart"] == '"near"'


async def test_a_job_with_a_lease_never_runs_on_two_nodes_at_once(grid: Grid) -> None:
    """Its own node kills it when it has been cut off for so long; only then may another one start it."""
    script = (
        f"mkdir {grid.marks}/lock || touch {grid.marks}/overlap; "
        f"[ -e {grid.marks}/again ] || {{ touch {grid.marks}/again; sleep 600; }}; rmdir {grid.marks}/lock"
    )
    async with Proxy(grid.broker.url) as network, grid.client() as client:
        far = await asyncio.to_thread(grid.start, "far", 1, url=network.url, BROKER_HEARTBEAT=HEARTBEAT)
        job, ad = grid.job(script, JobLeaseDuration=8)
        await client.submit(ad, message_id=job)
        await grid.started([job])
        near = await asyncio.to_thread(grid.start, "near", 1)
        network.stall()
        await far.seen("job yielded")
        (grid.marks / "lock").rmdir()  # the killed job left it
        assert grid.starts()[job] == 1, "nobody started it before its own node had killed it"
        await near.seen("job running")
        network.cut()
        network.flow()
        await client.all_final([job])
        await grid.settled()
        assert client.final(job).ad["NumJobStarts"] == 2
        assert "@near" in client.final(job).ad["RemoteHost"]
        assert not (grid.marks / "overlap").exists()
