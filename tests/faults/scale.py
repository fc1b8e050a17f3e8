"""How throughput grows with nodes, on one broker and on a cluster of three, with a classic and a quorum queue.

    .venv/bin/python -m tests.faults.scale

Prints the table of docs/how-to/scale-out.md. All processes share this machine: the figures show what a kind of queue
costs and how nodes divide the work, not what several machines can do.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time

import aiormq

from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.faults.grid import Grid

SLOTS = 4
ROUNDS = 3
LOADS = {"/bin/true": ("true", 600), "sleep 0.1": ("sleep 0.1", 400)}


async def throughput(grid: Grid, script: str, count: int) -> float:
    """Jobs a second, from the first submission to the last final reply; durable jobs, durable replies."""
    async with grid.client() as client:
        jobs = [(grid.job("true")[0], {"Cmd": "/bin/sh", "Arguments": f"-c '{script}'"}) for _ in range(count)]
        if script == "true":
            jobs = [(job, {"Cmd": "/bin/true"}) for job, _ in jobs]
        begun = time.perf_counter()
        ids = await client.submit_all(jobs)
        await client.all_final(ids)
        return count / (time.perf_counter() - begun)


async def row(brokers: list[PrivateRabbitMQ], kind: str, nodes: int) -> list[float]:
    """Median throughputs of a fresh grid under each load."""
    grid = Grid(brokers[0], f"{kind}-{nodes}")
    connection = await aiormq.connect(brokers[0].url)
    for name in (grid.queue, f"{grid.queue}.replies"):
        arguments = {"x-queue-type": kind}
        await (await connection.channel()).queue_declare(name, durable=True, arguments=arguments)
    await connection.close()
    try:
        for number in range(nodes):
            url = brokers[number % len(brokers)].url
            await asyncio.to_thread(grid.start, f"node{number}", SLOTS, url=url, LOG_LEVEL="warning", ready=False)
        async with grid.client() as client:
            await client.all_final(await client.submit_all(grid.job("true") for _ in range(20)))
        return [
            statistics.median([await throughput(grid, script, count) for _ in range(ROUNDS)])
            for script, count in LOADS.values()
        ]
    finally:
        await asyncio.to_thread(grid.close)


async def main() -> None:
    print(f"{os.cpu_count()} CPUs, {SLOTS} slots a node, jobs a second (median of {ROUNDS}):\n")
    print("| brokers | queue | nodes |", " | ".join(f"`{load}`" for load in LOADS), "|")
    print("| --- | --- | --- |", " | ".join("---:" for _ in LOADS), "|")
    with PrivateRabbitMQ() as first:
        for nodes in (1, 2, 3):
            show(1, "classic", nodes, await row([first], "classic", nodes))
        with PrivateRabbitMQ(peer=first) as second, PrivateRabbitMQ(peer=first) as third:
            for kind in ("classic", "quorum"):
                for nodes in (1, 2, 3):
                    show(3, kind, nodes, await row([first, second, third], kind, nodes))


def show(brokers: int, kind: str, nodes: int, figures: list[float]) -> None:
    print(f"| {brokers} | {kind} | {nodes} |", " | ".join(f"{figure:.0f}" for figure in figures), "|", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
