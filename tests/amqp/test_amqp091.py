"""What is AMQP 0-9-1's own in its transport, on a real RabbitMQ; test_conformance has what all promise."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable

import pytest

from carod.amqp import (
    Address,
    ConnectionLost,
    Delivery,
    Endpoint,
    Message,
    Queue,
    Refused,
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
