"""What is each broker's own way over AMQP 1.0: names, queues, exchanges, and what comes back of a message.

AMQP 1.0 says how to send and to receive, and leaves it to brokers what an address means and how a queue is made. A
connection's properties say which broker it is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from urllib.parse import quote
from uuid import uuid4

from proton import Disposition

from carod.amqp.amqp10.message import Received
from carod.amqp.amqp10.recovered import Recovered
from carod.amqp.amqp10.requests import EXCHANGE, QUEUE, Answer, HttpManagement, Management
from carod.amqp.amqp10.wire import Wire
from carod.amqp.transport import Address, Exchange, Queue, Refused

log = logging.getLogger("carod.amqp")


@dataclass(frozen=True, slots=True)
class Target:
    """Where messages for an address go: their `to` and, for an exchange, the key that they carry as subject.

    `link` is the address of the link they are sent on, and `capability` what it asks for; empty for the one link on
    which each message says where it goes.
    """

    to: str
    subject: str | None = None
    link: str = ""
    capability: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """What a consumer's link is opened with."""

    address: str
    capability: str = ""


class Broker(Protocol):
    """A kind of broker, on one connection."""

    release_as: ClassVar[int]
    """The outcome (Proton's number) that gives a message back and says that it was delivered before."""
    tells_unroutable: ClassVar[bool]
    """Whether a message to a queue that is not there is harmless; else `routes` is to be asked before each."""

    def hostname(self, vhost: str) -> str | None:
        """What an open frame must name for a virtual host, if not the vhost itself."""

    def target(self, to: Address) -> Target: ...

    def redelivered(self, received: Received) -> bool | Awaitable[bool]:
        """Whether somebody may have had this message before; awaited where the broker has to be asked."""

    async def source_of(self, queue: str) -> Source:
        """From where a queue is consumed. May raise Refused if there is none."""

    async def declare_private(self) -> str | None:
        """Make a queue that ends with the connection; None where a link with a dynamic source is how that is done."""

    async def declare_queue(self, queue: Queue) -> bool:
        """Make a queue that has a name: whether it has the arguments asked for. Raises Refused."""

    async def declare_exchange(self, exchange: Exchange) -> bool: ...

    async def bind(self, queue: str, to: Address) -> Source | None:
        """Have an exchange's messages with that key come to a queue. Raises Refused.

        Where a broker can't, what comes back is to be consumed beside the queue.
        """

    async def exists(self, exchange: str) -> bool: ...

    async def delete(self, queue: str, if_empty: bool) -> None: ...

    async def depth(self, queue: str) -> int | None: ...

    async def routes(self, to: Address) -> bool:
        """Whether a message gets anywhere. True, too, where the broker itself would say if not."""


def broker_of(wire: Wire) -> Broker:
    """The broker at the other end of a connection."""
    product = str(wire.properties.get("product", ""))
    if product == "RabbitMQ":
        return RabbitMQ(wire)
    if "Broker-J" in product:
        return BrokerJ(wire)
    if product == "carod-broker":
        return Embedded(wire)
    if product == "apache-activemq-artemis":
        from carod.amqp.amqp10.artemis import Artemis

        return Artemis(wire)
    raise Refused(
        f"broker {wire.endpoint.safe_url} says it is {product or 'none that names itself'!r}, whose addresses over "
        "AMQP 1.0 are not known here; where it speaks AMQP 0-9-1, amqp:// will do"
    )


def _said(answer: Answer, what: str) -> Refused:
    return Refused(f"{what}: {answer.text or 'refused'} ({answer.status})")


# -- Broker-J --------------------------------------------------------------------------------------------------


class BrokerJ:
    """Apache Qpid Broker-J: queues and exchanges by their names, managed at `$management`.

    A queue's own expiry (`Queue.expires`) it has not: a node that never comes back leaves its queue behind.
    """

    release_as: ClassVar[int] = Disposition.MODIFIED
    tells_unroutable: ClassVar[bool] = True

    def __init__(self, wire: Wire) -> None:
        self._management = Management(wire)
        self._recovered = Recovered(self._management)

    def hostname(self, vhost: str) -> str | None:
        return None

    async def source_of(self, queue: str) -> Source:
        await self._recovered.look_through(queue)
        return Source(queue)

    async def declare_private(self) -> str | None:
        return None

    def target(self, to: Address) -> Target:
        return Target(to.exchange, to.key) if to.exchange else Target(to.key)

    def redelivered(self, received: Received) -> bool | Awaitable[bool]:
        if received.delivery_count > 0:
            return True
        return self._recovered.has(received) if self._recovered.may_have(received) else False

    async def declare_queue(self, queue: Queue) -> bool:
        if queue.quorum:
            return False
        wanted = self._attributes(queue)
        answer = await self._management.create(QUEUE, queue.name, wanted)
        if answer.status == 409:
            return self._is(await self._read(QUEUE, queue.name), wanted)
        if not answer.ok:
            raise _said(answer, f"queue {queue.name!r}")
        return True

    def _attributes(self, queue: Queue) -> dict[str, Any]:
        wanted: dict[str, Any] = {"durable": queue.durable}
        if queue.exclusive:
            wanted |= {"exclusive": "CONNECTION", "lifetimePolicy": "DELETE_ON_CONNECTION_CLOSE"}
        elif queue.auto_delete:
            wanted["lifetimePolicy"] = "DELETE_ON_NO_OUTBOUND_LINKS"
        if queue.message_ttl is not None:
            wanted |= {"maximumMessageTtl": round(queue.message_ttl * 1000), "expiryPolicy": "ROUTE_TO_ALTERNATE"}
        if queue.dead_letter is not None:
            to = queue.dead_letter
            attributes = {"routingKey": to.key} if to.exchange else {}
            wanted["alternateBinding"] = {"destination": to.exchange or to.key, "attributes": attributes}
        return wanted

    async def _read(self, kind: str, name: str) -> dict[str, Any]:
        """All attributes, also those that were not set; none if there is no such thing."""
        answer = await self._management.invoke("READ", kind, name, actuals=False)
        return answer.value if answer.ok and isinstance(answer.value, dict) else {}

    def _is(self, found: dict[str, Any], wanted: dict[str, Any]) -> bool:
        """Whether a queue has what was asked for, and nothing that would lose or hide messages beside it."""
        expected = (("durable", True), ("maximumMessageTtl", 0), ("exclusive", "NONE"))
        as_asked = all(found.get(name) == wanted.get(name, default) for name, default in expected)
        return as_asked and _destination(found) == _destination(wanted)

    async def declare_exchange(self, exchange: Exchange) -> bool:
        wanted = {"qpid-type": exchange.kind, "durable": exchange.durable, "unroutableMessageBehaviour": "REJECT"}
        answer = await self._management.create(EXCHANGE, exchange.name, wanted)
        if answer.ok:
            return True
        found = await self._read(EXCHANGE, exchange.name)
        if not found:
            raise _said(answer, f"exchange {exchange.name!r}")
        return found.get("qpid-type") == exchange.kind

    async def bind(self, queue: str, to: Address) -> Source | None:
        answer = await self._management.invoke("bind", EXCHANGE, to.exchange, destination=queue, bindingKey=to.key)
        if not answer.ok:
            raise _said(answer, f"binding {queue} to {to}")
        return None

    async def exists(self, exchange: str) -> bool:
        return bool(await self._read(EXCHANGE, exchange))

    async def routes(self, to: Address) -> bool:
        """An exchange made by somebody else accepts what it then drops."""
        if not to.exchange:
            return True
        found = await self._read(EXCHANGE, to.exchange)
        if not found or found.get("unroutableMessageBehaviour") == "REJECT":
            return True
        keys = [str(binding.get("bindingKey", "")) for binding in found.get("bindings") or ()]
        match found.get("qpid-type"):
            case "direct":
                return to.key in keys
            case "topic":
                return any(matches(key, to.key) for key in keys)
        return bool(keys)

    async def delete(self, queue: str, if_empty: bool) -> None:
        # What arrives between the question and the deletion goes where the queue's alternate binding says.
        if not if_empty or await self._count(queue, "queueDepthMessages") == 0:
            answer = await self._management.invoke("DELETE", QUEUE, queue)
            if not answer.ok and answer.status != 404:
                raise _said(answer, f"queue {queue!r}")

    async def depth(self, queue: str) -> int | None:
        return await self._count(queue, "availableMessages")

    async def _count(self, queue: str, statistic: str) -> int | None:
        answer = await self._management.invoke("getStatistics", QUEUE, queue, statistics=f'["{statistic}"]')
        if answer.status == 404:
            return None
        if not answer.ok or not isinstance(answer.value, dict):
            raise _said(answer, f"queue {queue!r}")
        return int(answer.value[statistic])


def _destination(attributes: dict[str, Any]) -> str:
    binding = attributes.get("alternateBinding")
    return str(binding.get("destination", "")) if isinstance(binding, dict) else ""


class Embedded(BrokerJ):
    """The broker in the box, which is managed as Broker-J is."""

    async def source_of(self, queue: str) -> Source:
        return Source(queue)  # nothing is left in it from before the broker's start

    async def routes(self, to: Address) -> bool:
        return True


def matches(pattern: str, key: str) -> bool:
    """Whether a topic exchange's binding takes a key: words between dots, `*` for one, `#` for any number."""
    return _matches(pattern.split("."), key.split("."))


def _matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[at:]) for at in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])


# -- RabbitMQ --------------------------------------------------------------------------------------------------

OLD_RABBITMQ = ("2", "3")


class RabbitMQ:
    """RabbitMQ 4: addresses of version 2, managed at `/management`."""

    release_as: ClassVar[int] = Disposition.RELEASED
    tells_unroutable: ClassVar[bool] = True

    def __init__(self, wire: Wire) -> None:
        version = str(wire.properties.get("version", ""))
        if version.split(".")[0] in OLD_RABBITMQ:
            raise Refused(
                f"broker {wire.endpoint.safe_url} is RabbitMQ {version}, which can't be told over AMQP 1.0 to make a "
                "queue, as RabbitMQ 4 can; use amqp:// (AMQP 0-9-1)"
            )
        self._management = HttpManagement(wire)

    def hostname(self, vhost: str) -> str | None:
        return None if vhost == "/" else f"vhost:{vhost}"

    async def source_of(self, queue: str) -> Source:
        if await self.depth(queue) is None:  # consuming what is not there costs the session, and all who are on it
            raise Refused(f"no queue {queue!r}")
        return Source(f"/queues/{_quoted(queue)}")

    async def declare_private(self) -> str | None:
        name = f"carod.{uuid4()}"
        await self.declare_queue(Queue(name, durable=False, exclusive=True, auto_delete=True))
        return name

    def target(self, to: Address) -> Target:
        if not to.exchange:
            return Target(f"/queues/{_quoted(to.key)}")
        return Target(f"/exchanges/{_quoted(to.exchange)}/{_quoted(to.key)}")

    def redelivered(self, received: Received) -> bool:
        return received.delivery_count > 0 or not received.first_acquirer

    async def declare_queue(self, queue: Queue) -> bool:
        arguments: dict[str, Any] = {"x-queue-type": "quorum" if queue.quorum else "classic"}
        if queue.message_ttl is not None:
            arguments["x-message-ttl"] = round(queue.message_ttl * 1000)
        if queue.expires is not None:
            arguments["x-expires"] = round(queue.expires * 1000)
        if queue.dead_letter is not None:
            arguments["x-dead-letter-exchange"] = queue.dead_letter.exchange
            arguments["x-dead-letter-routing-key"] = queue.dead_letter.key
        wanted = {
            "durable": queue.durable, "exclusive": queue.exclusive, "auto_delete": queue.auto_delete,
            "arguments": arguments,
        }  # fmt: skip
        path = f"/queues/{_quoted(queue.name)}"
        answer = await self._management.ask("PUT", path, wanted)
        if answer.ok:
            return True
        if answer.status == 409 and (await self._management.ask("GET", path)).ok:
            return False
        raise _said(answer, f"queue {queue.name!r}")

    async def declare_exchange(self, exchange: Exchange) -> bool:
        wanted = {
            "type": exchange.kind, "durable": exchange.durable, "auto_delete": False, "internal": False,
            "arguments": {},
        }  # fmt: skip
        answer = await self._management.ask("PUT", f"/exchanges/{_quoted(exchange.name)}", wanted)
        if answer.ok:
            return True
        if answer.status == 409 or await self.exists(exchange.name):
            return False
        raise _said(answer, f"exchange {exchange.name!r}")

    async def bind(self, queue: str, to: Address) -> Source | None:
        wanted = {"source": to.exchange, "destination_queue": queue, "binding_key": to.key, "arguments": {}}
        answer = await self._management.ask("POST", "/bindings", wanted)
        if not answer.ok:
            raise _said(answer, f"binding {queue} to {to}")
        return None

    async def exists(self, exchange: str) -> bool:
        """Nothing says so but the refusal to bind a queue that is not there: it names a missing exchange first."""
        wanted = {"source": exchange, "destination_queue": f"carod.{uuid4()}", "binding_key": "", "arguments": {}}
        return (await self._management.ask("POST", "/bindings", wanted)).text.startswith("no queue")

    async def delete(self, queue: str, if_empty: bool) -> None:
        if if_empty:
            found = await self._management.ask("GET", f"/queues/{_quoted(queue)}")
            if not found.ok or not isinstance(found.value, dict) or found.value.get("message_count"):
                return
        answer = await self._management.ask("DELETE", f"/queues/{_quoted(queue)}")
        if not answer.ok and answer.status != 404:
            raise _said(answer, f"queue {queue!r}")

    async def depth(self, queue: str) -> int | None:
        answer = await self._management.ask("GET", f"/queues/{_quoted(queue)}")
        if answer.status == 404:
            return None
        if not answer.ok or not isinstance(answer.value, dict):
            raise _said(answer, f"queue {queue!r}")
        return int(answer.value.get("message_count", 0))

    async def routes(self, to: Address) -> bool:
        return True


def _quoted(name: str) -> str:
    return quote(name, safe="", errors="surrogateescape")
