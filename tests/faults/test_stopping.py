"""Nodes that are told to stop, again and again."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

from tests.faults.grid import Client, Grid
from tests.faults.proxy import Proxy


async def test_a_busy_node_told_to_stop_lets_its_jobs_end(grid: Grid) -> None:
    node = await asyncio.to_thread(grid.start, "leaving", 4)
    async with grid.client() as client:
        jobs = await client.submit_all(grid.job("sleep 3") for _ in range(4))
        await grid.started(jobs)
        waiting = await client.submit_all(grid.job("true") for _ in range(20))
        node.send(signal.SIGTERM)
        assert await node.ended() == 0
        assert not set(waiting) & client.finals.keys(), "it took no further jobs"
        await asyncio.to_thread(grid.start, "next", 4)
        await grid.each_ran_once(client, [*jobs, *waiting])


async def test_jobs_that_do_not_end_in_time_move_to_another_node(grid: Grid) -> None:
    """Moved, they count as started again; a node that is told to be quick moves them at once."""
    nodes = [
        await asyncio.to_thread(grid.start, name, 4, SHUTDOWN_GRACEFUL_TIMEOUT=1, KILLING_TIMEOUT=1)
        for name in ("patient", "quick")
    ]
    async with grid.client() as client:
        jobs = await client.submit_all(
            grid.job(f"if [ -e {grid.marks}/go ]; then exit; fi; sleep 600") for _ in range(8)
        )
        await grid.started(jobs)
        (grid.marks / "go").touch()
        await asyncio.to_thread(grid.start, "next", 4)
        nodes[0].send(signal.SIGTERM)
        nodes[1].send(signal.SIGQUIT)
        assert [await node.ended() for node in nodes] == [0, 0]
        await client.all_final(jobs)
        await grid.settled()
        assert [len(client.finals[job]) for job in jobs] == [1] * 8
        assert {client.final(job).ad["NumJobStarts"] for job in jobs} == {2}
        assert {grid.starts()[job] for job in jobs} == {2}
        assert all(any(reply.status == 1 for reply in client.replies[job]) for job in jobs), "its owner was told"


async def test_jobs_of_a_node_that_stops_while_its_broker_is_away_move_when_it_is_back(grid: Grid) -> None:
    """Their deliveries are the broker's again by then, and they are handed back, too: two of each, for one run."""
    async with Proxy(grid.broker.url) as network, grid.client() as client:
        node = await asyncio.to_thread(grid.start, "leaving", 4, url=network.url, ADOPTION_WAIT=6)
        jobs = await client.submit_all(
            grid.job(f"if [ -e {grid.marks}/go ]; then exit; fi; sleep 600") for _ in range(4)
        )
        await grid.started(jobs)
        (grid.marks / "go").touch()
        network.stall()
        network.cut()
        await node.seen("broker away")
        node.send(signal.SIGQUIT)
        await node.seen("job evicted", 4)
        following = await asyncio.to_thread(grid.start, "next", 4, ADOPTION_WAIT=6)
        await following.seen("job parked", 4)
        network.flow()
        assert await node.ended() == 0
        await client.all_final(jobs)
        await grid.settled()
        assert [len(client.finals[job]) for job in jobs] == [1] * 4
        assert {client.final(job).status for job in jobs} == {4}
        assert {grid.starts()[job] for job in jobs} == {2}


async def test_nodes_that_come_and_go_leave_nothing_behind(grid: Grid) -> None:
    """A sample of what the soak does two hundred times."""
    await come_and_go(grid, 20)


@pytest.mark.soak
async def test_two_hundred_nodes_that_come_and_go_leave_nothing_behind(grid: Grid) -> None:
    await come_and_go(grid, 200)


async def come_and_go(grid: Grid, cycles: int) -> None:
    """Start and stop nodes, five names side by side, each with a job in hand; nothing may grow with their number."""
    names = [f"tide{number}" for number in range(5)]
    async with grid.client() as client:
        await tide(grid, client, names)
        before = await left_behind(grid)
        for _ in range(cycles // len(names)):
            await tide(grid, client, names)
        assert await left_behind(grid) == before


async def tide(grid: Grid, client: Client, names: list[str]) -> None:
    nodes = await asyncio.gather(*(asyncio.to_thread(grid.start, name, 1) for name in names))
    ids = await client.submit_all(grid.job("sleep 0.3") for _ in names)
    await grid.started(ids)
    for node in nodes:
        node.send(signal.SIGTERM)
    assert [await node.ended() for node in nodes] == [0] * len(nodes)
    await client.all_final(ids)


async def left_behind(grid: Grid) -> dict[str, object]:
    """What is there of nodes that have gone: queues, exchanges, connections, files, processes."""

    async def ctl(what: str) -> list[str]:
        listed = await asyncio.to_thread(grid.broker.ctl, what, "name", "--no-table-headers")
        return sorted(line for line in listed.split() if line.startswith((grid.queue, "amq.gen")))

    files = {
        name.rpartition("/")[2]: len(os.listdir(f"{grid.execute}/{name}"))
        for name in os.listdir(grid.execute)
        if os.path.isdir(f"{grid.execute}/{name}")
    }
    children = [process.name() for process in psutil.Process().children(recursive=True) if "carod" in process.name()]
    return {
        "queues": await ctl("list_queues"),
        "exchanges": await ctl("list_exchanges"),
        "names": sorted(os.listdir(grid.execute)),
        "files": files,
        "processes": children,
    }
