"""Questions to a broker over AMQP 1.0: management by messages, each answered by one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from proton import symbol

from carod.amqp.amqp10.links import Delivery10, Publisher10, Subscription10, encoded
from carod.amqp.amqp10.message import Received
from carod.amqp.amqp10.wire import Wire
from carod.amqp.transport import ConnectionLost, Delivery, HeaderValue, Message, Refused

LANE = "requests"
QUEUE, EXCHANGE = "org.apache.qpid.Queue", "org.apache.qpid.Exchange"
"""Kinds of what `Management` manages."""
NULL_VALUE = b"\x00\x53\x77\x40"
"""A body of nothing, which is not the same as no body: RabbitMQ ends the session for that."""
ANSWER_TIMEOUT = 30.0
"""Seconds that a broker has to answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a broker said: an HTTP status, its text where it has one, and a value."""

    status: int
    text: str
    value: Any

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Questions:
    """A pair of links: requests go to `address`, answers come back, told apart by their correlation ids."""

    def __init__(self, wire: Wire, address: str, *, paired: bool = False) -> None:
        self._wire, self._address, self._paired = wire, address, paired
        self._opening = asyncio.Lock()
        self._out: Publisher10 | None = None
        self._back: Subscription10 | None = None
        self._waiting: dict[str, asyncio.Future[Received]] = {}
        self._count = 0

    async def ask(self, headers: dict[str, HeaderValue], body: Any = None, *, to: str | None = None,
                  subject: str | None = None) -> Received:  # fmt: skip
        """Send a request, and have its answer. Raises Refused or ConnectionLost."""
        out, reply_to = await self._open()
        self._count += 1
        number = f"q-{self._count}"  # one broker takes digits alone for a number
        message = Message(b"", headers, number, number if not self._paired else None, reply_to, value=body)
        answered: asyncio.Future[Received] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answered
        try:
            body_section = b"" if body is not None else NULL_VALUE
            data = encoded(message, None, to=to, subject=subject) + body_section
            await out.send(data, to or self._address, patient=True).arrived()
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await answered
        except TimeoutError:
            raise ConnectionLost(f"the broker did not answer a request to {self._address} in time") from None
        finally:
            del self._waiting[number]

    async def _open(self) -> tuple[Publisher10, str]:
        async with self._opening:
            if self._out is None or self._out.ended or self._back is None or self._back.ended:
                await self._attach()
            assert self._out is not None
            assert self._back is not None
            return self._out, "$me" if self._paired else str(self._back.link.remote_source.address)

    async def _attach(self) -> None:
        if self._paired:  # (OASIS, "AMQP Request-Response Messaging with Link Pairing", 3)
            name, properties = f"pair-{self._address}", {symbol("paired"): True}
            self._out, back = await asyncio.gather(
                self._wire.publisher(self._address, lane=LANE, settled=True, name=name, properties=properties),
                self._wire.subscription(
                    self._address,
                    self._arrived,
                    settled=True,
                    on_end=self._ended,
                    lane=LANE,
                    name=name,
                    properties=properties,
                ),
            )
        else:
            back = await self._wire.subscription("", self._arrived, settled=True, on_end=self._ended, lane=LANE)
            self._out = await self._wire.publisher(self._address, lane=LANE)
        back.start()
        self._back = back

    def _arrived(self, delivery: Delivery) -> None:
        assert isinstance(delivery, Delivery10)
        waiting = self._waiting.get(delivery.message.correlation_id or "")
        if waiting is not None and not waiting.done():
            waiting.set_result(delivery.received)

    def _ended(self, why: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionLost(why) if self._wire.closed.done() else Refused(why))


class Management:
    """AMQP Management (OASIS draft), as Broker-J and the embedded broker have it, at `$management`."""

    def __init__(self, wire: Wire) -> None:
        self._questions = Questions(wire, "$management")

    async def create(self, kind: str, name: str, attributes: dict[str, Any]) -> Answer:
        return await self._ask(
            {"operation": "CREATE", "type": kind}, {"name": name, "object-path": _escaped(name), **attributes}
        )

    async def invoke(self, operation: str, kind: str, name: str, **arguments: HeaderValue) -> Answer:
        """READ, DELETE, or an operation of the object's kind, on the object of that name."""
        headers: dict[str, HeaderValue] = {"operation": operation, "type": kind, "index": "object-path"}
        return await self._ask({**headers, "key": _escaped(name), **arguments}, {})

    async def _ask(self, headers: dict[str, HeaderValue], body: dict[str, Any]) -> Answer:
        message = (await self._questions.ask(headers, body)).message
        status = message.headers.get("statusCode")
        text = message.headers.get("statusDescription")
        value = message.value if message.value is not None else message.body
        return Answer(status if isinstance(status, int) else 500, str(text or ""), value)


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("/", "\\/")


class HttpManagement:
    """RabbitMQ 4's management: HTTP's requests and answers as AMQP 1.0 messages, at `/management`."""

    def __init__(self, wire: Wire) -> None:
        self._questions = Questions(wire, "/management", paired=True)

    async def ask(self, method: str, path: str, body: Any = None) -> Answer:
        received = await self._questions.ask({}, body, to=path, subject=method)
        message = received.message
        subject = received.subject or ""
        status = int(subject) if subject.isdecimal() else 500
        value = message.value if message.value is not None else message.body
        text = value if isinstance(value, str) else value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
        return Answer(status, text, value)
