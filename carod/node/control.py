"""grid.control at the node: requests come in, are checked, obeyed and answered (wire contract, section 5)."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Protocol

from carod.amqp import Address, Endpoint, Exchange, HeaderValue, Message, Queue, Transport, TransportError
from carod.classad import ClassAdSyntaxError, parse_value
from carod.config import Config
from carod.control import ECHO, EVERYONE, Action, BadRequest, Request, answer, job_key, node_key
from carod.job import NODE_ATTRIBUTES, Job, wire_headers
from carod.log import event
from carod.node.claims import DECIDING, DONE, RUNNING, Claims
from carod.node.custody import AGAIN, HELLO, is_second
from carod.starter.slot import Slot
from carod.starter.starter import End, Starter

log = logging.getLogger("carod.control")
PROTECTED = NODE_ATTRIBUTES | {"jobstatus", "numjobstarts", "jobstartdate", "owner", "user", "wf_req_slot", "amqpid"}
"""Attributes that nobody may set from outside, in lower case."""


AHEAD_SECONDS, AHEAD_COUNT = 3600.0, 10_000
"""How long, and for how many jobs, orders are remembered that came before their jobs."""
_ENDS = {Action.REMOVE: End.REMOVED, Action.HOLD: End.HELD, Action.VACATE: End.EVICTED}
SLOT_ATTRIBUTES = ("State", "Activity", "Memory", "LoadAvg", "OpSys", "Arch", "Machine", "Cpus", "Disk")
"""What a node says of its slots when it is asked (`Ping`)."""


class Governed(Protocol):
    """What control needs of its node."""

    config: Config
    running: dict[str, Starter]
    slots: list[Slot]

    @property
    def draining(self) -> bool: ...
    def is_done(self, key: str) -> bool: ...
    def holds(self, key: str) -> bool: ...
    @property
    def claims(self) -> Claims: ...
    def note_done(self, key: str, *, again: bool) -> None: ...
    async def meet(self, node: str) -> None: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> None: ...
    async def drain(self) -> None: ...
    async def resume(self) -> None: ...


class Control:
    """A node's ear on the control exchange."""

    def __init__(self, transport: Transport, node: Governed) -> None:
        self._transport, self._node = transport, node
        self._name = node.config.node_name
        self._exchange = f"{node.config.carod_broker_queue}.control"
        endpoint = Endpoint(node.config.carod_broker_url, cert_file=node.config.carod_broker_cert_file)
        self._user = endpoint.user
        self._ahead: OrderedDict[str, tuple[float, Request]] = OrderedDict()
        self._super_users = {name.strip() for name in node.config.queue_super_users.split(",")} - {""}

    async def open(self) -> None:
        """Listen, on a queue that ends with the connection. Raises TransportError."""
        await self._transport.declare(Exchange(self._exchange, "topic"))
        keys = (node_key(self._name), EVERYONE, job_key("#"))
        bindings = tuple(Address(self._exchange, key) for key in keys)
        wanted = Queue("", durable=False, exclusive=True, auto_delete=True, bindings=bindings)
        name, _ = await self._transport.declare(wanted)
        await self._transport.consume(
            name, lambda delivery: self._node.spawn(self._serve(delivery.message)), credit=0, settled=True
        )

    async def _serve(self, message: Message) -> None:
        reply: Message | None
        try:
            request = Request.from_message(message)
            if request.node == self._name:  # our own question: that it came all the way is an answer, too
                reply = answer(message, self._name, headers={"State": ECHO})
            else:
                reply = await self._obey(request, message)
        except BadRequest as error:
            reply = answer(message, self._name, str(error))
        if reply is None or not message.reply_to:
            return
        try:
            await self._transport.publish(reply, await self._transport.resolve(message.reply_to), confirm=False)
        except TransportError as error:
            event(log, "answer dropped", logging.DEBUG, reason=str(error))

    async def _obey(self, request: Request, message: Message) -> Message | None:
        match request.action:
            case Action.PING:
                return answer(message, self._name, body=self._describe())
            case Action.DRAIN:
                await self._node.drain()
            case Action.RESUME:
                await self._node.resume()
            case Action.WHO_HAS:
                return self._who_has(request, message)
            case Action.DONE:
                self._note_done(request)
                if request.name == HELLO and request.node:
                    await self._node.meet(request.node)
                return None
            case _:
                return await self._obey_for_job(request, message)
        event(log, request.action.value, node=self._name, sender=request.sender)
        return answer(message, self._name)

    def _who_has(self, request: Request, message: Message) -> Message | None:
        key = request.name or request.job
        if request.node:
            self._node.claims.hear(key, request.node, request.value)
        starter = self._node.running.get(request.job)
        if starter is not None and (starter.job.key == key or not request.name):  # a client means any life of the job
            return answer(message, self._name, headers={"State": RUNNING, "JobStartDate": starter.started_at})
        if self._node.is_done(key):
            return answer(message, self._name, headers={"State": DONE})
        if self._node.holds(key):  # an earlier life's result, on its way: it was first
            return answer(message, self._name, headers={"State": RUNNING, "JobStartDate": 0.0})
        if request.value == DECIDING and self._node.claims.keeps_from(key, request.node):
            return answer(message, self._name, headers={"State": DECIDING})
        return None

    def _note_done(self, request: Request) -> None:
        """Another node has answered jobs that may come again; only a node's word counts, and nodes share a user."""
        if request.sender != self._user:
            raise BadRequest(f"{request.sender or 'a sender without user id'} is no node: Done is theirs to say")
        running = {starter.job.key: starter for starter in self._node.running.values()}
        keys = request.value if isinstance(request.value, list) else [request.job]
        for key in map(str, keys):
            if key not in running:
                self._node.note_done(key, again=request.name == AGAIN)
            elif is_second(running[key].delivery):  # else its client has used a message id twice
                running[key].give_way(request.node)

    async def _obey_for_job(self, request: Request, message: Message) -> Message | None:
        starter = self._node.running.get(request.job)
        if starter is None:
            if request.ahead and request.action in (Action.REMOVE, Action.HOLD):
                self._note_ahead(request)
            return None  # another node has it, or none: silence tells the asker
        self._authorize(request, starter.job)
        event(log, request.action.value, job=request.job, sender=request.sender, reason=request.reason)
        who = request.sender or "a control message"
        reason = request.reason or f"{request.action.value} by {who}"
        match request.action:
            case Action.QUERY:
                return answer(message, self._name, headers=wire_headers(starter.job.ad))
            case Action.REMOVE | Action.HOLD | Action.VACATE if not starter.end(_ENDS[request.action], reason):
                raise BadRequest(f"job {request.job} is being ended already, by an order that weighs more")
            case Action.SUSPEND | Action.CONTINUE if starter.execution is None:
                raise BadRequest(f"job {request.job} has not started yet; ask again in a moment")
            case Action.SUSPEND:
                await starter.suspend()
            case Action.CONTINUE:
                await starter.resume()
            case Action.SET_ATTRIBUTE:
                _set_attribute(starter, request)
            case Action.YIELD if not starter.give_way(request.node):
                raise BadRequest(f"job {request.job} has come to its end here, its result is on its way")
        return answer(message, self._name)

    def _note_ahead(self, request: Request) -> None:
        now = time.monotonic()
        self._ahead[request.job] = now, request
        self._ahead.move_to_end(request.job)
        while len(self._ahead) > AHEAD_COUNT or next(iter(self._ahead.values()))[0] < now - AHEAD_SECONDS:
            self._ahead.popitem(last=False)

    def ordered_ahead(self, job: Job) -> tuple[End, str] | None:
        """What was ordered for a job before it came; once only."""
        if job.id not in self._ahead:
            return None
        _, request = self._ahead.pop(job.id)
        try:
            self._authorize(request, job)
        except BadRequest as error:
            event(log, "order not obeyed", logging.WARNING, job=job.id, reason=str(error))
            return None
        return _ENDS[request.action], request.reason or f"{request.action.value} before it was started"

    def _authorize(self, request: Request, job: Job) -> None:
        """Where the broker validated who sent the job, only that user's requests count, and super users'."""
        owner = job.ad.get("AuthenticatedIdentity")
        if owner is None or request.action is Action.QUERY:
            return
        if request.action is Action.YIELD:
            owner = self._user  # a node's word, and the nodes share a user
        if request.sender != owner and request.sender not in self._super_users:
            who = request.sender or "a sender without user id"
            raise BadRequest(f"job {request.job} is {owner}'s; {who} may not {request.action.value} it")

    def _describe(self) -> bytes:
        """The node and its slots, for `carod nodes`."""
        by_slot = {starter.slot.name: starter for starter in self._node.running.values()}
        slots = []
        for slot in self._node.slots:
            starter = by_slot.get(slot.name)
            entry: dict[str, HeaderValue] = {"Name": slot.name}
            entry |= {name: slot.ad.get(name) for name in SLOT_ATTRIBUTES}
            if starter is not None:
                ad = starter.job.ad
                entry |= {"JobId": starter.job.id, "JobStartDate": starter.started_at, "Cmd": str(ad.get("Cmd", ""))}
                entry["Arguments"] = str(ad.get("Arguments") or ad.get("Args") or "")[:200]
                entry["Owner"] = str(ad.get("AuthenticatedIdentity") or ad.get("Owner") or "")
            slots.append(entry)
        node = {"Node": self._name, "Draining": self._node.draining, "Running": len(by_slot), "Slots": slots}
        return json.dumps(node).encode()


def _set_attribute(starter: Starter, request: Request) -> None:
    if request.name.lower() in PROTECTED:
        raise BadRequest(f"attribute {request.name} is the node's to set")
    value = request.value
    if isinstance(value, str):
        try:
            starter.job.ad[request.name] = parse_value(value)
        except ClassAdSyntaxError as error:
            raise BadRequest(f"{request.name}: {error}; a string needs its quotes in a ClassAd") from None
    elif isinstance(value, bool | int | float):
        starter.job.ad[request.name] = value
    else:
        raise BadRequest(f"{request.name}: {value!r:.60} is no ClassAd value; send a number, a boolean or source text")
