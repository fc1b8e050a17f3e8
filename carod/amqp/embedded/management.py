"""Making, looking at and deleting queues and exchanges, by messages to `$management`.

The messages are AMQP Management's (OASIS working draft 9), types and attributes Apache Qpid Broker-J's, as far as
nodes and clients here use them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from carod.amqp.amqp10 import message as sections
from carod.amqp.embedded.exchange import KINDS, PREDEFINED, Exchange
from carod.amqp.embedded.message import Stored
from carod.amqp.embedded.queue import Queue, TooMany, Traits
from carod.amqp.transport import HeaderValue, Message

if TYPE_CHECKING:
    from carod.amqp.embedded.broker import EmbeddedBroker

log = logging.getLogger("carod.amqp.embedded")
ADDRESS = "$management"
UNTIL_UNUSED = ("DELETE_ON_NO_OUTBOUND_LINKS", "DELETE_ON_NO_LINKS")
UNTIL_CLOSED = "DELETE_ON_CONNECTION_CLOSE"
LIFETIMES = ("PERMANENT", UNTIL_CLOSED, *UNTIL_UNUSED)
EXCLUSIVES = ("NONE", "CONNECTION", "LINK")
LONGEST_NAME = 255
"""Characters of a queue's or exchange's name or a key, as in AMQP 0-9-1."""
Reply = tuple[int, str, Any]
"""Status (HTTP's), its text if it is an error, and a map or a list."""


def answer(broker: EmbeddedBroker, owner: Any, data: bytes) -> None:
    """Do what an encoded request says, and send the answer to its `reply-to`."""
    request = sections.decode(data).message
    try:
        status, text, value = _do(broker, owner, request.headers, request.value if request.value is not None else {})
    except TooMany as error:
        status, text, value = 507, str(error), {}
    if request.reply_to is None:
        log.warning("a request to %s names no reply-to: %s", ADDRESS, text or status)
        return
    headers: dict[str, HeaderValue] = {"statusCode": status, "statusDescription": text or "OK"}
    correlation = request.correlation_id if request.correlation_id is not None else request.message_id
    reply = Message(headers=headers, correlation_id=correlation, value=value)
    problem = broker.deliver(Stored([sections.encode_head(reply, 0)]), request.reply_to)
    if problem:
        log.warning("an answer from %s has nowhere to go: %s", ADDRESS, problem)


def _do(broker: EmbeddedBroker, owner: Any, headers: Any, body: Any) -> Reply:
    operation, kind = str(headers.get("operation", "")), str(headers.get("type", ""))
    attributes = body if isinstance(body, dict) else {}
    if operation == "QUERY":
        return _query(broker, str(headers.get("entityType", "")))
    what = kind.removeprefix("org.apache.qpid.")
    if not kind.startswith("org.apache.qpid.") or not what.endswith(("Queue", "Exchange")):
        return 400, f"type {kind!r} is not known here: org.apache.qpid.Queue and org.apache.qpid.Exchange are", {}
    is_queue = what.endswith("Queue")
    if operation == "CREATE":
        name = str(attributes.get("name") or headers.get("name") or "")
        if not name or name == ADDRESS or len(name) > LONGEST_NAME:
            return 400, f"an object can't have the name {name[:80]!r}", {}
        if name in broker.queues or name in broker.exchanges:
            return 409, f"there is {name!r} already", {}
        if is_queue:
            return _create_queue(broker, owner, name, attributes)
        return _create_exchange(broker, name, what, attributes)
    name = str(headers.get("key") or headers.get("name") or headers.get("identity") or "").replace("\\/", "/")
    name = name.replace("\\\\", "\\")
    found = broker.queues.get(name) if is_queue else broker.exchanges.get(name)
    if found is None:
        return 404, f"there is no {'queue' if is_queue else 'exchange'} {name!r}", {}
    operations = _QUEUE_OPERATIONS if is_queue else _EXCHANGE_OPERATIONS
    if operation not in operations:
        return 501, f"operation {operation!r} is not known here: {', '.join(sorted((*operations, 'CREATE')))} are", {}
    return operations[operation](broker, owner, found, headers)


def _create_queue(broker: EmbeddedBroker, owner: Any, name: str, wanted: dict[str, Any]) -> Reply:
    exclusive = str(wanted.get("exclusive", "NONE"))
    lifetime = str(wanted.get("lifetimePolicy", "PERMANENT"))
    if exclusive not in EXCLUSIVES:
        return 400, f"exclusive {exclusive!r} is none of {', '.join(EXCLUSIVES)}", {}
    if lifetime not in LIFETIMES:
        return 400, f"lifetimePolicy {lifetime!r} is none of {', '.join(LIFETIMES)}", {}
    ttl = wanted.get("maximumMessageTtl", 0)
    if not isinstance(ttl, int) or ttl < 0:
        return 400, f"maximumMessageTtl {ttl!r} is no number of milliseconds", {}
    alternate = _alternate(wanted.get("alternateBinding"))
    if alternate is not None and broker.find(alternate[0]) is None:
        return 400, f"the alternate binding's destination {alternate[0]!r} does not exist", {}
    traits = Traits(wanted.get("durable") is True, exclusive, lifetime, ttl / 1000 if ttl else None, alternate)
    queue = broker.declare(name, traits, owner if exclusive == "CONNECTION" else None)
    if lifetime == UNTIL_CLOSED:
        owner.owned[queue] = None
    return 201, "", _queue_attributes(queue)


def _alternate(given: Any) -> tuple[str, str] | None:
    """An alternate binding, a map or its JSON: (destination, key)."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    if not isinstance(given, dict) or not given.get("destination"):
        return None
    attributes = given.get("attributes")
    key = attributes.get("routingKey", "") if isinstance(attributes, dict) else ""
    return str(given["destination"]), str(key)


def _create_exchange(broker: EmbeddedBroker, name: str, what: str, wanted: dict[str, Any]) -> Reply:
    kind = str(wanted.get("qpid-type") or what.removesuffix("Exchange").lower() or "direct")
    if kind not in KINDS:
        return 501, f"exchange type {kind!r} is none of {', '.join(KINDS)}", {}
    broker.declare_exchange(name, kind, durable=wanted.get("durable") is True)
    return 201, "", _exchange_attributes(broker.exchanges[name])


def _queue_attributes(queue: Queue) -> dict[str, Any]:
    traits = queue.traits
    attributes: dict[str, Any] = {
        "name": queue.name, "object-path": queue.name, "identity": queue.name, "type": "org.apache.qpid.Queue",
        "qpid-type": "priority", "durable": traits.durable, "exclusive": traits.exclusive,
        "lifetimePolicy": traits.lifetime, "maximumMessageTtl": round((traits.ttl or 0) * 1000),
        **_statistics(queue),
    }  # fmt: skip
    if traits.alternate is not None:
        destination, key = traits.alternate
        attributes["alternateBinding"] = {
            "destination": destination, "attributes": {"routingKey": key} if key else {}
        }  # fmt: skip
    return attributes


def _statistics(queue: Queue) -> dict[str, Any]:
    return {
        "queueDepthMessages": queue.waiting + queue.unsettled,
        "queueDepthBytes": queue.size,
        "availableMessages": queue.waiting,
        "unacknowledgedMessages": queue.unsettled,
        "consumerCount": len(queue.consumers),
    }


def _exchange_attributes(exchange: Exchange) -> dict[str, Any]:
    return {
        "name": exchange.name, "object-path": exchange.name, "identity": exchange.name,
        "type": "org.apache.qpid.Exchange", "qpid-type": exchange.kind, "durable": exchange.durable,
        "unroutableMessageBehaviour": "REJECT",
    }  # fmt: skip


def _query(broker: EmbeddedBroker, kind: str) -> Reply:
    """The names of all queues or exchanges."""
    objects: list[Any] = []
    if not kind.endswith("Exchange"):
        objects += [[name, "org.apache.qpid.Queue"] for name in broker.queues]
    if not kind.endswith("Queue"):
        objects += [[name, "org.apache.qpid.Exchange"] for name in broker.exchanges]
    return 200, "", {"attributeNames": ["name", "type"], "results": objects}


def _delete_queue(broker: EmbeddedBroker, owner: Any, queue: Queue, _headers: Any) -> Reply:
    if queue.owner is not None and queue.owner is not owner:
        return 403, f"queue {queue.name!r} belongs to another connection", {}
    using = [other.name for other in broker.queues.values() if other.traits.alternate == (queue.name, "")]
    if using and using != [queue.name]:
        return 403, f"queue {queue.name!r} is the alternate of {', '.join(using)}; delete that first", {}
    owner.owned.pop(queue, None)
    broker.delete(queue)
    return 204, "", {}


def _delete_exchange(broker: EmbeddedBroker, _owner: Any, exchange: Exchange, _headers: Any) -> Reply:
    if exchange.name in PREDEFINED:
        return 403, f"exchange {exchange.name!r} is always there", {}
    broker.delete_exchange(exchange)
    return 204, "", {}


def _bind(broker: EmbeddedBroker, _owner: Any, exchange: Exchange, headers: Any, *, undo: bool = False) -> Reply:
    name, key = str(headers.get("destination", "")), str(headers.get("bindingKey", ""))
    queue = broker.queues.get(name)
    if queue is None:
        return 400, f"there is no queue {name!r} to bind", {}
    if len(key) > LONGEST_NAME:
        return 400, f"a key has {LONGEST_NAME} characters at most, not {len(key)}", {}
    done = broker.unbind(exchange, queue, key) if undo else broker.bind(exchange, queue, key)
    return 200, "", {"changed": done}


def _unbind(broker: EmbeddedBroker, owner: Any, exchange: Exchange, headers: Any) -> Reply:
    return _bind(broker, owner, exchange, headers, undo=True)


Operation = Callable[["EmbeddedBroker", Any, Any, Any], Reply]
_QUEUE_OPERATIONS: dict[str, Operation] = {
    "READ": lambda _broker, _owner, queue, _headers: (200, "", _queue_attributes(queue)),
    "getStatistics": lambda _broker, _owner, queue, _headers: (200, "", _statistics(queue)),
    "DELETE": _delete_queue,
}
_EXCHANGE_OPERATIONS: dict[str, Operation] = {
    "READ": lambda _broker, _owner, exchange, _headers: (200, "", _exchange_attributes(exchange)),
    "DELETE": _delete_exchange,
    "bind": _bind,
    "unbind": _unbind,
}
