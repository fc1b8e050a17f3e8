"""A broker that hangs up, restarts or is killed: jobs go on, each runs once and is answered once."""

from __future__ import annotations

import asyncio

from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.faults.grid import Grid


async def test_jobs_run_once_when_the_broker_closes_their_nodes_connections(grid: Grid) -> None:
    nodes = await asyncio.gather(*(asyncio.to_thread(grid.start, name, 4) for name in ("one", "two")))
    async with grid.client() as client:
        jobs = await client.submit_all(grid.job("sleep 8") for _ in range(4))
        await grid.started(jobs)
        await asyncio.gather(*(grid.close_connections(name) for name in ("one", "two")))
        await asyncio.gather(*(node.seen("ready", 2) for node in nodes))
        await asyncio.to_thread(grid.broker.ctl, "close_all_connections", "a fault of the test's")
        await asyncio.gather(*(node.seen("ready", 3) for node in nodes))
        await grid.each_ran_once(client, jobs)
        after = await client.submit_all(grid.job("true") for _ in range(16))
        await grid.each_ran_once(client, after)


async def test_a_lone_nodes_jobs_run_once_when_the_broker_closes_its_connection(grid: Grid) -> None:
    """Nobody else is there to ask or to hand over: the node gets its own jobs again."""
    node = await asyncio.to_thread(grid.start, "lone", 4)
    async with grid.client() as client:
        jobs = await client.submit_all(grid.job("sleep 4") for _ in range(4))
        await grid.started(jobs)
        await grid.close_connections("lone")
        await node.seen("ready", 2)
        await grid.each_ran_once(client, jobs)


async def test_jobs_run_once_across_a_restart_of_the_brokers_application(grid: Grid) -> None:
    """stop_app under forty jobs: ten end while it is away, ten run through it, twenty still wait in the queue."""
    await asyncio.gather(*(asyncio.to_thread(grid.start, name, 10) for name in ("one", "two")))
    async with grid.client() as client:
        long = await client.submit_all(grid.job("sleep 10") for _ in range(10))
        short = await client.submit_all(grid.job("sleep 3") for _ in range(10))
        await grid.started([*long, *short])
        waiting = await client.submit_all(grid.job("true") for _ in range(20))
        await asyncio.to_thread(grid.broker.ctl, "stop_app")
        await asyncio.to_thread(grid.broker.ctl, "start_app")
        await grid.each_ran_once(client, [*long, *short, *waiting])


async def test_jobs_run_once_when_the_brokers_process_is_killed(rabbitmq: PrivateRabbitMQ, grid: Grid) -> None:
    """SIGKILL to the broker under durable jobs. A classic queue then says of all that it may have been delivered."""
    await asyncio.gather(*(asyncio.to_thread(grid.start, name, 10) for name in ("one", "two")))
    async with grid.client() as client:
        long = await client.submit_all(grid.job("sleep 8") for _ in range(10))
        short = await client.submit_all(grid.job("sleep 2") for _ in range(10))
        await grid.started([*long, *short])
        waiting = await client.submit_all(grid.job("true") for _ in range(20))
        await asyncio.to_thread(rabbitmq.kill)
        await asyncio.to_thread(rabbitmq.start)
        await grid.each_ran_once(client, [*long, *short, *waiting], uncertain=waiting)
