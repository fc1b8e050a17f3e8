"""Two copies of one job, and nodes that die or come back just when it is asked whose it is."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator

import aiormq
import pytest
from pamqp.commands import Basic

from tests.faults.grid import Client, Grid, kill, until
from tests.faults.proxy import Proxy
from tests.node.conftest import Node

ACK = b"\x00\x00\x00\x0d\x00\x3c\x00\x50"
"""How a Basic.Ack begins, after its frame's type and channel: 13 bytes, class 60, method 80."""


@pytest.fixture
async def network(grid: Grid) -> AsyncIterator[Proxy]:
    async with Proxy(grid.broker.url) as network:
        yield network


@pytest.fixture
async def client(grid: Grid) -> AsyncIterator[Client]:
    async with grid.client() as client:
        yield client


async def start(grid: Grid, name: str, slots: int = 1, **options: object) -> Node:
    return await asyncio.to_thread(grid.start, name, slots, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mark", ["x-carod-requeued", "x-carod-parked-for"])
async def test_of_two_copies_that_come_to_two_nodes_at_once_one_is_run(grid: Grid, client: Client, mark: str) -> None:
    """As after a hand-back that the broker did not see settled, and after the death of a node that had two."""
    nodes = await asyncio.gather(*(start(grid, name, 4) for name in ("one", "two")))
    await asyncio.gather(*(node.seen("ready") for node in nodes))
    jobs = [grid.job("sleep 0.5", **{mark: 60.0}) for _ in range(20)]
    ids = await client.submit_all(job for copied in jobs for job in (copied, copied))
    await grid.each_ran_once(client, set(ids))


async def test_an_evicted_job_whose_delivery_comes_back_too_is_run_once_more(
    grid: Grid, client: Client, network: Proxy
) -> None:
    """Its node is cut off between handing it back and settling it."""
    leaving = await start(grid, "leaving", url=network.url)
    job, headers = grid.job(f"if [ -e {grid.marks}/go ]; then exit; fi; sleep 600")
    await client.submit_all([(job, headers)])
    await grid.started([job])
    (grid.marks / "go").touch()
    network.stall_at(ACK)
    leaving.send(signal.SIGQUIT)
    await network.reached.wait()
    network.cut()
    await asyncio.gather(start(grid, "one"), start(grid, "two"))
    network.flow()
    assert await leaving.ended() == 0
    await client.all_final([job])
    await grid.settled()
    assert client.final(job).status == 4
    assert grid.starts()[job] == 2


async def test_a_job_that_was_done_but_not_settled_when_its_node_died_is_not_run_again(
    grid: Grid, client: Client, network: Proxy
) -> None:
    """Its next life says what was done; others remember, should it be away again when they are asked."""
    dying = await start(grid, "dying", url=network.url, ADOPTION_WAIT=10)
    network.stall_at(ACK)
    job, headers = grid.job("true")
    await client.submit_all([(job, headers)])
    await client.all_final([job])
    await network.reached.wait()
    kill(dying)
    network.cut()
    following = await start(grid, "following", ADOPTION_WAIT=10)
    await following.seen("job parked", job=job)
    kill(await start(grid, "dying"))
    await following.seen("job is done already", job=job)
    await grid.each_ran_once(client, [job])


async def test_a_node_that_comes_later_is_told_of_jobs_that_may_come_again(grid: Grid, client: Client) -> None:
    """They may have waited in the queue since, for longer than whoever knew of them was there."""
    knowing = await start(grid, "knowing")
    job, headers = grid.job("true")
    await client.submit_all([(job, headers)])
    await client.all_final([job])
    kill(knowing)
    with (grid.execute / "knowing.journal").open("a") as journal:
        journal.write(json.dumps({"doubt": job}) + "\n")  # as after a settlement that failed
    told = await start(grid, "told")
    knowing = await start(grid, "knowing")
    await until(lambda: job in (grid.execute / "told.journal").read_text(), "what the node has been told")
    kill(knowing)
    late = await start(grid, "late")
    await until(lambda: job in (grid.execute / "late.journal").read_text(), "what the node has been told in turn")
    kill(told)
    await client.submit_all([(job, {**headers, "x-carod-parked-for": 60.0})])
    await late.seen("job is done already", job=job)
    await grid.each_ran_once(client, [job])


async def test_a_result_that_was_sent_but_not_confirmed_when_its_node_died_is_the_one_reply(
    grid: Grid, client: Client, network: Proxy
) -> None:
    """The job has been started again by the time that the node is back: it is ended, for its result is there."""
    dying = await start(grid, "dying", url=network.url)
    job, headers = grid.job(
        f"if mkdir {grid.marks}/once; then while [ ! -e {grid.marks}/go ]; do sleep 0.1; done; exit; fi; sleep 600"
    )
    await client.submit_all([(job, headers)])
    await grid.started([job])
    await client.seen(job, lambda reply: reply.status == 2)
    network.deafen()
    (grid.marks / "go").touch()
    await client.all_final([job])
    kill(dying)
    network.cut()
    following = await start(grid, "following")
    await grid.started([job], 2)
    await start(grid, "dying")
    await following.seen("job yielded", job=job)
    await grid.settled()
    assert client.repeated == 1, "sent again, as nobody can know whether it had arrived"
    assert client.final(job).ad["NumJobStarts"] == 1
    assert client.final(job).ad["DuplicateStart"] == '"following"'
    assert grid.starts()[job] == 2


async def test_a_node_that_was_back_for_a_moment_keeps_its_job(grid: Grid, client: Client, network: Proxy) -> None:
    """It is away when its job is lost, is back, and is away again when the job is about to be given up."""
    far = await start(grid, "far", url=network.url, ADOPTION_WAIT=6)
    job, headers = grid.job("sleep 16")
    await client.submit_all([(job, headers)])
    await grid.started([job])
    near = await start(grid, "near", ADOPTION_WAIT=6)
    network.stall()
    network.cut()
    await near.seen("job parked", job=job)
    network.flow()
    await far.seen("ready", 2)
    network.stall()
    network.cut()
    await near.seen("job parked", 2, job=job)
    network.flow()
    await grid.each_ran_once(client, [job])


async def test_what_is_handed_to_a_node_that_is_gone_comes_back_after_the_lease(grid: Grid, client: Client) -> None:
    gone = await start(grid, "gone", LEASE_TIME=1)
    kill(gone)
    job, headers = grid.job("true", **{"x-carod-handed-over": "another"})
    async with await aiormq.connect(grid.broker.url) as connection:
        channel = await connection.channel()
        properties = Basic.Properties(headers=headers, message_id=job, reply_to=client.reply_to, delivery_mode=2)
        await channel.basic_publish(b"", routing_key=f"{grid.queue}.node.gone", properties=properties)
    await start(grid, "following")
    await grid.each_ran_once(client, [job], uncertain=[job])
