"""The broker: what queues and exchanges there are, where a message goes, and the socket that it listens on."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from types import TracebackType
from uuid import uuid4

from carod.amqp.embedded.connection import Connection
from carod.amqp.embedded.exchange import PREDEFINED, Exchange
from carod.amqp.embedded.greeting import Greeting
from carod.amqp.embedded.links import Incoming
from carod.amqp.embedded.message import Stored
from carod.amqp.embedded.queue import Memory, Queue, TooMany, Traits

log = logging.getLogger("carod.amqp.embedded")
MEMORY = 512 << 20
"""Bytes that all messages may take."""
MAX_NAMES = 20_000
"""Queues, exchanges and bindings together: no client may have us fill the memory by declaring."""
SWEEP = 0.02
"""Seconds between two looks for expired messages, at least."""


class ListenError(OSError):
    """The address can't be listened on; the text says why."""


class EmbeddedBroker:
    """An AMQP 1.0 broker in the running event loop: `async with EmbeddedBroker() as broker: broker.url`.

    Port 0 is any that is free. `memory` is how many bytes all messages may take; at most a quarter of it one message.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, memory: int = MEMORY) -> None:
        self.host, self.port = host, port
        self.max_message = memory // 4
        self.memory = Memory(memory, self._make_room)
        self.queues: dict[str, Queue] = {}
        self.exchanges = {name: Exchange(name, kind, durable=True) for name, kind in PREDEFINED.items()}
        self.connections: set[Connection] = set()
        self.greetings: set[Greeting] = set()
        self.stalled: dict[Incoming, None] = {}
        """Links that wait for room in memory."""
        self._bindings = 0
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    # -- the socket --------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"amqp10://{host}:{self.port}"

    async def __aenter__(self) -> EmbeddedBroker:
        """Listen. Raises ListenError."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: Greeting(self), self.host, self.port)
        except OSError as error:
            raise ListenError(f"can't listen on {self.host}:{self.port}: {_reason(error)}") from None
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:  # fmt: skip
        assert self._server is not None
        self._server.close()
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self.connections):
            connection.close("amqp:connection:forced", "the broker is going down")
        await asyncio.sleep(0)  # the goodbyes are on their way
        for connection in list(self.connections):
            connection.abort()
        for greeting in list(self.greetings):
            greeting.abort()
        await self._server.wait_closed()

    # -- names -------------------------------------------------------------------------------------------------

    def declare(self, name: str, traits: Traits, owner: object = None) -> Queue:
        """A new queue. Raises TooMany."""
        self._count()
        queue = self.queues[name] = Queue(name, traits, self.memory, self._dead_letter, self._schedule_sweep)
        queue.owner = owner
        return queue

    def declare_private(self, traits: Traits, owner: object = None) -> Queue:
        return self.declare(f"TempQueue{uuid4()}", traits, owner)

    def declare_exchange(self, name: str, kind: str, *, durable: bool) -> None:
        """Raises TooMany."""
        self._count()
        self.exchanges[name] = Exchange(name, kind, durable=durable)

    def bind(self, exchange: Exchange, queue: Queue, key: str) -> bool:
        """Whether that is a new binding. Raises TooMany."""
        self._count()
        new = exchange.bind(queue, key)
        self._bindings += new
        return new

    def unbind(self, exchange: Exchange, queue: Queue, key: str) -> bool:
        there = exchange.unbind(queue, key)
        self._bindings -= there
        return there

    def _count(self) -> None:
        if len(self.queues) + len(self.exchanges) + self._bindings >= MAX_NAMES:
            raise TooMany(f"there are {MAX_NAMES} queues, exchanges and bindings, which is the most")

    def delete(self, queue: Queue) -> None:
        if self.queues.get(queue.name) is queue:
            del self.queues[queue.name]
            for exchange in self.exchanges.values():
                self._bindings -= exchange.forget(queue)
            queue.delete()

    def delete_exchange(self, exchange: Exchange) -> None:
        del self.exchanges[exchange.name]
        self._bindings -= sum(map(len, exchange.bindings.values()))

    # -- messages ----------------------------------------------------------------------------------------------

    def find(self, address: str, subject: str | None = None) -> list[Queue] | None:
        """The queues that an address means, `QUEUE`, `EXCHANGE/KEY` or `EXCHANGE`; None if there is no such node."""
        queue = self.queues.get(address)
        if queue is not None:
            return [queue]
        name, slash, key = address.partition("/")
        exchange = self.exchanges.get(name)
        return None if exchange is None else exchange.route(key if slash else subject or "")

    def deliver(self, message: Stored, address: str, subject: str | None = None) -> str:
        """Put a message where it belongs; why that can't be, or nothing."""
        queues = self.find(address, subject)
        if queues is None:
            return f"there is no queue or exchange {address!r}"
        if not queues:
            return f"no queue is bound to exchange {address!r} for this message" + (
                f", whose subject is {subject!r}" if "/" not in address else ""
            )
        for queue in queues:
            queue.put(message)
        return ""

    def _dead_letter(self, alternate: tuple[str, str], message: Stored) -> None:
        name, key = alternate
        problem = self.deliver(message, name, key or message.subject)
        if problem:
            log.warning("a message that %s should get is lost: %s", name, problem)

    # -- memory and time ---------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Somebody waits for room, and there is some more."""
        if self.memory.held < self.memory.limit:
            self.memory.wanted = False
            asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        stalled, self.stalled = self.stalled, {}
        for link in stalled:
            link.resume()

    def _schedule_sweep(self, when: float) -> None:
        """Look for expired messages at that time (time.monotonic)."""
        loop = asyncio.get_running_loop()
        delay = max(SWEEP, when - time.monotonic())
        if self._sweep is None or loop.time() + delay < self._sweep.when():
            if self._sweep is not None:
                self._sweep.cancel()
            self._sweep = loop.call_later(delay, self._expire)

    def _expire(self) -> None:
        self._sweep = None
        now = time.monotonic()
        for queue in list(self.queues.values()):
            if queue.next_expiry <= now:
                queue.expire()
        following = min((queue.next_expiry for queue in self.queues.values()), default=float("inf"))
        if following < float("inf"):
            self._schedule_sweep(following)


def _reason(error: OSError) -> str:
    """Without asyncio's repetition of the address; what a resolver says has a number of its own kind."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno).lower()
