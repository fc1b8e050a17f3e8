"""AMQP 1.0 with nothing but Proton: its engine on asyncio's socket, and its messages. Load and floor are made of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from proton import Delivery, Message, Terminus

from carod.amqp.engine import Engine, Event

Answer = TypeVar("Answer")
OnMessage = Callable[[Message, Delivery], None]
PATIENCE = 30.0
"""Seconds for a broker to answer."""


class Bare:
    """One connection with one session. Make it with `connect`."""

    def __init__(self, user: str, password: str) -> None:
        self.engine = Engine(self)
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = loop.create_future()
        self._begun: asyncio.Future[None] = loop.create_future()
        sasl = self.engine.transport.sasl()
        sasl.allow_insecure_mechs = True
        sasl.allowed_mechs("PLAIN" if user else "ANONYMOUS")
        connection = self.engine.connection
        if user:
            connection.user, connection.password = user, password
        connection.container = f"bench {uuid4()}"  # Broker-J takes links of one name for one link resumed
        self.engine.open()
        connection.open()
        self.session = connection.session()
        self.session.open()
        self._opened: dict[str, asyncio.Future[None]] = {}
        self._handlers: dict[str, OnMessage] = {}
        self._unsent: deque[tuple[Any, Message]] = deque()
        self._count = 0

    @classmethod
    async def connect(cls, url: str) -> Bare:
        parts = urlsplit(url)
        self = cls(unquote(parts.username or ""), unquote(parts.password or ""))
        self.engine.connection.hostname = parts.hostname
        await asyncio.get_running_loop().create_connection(lambda: self.engine, parts.hostname, parts.port or 5672)
        await asyncio.wait_for(self._begun, PATIENCE)
        return self

    async def close(self) -> None:
        self.engine.connection.close()
        self.engine.flush()
        await asyncio.wait((self.closed,), timeout=5)

    async def sender(self, address: str | None) -> Any:
        link = self.session.sender(f"to {address}")
        link.target.address = link.source.address = address
        return await self._attach(link)

    async def receiver(self, address: str | None, credit: int, on_message: OnMessage) -> Any:
        """Without an address, on a queue made for it."""
        link = self.session.receiver(f"from {address}")
        if address:
            link.source.address = link.target.address = address
        else:
            link.source.dynamic = True
            link.source.expiry_policy = Terminus.EXPIRE_WITH_LINK
        self._handlers[link.name] = on_message
        await self._attach(link)
        link.flow(credit)
        self.engine.flush()
        return link

    async def _attach(self, link: Any) -> Any:
        opened = self._opened[link.name] = asyncio.get_running_loop().create_future()
        link.open()
        self.engine.flush()
        await asyncio.wait_for(opened, PATIENCE)
        return link

    def send(self, link: Any, message: Message) -> None:
        """As soon as there is credit."""
        self._unsent.append((link, message))
        self._send_some()

    def _send_some(self) -> None:
        while self._unsent and self._unsent[0][0].credit > 0:
            link, message = self._unsent.popleft()
            self._count += 1
            link.delivery(f"{self._count}")
            link.send(message.encode())
            link.advance()
        self.engine.flush()

    # -- Proton's events ---------------------------------------------------------------------------------------

    def on_session_remote_open(self, _: Event) -> None:
        self._begun.set_result(None)

    def on_link_remote_open(self, event: Event) -> None:
        link = event.link
        terminus = link.remote_source if link.is_receiver else link.remote_target
        opened = self._opened.pop(link.name)
        if terminus.type != Terminus.UNSPECIFIED and not opened.done():
            opened.set_result(None)
        else:
            self._opened[link.name] = opened  # a refusal, whose reason follows

    def on_link_remote_close(self, event: Event) -> None:
        opened = self._opened.pop(event.link.name, None)
        if opened is not None and not opened.done():
            opened.set_exception(ConnectionError(str(event.link.remote_condition)))

    def on_link_flow(self, _: Event) -> None:
        self._send_some()

    def on_delivery(self, event: Event) -> None:
        delivery = event.delivery
        link = delivery.link
        if link.is_sender:
            if delivery.updated:
                delivery.settle()
            return
        if delivery.readable and not delivery.partial:
            message = Message()
            message.decode(link.recv(delivery.pending))
            link.advance()
            self._handlers[link.name](message, delivery)

    def lost(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)


def accept(link: Any, delivery: Delivery) -> None:
    """Done with; one more may come."""
    delivery.update(Delivery.ACCEPTED)
    delivery.settle()
    link.flow(1)


class Manager:
    """A broker's `$management`, with Broker-J's types."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._out: Any = None
        self._back: Any = None

    async def ask(self, operation: str, kind: str, body: dict[str, Any] | None = None, **headers: str) -> Message:
        if self._out is None:
            self._back = await self.bare.receiver(None, 10, self._arrived)
            self._out = await self.bare.sender("$management")
        properties = {"operation": operation, "type": f"org.apache.qpid.{kind}", "index": "object-path", **headers}
        request = Message(body=body or {}, properties=properties, correlation_id="bench")
        request.reply_to = self._back.remote_source.address
        self.bare.send(self._out, request)
        return await asyncio.wait_for(self._answers.get(), PATIENCE)

    def _arrived(self, message: Message, delivery: Delivery) -> None:
        accept(self._back, delivery)
        self._answers.put_nowait(message)

    async def declare(self, queue: str) -> None:
        await self.ask("CREATE", "Queue", {"name": queue, "object-path": queue, "durable": True})


def _asked(url: str, question: Callable[[Manager], Awaitable[Answer]]) -> Answer:
    async def ask() -> Answer:
        bare = await Bare.connect(url)
        try:
            return await question(Manager(bare))
        finally:
            await bare.close()

    return asyncio.run(ask())


def state(url: str, queue: str) -> tuple[int, int] | None:
    """As `broker.state`."""

    async def question(manager: Manager) -> tuple[int, int] | None:
        answer = await manager.ask("getStatistics", "Queue", key=queue)
        if (answer.properties or {}).get("statusCode") != 200:
            return None
        return answer.body["availableMessages"], answer.body["consumerCount"]

    return _asked(url, question)


def delete(url: str, queues: Iterable[str], exchanges: Iterable[str] = ()) -> None:
    """As `broker.delete`. What is the alternate of another must wait for that."""

    async def question(manager: Manager) -> None:
        for kind, names in (("Queue", [*queues] * 2), ("Exchange", [*exchanges])):
            for name in names:
                await manager.ask("DELETE", kind, key=name)

    _asked(url, question)


def product(url: str) -> str:
    """As `broker.product`."""

    async def question(manager: Manager) -> str:
        await manager.bare.sender("$management")
        told = {str(name): value for name, value in (manager.bare.engine.connection.remote_properties or {}).items()}
        return f"{told.get('product', '')} {told.get('version', '')}".strip()

    return _asked(url, question)
