"""What a lost connection does to jobs under way."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable

import pytest
from carod_client import BrokerLost, Grid, GridError, JobStatus

from carod.amqp import Endpoint, open_transport
from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.client.conftest import Gate

PATIENCE = 120.0


async def cut(rabbitmq: PrivateRabbitMQ) -> None:
    """Have the broker close the client's connection, and that one only."""
    listed = await asyncio.to_thread(rabbitmq.ctl, "list_connections", "pid", "client_properties")
    (pid,) = [line.split("\t")[0] for line in listed.splitlines() if '"carod client"' in line]
    await asyncio.to_thread(rabbitmq.ctl, "close_connection", pid, "test")


@pytest.fixture
async def reply_queue(rabbitmq: PrivateRabbitMQ, queue_name: str) -> AsyncIterator[str]:
    yield f"{queue_name}.replies"
    transport = open_transport(Endpoint(rabbitmq.url))
    await transport.connect()
    await transport.delete(f"{queue_name}.replies")
    await transport.close()


async def started(grid: Grid, gate: Gate, message_id: str | None = None) -> str:
    """The id of a job that runs and waits at the gate."""
    handle = await grid.submit("/bin/cat", gate.path, timeout=PATIENCE, message_id=message_id)
    async for reply in handle:
        assert reply.status is JobStatus.RUNNING
        break
    return handle.id


async def test_with_a_durable_reply_queue_a_job_outlives_the_connection(
    rabbitmq: PrivateRabbitMQ, queue_name: str, reply_queue: str, gate: Gate,
    start_node: Callable[..., subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    await asyncio.to_thread(start_node, rabbitmq.url)
    async with Grid(rabbitmq.url, queue_name, reply_queue=reply_queue) as grid:
        job_id = await started(grid, gate)
        await cut(rabbitmq)
        await gate.open()
        assert (await grid.attach(job_id)).stdout == b"go"


async def test_without_one_the_job_fails_and_the_next_one_runs(
    rabbitmq: PrivateRabbitMQ, queue_name: str, gate: Gate, start_node: Callable[..., subprocess.Popen[bytes]]
) -> None:
    await asyncio.to_thread(start_node, rabbitmq.url)
    async with Grid(rabbitmq.url, queue_name) as grid:
        handle = grid._handles[await started(grid, gate)]
        await cut(rabbitmq)
        with pytest.raises(BrokerLost, match=r"was lost .* a Grid with a reply_queue survives this"):
            await handle
        assert (await grid.run("/bin/true", timeout=PATIENCE)).ok


async def test_a_later_process_gets_the_result_by_the_jobs_id(
    rabbitmq: PrivateRabbitMQ, queue_name: str, reply_queue: str, gate: Gate,
    start_node: Callable[..., subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    await asyncio.to_thread(start_node, rabbitmq.url)
    async with Grid(rabbitmq.url, queue_name, reply_queue=reply_queue) as first:
        await started(first, gate, "kept")
    await gate.open()
    async with Grid(rabbitmq.url, queue_name, reply_queue=reply_queue) as other:
        assert (await other.run("/bin/true", timeout=PATIENCE)).ok  # which does not swallow the result
    async with Grid(rabbitmq.url, queue_name, reply_queue=reply_queue) as second:
        assert (await second.attach("kept", timeout=PATIENCE)).stdout == b"go"


async def test_an_exclusive_reply_queue_has_nothing_to_attach_to(broker_url: str) -> None:
    async with Grid(broker_url) as grid:
        with pytest.raises(GridError, match="only a Grid with a reply_queue"):
            grid.attach("some-job")


async def test_a_broker_that_restarts_is_found_again(
    new_rabbitmq: Callable[..., PrivateRabbitMQ], queue_name: str,
    start_node: Callable[..., subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    broker = await asyncio.to_thread(new_rabbitmq)
    await asyncio.to_thread(start_node, broker.url)
    async with Grid(broker.url, queue_name, reply_queue="replies", connect_timeout=PATIENCE) as grid:
        assert (await grid.run("/bin/true", timeout=PATIENCE)).ok
        await asyncio.to_thread(broker.restart)
        assert (await grid.run("/bin/true", timeout=PATIENCE)).ok


async def test_a_reply_queue_that_somebody_deletes_is_made_again(grid: Grid, gate: Gate) -> None:
    handle = grid._handles[await started(grid, gate)]
    await grid._transport.delete(grid._reply_queue)
    with pytest.raises(BrokerLost, match="its queue is gone"):
        await handle
    assert (await grid.run("/bin/true", timeout=PATIENCE)).ok
