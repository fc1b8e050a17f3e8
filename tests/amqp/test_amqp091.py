"""The transport for AMQP 0-9-1 against a real RabbitMQ: what each method promises (carod/amqp/transport.py)."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable

import pytest

from carod.amqp import (
    Address,
    ConnectionLost,
    Delivery,
    Endpoint,
    Exchange,
    Message,
    Outcome,
    Queue,
    Refused,
    StaleDelivery,
    TooLarge,
    Transport,
    Unroutable,
    open_transport,
)
from tests.brokers.rabbitmq import PrivateRabbitMQ

PATIENCE = 60


@pytest.fixture
async def transport(broker_url: str) -> AsyncIterator[Transport]:
    transport = open_transport(Endpoint(broker_url))
    await transport.connect()
    yield transport
    await transport.close()


@pytest.fixture
async def queue(transport: Transport) -> str:
    """An exclusive queue of the test's own."""
    return (await transport.declare(Queue(f"t-{secrets.token_hex(6)}", durable=False, exclusive=True)))[0]


class Inbox:
    """Deliveries as they come."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def next(self) -> Delivery:
        async with asyncio.timeout(PATIENCE):
            return await self.queue.get()

    async def end(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return await self.ended


async def consume(transport: Transport, queue: str, **options: object) -> Inbox:
    inbox = Inbox()
    await transport.consume(queue, inbox.queue.put_nowait, on_end=inbox.ended.set_result, **options)  # type: ignore[arg-type]
    return inbox


async def test_a_message_arrives_as_it_was_sent(transport: Transport, queue: str) -> None:
    sent = Message(
        b"body", {"I": 1, "F": 0.1, "S": "ä", "B": True, "N": None, "L": [1, "x"], "T": {"a": 2**40}, "X": b"\xff"},
        "id", "correlation", "reply", 60.0, 3, "guest", True, "text/plain", "kind", 1_700_000_000,
    )  # fmt: skip
    await transport.publish(sent, Address("", queue))
    delivery = await (await consume(transport, queue)).next()
    assert dataclasses.replace(delivery.message) == sent
    assert not delivery.redelivered
    delivery.settle(Outcome.ACCEPTED)


async def test_no_more_than_credit_are_unsettled(transport: Transport, queue: str) -> None:
    for number in range(3):
        await transport.publish(Message(message_id=str(number)), Address("", queue))
    inbox = await consume(transport, queue, credit=2)
    first, second = await inbox.next(), await inbox.next()
    assert await transport.depth(queue) == 1
    assert inbox.queue.empty()
    first.settle(Outcome.ACCEPTED)
    third = await inbox.next()
    assert [item.message.message_id for item in (first, second, third)] == ["0", "1", "2"]


async def test_what_is_released_comes_again_marked_as_redelivered(transport: Transport, queue: str) -> None:
    await transport.publish(Message(b"x"), Address("", queue))
    inbox = await consume(transport, queue)
    (await inbox.next()).settle(Outcome.RELEASED)
    again = await inbox.next()
    assert (again.message.body, again.redelivered) == (b"x", True)


async def test_a_delivery_is_settled_exactly_once(transport: Transport, queue: str) -> None:
    await transport.publish(Message(), Address("", queue))
    delivery = await (await consume(transport, queue)).next()
    delivery.settle(Outcome.ACCEPTED)
    with pytest.raises(AssertionError, match="settled already"):
        delivery.settle(Outcome.ACCEPTED)


async def test_a_delivery_whose_connection_is_gone_is_stale(broker_url: str, transport: Transport, queue: str) -> None:
    other = open_transport(Endpoint(broker_url))
    await other.connect()
    name, _ = await other.declare(Queue(f"{queue}-3", durable=False, auto_delete=False))
    await other.publish(Message(), Address("", name))
    delivery = await (await consume(other, name)).next()
    await other.close()
    with pytest.raises(StaleDelivery):
        delivery.settle(Outcome.ACCEPTED)
    await transport.delete(name)


@pytest.mark.parametrize(
    "address", [Address("", "no-such-queue"), Address("amq.direct", "no-such-key"), Address("no-such-exchange", "k")]
)
async def test_a_message_to_nowhere_is_unroutable(transport: Transport, queue: str, address: Address) -> None:
    with pytest.raises(Unroutable, match=address.key):
        await transport.publish(Message(message_id="m"), address)
    await transport.publish(Message(b"x"), Address("", queue))  # and the next one gets through
    assert await transport.depth(queue) == 1


async def test_a_large_message_to_nowhere_is_unroutable(transport: Transport, queue: str) -> None:
    with pytest.raises(Unroutable):
        await transport.publish(Message(bytes(3 << 20), message_id="m"), Address("", "no-such-queue"))
    await transport.publish(Message(b"x"), Address("", queue))


async def test_headers_that_do_not_fit_a_frame_are_too_large_and_cost_nothing(transport: Transport, queue: str) -> None:
    with pytest.raises(TooLarge, match="headers of"):
        await transport.publish(Message(headers={"x": "x" * 140_000}), Address("", queue))
    with pytest.raises(TooLarge, match="255"):
        await transport.publish(Message(message_id="x" * 300), Address("", queue))
    await transport.publish(Message(b"x"), Address("", queue))


async def test_a_name_that_can_be_no_address_is_unroutable(transport: Transport) -> None:
    for address in (Address("a b", "k"), Address("x" * 200, "k"), Address("x" * 300, "k"), Address("\udcff", "k"),
                    Address("x" + "é" * 120, "k"),
                    Address("", "\udcff"), Address("", "x" * 300)):  # fmt: skip
        with pytest.raises(Unroutable):
            await transport.publish(Message(message_id="m"), address)


async def test_a_user_id_that_is_not_ours_is_refused(transport: Transport, queue: str) -> None:
    with pytest.raises(Refused, match="user_id"):
        await transport.publish(Message(user_id="somebody"), Address("", queue))
    await transport.publish(Message(b"x"), Address("", queue))


@pytest.mark.parametrize("as_file", [False, True])
async def test_a_large_body_is_streamed_and_arrives_whole(transport: Transport, queue: str, as_file: bool) -> None:
    content = os.urandom(13 << 20)
    inbox = await consume(transport, queue)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        body = file if as_file else content
        small = [transport.publish(Message(b"%d" % number), Address("", queue)) for number in range(3)]
        await asyncio.gather(*small)
        await transport.publish(Message(body), Address("", queue))  # type: ignore[arg-type]
    bodies = []
    for _ in range(4):
        delivery = await inbox.next()
        delivery.settle(Outcome.ACCEPTED)
        bodies.append(delivery.message.body)
    assert bodies == [b"0", b"1", b"2", content]  # in the order of the calls


async def test_many_messages_arrive_in_the_order_of_the_calls(transport: Transport, queue: str) -> None:
    inbox = await consume(transport, queue, credit=0, settled=True)
    sizes = [10, 2 << 20, 10, 200_000, 0, 3 << 20, 1]
    for number, size in enumerate(sizes):
        await transport.publish(Message(bytes(size), message_id=str(number)), Address("", queue), confirm=False)
    assert [(await inbox.next()).message.message_id for _ in sizes] == [str(number) for number in range(len(sizes))]


async def test_a_queue_of_the_brokers_own_name_is_declared(transport: Transport) -> None:
    name, as_asked = await transport.declare(Queue("", durable=False, exclusive=True))
    assert name
    assert as_asked


async def test_a_queue_with_other_arguments_is_left_as_it_is(transport: Transport) -> None:
    name = f"t-{secrets.token_hex(6)}"
    assert await transport.declare(Queue(name, durable=True)) == (name, True)
    assert await transport.declare(Queue(name, durable=False, message_ttl=1.0)) == (name, False)
    await transport.publish(Message(), Address("", name))
    assert await transport.depth(name) == 1
    await transport.delete(name)


async def test_an_exchange_of_another_type_is_left_as_it_is(transport: Transport) -> None:
    assert await transport.declare(Exchange("amq.topic", "topic")) == ("amq.topic", True)
    assert await transport.declare(Exchange("amq.direct", "fanout")) == ("amq.direct", False)


async def test_a_binding_to_a_missing_exchange_is_refused(transport: Transport, queue: str) -> None:
    wanted = Queue(queue, durable=False, exclusive=True, bindings=(Address("no-such-exchange", "k"),))
    with pytest.raises(Refused, match="no-such-exchange"):
        await transport.declare(wanted)


async def test_a_queue_that_is_not_there_has_no_depth_and_can_be_deleted(transport: Transport) -> None:
    assert await transport.depth("no-such-queue") is None
    await transport.delete("no-such-queue")


async def test_a_missing_queue_can_not_be_consumed(transport: Transport) -> None:
    with pytest.raises(Refused, match="no-such-queue"):
        await consume(transport, "no-such-queue")


async def test_a_consumer_is_told_when_its_queue_is_deleted(transport: Transport, queue: str) -> None:
    inbox = await consume(transport, queue)
    await transport.delete(queue)
    assert "queue" in await inbox.end()


async def test_a_cancelled_consumer_gets_no_more_but_may_settle_what_it_has(transport: Transport, queue: str) -> None:
    inbox = Inbox()
    subscription = await transport.consume(queue, inbox.queue.put_nowait, credit=1)
    await transport.publish(Message(b"1"), Address("", queue))
    delivery = await inbox.next()
    await subscription.cancel()
    await transport.publish(Message(b"2"), Address("", queue))
    assert await transport.depth(queue) == 1
    delivery.settle(Outcome.ACCEPTED)
    other = await consume(transport, queue)
    assert (await other.next()).message.body == b"2"
    assert inbox.queue.empty()


async def test_a_handler_that_raises_leaves_the_delivery_unsettled(transport: Transport, queue: str) -> None:
    called = asyncio.Event()

    def broken(_: Delivery) -> None:
        called.set()
        raise RuntimeError("oh")

    await transport.consume(queue, broken)
    await transport.publish(Message(b"x"), Address("", queue))
    async with asyncio.timeout(PATIENCE):
        await called.wait()
    await transport.publish(Message(b"y"), Address("", queue))
    assert await transport.depth(queue) == 1


async def test_without_a_connection_nothing_is_done(broker_url: str) -> None:
    transport = open_transport(Endpoint(broker_url))
    for attempt in (
        transport.publish(Message(), Address("", "q")), transport.depth("q"), transport.declare(Queue("q")),
        transport.consume("q", print), transport.wait_closed(),
    ):  # fmt: skip
        with pytest.raises(ConnectionLost, match="not connected"):
            await attempt
    await transport.close()


async def test_the_end_of_a_connection_is_told(new_rabbitmq: Callable[..., PrivateRabbitMQ]) -> None:
    broker = new_rabbitmq()
    transport = open_transport(Endpoint(broker.url))
    await transport.connect()
    name, _ = await transport.declare(Queue("q"))
    closed = asyncio.ensure_future(transport.wait_closed())
    await asyncio.to_thread(broker.restart)
    async with asyncio.timeout(PATIENCE):
        assert await closed
    with pytest.raises(ConnectionLost):
        await transport.publish(Message(), Address("", name))
    await transport.connect()
    await transport.publish(Message(b"x", durable=True), Address("", name))
    assert await transport.depth(name) == 1
    await transport.close()


async def test_tls_and_a_certificate_that_logs_in(new_rabbitmq: Callable[..., PrivateRabbitMQ]) -> None:
    broker = new_rabbitmq(tls=True)
    files = broker.certificates
    assert files is not None
    end = Endpoint(broker.tls_url, ca_file=str(files.ca), cert_file=str(files.client), key_file=str(files.client_key))
    transport = open_transport(end)
    await transport.connect()
    await transport.publish(Message(user_id=files.client_name), Address("", (await transport.declare(Queue("q")))[0]))
    await transport.close()
    with_password = dataclasses.replace(
        end, url=broker.tls_url.replace("//", "//guest:guest@"), cert_file="", key_file=""
    )
    transport = open_transport(with_password)
    await transport.connect()
    await transport.close()
    unknown = open_transport(dataclasses.replace(with_password, ca_file=""))
    with pytest.raises((ConnectionLost, Refused), match="certificate"):
        await unknown.connect()


async def test_a_wrong_password_is_refused_without_being_shown(broker_url: str) -> None:
    end = Endpoint(broker_url.replace("guest:guest@", "guest:wr0ng@"))
    with pytest.raises(Refused, match="password") as caught:
        await open_transport(end).connect()
    assert "wr0ng" not in str(caught.value)


async def test_an_unknown_vhost_is_refused_by_name(broker_url: str) -> None:
    with pytest.raises(Refused, match="no-such-vhost"):
        await open_transport(Endpoint(f"{broker_url.rstrip('/')}/no-such-vhost")).connect()


async def test_a_port_where_nobody_listens_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLost, match="127"):
        await open_transport(Endpoint("amqp://127.0.0.1:1/")).connect()


async def test_a_server_that_speaks_something_else_is_told() -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises((ConnectionLost, Refused), match=str(port)):
        await open_transport(Endpoint(f"amqp://127.0.0.1:{port}/")).connect()
    server.close()


@pytest.mark.parametrize(
    ("reply_to", "address"),
    [
        ("name", Address("", "name")), ("amq.rabbitmq.reply-to.x", Address("", "amq.rabbitmq.reply-to.x")),
        ("amq.direct/my_key", Address("amq.direct", "my_key")), ("amq.direct/a/b", Address("amq.direct", "a/b")),
        ("nowhere/key", Address("", "nowhere/key")), ("/queues/a%2Fb%20c", Address("", "a/b c")),
        ("/queue/name", Address("", "name")), ("/exchanges/e%2Fx/k%20y", Address("e/x", "k y")),
        ("/exchanges/e", Address("e", "")),
        ("/exchange/e/k", Address("e", "k")), ("/", Address("", "/")), ("/other/x", Address("", "/other/x")),
        ("a b/c", Address("", "a b/c")),
    ],
)  # fmt: skip
async def test_a_reply_to_of_any_client_is_understood(transport: Transport, reply_to: str, address: Address) -> None:
    assert await transport.resolve(reply_to) == address
