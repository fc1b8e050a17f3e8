"""The same jobs give the same replies, header for header, whatever broker and protocols they go over."""

from __future__ import annotations

import asyncio
import io
import secrets
import uuid
import zipfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from carod.amqp import (
    Address,
    Delivery,
    Endpoint,
    HeaderValue,
    Message,
    Outcome,
    Queue,
    Transport,
    TypedId,
    open_transport,
    with_protocol,
)
from carod.amqp.amqp10.links import encoded
from carod.amqp.amqp10.wire import Wire
from tests.node.client import FINAL, PATIENCE, zipped
from tests.node.conftest import Node, _start, execute

assert execute  # a fixture

Job = dict[str, Any]
Transcript = dict[str, list[dict[str, Any]]]

VARIES = frozenset(
    """jobpid jobstartdate jobcurrentstartdate remoteusercpu remotesyscpu imagesize residentsetsize diskusage remotehost
    completiondate jobduration amqpid wf_req_slot numpids memory disk loadavg condorloadavg totalcondorloadavg
    totalloadavg mycurrenttime nodename name machine slotname mymachine daemonstarttime""".split()
)
"""Attributes that differ from job to job, or node to node, in lower case: of these the type counts."""


@dataclass(frozen=True)
class Combination:
    """A broker, the protocol that its node speaks, and its client's."""

    broker: str
    node: str
    client: str

    @property
    def through_plugin(self) -> bool:
        """Whether it is the plugin of RabbitMQ 3 that the client speaks with; it needs to be told what is an id."""
        return self.broker == "rabbitmq" and self.client == "1.0"

    def __str__(self) -> str:
        return f"{self.broker}: node {self.node}, client {self.client}"


URLS = {"artemis": "url10"}
"""Which of a broker's URLs to take, if not `url`."""
BASELINE = Combination("rabbitmq", "0-9-1", "0-9-1")
COMBINATIONS = [Combination("rabbitmq4", node, client) for node in ("0-9-1", "1.0") for client in ("0-9-1", "1.0")] + [
    Combination("rabbitmq", "0-9-1", "1.0"),
    Combination("broker_j", "1.0", "1.0"),
    Combination("embedded", "1.0", "1.0"),
    Combination("artemis", "1.0", "1.0"),
]

JOBS: dict[str, Job] = {
    "a program's output": {"headers": {"Cmd": "/bin/echo", "Arguments": "Hello Grid"}},
    "headers of every type": {
        "headers": {
            "Cmd": '"/bin/true"',
            "Small": 1,
            "Negative": -200,
            "Large": 2**40,
            "Float": 0.1,
            "Yes": True,
            "No": False,
            "Text": '"ä \\"quoted\\""',
            "Expression": "KeyboardIdle > 2 * 60",
            "List": "{1, 2}",
            "Owner": "somebody",
            "Long": f'"{"x" * 3000}"',
            "nAmE": '"case"',
        }
    },
    "headers that are bytes": {"headers": {"Cmd": b"/bin/echo", "Args": b"bytes", "Attribute": b'"text"'}},
    "an archive": {
        "headers": {"Cmd": "run.sh", "Out": "out.txt", "Err": "err.txt", "TransferOutput": "made"},
        "body": zipped({"run.sh": "#!/bin/sh\ncat data\necho oops >&2\necho made > made\n", "data": "data\n"}),
    },
    "an exit code": {"headers": {"Cmd": "/bin/sh", "Arguments": "-c 'exit 3'"}},
    "a signal": {"headers": {"Cmd": "/bin/sh", "Arguments": "-c 'kill -9 $$'"}},
    "a large result": {"headers": {"Cmd": "/bin/sh", "Arguments": "-c 'head -c 3000000 /dev/urandom > r; echo 1 > s'"}},
    "a header that does not parse": {"headers": {"Cmd": "/bin/true", "Requirements": "Memory > > 10"}},
    "no program": {"headers": {"Arguments": "x"}},
    "a program that is not there": {"headers": {"Cmd": "/no/such/program"}},
    "an id in a header": {"headers": {"Cmd": "/bin/true", "MessageId": "ID"}, "message_id": None},
    "a durable one of some priority": {"headers": {"Cmd": "/bin/true"}, "durable": True, "priority": 5},
    "one that expires later": {"headers": {"Cmd": "/bin/true"}, "expiration": 600.0},
    "one of a user": {"headers": {"Cmd": "/bin/true"}, "user_id": "guest"},
}


# -- clients ---------------------------------------------------------------------------------------------------


class Client:
    """Sends jobs to a queue, and gathers what comes back by correlation id."""

    def __init__(self, reply_to: str) -> None:
        self.reply_to = reply_to
        self.replies: defaultdict[str, asyncio.Queue[Message]] = defaultdict(asyncio.Queue)
        self.publish: Callable[[Message], Any]

    def arrived(self, delivery: Delivery) -> None:
        message = delivery.message
        self.replies[message.correlation_id or ""].put_nowait(message)
        if not delivery.settled:
            delivery.settle(Outcome.ACCEPTED)

    async def run(self, job: Job) -> list[Message]:
        """Submit it, and have all replies up to the final one."""
        fields = {"message_id": str(uuid.uuid4()), "reply_to": self.reply_to, **job}
        key = fields["message_id"]
        if key is None:
            key = str(uuid.uuid4())
            fields["headers"] = {**fields["headers"], "MessageId": key}
        await self.publish(Message(**fields))
        replies: list[Message] = []
        async with asyncio.timeout(PATIENCE):
            while not replies or replies[-1].headers.get("JobStatus") not in FINAL:
                replies.append(await self.replies[key].get())
        return replies


@asynccontextmanager
async def connected(url: str, protocol: str, queue: str, through_plugin: bool) -> AsyncIterator[Client]:
    transport = open_transport(Endpoint(with_protocol(url, "0-9-1" if through_plugin else protocol)))
    await transport.connect()
    if through_plugin:
        yield await _through_plugin(transport, url, queue)
    else:
        name, _ = await transport.declare(Queue("", durable=False, exclusive=True, auto_delete=True))
        client = Client(name)
        client.publish = lambda message: transport.publish(message, Address("", queue))
        await transport.consume(name, client.arrived, credit=0, settled=True)
        yield client
    await transport.close()


async def _through_plugin(transport: Transport, url: str, queue: str) -> Client:
    """A 1.0 client of RabbitMQ 3: its addresses are of version 1, and it can't declare its own queue."""
    wire = Wire(Endpoint(with_protocol(url, "1.0")), "localhost")
    await wire.open(None)
    name, _ = await transport.declare(Queue(f"replies-{secrets.token_hex(4)}", durable=False, auto_delete=True))
    client = Client(name)
    publisher = await wire.publisher(f"/amq/queue/{queue}", lane="publishers")
    (await wire.subscription(f"/amq/queue/{name}", client.arrived, settled=True)).start()

    async def publish(message: Message) -> None:
        assert isinstance(message.body, bytes)
        await publisher.send(encoded(message, len(message.body)) + message.body, queue, patient=True).arrived()

    client.publish = publish
    return client


# -- grids -----------------------------------------------------------------------------------------------------


class Grids:
    """The brokers, a node for each protocol that is asked of one, and what the jobs gave there."""

    def __init__(self, request: pytest.FixtureRequest, execute: Path, stack: ExitStack) -> None:
        self._request, self._execute, self._stack = request, execute, stack
        self._nodes: dict[tuple[str, str], tuple[Node, str]] = {}
        self._transcripts: dict[Combination, Transcript] = {}

    def url(self, broker: str) -> str:
        fixture = "rabbitmq_with_plugin" if broker == "rabbitmq" else broker
        found = self._request.getfixturevalue(fixture)
        return str(getattr(found, URLS.get(broker, "url")))

    def queue(self, broker: str, protocol: str) -> str:
        """The job queue of a node that speaks this protocol there."""
        found = self._nodes.get((broker, protocol))
        if found is None:
            queue = f"test-{secrets.token_hex(6)}"
            url = with_protocol(self.url(broker), protocol)
            node = _start(url, queue, self._execute, "--slots", "1")
            self._stack.callback(node.stop)
            node.wait_for("ready")
            found = self._nodes[broker, protocol] = (node, queue)
        return found[1]

    def client(self, combination: Combination) -> Any:
        queue = self.queue(combination.broker, combination.node)
        return connected(self.url(combination.broker), combination.client, queue, combination.through_plugin)

    async def transcript(self, combination: Combination) -> Transcript:
        """What all jobs gave, without what differs from run to run."""
        if combination not in self._transcripts:
            async with self.client(combination) as client:
                self._transcripts[combination] = {
                    name: [_constant(reply) for reply in await client.run(job)]
                    for name, job in JOBS.items()
                    if not (combination.through_plugin and name == "an id in a header")
                }
        return self._transcripts[combination]


def _constant(reply: Message) -> dict[str, Any]:
    """What must be the same of a reply wherever it comes from."""
    assert isinstance(reply.body, bytes)
    headers: dict[str, HeaderValue] = {}
    for name, value in reply.headers.items():
        varies = name.lower() in VARIES or name.lower() == "messageid"
        headers[name] = type(value).__name__ if varies else value
    return {
        "headers": headers,
        "body": _files(reply.body),
        "durable": reply.durable,
        "has id": bool(reply.message_id),
        "expiration": reply.expiration,
        "content type": reply.content_type,
        "type": reply.type,
        "value": reply.value,
        "malformed": reply.malformed,
    }


def _files(body: bytes) -> Any:
    """What a zip holds: names, sizes, and contents of the small ones; of what is no zip, itself."""
    if not body.startswith(b"PK"):
        return body
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {
            item.filename: archive.read(item) if item.file_size < 1000 else item.file_size
            for item in archive.infolist()
        }


@pytest.fixture(scope="session")
def rabbitmq_with_plugin() -> Iterator[Any]:
    """A RabbitMQ 3 that speaks AMQP 1.0, too."""
    from tests.brokers import fixtures

    with fixtures._started(plugins=["rabbitmq_amqp1_0"]) as private:
        yield private


@pytest.fixture(scope="session")
def grids(request: pytest.FixtureRequest, execute: Path) -> Iterator[Grids]:
    with ExitStack() as stack:
        yield Grids(request, execute, stack)


@pytest.fixture(params=[pytest.param(item, id=str(item), marks=pytest.mark.broker) for item in COMBINATIONS])
def combination(request: pytest.FixtureRequest) -> Combination:
    chosen: Combination = request.param
    return chosen


async def test_the_same_jobs_give_the_same_replies(grids: Grids, combination: Combination) -> None:
    expected, found = await grids.transcript(BASELINE), await grids.transcript(combination)
    for job in found:
        for number, (theirs, ours) in enumerate(zip(expected[job], found[job], strict=True)):
            for part in theirs:
                assert ours[part] == theirs[part], f"{job}, reply {number}: {part}"
            types = {name: type(value) for name, value in theirs["headers"].items()}
            assert {name: type(value) for name, value in ours["headers"].items()} == types, f"{job}, reply {number}"


AN_ID = "0e0b6d0f-5b0a-4d6e-8f2c-3a1b5c7d9e0f"


@pytest.mark.parametrize("kind", ["uuid", "ulong", "binary"])
async def test_an_id_comes_back_as_what_the_client_sent(grids: Grids, combination: Combination, kind: str) -> None:
    if combination.client != "1.0":
        pytest.skip("AMQP 0-9-1 knows only strings")
    if combination.broker == "rabbitmq" and kind == "ulong":
        pytest.skip("RabbitMQ 3's plugin breaks down over a ulong")
    text = {"uuid": str(uuid.uuid4()), "ulong": str(secrets.randbits(63)), "binary": secrets.token_hex(8)}[kind]
    async with grids.client(combination) as client:
        replies = await client.run({"headers": {"Cmd": "/bin/true"}, "message_id": TypedId(text, kind)})
    for reply in replies:
        assert reply.correlation_id == text
        lost = kind == "ulong" and combination.node == "0-9-1"  # RabbitMQ 4 shows a 0-9-1 consumer nothing but digits
        assert getattr(reply.correlation_id, "kind", "") == ("" if lost else kind)
    assert replies[-1].headers["AMQPID"] == f'"{text}"'
