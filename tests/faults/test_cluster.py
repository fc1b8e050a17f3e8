"""A RabbitMQ cluster of three, the job queue a quorum queue: its leader may die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiormq

from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.faults.grid import Grid, until
from tests.faults.proxy import Proxy


async def test_no_job_is_lost_when_the_leader_of_a_quorum_queue_is_killed(
    new_rabbitmq: Callable[..., PrivateRabbitMQ], new_grid: Callable[..., Grid]
) -> None:
    """Two nodes and a client, each on a broker of its own and led to another one when that dies."""
    first = new_rabbitmq()
    brokers = [first, *(await asyncio.gather(*(asyncio.to_thread(new_rabbitmq, peer=first) for _ in range(2))))]
    queue = "cluster"
    connection = await aiormq.connect(first.url)
    channel = await connection.channel()
    for name in (queue, f"{queue}.replies"):
        await channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
    await connection.close()
    leader = await leader_of(first, queue, brokers)
    others = [broker for broker in brokers if broker is not leader]
    grid = new_grid(others[0], queue)
    async with (
        Proxy(leader.url, others[0].url, others[1].url) as near_leader,
        Proxy(others[0].url, others[1].url) as elsewhere,
        grid.client(elsewhere.url) as client,
    ):
        nodes = [
            await asyncio.to_thread(grid.start, "one", 4, url=near_leader.url, ADOPTION_WAIT=5),
            await asyncio.to_thread(grid.start, "two", 4, url=elsewhere.url, ADOPTION_WAIT=5),
        ]
        assert "quorum" in await asyncio.to_thread(others[0].ctl, "list_queues", "name", "type")
        running = await client.submit_all(grid.job("sleep 10") for _ in range(4))
        await grid.started(running)
        waiting = await client.submit_all(grid.job("sleep 0.1") for _ in range(100))
        await until(lambda: len(client.finals) >= 20, "some of them are done")
        await asyncio.to_thread(leader.kill, settled=False)
        await nodes[0].seen("ready", 2)
        # One that was on its way to a node when the leader died comes again, and counts the start that it never had.
        await grid.each_ran_once(client, [*running, *waiting], uncertain=waiting)
        types = await asyncio.to_thread(others[0].ctl, "list_queues", "name", "type", "--no-table-headers")
        derived = {line.split()[0]: line.split()[1] for line in types.splitlines() if line.startswith(f"{queue}.")}
        assert set(derived.values()) == {"quorum"}, derived


async def leader_of(broker: PrivateRabbitMQ, queue: str, brokers: list[PrivateRabbitMQ]) -> PrivateRabbitMQ:
    listed = await asyncio.to_thread(broker.ctl, "list_queues", "name", "leader", "--no-table-headers")
    (node,) = (line.split()[1] for line in listed.splitlines() if line.split()[0] == queue)
    (leader,) = (broker for broker in brokers if broker.node == node)
    return leader
