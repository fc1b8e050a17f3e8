"""The agent's side of QMF on a broker: answers consoles, says that it is there, indicates what changed.

console                      broker                              agent
  | _agent_locate_request      | topic  console.#  -------------->| its own queue, for 20 ms are all it has
  | _query_request             | direct AGENT's name ------------>| requests, a task each
  | _method_request            |                                  |   -> requests.py -> model
  |<-- reply_to ---------------|<---------------------------------| answers, in parts
  |<-- topic agent.ind.* ------|<---------------------------------| heartbeats, data, events
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import unquote

from carod.amqp import (
    Address,
    Busy,
    ConnectionLost,
    Delivery,
    Message,
    Outcome,
    Queue,
    Refused,
    StaleDelivery,
    TooLarge,
    Transport,
    TransportError,
)
from carod.log import event
from carod.qmf import (
    DIRECT,
    EXCHANGES,
    TOPIC,
    AgentName,
    BadBody,
    BadEncoding,
    BadPredicate,
    Opcode,
    SchemaRequest,
    read_body,
)
from carod.qmf.names import AGENT, HEARTBEAT_KEY, OPCODE, REQUESTS_KEY, VERSION_1
from carod.qmf.predicate import split
from carod.qmf.schema import refusal as version_1_refusal
from qmf_agent.indications import Indications
from qmf_agent.model import Code, Model
from qmf_agent.requests import Answer, Requests, refusal
from qmf_agent.schema import SCHEMA
from qmf_agent.wire import agent_message

logger = logging.getLogger("carod.qmf")

UNDER_WAY = 200
"""Requests that are being answered at a time; more wait on the broker."""
REPLY_EXCHANGES = frozenset(("", "amq.direct", DIRECT))
"""Where answers may go: what consoles bind their reply queues to."""
ANY_HASH = uuid.UUID(int=0)
"""In a request for a class: however its schema is."""


class Bus:
    """Serves a model to consoles, on one connection after the other.

    `queue` is the job queue's name and `private` further queues that no answer may go to, whatever a request says.
    `heartbeat` and `publish_interval` are in seconds; with `publish_interval` 0 no data is indicated.
    """

    def __init__(
        self,
        model: Model,
        name: AgentName,
        *,
        queue: str,
        private: Collection[str] = (),
        heartbeat: float = 10.0,
        publish_interval: float = 10.0,
    ) -> None:
        self.name = name
        self.epoch = int(time.time())
        """Tells consoles that the agent is another than before its restart."""
        self._queue, self._private = queue, frozenset(private)
        self._heartbeat = heartbeat
        self._requests = Requests(model, str(name))
        self._indications = Indications(model, name, publish_interval)
        self._started = time.time_ns()
        self._group: asyncio.TaskGroup | None = None
        self._transport: Transport | None = None
        self.serving = asyncio.Event()
        """Set while consoles are answered."""
        model.listen(self._indications)

    async def run(self, transport: Transport) -> None:
        """Serve over a connection until it is lost (ConnectionLost) or this is cancelled.

        Requests that are being worked on when the connection is lost are worked on to their end. Raises Refused if an
        agent of the same name is there.
        """
        for exchange in EXCHANGES:
            await transport.declare(exchange)
        locates, _ = await transport.declare(_own_queue("", Address(TOPIC, REQUESTS_KEY)))
        requests, _ = await transport.declare(_own_queue(f"qmf.{self.name}", self.name.address))
        self._transport = transport
        refused: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as self._group:
                loops = [
                    self._group.create_task(self._unless_lost(self._beat(transport))),
                    self._group.create_task(self._unless_lost(self._indications.run(transport))),
                ]
                await transport.consume(locates, functools.partial(self._take, self._locate), credit=0, settled=True)
                await transport.consume(requests, functools.partial(self._take, self._request), credit=UNDER_WAY)
                self.serving.set()
                reason = await transport.wait_closed()
                for loop in loops:
                    loop.cancel()
        except* Refused as group:
            refused = group.exceptions[0]
        finally:
            self.serving.clear()
            self._group = self._transport = None
        raise refused or ConnectionLost(reason)

    async def _unless_lost(self, work: Awaitable[None]) -> None:
        """Do something for as long as there is a connection; its end is for `run` to tell."""
        with suppress(ConnectionLost):
            await work

    # -- requests ----------------------------------------------------------------------------------------------

    def _take(self, handle: Callable[[Message], Awaitable[None]], delivery: Delivery) -> None:
        if self._group is None:
            return
        work = self._handled(handle, delivery)
        try:
            self._group.create_task(work)
        except RuntimeError:  # the connection has just ended, and with it the time for new work
            work.close()

    async def _handled(self, handle: Callable[[Message], Awaitable[None]], delivery: Delivery) -> None:
        with suppress(ConnectionLost):
            await handle(delivery.message)
        if not delivery.settled:
            with suppress(StaleDelivery):
                delivery.settle(Outcome.ACCEPTED)

    async def _locate(self, message: Message) -> None:
        if _opcode(message) != Opcode.LOCATE_REQUEST:
            return
        attributes = self._attributes()
        try:
            wanted = read_body(message)
            equal, rest = split(wanted) if isinstance(wanted, list) and wanted else ({}, None)
        except (BadBody, BadPredicate) as error:
            _dropped(message, str(error))
            return
        if any(attributes.get(name) != value for name, value in equal.items()) or (rest and not rest(attributes)):
            return
        to = await self._reply_to(message)
        if to is not None:
            await self._send(message, to, Answer(Opcode.LOCATE_RESPONSE, {"_values": attributes}))

    async def _request(self, message: Message) -> None:
        to = await self._reply_to(message)
        if to is None:
            return
        if message.content_type == VERSION_1:
            await self._publish(self._schema(message), to)
            return
        try:
            body = read_body(message)
        except BadBody as error:
            await self._send(message, to, refusal(Code.BAD_VALUE, str(error)))
            return
        async with aclosing(self._requests.answer(_opcode(message), body, message.user_id)) as answers:
            async for answer in answers:
                if not await self._send(message, to, answer):
                    break

    def _schema(self, message: Message) -> Message:
        """Version 1's answer to a request for a class."""
        answer = Message(headers={AGENT: str(self.name)}, message_id=str(uuid.uuid4()), content_type=VERSION_1)
        answer.correlation_id = message.correlation_id
        try:
            request = SchemaRequest.decode(message.body if isinstance(message.body, bytes) else b"")
        except BadEncoding as error:
            answer.body = version_1_refusal(0, Code.BAD_VALUE, str(error))
            return answer
        found = SCHEMA.get((request.package, request.class_name.lower()))
        if found is None or request.hash not in (found.hash, ANY_HASH):
            wanted = f"no class {request.package}:{request.class_name}({request.hash})"
            answer.body = version_1_refusal(request.sequence, Code.UNKNOWN_OBJECT, wanted)
        else:
            answer.body = found.answer(request.sequence)
        return answer

    # -- answers -----------------------------------------------------------------------------------------------

    async def _reply_to(self, message: Message) -> Address | None:
        """Where a request's answers go; None, and a line in the log, if there is nowhere that they may go."""
        if message.malformed or not message.reply_to:
            _dropped(message, message.malformed or "no reply_to, so there is nobody to answer")
            return None
        assert self._transport is not None
        try:
            to = await self._transport.resolve(message.reply_to)
        except ConnectionLost:
            raise
        except (TransportError, ValueError) as error:
            _dropped(message, str(error))
            return None
        if to.exchange not in REPLY_EXCHANGES or self._is_ours(to.key):
            _dropped(message, "answers do not go there; use an own queue, bound to qmf.default.direct or amq.direct")
            return None
        return to

    def _is_ours(self, key: str) -> bool:
        """Whether it is a queue of the grid or of the agent: an answer there would be taken for a job or a result."""
        text = unquote(key)
        return any(
            name in (self._queue, f"{self._queue}_key", str(self.name), f"qmf.{self.name}")
            or name.startswith(f"{self._queue}.")
            or name in self._private
            for name in (text, text.rpartition("/")[2])
        )

    async def _send(self, request: Message, to: Address, answer: Answer) -> bool:
        """Send an answer; False if it did not arrive. Raises ConnectionLost."""
        message = agent_message(
            str(self.name), answer.opcode, answer.body, answer.content,
            correlation_id=request.correlation_id, partial=answer.partial,
        )  # fmt: skip
        try:
            await self._transport_now().publish(message, to)
        except TooLarge as error:
            await self._publish(self._too_large(request, error), to)
            return False
        except TransportError as error:
            return _undelivered(error, to)
        return True

    def _too_large(self, request: Message, error: TooLarge) -> Message:
        answer = refusal(Code.FAILED, f"the answer is too large: {error}")
        return agent_message(str(self.name), answer.opcode, answer.body, correlation_id=request.correlation_id)

    async def _publish(self, message: Message, to: Address) -> bool:
        try:
            await self._transport_now().publish(message, to)
        except TransportError as error:
            return _undelivered(error, to)
        return True

    def _transport_now(self) -> Transport:
        if self._transport is None:
            raise ConnectionLost("the agent's connection is gone")
        return self._transport

    # -- being there -------------------------------------------------------------------------------------------

    def _attributes(self) -> dict[str, Any]:
        return {
            "_vendor": self.name.vendor,
            "_product": self.name.product,
            "_instance": self.name.instance,
            "_name": str(self.name),
            "_timestamp": time.time_ns(),
            "_heartbeat_interval": max(1, round(self._heartbeat)),
            "_epoch": self.epoch,
            "_schema_updated": self._started,
        }

    async def _beat(self, transport: Transport) -> None:
        to = Address(TOPIC, f"{HEARTBEAT_KEY}.{self.name.words}")
        while True:
            message = agent_message(str(self.name), Opcode.HEARTBEAT, {"_values": self._attributes()})
            try:
                await transport.publish(message, to, confirm=False)
            except Busy as error:
                event(logger, "heartbeat not sent", logging.WARNING, reason=str(error))
            await asyncio.sleep(self._heartbeat)


def _own_queue(name: str, bound: Address) -> Queue:
    return Queue(name, durable=False, exclusive=True, auto_delete=True, bindings=(bound,))


def _opcode(message: Message) -> str:
    value = message.headers.get(OPCODE, "")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _dropped(message: Message, reason: str) -> None:
    asked = {"opcode": _opcode(message)[:60], "reply_to": (message.reply_to or "")[:200]}
    event(logger, "request dropped", logging.WARNING, **asked, reason=reason)


def _undelivered(error: TransportError, to: Address) -> bool:
    """What becomes of an answer that could not be sent. Raises ConnectionLost."""
    if isinstance(error, ConnectionLost):
        raise error
    event(logger, "answer dropped", logging.INFO, to=str(to)[:200], reason=str(error))
    return False
