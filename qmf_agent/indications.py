"""What the agent says unasked: data of changed objects, at most once per object and interval, and events at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from itertools import groupby

from carod.amqp import Address, ConnectionLost, Message, Transport, TransportError, Unroutable
from carod.qmf import TOPIC, AgentName, Content, Opcode, TooLong, word
from carod.qmf.names import DATA_KEY, EVENT_KEY, SEVERITIES
from qmf_agent.model import Event, ManagedObject, Model
from qmf_agent.schema import DEFAULT_PACKAGE, SCHEMA
from qmf_agent.wire import Mapper, agent_message, parts

logger = logging.getLogger("carod.qmf")

PAGE = 100
"""Objects looked up at a time; between two pages requests have their turn."""
MAX_EVENTS = 10_000
"""Events kept for a broker that is slow; the oldest are lost first."""


class Indications:
    """Collects changes while there is a connection and publishes them; a model's Listener.

    What changed while there was none is not indicated: consoles look at objects anew after a break.
    """

    def __init__(self, model: Model, name: AgentName, interval: float) -> None:
        self._model, self._name, self._interval = model, name, interval
        self._mapper = Mapper(str(name), DEFAULT_PACKAGE)
        self._changed: dict[tuple[str, str], None] = {}
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._transport: Transport | None = None
        self._wake = asyncio.Event()

    def changed(self, class_name: str, name: str) -> None:
        if self._transport is not None and self._interval > 0:
            self._changed[class_name, name] = None

    def happened(self, event: Event) -> None:
        if self._transport is not None:
            self._events.append(event)
            self._wake.set()

    async def run(self, transport: Transport) -> None:
        """Publish over a connection until cancelled, or the connection is lost (ConnectionLost)."""
        self._transport = transport
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._publish_events(transport))
                if self._interval > 0:
                    group.create_task(self._publish_data(transport))
        finally:
            self._transport = None
            self._changed.clear()
            self._events.clear()

    # -- data --------------------------------------------------------------------------------------------------

    async def _publish_data(self, transport: Transport) -> None:
        while True:
            await asyncio.sleep(self._interval)
            changed, self._changed = self._changed, {}
            for class_name, names in groupby(sorted(changed), key=lambda each: each[0]):
                await self._publish_class(transport, class_name, [name for _, name in names])

    async def _publish_class(self, transport: Transport, class_name: str, names: list[str]) -> None:
        schema = SCHEMA.get((DEFAULT_PACKAGE, class_name.lower()))
        if schema is None:
            return
        to = Address(TOPIC, f"{DATA_KEY}.{word(DEFAULT_PACKAGE)}.{word(class_name.lower())}.{self._name.words}")
        for start in range(0, len(names), PAGE):
            found = [await self._find(class_name, name) for name in names[start : start + PAGE]]
            for part in parts(self._mapper.object(schema, each) for each in found):
                message = agent_message(str(self._name), Opcode.DATA, part, Content.DATA)
                if not await _sent(transport, message, to):
                    return  # nobody listens to this class: looking up the others would be work for nobody
            await asyncio.sleep(0)

    async def _find(self, class_name: str, name: str) -> ManagedObject:
        found = await self._model.find(class_name, name)
        if found is None:
            now = time.time_ns()
            return ManagedObject(class_name, name, {}, 0, now, now)
        return found

    # -- events ------------------------------------------------------------------------------------------------

    async def _publish_events(self, transport: Transport) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            events = [self._events.popleft() for _ in range(len(self._events))]
            for message, to in self._event_messages(events):
                await _sent(transport, message, to)

    def _event_messages(self, events: list[Event]) -> Iterator[tuple[Message, Address]]:
        for (name, severity), same in groupby(events, key=lambda each: (each.name, each.severity)):
            level = SEVERITIES[min(max(severity, 0), len(SEVERITIES) - 1)]
            key = f"{EVENT_KEY}.{word(DEFAULT_PACKAGE)}.{word(name.lower())}.{level}.{self._name.words}"
            schema = SCHEMA.get((DEFAULT_PACKAGE, name.lower()))
            maps = []
            for event in same:
                try:
                    maps.append(self._mapper.event(schema, event))
                except TooLong as error:
                    logger.warning("event not sent", extra={"fields": {"event": name, "reason": str(error)}})
            for part in parts(maps):
                yield agent_message(str(self._name), Opcode.DATA, part, Content.EVENT), Address(TOPIC, key)


async def _sent(transport: Transport, message: Message, to: Address) -> bool:
    """Publish; False if nobody listens. Raises ConnectionLost."""
    try:
        await transport.publish(message, to)
    except Unroutable:
        return False
    except ConnectionLost:
        raise
    except TransportError as error:
        logger.warning("indication not sent", extra={"fields": {"to": str(to), "reason": str(error)}})
    return True
