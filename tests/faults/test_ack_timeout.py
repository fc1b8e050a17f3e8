"""RabbitMQ's consumer_timeout, which makes other systems run long jobs again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.faults.grid import Grid

LONG = 75
"""Seconds that the jobs run, under a consumer_timeout of 20 s."""


async def test_a_job_longer_than_the_acknowledgement_timeout_runs_once(
    new_rabbitmq: Callable[..., PrivateRabbitMQ], new_grid: Callable[..., Grid]
) -> None:
    """Side by side: a node that knows the timeout and renews in time, one that does not, and two of those."""
    broker = new_rabbitmq(config=["consumer_timeout = 20000"])
    broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 2000).")  # it looks once a minute otherwise
    told, untold, pair = (new_grid(broker, name) for name in ("told", "untold", "pair"))
    renewing = told.start("renewing", 1, ACK_TIMEOUT=20)
    clueless = untold.start("clueless", 1)
    await asyncio.gather(*(asyncio.to_thread(pair.start, name, 1) for name in ("left", "right")))
    clients = [grid.client() for grid in (told, untold, pair)]
    async with clients[0], clients[1], clients[2]:
        runs = []
        for grid, client, count in zip((told, untold, pair), clients, (1, 1, 2), strict=True):
            long = await client.submit_all(grid.job(f"sleep {LONG}") for _ in range(count))
            await grid.started(long)
            runs.append([*long, *await client.submit_all([grid.job("true")])])  # one job too many for the slot
        for grid, client, jobs in zip((told, untold, pair), clients, runs, strict=True):
            await client.all_final(jobs, LONG + 120)
            await grid.each_ran_once(client, jobs)
    assert len(renewing.events("delivery renewed")) >= 5
    assert not renewing.events("consumer ended"), "it renews before the broker loses patience"
    assert not renewing.events("job handed back"), "it is never offered a job for a slot that is taken"
    assert clueless.events("consumer ended"), "the broker closed its channel, so this test tests something"
