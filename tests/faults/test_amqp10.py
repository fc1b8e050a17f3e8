"""Nodes that speak AMQP 1.0, and what they or their broker do not survive: the counts are those of 0-9-1."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Self
from uuid import uuid4

import pytest
from pamqp.commands import Basic

from carod.amqp import (
    Address,
    ConnectionLost,
    Delivery,
    Endpoint,
    Message,
    Outcome,
    Queue,
    TransportError,
    TypedId,
    open_transport,
    with_protocol,
)
from carod.amqp.amqp10.requests import QUEUE, Management
from carod.amqp.amqp10.wire import Wire
from tests.brokers.broker_j import PrivateBrokerJ
from tests.brokers.embedded import PrivateEmbedded
from tests.faults.conftest import _close
from tests.faults.grid import PATIENCE, Grid, Replies, kill, until
from tests.faults.proxy import Proxy
from tests.node.client import Received
from tests.node.conftest import Node

DEPTH = "queueDepthMessages"
"""Messages in a queue, also those that are with a consumer."""


class Client(Replies):
    """Submits durable jobs over AMQP 1.0, and reads the replies from a durable queue, however often it is cut off."""

    def __init__(self, url: str, queue: str) -> None:
        super().__init__()
        self.queue, self.reply_to = queue, f"{queue}.replies"
        self._transport = open_transport(Endpoint(url))
        self._tasks: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        ready = asyncio.Event()
        self._tasks.add(asyncio.create_task(self._read(ready)))
        await asyncio.wait_for(ready.wait(), PATIENCE)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.close()

    async def submit_all(self, jobs: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
        """Publish jobs, each with an id of the caller's; they come back once the broker has confirmed them all."""
        jobs = list(jobs)
        await asyncio.gather(*(self._submit(*job) for job in jobs))
        return [job for job, _ in jobs]

    async def _submit(self, job: str, headers: dict[str, Any]) -> None:
        message = Message(b"", headers, job, reply_to=self.reply_to, durable=True)
        await self._transport.publish(message, Address("", self.queue))

    async def _read(self, ready: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TransportError):
                await self._transport.connect()
                for name in (self.queue, self.reply_to):
                    await self._transport.declare(Queue(name))
                await self._transport.consume(self.reply_to, self._arrived, credit=0)
                ready.set()
                await self._transport.wait_closed()
            await self._transport.close()
            await asyncio.sleep(0.1)

    def _arrived(self, delivery: Delivery) -> None:
        message = delivery.message
        assert isinstance(message.body, bytes)
        properties = Basic.Properties(message_id=message.message_id, correlation_id=message.correlation_id)
        reply = Received(dict(message.headers), properties, message.body)
        noted = asyncio.ensure_future(self.note(reply, redelivered=delivery.redelivered))
        self._tasks.add(noted)
        noted.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionLost):
            delivery.settle(Outcome.ACCEPTED)


class Grid10(Grid):
    """A grid whose queues are looked at over AMQP 1.0."""

    def __init__(self, broker: Any) -> None:
        super().__init__(broker, f"test-{secrets.token_hex(6)}")

    def wait_for(self, name: str) -> str:
        """What a job does until `allow(name)`."""
        return f"while [ ! -e {self.marks}/{name} ]; do sleep 0.1; done"

    def allow(self, name: str) -> None:
        (self.marks / name).touch()

    async def waiting(self) -> dict[str, int]:
        nodes = [item.name for item in self.execute.iterdir() if item.is_dir()]
        queues = [self.queue, f"{self.queue}.parked", *(f"{self.queue}.node.{name}" for name in nodes)]
        wire = Wire(Endpoint(self.broker.url), "127.0.0.1")
        await wire.open(None)
        try:
            management = Management(wire)
            asked = [management.invoke("getStatistics", QUEUE, name, statistics=f'["{DEPTH}"]') for name in queues]
            answers = await asyncio.gather(*asked)
        finally:
            await wire.close()
        found = {name: int(answer.value[DEPTH]) for name, answer in zip(queues, answers, strict=True) if answer.ok}
        return {name: count for name, count in found.items() if count}

    async def begin(self, name: str, slots: int, network: Proxy | None = None, **knobs: Any) -> Node:
        """A node by that name, perhaps with a network of the test's own in between; it is ready."""
        url = with_protocol(network.url, "1.0") if network is not None else ""
        return await asyncio.to_thread(self.start, name, slots, url=url, **knobs)


@pytest.fixture(scope="module")
def embedded() -> Iterator[PrivateEmbedded]:
    with PrivateEmbedded() as broker:
        yield broker


@pytest.fixture(params=[pytest.param("broker_j", marks=pytest.mark.broker), "embedded"])
def broker(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def new_grid10() -> Iterator[Callable[[Any], Grid10]]:
    """Makes a grid; its nodes end with the test."""
    with contextlib.ExitStack() as stack:

        def make(broker: Any) -> Grid10:
            grid = Grid10(broker)
            stack.callback(_close, grid)
            return grid

        yield make


@pytest.fixture
def grid(broker: Any, new_grid10: Callable[[Any], Grid10]) -> Grid10:
    return new_grid10(broker)


@pytest.fixture
async def client(grid: Grid10) -> AsyncIterator[Client]:
    async with Client(grid.broker.url, grid.queue) as client:
        yield client


@pytest.fixture
async def network(grid: Grid10) -> AsyncIterator[Proxy]:
    async with Proxy(grid.broker.url) as network:
        yield network


async def test_jobs_of_a_killed_node_run_again_and_say_so(grid: Grid10, client: Client) -> None:
    left, killed = await asyncio.gather(*(grid.begin(name, 8) for name in ("left", "killed")))
    jobs = await client.submit_all(grid.job(grid.wait_for("go")) for _ in range(16))
    await grid.started(jobs)
    await killed.seen("job running", 8)
    victims = {event["job"] for event in killed.events("job running")}
    assert len(victims) == 8
    kill(killed)
    grid.allow("go")
    await client.all_final(jobs)
    await grid.settled()
    assert {job: len(client.finals[job]) for job in jobs} == dict.fromkeys(jobs, 1)
    expected = {job: 2 if job in victims else 1 for job in jobs}
    assert {job: client.final(job).ad["NumJobStarts"] for job in jobs} == expected
    assert {job: grid.starts()[job] for job in jobs} == expected
    assert {client.final(job).status for job in jobs} == {4}
    assert {event["job"] for event in left.events("job has lost its node")} == victims


async def test_jobs_run_once_when_their_nodes_connections_are_cut(grid: Grid10, client: Client, network: Proxy) -> None:
    """Twice; and then that of the only node that is left."""
    nodes = await asyncio.gather(*(grid.begin(name, 4, network) for name in ("one", "two")))
    jobs = await client.submit_all(grid.job(grid.wait_for("go")) for _ in range(8))
    await grid.started(jobs)
    waiting = await client.submit_all(grid.job("true") for _ in range(8))
    for time in (2, 3):
        network.cut()
        await asyncio.gather(*(node.seen("ready", time) for node in nodes))
    grid.allow("go")
    await grid.each_ran_once(client, [*jobs, *waiting])
    await asyncio.to_thread(nodes[0].stop)
    alone = await client.submit_all(grid.job(grid.wait_for("on")) for _ in range(4))
    await grid.started(alone)
    network.cut()
    await nodes[1].seen("ready", 4)
    grid.allow("on")
    await grid.each_ran_once(client, alone)


@pytest.mark.parametrize("lost", ["the result", "its confirmation"])
async def test_a_node_that_starts_again_sends_what_its_last_life_has_not_seen_confirmed(
    grid: Grid10, client: Client, network: Proxy, lost: str
) -> None:
    dying = await grid.begin("phoenix", 4, network)
    jobs = await client.submit_all(grid.job(grid.wait_for("go")) for _ in range(4))
    await grid.started(jobs)
    await asyncio.gather(*(dying.seen("job running", job=job) for job in jobs))
    if lost == "the result":
        network.stall()
    else:
        network.deafen()
    grid.allow("go")
    await until(lambda: results_left(grid, "phoenix") == 4, "four results in the journal")
    if lost == "its confirmation":
        await client.all_final(jobs)
    else:
        assert not client.finals
    kill(dying)
    network.cut()
    again = await grid.begin("phoenix", 4)
    await again.seen("result of an earlier life", 4)
    await grid.each_ran_once(client, jobs)
    assert all(event["sent"] for event in again.events("result of an earlier life"))


def results_left(grid: Grid10, node: str) -> int:
    """How many results a node's journal keeps; a box whose length is 0 is empty."""
    directory = grid.execute / f"{node}.journal.results"
    boxes = [box.read_bytes() for box in directory.iterdir()] if directory.is_dir() else []
    return sum(any(box[:8]) for box in boxes)


async def test_jobs_run_once_when_a_broker_j_is_killed(
    broker_j: PrivateBrokerJ, new_grid10: Callable[[Any], Grid10]
) -> None:
    """SIGKILL under forty durable jobs: ten end while it is away, ten run through it, twenty wait.

    It keeps its messages, but not who had them: what a node had looks like what none has seen.
    """
    grid = new_grid10(broker_j)
    nodes = await asyncio.gather(*(grid.begin(name, 10) for name in ("one", "two")))
    async with Client(grid.broker.url, grid.queue) as client:
        long = await client.submit_all(grid.job(grid.wait_for("long")) for _ in range(10))
        short = await client.submit_all(grid.job(grid.wait_for("short")) for _ in range(10))
        await grid.started([*long, *short])
        waiting = await client.submit_all(grid.job("true") for _ in range(20))
        await asyncio.to_thread(broker_j.kill)
        grid.allow("short")
        await asyncio.gather(*(node.seen("broker away") for node in nodes))
        await asyncio.to_thread(broker_j.start)
        await asyncio.gather(*(node.seen("ready", 2) for node in nodes))
        await client.all_final(waiting)
        grid.allow("long")
        await grid.each_ran_once(client, [*long, *short, *waiting], uncertain=waiting)
        after = await client.submit_all(grid.job("true") for _ in range(20))
        await grid.each_ran_once(client, after)
        parked = {event["job"] for node in nodes for event in node.events("job parked")}
        assert not parked & set(after), "what came after the restart is nobody's"


IDS = [
    *("text", 'ä "quoted"', None, TypedId(str(uuid4()), "uuid"), TypedId(str(2**63), "ulong")),
    *(TypedId(text, "binary") for text in ("bytes \\ ä", "0x00ff5c20")),
]


@pytest.mark.parametrize("name", ["broker_j", "artemis"])
async def test_what_a_broker_had_when_it_was_killed_counts_as_delivered_before(
    request: pytest.FixtureRequest, name: str
) -> None:
    """Whatever its id is; but not what has come since, be it under the same id."""
    broker = request.getfixturevalue(name)
    queue, transport = f"test-{secrets.token_hex(6)}", open_transport(Endpoint(broker.url10))

    async def publish(body: bytes, message_id: str | None, to: str = queue) -> None:
        await transport.publish(Message(body, message_id=message_id, durable=True), Address("", to))

    async def consume() -> asyncio.Queue[Delivery]:
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        await transport.consume(queue, arrived.put_nowait, credit=0)
        return arrived

    async def next_of(arrived: asyncio.Queue[Delivery]) -> tuple[bytes, str | None, bool]:
        delivery = await asyncio.wait_for(arrived.get(), PATIENCE)
        delivery.settle(Outcome.ACCEPTED)
        assert isinstance(delivery.message.body, bytes)
        return delivery.message.body, delivery.message.message_id, delivery.redelivered

    try:
        await transport.connect()
        for each in (queue, f"{queue}.other"):
            await transport.declare(Queue(each))
        for message_id in IDS:
            await publish(b"old", message_id)
        handed_out = await consume()
        assert not any([(await handed_out.get()).redelivered for _ in IDS])
        await publish(b"", None, f"{queue}.other")  # an Artemis writes its counts with the next message that it keeps
        await asyncio.to_thread(broker.kill)
        await transport.close()
        await asyncio.to_thread(broker.start)
        await transport.connect()
        arrived = await consume()
        assert [await next_of(arrived) for _ in IDS] == [(b"old", message_id, True) for message_id in IDS]
        for message_id in (*IDS, "another"):
            await publish(b"new", message_id)
        assert [await next_of(arrived) for _ in range(len(IDS) + 1)] == [
            (b"new", message_id, False) for message_id in (*IDS, "another")
        ]
    finally:
        await transport.close()
