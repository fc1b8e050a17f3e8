"""What was in a Broker-J's queues when it was started.

Broker-J keeps its durable messages over a restart, but not that a consumer had them: what a node runs comes again like
a message that nobody has seen. So what was there at the start counts as delivered before. A copy that a node has
published since, under the same id, does not: the broker is asked whether the message itself is still there.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

from carod.amqp.amqp10.message import Received, id_bytes
from carod.amqp.amqp10.requests import QUEUE, Management
from carod.amqp.transport import TransportError

log = logging.getLogger("carod.amqp")
FIRST_LOOK = 100
"""Messages at a queue's head that tell whether more have to be looked at; those that consumers have are the oldest."""
MOST = 10_000
"""Messages of a queue that are looked at: more than all nodes together may have had."""
ACQUIRED = "Acquired"
"""The state of a message that is with a consumer."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Recovered:
    """Those messages, on one connection. After a further restart of the broker there is a new one."""

    def __init__(self, management: Management) -> None:
        self._management = management
        self._places: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
        """By message id as Broker-J writes it: queues, and the broker's own numbers for the messages."""
        self._known: set[str] = set()

    async def look_through(self, queue: str) -> None:
        """Take note of a queue's messages, once, before it is consumed: what comes later is new."""
        if queue in self._known:
            return
        read = await self._management.invoke("READ", QUEUE, queue, actuals=False)
        if not read.ok or not isinstance(read.value, dict):  # none there, which whoever consumes it is told
            return
        opened, created = str(read.value.get("lastOpenedTime")), str(read.value.get("createdTime"))
        if opened != created and any(_is_older(item, opened) for item in await self._messages(queue, FIRST_LOOK)):
            found = [item for item in await self._messages(queue, MOST) if _is_older(item, opened)]
            for item in found:
                self._places[str(item.get("messageId", ""))].add((queue, int(item["id"])))
            log.info("%d messages in %s were there when the broker started at %s", len(found), queue, opened)
        self._known.add(queue)

    def may_have(self, received: Received) -> bool:
        """Whether one of them has this message's id."""
        return bool(self._places) and _written(received) in self._places

    async def has(self, received: Received) -> bool:
        """Whether a message that was just received is one of them; False for a copy of one that is settled."""
        key = _written(received)
        try:
            for place in tuple(self._places[key]):
                state = await self._state(*place)
                if state == ACQUIRED:
                    return True
                if not state:
                    self._places[key].discard(place)
        except TransportError as error:
            log.debug("whether message %s was delivered before is not to be had: %s", key, error)
            return True
        if not self._places[key]:
            del self._places[key]
        return False

    async def _state(self, queue: str, number: int) -> str:
        """A message's state; empty when it is not in the queue any more, or not among those that consumers have."""
        seen, count = 0, FIRST_LOOK
        while count <= MOST:  # always from the head: what is settled meanwhile has the others move up
            found = await self._messages(queue, count)
            for item in found:
                if item.get("id") == number:
                    return str(item.get("state"))
            if len(found) < count or not any(item.get("state") == ACQUIRED for item in found[seen:]):
                return ""
            seen, count = count, count * 10
        return ""

    async def _messages(self, queue: str, count: int) -> list[dict[str, Any]]:
        """The first messages of a queue, without their headers, also those that are with a consumer."""
        answer = await self._management.invoke("getMessageInfo", QUEUE, queue, first=0, last=count - 1)
        if not answer.ok:
            log.warning(
                "the broker does not list the messages in %s: %s (%d); jobs that run while it is restarted may be "
                "started again. Allow this user its operation getMessageInfo", queue, answer.text, answer.status,
            )  # fmt: skip
        return answer.value if answer.ok and isinstance(answer.value, list) else []


def _written(received: Received) -> str:
    """A message's id as Broker-J writes it: of bytes those that are printable ASCII, and the others as `\\xff`.

    Of messages without an id one is like the other.
    """
    message_id = received.message.message_id
    if message_id is None:
        return ""
    raw = id_bytes(message_id)
    if raw is None:
        return str(message_id)
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in raw)


def _is_older(item: dict[str, Any], opened: str) -> bool:
    """Whether a message arrived before the queue was opened.

    In the same second, or where summer time has come or gone in between, it may have: that counts as yes.
    """
    when, then = _instant(str(item.get("arrivalTime"))), _instant(opened)
    return when is None or then is None or when[1] != then[1] or when[0] <= then[0]


def _instant(text: str) -> tuple[tuple[int, int, int, str], str] | None:
    """What a time as Java writes it, `Sat Nov 21 06:09:00 UTC 2026`, is compared by, and its zone."""
    try:
        _, month, day, clock, zone, year = text.split()
        return (int(year), MONTHS.index(month), int(day), clock), zone
    except ValueError:
        return None
