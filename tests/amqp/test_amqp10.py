"""What is AMQP 1.0's own in its transport; test_conformance has what all promise."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from proton import Condition, symbol

from carod.amqp import (
    Address,
    BadEndpoint,
    Busy,
    ConnectionLost,
    Delivery,
    Endpoint,
    Exchange,
    Message,
    Outcome,
    Queue,
    Refused,
    TooLarge,
    Transport,
    Unroutable,
    open_transport,
    with_protocol,
)
from carod.amqp.amqp10.brokers import Target, matches
from carod.amqp.amqp10.transport import Amqp10Transport
from carod.amqp.embedded import EmbeddedBroker
from carod.amqp.engine import Engine, Event
from tests.brokers.broker_j import PrivateBrokerJ
from tests.brokers.package import find_package_4
from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.node.client import PATIENCE


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    """A broker of this test's own."""
    async with EmbeddedBroker(memory=16 << 20) as broker:
        yield broker


async def connected(url: str, **fields: Any) -> Amqp10Transport:
    transport = open_transport(Endpoint(url, **fields))
    assert isinstance(transport, Amqp10Transport)
    await transport.connect()
    return transport


async def a_queue(transport: Transport) -> str:
    return (await transport.declare(Queue(f"t-{secrets.token_hex(6)}", durable=False, exclusive=True)))[0]


async def next_of(arrived: asyncio.Queue[Delivery]) -> Delivery:
    async with asyncio.timeout(PATIENCE):
        return await arrived.get()


# -- who gets in -----------------------------------------------------------------------------------------------


async def test_without_a_user_we_are_anonymous(broker_j: PrivateBrokerJ) -> None:
    transport = await connected(broker_j.anonymous_url)
    assert await transport.depth("no-such-queue") is None
    await transport.close()


async def test_tls_and_a_certificate_that_logs_in(
    rabbitmq4: PrivateRabbitMQ, new_rabbitmq: Callable[..., PrivateRabbitMQ]
) -> None:
    broker = new_rabbitmq(tls=True, package=find_package_4())
    files = broker.certificates
    assert files is not None
    url = with_protocol(broker.tls_url, "1.0")
    end = Endpoint(url, ca_file=str(files.ca), cert_file=str(files.client), key_file=str(files.client_key))
    transport = open_transport(end)
    await transport.connect()
    await transport.publish(Message(user_id=files.client_name), Address("", (await transport.declare(Queue("q")))[0]))
    await transport.close()
    with_password = dataclasses.replace(end, url=url.replace("//", "//guest:guest@"), cert_file="", key_file="")
    transport = open_transport(with_password)
    await transport.connect()
    await transport.close()
    unknown = open_transport(dataclasses.replace(with_password, ca_file=""))
    with pytest.raises((ConnectionLost, Refused), match="certificate"):
        await unknown.connect()


async def test_a_tls_file_that_is_not_there_is_named() -> None:
    with pytest.raises(BadEndpoint, match="/no/such/ca"):
        await connected("amqps10://127.0.0.1/", ca_file="/no/such/ca")


async def test_a_vhost_is_named_as_the_broker_names_it(rabbitmq4: PrivateRabbitMQ) -> None:
    name = f"v-{secrets.token_hex(4)}"
    rabbitmq4.ctl("add_vhost", name)
    rabbitmq4.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    elsewhere, here = await connected(f"{rabbitmq4.url10.rstrip('/')}/{name}"), await connected(rabbitmq4.url10)
    await elsewhere.declare(Queue(name))
    assert (await elsewhere.depth(name), await here.depth(name)) == (0, None)
    await elsewhere.close()
    await here.close()
    rabbitmq4.ctl("delete_vhost", name)


async def test_an_unknown_vhost_is_refused_by_name(rabbitmq4: PrivateRabbitMQ) -> None:
    with pytest.raises(Refused, match="no-such-vhost"):
        await connected(f"{rabbitmq4.url10.rstrip('/')}/no-such-vhost")


async def test_an_older_rabbitmq_is_told_what_would_do(new_rabbitmq: Callable[..., PrivateRabbitMQ]) -> None:
    url = with_protocol(new_rabbitmq(plugins=["rabbitmq_amqp1_0"]).url, "1.0")
    with pytest.raises(Refused, match=r"RabbitMQ 3\..*use amqp://"):
        await connected(url)


async def test_a_port_where_nobody_listens_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLost, match="127"):
        await connected("amqp10://127.0.0.1:1/")


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad\r\n\r\n"])
async def test_a_server_that_speaks_something_else_is_told(greeting: bytes) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Refused, match=f"{port}.*another protocol"):
        await connected(f"amqp10://127.0.0.1:{port}/")
    server.close()


async def test_a_server_that_says_nothing_is_a_lost_connection() -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ConnectionLost, match=r"no answer within 0\.3 s"):
        await connected(f"amqp10://127.0.0.1:{port}/", connect_timeout=0.3)
    server.close()


# -- brokers that go -------------------------------------------------------------------------------------------


async def test_the_end_of_a_connection_is_told(new_broker_j: Callable[..., PrivateBrokerJ]) -> None:
    broker = new_broker_j()
    transport = await connected(broker.url)
    await transport.declare(Queue("q"))
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    await transport.consume("q", arrived.put_nowait, on_end=ended.set_result)
    await transport.publish(Message(b"x", durable=True), Address("", "q"))
    delivery = await next_of(arrived)
    closed = asyncio.ensure_future(transport.wait_closed())
    await asyncio.to_thread(broker.kill)
    async with asyncio.timeout(PATIENCE):
        assert await closed
        assert await ended
    for attempt in (
        transport.publish(Message(), Address("", "q")),
        transport.declare(Queue("q")),
        transport.depth("q"),
    ):
        with pytest.raises(ConnectionLost):
            await attempt
    with pytest.raises(ConnectionLost):
        delivery.settle(Outcome.ACCEPTED)
    await asyncio.to_thread(broker.start)
    await transport.connect()
    await transport.consume("q", arrived.put_nowait)
    again = await next_of(arrived)
    assert again.message.body == b"x"
    again.settle(Outcome.ACCEPTED)
    await transport.close()


async def test_a_broker_that_hangs_is_given_up(new_broker_j: Callable[..., PrivateBrokerJ]) -> None:
    broker = new_broker_j()
    transport = await connected(broker.url, heartbeat=1)
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE):
            assert "timeout" in await transport.wait_closed()
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    await transport.close()


# -- more than fits --------------------------------------------------------------------------------------------


async def test_a_broker_that_takes_nothing_is_waited_for(broker: EmbeddedBroker) -> None:
    transport = await connected(broker.url)
    queue = await a_queue(transport)
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    sending = [
        asyncio.ensure_future(transport.publish(Message(bytes(100_000)), Address("", queue))) for _ in range(300)
    ]
    await asyncio.wait(sending, timeout=0.5)
    assert not all(task.done() for task in sending)  # the broker is full
    await transport.consume(queue, lambda delivery: (delivery.settle(Outcome.ACCEPTED), arrived.put_nowait(delivery)))  # type: ignore[func-returns-value]
    for _ in range(300):
        await next_of(arrived)
    await asyncio.gather(*sending)
    await transport.close()


async def test_what_need_not_arrive_does_not_pile_up(broker: EmbeddedBroker) -> None:
    transport = await connected(broker.url)
    queue = await a_queue(transport)
    with pytest.raises(Busy, match=queue):
        for _ in range(5000):
            await transport.publish(Message(bytes(10_000)), Address("", queue), confirm=False)
    await transport.close()


async def test_a_message_over_the_brokers_limit_is_not_sent(rabbitmq4: PrivateRabbitMQ) -> None:
    transport = await connected(rabbitmq4.url10)
    queue = await a_queue(transport)
    with pytest.raises(TooLarge, match="16777216"):
        await transport.publish(Message(bytes(17 << 20)), Address("", queue))
    await transport.publish(Message(b"x"), Address("", queue))
    assert await transport.depth(queue) == 1
    await transport.close()


async def test_a_number_that_amqp_can_not_hold_is_not_sent(broker: EmbeddedBroker) -> None:
    transport = await connected(broker.url)
    with pytest.raises(TooLarge, match="64 bits"):
        await transport.publish(Message(headers={"n": 2**64}), Address("", await a_queue(transport)))
    await transport.close()


async def test_a_body_that_ends_early_does_not_arrive(broker: EmbeddedBroker) -> None:
    class Shrinking:
        """A file that had more in it when it was measured."""

        def seek(self, *_: int) -> int:
            return 3 << 20

        def read(self, size: int) -> bytes:
            self.left -= 1
            return bytes(size) if self.left > 0 else b""

        left = 20

    transport = await connected(broker.url)
    queue = await a_queue(transport)
    with pytest.raises(Refused, match="the body ended after"):
        await transport.publish(Message(Shrinking()), Address("", queue))  # type: ignore[arg-type]
    await transport.publish(Message(b"x"), Address("", queue))
    assert await transport.depth(queue) == 1
    await transport.close()


# -- what comes ------------------------------------------------------------------------------------------------


async def test_a_message_that_can_not_be_read_is_delivered_as_that(broker: EmbeddedBroker) -> None:
    transport = await connected(broker.url)
    queue = await a_queue(transport)
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    await transport.consume(queue, arrived.put_nowait)
    publisher = await transport._publisher(Target(""))
    to = (
        b"\x00\x53\x73\xd0" + (4 + 4 + len(queue)).to_bytes(4, "big") + b"\0\0\0\x03\x40\x40\xa1" + bytes((len(queue),))
    )
    data = to + queue.encode() + b"\x00\x53\x74\x45\x00\x53\x75\xa0\x01x"
    await publisher.send(data, queue, patient=True).arrived()
    delivery = await next_of(arrived)
    assert "no map" in delivery.message.malformed
    assert delivery.message.body == data
    delivery.settle(Outcome.ACCEPTED)
    await transport.close()


async def test_consumers_that_come_and_go_leave_nothing(broker: EmbeddedBroker) -> None:
    transport = await connected(broker.url)
    queue = await a_queue(transport)
    for _ in range(300):
        await (await transport.consume(queue, print)).cancel()
    wire = transport._wire
    assert wire is not None
    assert await transport.depth(queue) == 0  # the last goodbye is through
    assert len(wire._links) <= 4
    await transport.close()


async def test_publishers_to_ten_thousand_addresses_need_no_link_each(broker: EmbeddedBroker) -> None:
    transport = await connected(broker.url)
    for number in range(2000):
        with pytest.raises(Unroutable):
            await transport.publish(Message(), Address("", f"gone-{number}"))
    wire = transport._wire
    assert wire is not None
    assert len(wire._links) <= 2
    await transport.close()


async def test_broker_js_exchanges_are_asked_whether_anybody_listens(broker_j: PrivateBrokerJ) -> None:
    transport = await connected(broker_j.url)
    queue = await a_queue(transport)
    await transport.declare(Queue(queue, exclusive=True, bindings=(Address("amq.topic", "a.*.#"),)))
    await transport.publish(Message(), Address("amq.topic", "a.b.c"))
    with pytest.raises(Unroutable, match="no binding"):
        await transport.publish(Message(), Address("amq.topic", "a"))
    with pytest.raises(Unroutable):
        await transport.publish(Message(), Address("amq.fanout", ""))
    own = f"t-{secrets.token_hex(4)}"
    await transport.declare(Exchange(own, "topic"))
    with pytest.raises(Unroutable):
        await transport.publish(Message(), Address(own, "nobody"))
    await transport.close()


@pytest.mark.parametrize(
    ("pattern", "key", "taken"),
    [
        ("job.#", "job.a.b", True), ("job.#", "job", True), ("job.*", "job.a", True), ("job.*", "job.a.b", False),
        ("#", "", True), ("a", "a", True), ("a", "b", False), ("*.b", "a.b", True), ("#.b.#", "a.b.c", True),
    ],
)  # fmt: skip
def test_a_pattern_takes_a_key_as_a_topic_exchange_does(pattern: str, key: str, taken: bool) -> None:
    assert matches(pattern, key) is taken


# -- answers that no broker here gives -------------------------------------------------------------------------


class Peer:
    """The broker's side of a connection, as a test wants it: `refuse` is the condition that links end with."""

    def __init__(self, product: str, refuse: Condition | None = None) -> None:
        self.engine = Engine(self, server=True)
        self.engine.transport.sasl()
        self.engine.open()
        self._product, self._refuse = product, refuse

    def on_connection_remote_open(self, event: Event) -> None:
        event.connection.properties = {symbol("product"): self._product}
        event.connection.open()

    def on_session_remote_open(self, event: Event) -> None:
        event.session.open()

    def on_link_remote_open(self, event: Event) -> None:
        link = event.link
        link.open()
        link.condition = self._refuse
        link.close()

    def lost(self, reason: str) -> None:
        """Nobody cares."""


@pytest.fixture
async def peer() -> AsyncIterator[Callable[..., Any]]:
    servers: list[asyncio.Server] = []

    async def listen(*args: Any) -> str:
        server = await asyncio.get_running_loop().create_server(lambda: Peer(*args).engine, "127.0.0.1", 0)
        servers.append(server)
        return f"amqp10://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield listen
    for server in servers:
        server.close()


async def test_a_broker_that_nobody_knows_is_told_by_name(peer: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match="SomeMQ"):
        await connected(await peer("SomeMQ"))


async def test_a_redirect_says_where_to(peer: Callable[..., Any]) -> None:
    info = {symbol("network-host"): "other.example", symbol("port"): 5671}
    transport = await connected(await peer("carod-broker", Condition("amqp:link:redirect", "go away", info)))
    with pytest.raises(Refused, match=r"other\.example:5671; connect there"):
        await transport.consume("q", print)
    with pytest.raises(Refused, match=r"other\.example:5671"):
        await transport.publish(Message(), Address("", "q"))
    await transport.close()


async def test_a_link_that_is_refused_says_why(peer: Callable[..., Any]) -> None:
    transport = await connected(await peer("carod-broker", Condition("amqp:unauthorized-access", "not you")))
    with pytest.raises(Refused, match=r"queue 'q'.*not you.*unauthorized"):
        await transport.consume("q", print)
    await transport.close()
