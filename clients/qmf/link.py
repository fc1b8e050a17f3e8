"""A console's connection to a broker: which agents there are, requests to them and their answers. Runs in the loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from carod.amqp import (
    Address,
    Busy,
    ConnectionLost,
    Delivery,
    Endpoint,
    Message,
    Queue,
    Transport,
    TransportError,
    Unroutable,
    open_transport,
)
from carod.qmf import (
    DIRECT,
    EXCHANGES,
    TOPIC,
    BadBody,
    BadEncoding,
    Opcode,
    SchemaClass,
    SchemaRequest,
    TooLong,
    read_body,
    sendable,
)
from carod.qmf.body import MAX_ANSWER, MAX_ANSWER_ITEMS
from carod.qmf.names import AGENT, CONTENT, HEARTBEAT_KEY, LOCATE_KEY, OPCODE, PARTIAL, VERSION_1
from carod.qmf.schema import decode_answer

logger = logging.getLogger("carod.qmf")

LOCATE_TIME = 1.0
"""Seconds to wait for a first agent to answer."""
LOCATE_GRACE = 0.1
"""Seconds to wait for further ones after each that did."""
MIN_INTERVAL, MISSED = 10.0, 3
"""An agent is gone when it missed so many heartbeats, whose interval is at least so many seconds."""
WINDOW = 200
"""Requests of a batch that are under way at a time."""


class QmfError(Exception):
    """What was asked for could not be had; the text says why."""


class TimedOut(QmfError):
    """No answer in time: whether it was done is not known."""


class AgentGone(QmfError):
    """The agent is not there, or ended before it answered; then whether it was done is not known."""


@dataclass(slots=True)
class AgentState:
    """What an agent last said of itself. `seen` is time.monotonic, `interval` in seconds."""

    name: str
    epoch: int
    interval: float
    timestamp: int
    schema_updated: int
    seen: float

    @property
    def alive(self) -> bool:
        return time.monotonic() - self.seen <= MISSED * max(self.interval, MIN_INTERVAL) + 1


@dataclass(slots=True)
class _Pending:
    """A request that waits for its answer; `parts` is what has come of it."""

    agent: str
    answer: asyncio.Future[tuple[str, Any]]
    limit: asyncio.Timeout
    timeout: float
    parts: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Indication:
    """What an agent said unasked: `content` is _data or _event, or empty for a heartbeat."""

    agent: str
    content: str
    body: list[Any]
    timestamp: int = 0


class Link:
    """Requests go out on it as fast as they are made, and are matched with their answers by number.

    `indicated` is called, in the loop, with what agents say unasked about `topics` (binding keys), `known` when an
    agent came (True) or went.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        topics: Sequence[str] = (),
        indicated: Callable[[Indication], None] | None = None,
        known: Callable[[str, bool], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.agents: dict[str, AgentState] = {}
        self._topics, self._indicated, self._known = list(topics), indicated, known
        self._key = f"qmf-console-{uuid.uuid4()}"
        self._numbers = itertools.count(int(time.time()) & 0xFFFFFF)
        self._pending: dict[str, _Pending] = {}
        self._located = asyncio.Event()
        self._transport: Transport | None = None
        self._watching: asyncio.Task[str] | None = None

    # -- the connection ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and look for agents. Raises TransportError."""
        transport = open_transport(self.endpoint)
        await transport.connect()
        try:
            for exchange in EXCHANGES:
                await transport.declare(exchange)
            await self._listen(transport, Address(DIRECT, self._key), self._answered)
            await self._listen(transport, Address(TOPIC, f"{HEARTBEAT_KEY}.#"), self._said)
            for key in self._topics:
                await self._listen(transport, Address(TOPIC, key), self._said)
        except BaseException:
            await transport.close()
            raise
        self._transport = transport
        self._watching = asyncio.create_task(self._watch(transport))
        await self.locate()

    async def _listen(self, transport: Transport, bound: Address, arrived: Callable[[Delivery], None]) -> None:
        wanted = Queue("", durable=False, exclusive=True, auto_delete=True, bindings=(bound,))
        queue, _ = await transport.declare(wanted)
        await transport.consume(queue, arrived, credit=0, settled=True)

    async def listen(self, key: str) -> None:
        """Hear of one more topic."""
        self._topics.append(key)
        if self._transport is not None:
            await self._listen(self._transport, Address(TOPIC, key), self._said)

    async def _watch(self, transport: Transport) -> str:
        try:
            reason = await transport.wait_closed()
        except ConnectionLost as error:
            reason = str(error)
        self._transport = None
        self._fail(lambda pending: True, QmfError(f"the connection to {self.endpoint.safe_url} ended: {reason}"))
        for name in list(self.agents):
            self._forget(name)
        return reason

    async def closed(self) -> str:
        """Wait until the connection ends, and say why."""
        return "not connected" if self._watching is None else await asyncio.shield(self._watching)

    async def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()
        if self._watching is not None:
            await asyncio.wait({self._watching})

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def _now(self) -> Transport:
        if self._transport is None:
            raise QmfError(f"not connected to broker {self.endpoint.safe_url}")
        return self._transport

    # -- agents ------------------------------------------------------------------------------------------------

    async def locate(self) -> None:
        """Ask who is there, and wait for answers: LOCATE_TIME at most for the first."""
        self._located.clear()
        message = self._request(Opcode.LOCATE_REQUEST, [])
        try:
            await self._now().publish(message, Address(TOPIC, LOCATE_KEY))
        except Unroutable:  # no agent listens at all
            return
        patience = LOCATE_TIME
        while True:
            try:
                await asyncio.wait_for(self._located.wait(), patience)
            except TimeoutError:
                return
            self._located.clear()
            patience = LOCATE_GRACE

    def living(self) -> list[AgentState]:
        """The agents that were heard of lately."""
        for name in [name for name, agent in self.agents.items() if not agent.alive]:
            self._forget(name)
        return list(self.agents.values())

    def _heard(self, name: str, body: Any) -> None:
        values = body.get("_values") if isinstance(body, dict) else None
        if not isinstance(values, dict):
            return
        numbers = [values.get(key, 0) for key in ("_epoch", "_heartbeat_interval", "_timestamp", "_schema_updated")]
        if not all(isinstance(number, int | float) for number in numbers):
            return
        epoch, interval, timestamp, updated = numbers
        before = self.agents.get(name)
        self.agents[name] = AgentState(name, epoch, interval, timestamp, updated, time.monotonic())
        self._located.set()
        if before is None:
            if self._known is not None:
                self._known(name, True)
        elif before.epoch != epoch:
            text = f"agent {name} restarted before it answered; whether it did what was asked is not known"
            self._fail(lambda pending: pending.agent == name, AgentGone(text))

    def _forget(self, name: str) -> None:
        self.agents.pop(name, None)
        self._fail(lambda pending: pending.agent == name, AgentGone(f"agent {name} is gone"))
        if self._known is not None:
            self._known(name, False)

    def _fail(self, which: Callable[[_Pending], bool], error: QmfError) -> None:
        for pending in self._pending.values():
            if which(pending) and not pending.answer.done():
                pending.answer.set_exception(error)

    # -- requests ----------------------------------------------------------------------------------------------

    async def ask(self, agent: str, opcode: Opcode, body: dict[str, Any], timeout: float) -> tuple[str, Any]:
        """Send a request: the opcode and the body of its answer, all parts of it. Raises QmfError."""
        return await self._exchange(agent, self._request(opcode, body), timeout)

    async def ask_all(
        self, agent: str, opcode: Opcode, bodies: Sequence[dict[str, Any]], timeout: float
    ) -> list[tuple[str, Any]]:
        """Send many requests without waiting for each other: their answers, in order. Raises QmfError."""
        under_way: deque[asyncio.Task[tuple[str, Any]]] = deque()
        answers = []
        try:
            for number, body in enumerate(bodies):
                if len(under_way) >= WINDOW:
                    answers.append(await under_way.popleft())
                message = self._request(opcode, body)
                confirm = number % WINDOW == 0  # so that an agent that went away is noticed
                under_way.append(asyncio.create_task(self._exchange(agent, message, timeout, confirm)))
            while under_way:
                answers.append(await under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        return answers

    async def schema(self, agent: str, package: str, class_name: str, digest: uuid.UUID, timeout: float) -> SchemaClass:
        """Ask an agent what a class has. Raises QmfError."""
        number = next(self._numbers)
        body = SchemaRequest(number, package, class_name, digest).encode()
        message = Message(
            body, {}, str(uuid.uuid4()), str(number), f"{DIRECT}/{self._key}",
            user_id=self.endpoint.user, content_type=VERSION_1,
        )  # fmt: skip
        _, answer = await self._exchange(agent, message, timeout)
        if not isinstance(answer, SchemaClass):
            raise QmfError(f"agent {agent} does not know class {package}:{class_name}({digest})")
        return answer

    def _request(self, opcode: Opcode, body: Any) -> Message:
        try:
            value = sendable(body)
        except TooLong as error:
            raise QmfError(f"the request does not fit a QMF message: {error}") from None
        return Message(
            b"", {OPCODE: str(opcode)}, str(uuid.uuid4()), str(next(self._numbers)), f"{DIRECT}/{self._key}",
            user_id=self.endpoint.user, value=value,
        )  # fmt: skip

    async def _exchange(self, agent: str, message: Message, timeout: float, confirm: bool = True) -> tuple[str, Any]:
        number = message.correlation_id or ""
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(timeout)
        pending = self._pending[number] = _Pending(agent, loop.create_future(), limit, timeout)
        try:
            async with limit:
                await self._send(message, Address(DIRECT, agent), confirm)
                return await pending.answer
        except Unroutable:
            self._forget(agent)
            raise AgentGone(f"agent {agent} is gone: nobody takes its requests") from None
        except TimeoutError:
            raise TimedOut(f"agent {agent} did not answer within {timeout:g} s") from None
        except TransportError as error:
            raise QmfError(str(error)) from None
        finally:
            del self._pending[number]
            if pending.answer.done() and not pending.answer.cancelled():
                pending.answer.exception()  # it was raised, or there was something worse

    async def _send(self, message: Message, to: Address, confirm: bool) -> None:
        try:
            await self._now().publish(message, to, confirm=confirm)
        except Busy:
            if confirm:
                raise
            await self._now().publish(message, to)  # which waits for its turn

    # -- what comes in -----------------------------------------------------------------------------------------

    def _answered(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            if message.content_type == VERSION_1:
                self._schema_answered(message)
                return
            body = read_body(message, MAX_ANSWER, MAX_ANSWER_ITEMS)
        except (BadBody, BadEncoding) as error:
            logger.warning("answer dropped: %s", error)
            return
        opcode, agent = _text(message.headers.get(OPCODE)), _text(message.headers.get(AGENT))
        if opcode == Opcode.LOCATE_RESPONSE:
            self._heard(agent, body)
            return
        pending = self._pending.get(message.correlation_id or "")
        if pending is None or pending.answer.done() or pending.agent != agent:
            return
        if opcode == Opcode.QUERY_RESPONSE and isinstance(body, list):
            pending.parts += body
            body = pending.parts
        if PARTIAL not in message.headers:
            pending.answer.set_result((opcode, body))
        elif not pending.limit.expired():  # the rest may take as long again
            pending.limit.reschedule(asyncio.get_running_loop().time() + pending.timeout)

    def _schema_answered(self, message: Message) -> None:
        number, schema = decode_answer(message.body if isinstance(message.body, bytes) else b"")
        pending = self._pending.get(str(number))
        if pending is not None and not pending.answer.done():
            pending.answer.set_result(("", schema))

    def _said(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            body = read_body(message, MAX_ANSWER, MAX_ANSWER_ITEMS)
        except BadBody as error:
            logger.warning("indication dropped: %s", error)
            return
        opcode, agent = _text(message.headers.get(OPCODE)), _text(message.headers.get(AGENT))
        if opcode == Opcode.HEARTBEAT:
            self._heard(agent, body)
            if self._indicated is not None and agent in self.agents:
                self._indicated(Indication(agent, "", [], self.agents[agent].timestamp))
        elif opcode == Opcode.DATA and isinstance(body, list) and self._indicated is not None:
            self._indicated(Indication(agent, _text(message.headers.get(CONTENT)), body))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
