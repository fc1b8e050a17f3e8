"""ActiveMQ Artemis over AMQP 1.0: no exchanges, and no word when a message gets nowhere."""

from __future__ import annotations

import json
import logging
from typing import Any, ClassVar

from proton import Disposition

from carod.amqp.amqp10.brokers import Source, Target
from carod.amqp.amqp10.message import Received
from carod.amqp.amqp10.requests import Questions
from carod.amqp.amqp10.wire import Wire
from carod.amqp.transport import Address, Exchange, Queue, Refused

log = logging.getLogger("carod.amqp")
QUEUE, TOPIC = "queue", "topic"
"""Capabilities of a link: what an address is to be, if that link is what makes it."""


class Artemis:
    """Queues are anycast addresses; an exchange's keys are topics below its name, `EXCHANGE.KEY`.

    Artemis takes a message for an address that nobody has, and makes a topic of it: so whether a queue is there is
    asked before each message. (One that goes away just then comes to life again, and keeps the message.) What a
    connection that ends in order gives back does not count as delivered before; what a broken one does, does.
    """

    release_as: ClassVar[int] = Disposition.MODIFIED
    tells_unroutable: ClassVar[bool] = False

    def __init__(self, wire: Wire) -> None:
        self._questions = Questions(wire, "activemq.management")
        self._topics: set[str] = set()

    def hostname(self, vhost: str) -> str | None:
        return None

    async def source_of(self, queue: str) -> Source:
        if (
            await self.depth(queue) is None
        ):  # it would be made, and then nobody would know that it is not what was meant
            raise Refused(f"no queue {queue!r}")
        return Source(queue, QUEUE)

    async def declare_private(self) -> str | None:
        return None

    def target(self, to: Address) -> Target:
        if to.exchange:
            return Target(_topic(to))
        return Target(to.key, link=to.key, capability=QUEUE)

    def redelivered(self, received: Received) -> bool:
        return received.delivery_count > 0

    async def declare_queue(self, queue: Queue) -> bool:
        if queue.quorum:
            return False
        if await self._there(queue.name):
            return await self._is(queue)
        await self._call("broker", "addAddressSettings", queue.name, json.dumps(_settings(queue)))
        wanted = {
            "name": queue.name, "address": queue.name, "routing-type": "ANYCAST", "durable": queue.durable,
            "auto-delete": queue.exclusive or queue.auto_delete, "auto-delete-delay": 0,
        }  # fmt: skip
        await self._call("broker", "createQueue", json.dumps(wanted), True)
        return True

    async def _is(self, queue: Queue) -> bool:
        found = json.loads(await self._call("broker", "getAddressSettingsAsJSON", queue.name))
        wanted = _settings(queue)
        same = bool(found.get("expiryDelay", -1) == wanted.get("expiryDelay", -1))
        return same and bool(found.get("expiryAddress") == wanted.get("expiryAddress", found.get("expiryAddress")))

    async def declare_exchange(self, exchange: Exchange) -> bool:
        return exchange.kind == "topic"

    async def bind(self, queue: str, to: Address) -> Source | None:
        if to.exchange.startswith("amq."):  # a client that publishes there has another broker in mind
            return None
        return Source(_topic(to), TOPIC)

    async def exists(self, exchange: str) -> bool:
        return False

    async def routes(self, to: Address) -> bool:
        return bool(to.exchange) or await self._there(to.key)

    async def delete(self, queue: str, if_empty: bool) -> None:
        """Nothing but a whole queue can be deleted, with what comes between question and deletion: rather it stays."""
        if not if_empty and await self._there(queue):
            await self._call("broker", "destroyQueue", queue, True)

    async def depth(self, queue: str) -> int | None:
        try:
            count = await self._call(f"queue.{queue}", "getMessageCount")
            return int(count) - int(await self._call(f"queue.{queue}", "getDeliveringCount"))
        except _NoSuchResource:
            return None

    async def _there(self, queue: str) -> bool:
        try:
            await self._call(f"queue.{queue}", "getMessageCount")
        except _NoSuchResource:
            return False
        return True

    async def _call(self, resource: str, operation: str, *arguments: Any) -> Any:
        message = (
            await self._questions.ask(
                {"_AMQ_ResourceName": resource, "_AMQ_OperationName": operation}, json.dumps(arguments)
            )
        ).message
        text = message.body if isinstance(message.body, bytes) else b""
        values = json.loads(text or b"[]")
        value = values[0] if isinstance(values, list) and values else None
        if not message.headers.get("_AMQ_OperationSucceeded"):
            if "AMQ229067" in str(value):
                raise _NoSuchResource(str(value))
            raise Refused(f"{operation} of {resource}: {value}")
        return value


class _NoSuchResource(Refused):
    """There is no queue of that name."""


def _settings(queue: Queue) -> dict[str, Any]:
    settings: dict[str, Any] = {"maxDeliveryAttempts": -1}
    if queue.message_ttl is not None:
        delay = round(queue.message_ttl * 1000)
        settings |= {"expiryDelay": delay, "maxExpiryDelay": delay}
    if queue.dead_letter is not None:
        settings["expiryAddress"] = queue.dead_letter.key
    return settings


def _topic(to: Address) -> str:
    return f"{to.exchange}.{to.key}" if to.key else to.exchange
