"""An embedded broker for a test, and Proton's blocking client with what it lacks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

from proton import Delivery, Message
from proton.utils import BlockingConnection

from carod.amqp.embedded import EmbeddedBroker

TIMEOUT = 20
"""Seconds for what is a matter of milliseconds on an idle machine."""
T = TypeVar("T")


class Broker:
    """An embedded broker in a thread, so that a blocking client can speak to it."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._up.wait(TIMEOUT)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with EmbeddedBroker(**self._options) as self._broker:
            self._up.set()
            await self._over.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    @property
    def port(self) -> int:
        return self._broker.port

    def ask(self, question: Callable[[EmbeddedBroker], T]) -> T:
        """What the broker answers in its own thread."""

        async def answer() -> T:
            return question(self._broker)

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result(TIMEOUT)

    def wait_until(self, condition: Callable[[EmbeddedBroker], bool]) -> None:
        """Until that is so; each turn of the broker's loop may bring it about."""

        async def become_so() -> None:
            async with asyncio.timeout(TIMEOUT):
                while not condition(self._broker):  # noqa: ASYNC110  what it waits for sets no event
                    await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(become_so(), self._loop).result(TIMEOUT + 1)


class Client:
    """A connection of the blocking client, with the broker's management at hand."""

    def __init__(self, broker: Broker, user: str = "", **options: Any) -> None:
        self.connection = BlockingConnection(f"amqp://{user}127.0.0.1:{broker.port}", timeout=TIMEOUT, **options)
        self._answers: Any = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def manage(self, operation: str, kind: str, body: Any = None, **properties: str) -> tuple[int, Any]:
        """The status and the body of the answer to a request."""
        if self._answers is None:
            self._answers = self.receiver(None, 1000, dynamic=True)
            self._requests = self.connection.create_sender("$management")
        headers = {"operation": operation, "type": f"org.apache.qpid.{kind}", "index": "object-path", **properties}
        reply_to = self._answers.address
        self._requests.send(Message(body=body or {}, properties=headers, reply_to=reply_to, id="a request"))
        answer = self._answers.next()
        self._answers.accept()
        assert answer.correlation_id == "a request"
        return answer.properties["statusCode"], answer.body or answer.properties["statusDescription"]

    def declare(self, queue: str, **attributes: Any) -> None:
        names = {name.replace("_", "-"): value for name, value in attributes.items()}
        status, answer = self.manage("CREATE", "Queue", {"name": queue, "object-path": queue, **names})
        assert status == 201, answer

    def bind(self, queue: str, exchange: str, key: str) -> None:
        assert self.manage("bind", "Exchange", key=exchange, destination=queue, bindingKey=key)[0] == 200

    def read(self, queue: str) -> Any:
        status, attributes = self.manage("READ", "Queue", key=queue)
        assert status == 200, attributes
        return attributes

    def depth(self, queue: str) -> int:
        return self.read(queue)["availableMessages"]

    def send(self, target: str | None, *bodies: Any, **properties: Any) -> None:
        sender = self.connection.create_sender(target)
        for body in bodies:
            sender.send(Message(body=body, **properties))
        sender.close()

    def receiver(self, queue: str | None, credit: int = 1, **options: Any) -> Consumer:
        return Consumer(self.connection, queue, credit, **options)

    def take(self, queue: str, count: int = 1) -> list[Any]:
        """The bodies of the next messages."""
        receiver = self.receiver(queue, count)
        bodies = []
        for _ in range(count):
            bodies.append(receiver.next().body)
            receiver.settle(Delivery.ACCEPTED)
        receiver.close()
        return bodies


class Consumer:
    """A link with exactly the credit that it is given."""

    def __init__(self, connection: BlockingConnection, queue: str | None, credit: int, **options: Any) -> None:
        self._connection = connection
        self._receiver = connection.create_receiver(queue, credit=0, name=str(uuid4()), **options)
        self.link = self._receiver.link
        self.link.flow(credit)
        self.close = self._receiver.close

    @property
    def address(self) -> str:
        """Of the queue that it consumes."""
        return self.link.remote_source.address

    def next(self) -> Message:
        """The next message, which is to be settled."""
        fetcher = self._receiver.fetcher
        self._connection.wait(lambda: fetcher.has_message, timeout=TIMEOUT)
        return fetcher.pop()

    def settle(self, state: int, **how: bool) -> None:
        """Settle the oldest delivery."""
        delivery = self._receiver.fetcher.unsettled.popleft()
        for name, value in how.items():
            setattr(delivery.local, name, value)
        delivery.update(state)
        delivery.settle()

    def accept(self) -> None:
        self.settle(Delivery.ACCEPTED)


@contextmanager
def checked_broker(**options: Any) -> Iterator[Broker]:
    """A broker that at the end has nothing left of what its clients had."""
    broker = Broker(**options)
    try:
        yield broker
        broker.wait_until(lambda it: not it.connections and not it.greetings)
        broker.wait_until(lambda it: it.memory.held == sum(queue.size for queue in it.queues.values()))
        assert broker.ask(lambda it: [name for name, queue in it.queues.items() if queue.unsettled]) == []
        assert broker.ask(lambda it: [name for name in it.queues if name.startswith("TempQueue")]) == []
    finally:
        broker.close()
