"""AMQP 1.0 brokers, on Proton's protocol engine."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress

from carod.amqp.addresses import read_reply_to
from carod.amqp.amqp10.brokers import Broker, Source, Target, broker_of
from carod.amqp.amqp10.links import Publisher10, Sent, Subscription10, Together, encoded
from carod.amqp.amqp10.wire import Wire
from carod.amqp.endpoint import Endpoint
from carod.amqp.transport import (
    Address,
    ConnectionLost,
    Delivery,
    Exchange,
    Message,
    OnDelivery,
    OnEnd,
    Queue,
    Refused,
    Subscription,
    TransportError,
    Unroutable,
)

PUBLISHERS, BULK = "publishers", "bulk"
"""Sessions for messages, and for large ones: small replies need not wait behind those."""
LARGE_BODY = 1 << 20
"""A body over this many bytes is a large one."""
MAX_PUBLISHERS = 256
"""Links for sending that are kept: no client may have a node open links without end by naming reply queues."""


class Amqp10Transport:
    """A connection to a 1.0 broker; see `transport.Transport` for what each method promises."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._wire: Wire | None = None
        self._broker: Broker | None = None
        self._publishers: OrderedDict[tuple[str, str], asyncio.Future[Publisher10]] = OrderedDict()
        self._private: dict[str, Subscription10] = {}
        self._beside: dict[str, list[Source]] = {}
        """What is to be consumed together with a queue, on brokers that can't bind it."""
        self._known_exchanges: set[str] = set()
        self._bulk, self._asking = asyncio.Lock(), asyncio.Lock()

    # -- the connection ----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        end = self.endpoint
        hostname = end.host if end.vhost == "/" else end.vhost
        wire, broker = await self._open(hostname)
        named = broker.hostname(end.vhost)
        if named is not None and named != hostname:  # only now we know how this broker names it
            await wire.close()
            try:
                wire, broker = await self._open(named)
            except ConnectionLost:  # it just let us in by another name: it hangs up on this one without a word
                raise Refused(
                    f"broker {end.safe_url} refused the connection: there is no vhost {end.vhost!r}, or the user may "
                    "not use it"
                ) from None
        self._wire, self._broker = wire, broker
        self._publishers.clear()
        self._private.clear()
        self._beside.clear()
        self._known_exchanges.clear()

    async def _open(self, hostname: str) -> tuple[Wire, Broker]:
        context = self.endpoint.tls_context()  # a file that can't be read is the user's to mend: BadEndpoint
        wire = Wire(self.endpoint, hostname)
        where = f"broker {self.endpoint.safe_url}"
        try:
            await wire.open(context)
        except TimeoutError:
            raise ConnectionLost(f"{where}: no answer within {self.endpoint.connect_timeout:g} s") from None
        except OSError as error:
            raise ConnectionLost(f"{where}: {error}") from None
        try:
            return wire, broker_of(wire)
        except TransportError:
            await wire.close()
            raise

    async def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    @property
    def heard(self) -> float:
        return self._wire.engine.heard if self._wire is not None else 0.0

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._live()[0].closed)

    def _live(self) -> tuple[Wire, Broker]:
        if self._wire is None or self._broker is None:
            raise ConnectionLost(f"not connected to broker {self.endpoint.safe_url}")
        self._wire.check()
        return self._wire, self._broker

    # -- queues and exchanges ----------------------------------------------------------------------------------

    async def declare(self, what: Queue | Exchange) -> tuple[str, bool]:
        wire, broker = self._live()
        if isinstance(what, Exchange):
            return what.name, await broker.declare_exchange(what)
        name, as_asked = what.name, True
        if name:
            as_asked = await broker.declare_queue(what)
        else:
            name = await self._declare_private(wire)
        beside = [await broker.bind(name, binding) for binding in what.bindings]
        self._beside[name] = [source for source in beside if source is not None]
        return name, as_asked

    async def _declare_private(self, wire: Wire) -> str:
        """A queue that lives as long as the connection, or as the link that asked for it."""
        name = await self._live()[1].declare_private()
        if name is not None:
            return name
        keeper = await wire.subscription("", _never)
        name = str(keeper.link.remote_source.address)
        self._private[name] = keeper
        return name

    async def delete(self, queue: str, *, if_empty: bool = False) -> None:
        _, broker = self._live()
        keeper = self._private.pop(queue, None)
        if keeper is not None:
            keeper.close()
        else:
            await broker.delete(queue, if_empty)

    async def depth(self, queue: str) -> int | None:
        return await self._live()[1].depth(queue)

    async def consume(
        self,
        queue: str,
        on_delivery: OnDelivery,
        *,
        credit: int = 1,
        settled: bool = False,
        exclusive: bool = False,
        on_end: OnEnd | None = None,
    ) -> Subscription:
        wire, broker = self._live()
        subscriptions = [
            await wire.subscription(
                source.address, on_delivery, capability=source.capability, credit=credit, settled=settled,
                on_end=on_end, redelivered=broker.redelivered, release=broker.release_as,
            )
            for source in (await broker.source_of(queue), *self._beside.get(queue, ()))
        ]  # fmt: skip
        for subscription in subscriptions:
            subscription.start()
        return subscriptions[0] if len(subscriptions) == 1 else Together(subscriptions)

    # -- publishing --------------------------------------------------------------------------------------------

    async def publish(self, message: Message, to: Address, *, confirm: bool = True) -> None:
        _, broker = self._live()
        target = broker.target(to)
        body = message.body if message.value is None else b""
        size = len(body) if isinstance(body, bytes) else body.seek(0, 2)
        head = encoded(message, size, to=target.to, subject=target.subject)
        if (confirm and to.exchange) or not broker.tells_unroutable:
            async with self._asking:  # an answer that comes out of turn must not change the messages' order
                if not await broker.routes(to):
                    if not confirm:
                        return
                    raise Unroutable(f"no queue for {str(to)!r}: the broker has none, or no binding for it")
                sent = await self._send(head, message, size, target, to, confirm)
        else:
            sent = await self._send(head, message, size, target, to, confirm)
        if confirm:
            await sent.arrived()

    async def _send(self, head: bytes, message: Message, size: int, target: Target, to: Address, confirm: bool) -> Sent:
        if size > LARGE_BODY:
            return await self._publish_large(head, message, size, target, to)
        publisher = await self._publisher(target)
        body = message.body if message.value is None else b""
        if not isinstance(body, bytes):
            body.seek(0)
            body = body.read()
        return publisher.send(head + body, str(to), patient=confirm)

    async def _publish_large(self, head: bytes, message: Message, size: int, target: Target, to: Address) -> Sent:
        async with self._bulk:
            earlier = self._publishers.get((PUBLISHERS, target.link))
            if earlier is not None:  # sessions may overtake each other: what was sent before must be there before
                with suppress(TransportError):
                    await (await asyncio.shield(earlier)).settled()
            publisher = await self._publisher(target, BULK)
            sent = await publisher.stream(head, message.body, size, str(to))
            await sent.arrived()
            return sent

    async def _publisher(self, target: Target, lane: str = PUBLISHERS) -> Publisher10:
        """A link to an address, kept for the next message."""
        wire, _ = self._live()
        key = (lane, target.link)
        opening = self._publishers.get(key)
        if opening is not None and opening.done() and opening.result().ended:
            opening = None
        if opening is None:
            attaching = wire.publisher(target.link, lane=lane, capability=target.capability)
            opening = self._publishers[key] = asyncio.ensure_future(attaching)
            opening.add_done_callback(lambda done: self._forget_if_failed(key, done))
            self._close_oldest()
        self._publishers.move_to_end(key)
        publisher = await asyncio.shield(opening)
        if publisher.failure is not None:  # attached, and detached in the same breath
            raise publisher.failure
        return publisher

    def _forget_if_failed(self, key: tuple[str, str], opening: asyncio.Future[Publisher10]) -> None:
        if (opening.cancelled() or opening.exception() is not None) and self._publishers.get(key) is opening:
            del self._publishers[key]

    def _close_oldest(self) -> None:
        if len(self._publishers) <= MAX_PUBLISHERS:
            return
        for key, opening in self._publishers.items():
            if opening.done() and not opening.exception() and opening.result().idle:
                opening.result().close()
                del self._publishers[key]
                return

    # -- addresses ---------------------------------------------------------------------------------------------

    async def resolve(self, reply_to: str) -> Address:
        if (address := read_reply_to(reply_to)) is not None:
            return address
        exchange, _, key = reply_to.partition("/")
        if exchange and (exchange in self._known_exchanges or await self._live()[1].exists(exchange)):
            self._known_exchanges.add(exchange)
            return Address(exchange, key)
        return Address("", reply_to)


def _never(_: Delivery) -> None:
    """What comes to a private queue comes to its consumers; the link that keeps it has no credit."""
