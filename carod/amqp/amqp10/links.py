"""What goes over a link: a consumer with its deliveries, or a sender with what is not confirmed yet."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

from proton import Condition, Disposition, Receiver, Sender, Terminus, symbol

from carod.amqp.amqp10 import message as sections
from carod.amqp.amqp10.message import Received
from carod.amqp.engine import Engine
from carod.amqp.transport import (
    Body,
    Busy,
    Message,
    OnDelivery,
    OnEnd,
    Outcome,
    Refused,
    StaleDelivery,
    TooLarge,
    TransportError,
    Unroutable,
)

log = logging.getLogger("carod.amqp")
WINDOW = 500
"""Credit of a consumer without a limit; half of it used is given anew."""
MAX_REASON = 500
"""Characters of a broker's reason that are passed on; some add where in its own code it failed."""
CANCEL_TIMEOUT = 5.0
"""Seconds for a broker to take back the credit of a cancelled consumer; then its link is closed as it is."""
BACKLOG = 1000
"""Messages that may wait for a sender's credit without being waited for; further ones are dropped."""
CHUNK = 1 << 16
"""Bytes of a large body read at a time."""
IN_FLIGHT = 1 << 20
"""Bytes of a large body that Proton holds at a time."""


class Wire(Protocol):
    """What a link needs of its connection."""

    engine: Engine

    closed: asyncio.Future[str]

    def check(self) -> None:
        """Raises ConnectionLost when there is no connection any more."""


class LinkEnd:
    """One end of a link: knows when the other end has attached, and when it is gone."""

    def __init__(self, wire: Wire, link: Any) -> None:
        self.wire, self.link = wire, link
        self.ended = ""
        """Why the link is no more, if it is."""
        self.failure: TransportError | None = None
        """The same for raising, if it was not we who closed it."""
        self._attached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link.owner = self

    async def attach(self) -> None:
        """Open. Raises Refused or Unroutable with the broker's reason, or ConnectionLost."""
        self.wire.check()
        self.link.open()
        self.wire.engine.flush()
        await self._attached

    def opened(self) -> None:
        """The other end has attached; a refusal looks the same, but names no terminus, and the reason follows."""
        link = self.link
        terminus, wanted = (link.remote_source, link.source) if link.is_receiver else (link.remote_target, link.target)
        refused = terminus.type == Terminus.UNSPECIFIED or (wanted.address and not terminus.address)
        if not refused and not self._attached.done():
            self._attached.set_result(None)

    def closed(self, condition: Condition | None) -> None:
        """The other end has detached."""
        error = link_error(condition, self.name)
        if not self.link.state & self.link.LOCAL_CLOSED:
            self.link.close()
        self.end(error)

    def end(self, error: TransportError) -> None:
        """The link, or its connection, is no more."""
        if not self.ended:
            self.ended, self.failure = str(error), error
            if not self._attached.done():
                self._attached.set_exception(error)
                self._attached.exception()

    def close(self) -> None:
        if not self.ended:
            self.ended = "closed"
            if not self.wire.closed.done():
                self.link.close()
                self.wire.engine.flush()

    @property
    def name(self) -> str:
        end = self.link.source if self.link.is_receiver else self.link.target
        return str(end.address or "")


def link_error(condition: Condition | None, name: str) -> TransportError:
    """What a broker's reason to end a link, or to refuse it, means."""
    if condition is None:
        return Refused(f"{name}: the broker closed the link")
    said = str(condition.description or condition.name)
    text = f"{name}: {said.splitlines()[0][:MAX_REASON]}"
    if condition.name == "amqp:not-found":
        return Unroutable(text)
    if condition.name in ("amqp:link:redirect", "amqp:connection:redirect"):
        info = condition.info if isinstance(condition.info, dict) else {}
        where = ":".join(str(info.get(symbol(part), "")) for part in ("network-host", "port"))
        return Refused(f"{name}: the broker sends us to {where}; connect there")
    return Refused(f"{text} ({condition.name})")


# -- consuming -------------------------------------------------------------------------------------------------


class Subscription10(LinkEnd):
    """A consumer on a link of its own, which stays until the last of its deliveries is settled."""

    link: Receiver

    def __init__(
        self,
        wire: Wire,
        link: Receiver,
        on_delivery: OnDelivery,
        *,
        credit: int,
        settled: bool,
        on_end: OnEnd | None,
        redelivered: Callable[[Received], bool | Awaitable[bool]] = lambda received: received.delivery_count > 0,
        release: int = Disposition.RELEASED,
        accepts: Callable[[Received], bool] | None = None,
    ) -> None:
        super().__init__(wire, link)
        self._on_delivery, self._on_end = on_delivery, on_end
        self._credit, self._presettled = credit, settled
        self._redelivered, self.release_as, self._accepts = redelivered, release, accepts
        self.unsettled = 0
        self._taken = 0
        self._cancelled = False
        self._drained: asyncio.Future[None] | None = None
        self._chunks: list[bytes] = []
        self._held: deque[tuple[Delivery10, asyncio.Future[bool]]] = deque()
        """Of which the broker is asked whether somebody had them before, and those behind them."""

    def start(self) -> None:
        self.link.flow(self._credit or WINDOW)
        self.wire.engine.flush()

    def on_delivery(self, delivery: Any) -> None:
        """Bytes have come, or a change of state that does not matter here."""
        if not delivery.readable:
            return
        link = self.link
        if data := link.recv(delivery.pending):
            self._chunks.append(bytes(data))
        if delivery.partial and not delivery.aborted:
            return
        chunks, self._chunks = self._chunks, []
        link.advance()
        self.on_flow()  # it may have been the last for which there was credit
        if delivery.aborted:
            delivery.settle()
            self._replenish()
            return
        received = sections.decode(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        presettled = self._presettled or delivery.settled
        wanted = self._accepts is None or self._accepts(received)
        if presettled or not wanted:
            delivery.update(Disposition.ACCEPTED)
            delivery.settle()
        if not wanted:
            self._replenish()
            return
        self.unsettled += not presettled
        if presettled or not self._credit:
            self._replenish()
        again = received.delivery_count > 0 if presettled else self._redelivered(received)
        handed = Delivery10(self, delivery, received, again is True, presettled)
        if self._held or not isinstance(again, bool):
            found = asyncio.ensure_future(_result(again))
            self._held.append((handed, found))
            found.add_done_callback(self._hand_on_held)
        else:
            self._hand_on(handed)

    def _hand_on_held(self, _: asyncio.Future[bool]) -> None:
        """In the order in which they came; none of a connection that is gone."""
        while self._held and self._held[0][1].done():
            delivery, found = self._held.popleft()
            if not found.cancelled() and not self.ended:
                delivery.redelivered = found.result()
                self._hand_on(delivery)

    def _hand_on(self, delivery: Delivery10) -> None:
        try:
            self._on_delivery(delivery)
        except Exception:
            log.exception("a delivery could not be handled; it stays unsettled")

    def _replenish(self) -> None:
        """Give credit anew for what needs no settling."""
        self._taken += 1
        if not self._cancelled and (self._credit or self._taken >= WINDOW // 2):
            self.link.flow(self._taken)
            self._taken = 0

    def on_flow(self) -> None:
        """Credit has changed: a cancelled consumer waits for the last of it."""
        if self._drained is not None and not self._drained.done() and self.link.credit == 0:
            self._drained.set_result(None)

    def end(self, error: TransportError) -> None:
        told = bool(self.ended) or self._cancelled
        super().end(error)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if not told and self._attached.done() and self._attached.exception() is None and self._on_end is not None:
            try:
                self._on_end(str(error))
            except Exception:
                log.exception("the end of a consumer could not be told")

    async def cancel(self) -> None:
        """Take no more. The broker gives back the credit first: what it had sent already is not to go to and fro."""
        if self._cancelled or self.ended:
            return
        self._cancelled = True
        if self.link.credit > 0:
            self._drained = asyncio.get_running_loop().create_future()
            self.link.drain(0)
            self.wire.engine.flush()
            with suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT):
                    await self._drained
        self._close_if_idle()

    def settle(self, delivery: Any, state: int, failed: bool) -> None:
        """Put a disposition on the wire, and ask for the next message. Raises StaleDelivery."""
        if self.ended or self.wire.closed.done():
            raise StaleDelivery("the connection that brought this message is gone; the broker offers it again")
        if failed:
            delivery.local.failed = True
        delivery.update(state)
        delivery.settle()
        self.unsettled -= 1
        if self._cancelled:
            self._close_if_idle()
        elif self._credit:
            self.link.flow(1)
        self.wire.engine.flush()

    def _close_if_idle(self) -> None:
        if not self.unsettled and self._cancelled:
            self.close()


class Together:
    """Consumers that are one to whoever asked for them."""

    def __init__(self, subscriptions: list[Subscription10]) -> None:
        self._subscriptions = subscriptions

    @property
    def unsettled(self) -> int:
        return sum(subscription.unsettled for subscription in self._subscriptions)

    async def cancel(self) -> None:
        for subscription in self._subscriptions:
            await subscription.cancel()


class Delivery10:
    """A delivery over AMQP 1.0. Settling after its link ended raises StaleDelivery."""

    __slots__ = ("_delivery", "message", "received", "redelivered", "settled", "subscription")

    def __init__(
        self, subscription: Subscription10, delivery: Any, received: Received, redelivered: bool, settled: bool
    ) -> None:
        self.subscription, self._delivery = subscription, delivery
        self.received, self.message = received, received.message
        self.redelivered, self.settled = redelivered, settled

    def settle(self, outcome: Outcome) -> None:
        """Settle exactly once; see `transport.Delivery`."""
        if self.settled:
            raise AssertionError(f"the delivery of message {self.message.message_id} is settled already")
        state = Disposition.ACCEPTED if outcome is Outcome.ACCEPTED else self.subscription.release_as
        self.subscription.settle(self._delivery, state, state == Disposition.MODIFIED)
        self.settled = True


async def _result(known: bool | Awaitable[bool]) -> bool:
    return known if isinstance(known, bool) else await known


# -- publishing ------------------------------------------------------------------------------------------------


class Sent:
    """A message on its way `to` an address, until the broker has answered for it; awaited with `arrived`."""

    __slots__ = ("_answered", "to")

    def __init__(self, to: str) -> None:
        self.to = to
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def arrived(self) -> None:
        """Wait for it. Raises Unroutable, Refused, Busy or ConnectionLost."""
        await self._answered

    def settle(self, error: Exception | None) -> None:
        if self._answered.done():
            return
        if error is None:
            self._answered.set_result(None)
        else:
            self._answered.set_exception(error)
            self._answered.exception()  # whoever did not wait for it does not want to hear of it


class Publisher10(LinkEnd):
    """A link to one address, or to whatever each message says."""

    link: Sender

    def __init__(self, wire: Wire, link: Sender, settled: bool = False) -> None:
        super().__init__(wire, link)
        self._settled = settled
        self._waiting: dict[Sent, None] = {}
        self._backlog: deque[tuple[bytes, Sent]] = deque()
        self._credit_waiter: asyncio.Future[None] | None = None
        self._count = 0

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._backlog

    def send(self, data: bytes, to: str, *, patient: bool) -> Sent:
        """Send a message, now or as soon as there is credit.

        Raises TooLarge, ConnectionLost, Refused, and Busy, if it is not `patient` and too much waits already.
        """
        self.check(len(data), to)
        sent = Sent(to)
        if self._backlog or self.link.credit <= 0:
            if not patient and len(self._backlog) >= BACKLOG:
                raise Busy(f"the broker takes nothing for {to!r} just now, and {BACKLOG} messages wait for it")
            self._backlog.append((data, sent))
        else:
            self._put_whole(data, sent)
            self.wire.engine.flush()
        return sent

    def check(self, size: int, to: str) -> None:
        """Raises what `send` does."""
        self.wire.check()
        if self.ended:
            raise Refused(self.ended)
        limit = self.link.remote_max_message_size
        if limit and size > limit:
            raise TooLarge(f"a message of {size} bytes to {to!r} is over the broker's {limit}")

    def _put_whole(self, data: bytes, sent: Sent) -> None:
        delivery = self._put(data, sent)
        self.link.advance()
        if self._settled:
            delivery.settle()
            self._waiting.pop(sent)
            sent.settle(None)

    def _put(self, data: bytes, sent: Sent) -> Any:
        """A new delivery that begins with these bytes."""
        self._count += 1
        delivery = self.link.delivery(str(self._count))
        delivery.sent = sent
        self._waiting[sent] = None
        self.link.stream(data)
        return delivery

    async def stream(self, head: bytes, body: Body, size: int, to: str) -> Sent:
        """Send a message whose body of `size` bytes is held a piece at a time.

        The caller must have this link to itself. Raises Refused if the body ends early: nothing arrives then.
        """
        self.check(len(head) + size, to)
        while self.link.credit <= 0:
            await self._credit()
        sent = Sent(to)
        delivery = self._put(head, sent)
        if not isinstance(body, bytes):
            body.seek(0)
        done = 0
        while done < size and not self.ended:
            chunk = body[done : done + CHUNK] if isinstance(body, bytes) else body.read(min(CHUNK, size - done))
            if not chunk:
                delivery.abort()
                self.wire.engine.flush()
                raise Refused(f"the body ended after {done} of {size} bytes")
            self.link.stream(chunk)
            done += len(chunk)
            while self.link.session.outgoing_bytes > IN_FLIGHT and not self.ended:
                await self.wire.engine.progress()
        if not self.ended:
            self.link.advance()
            self.wire.engine.flush()
        return sent

    async def _credit(self) -> None:
        self._credit_waiter = asyncio.get_running_loop().create_future()
        await self._credit_waiter
        self.check(0, self.name)

    async def settled(self) -> None:
        """Wait until the broker has answered for everything sent so far."""
        for sent in [*self._waiting, *(sent for _, sent in self._backlog)]:
            with suppress(TransportError):
                await sent.arrived()

    def on_flow(self) -> None:
        while self._backlog and self.link.credit > 0:
            self._put_whole(*self._backlog.popleft())
        if self._credit_waiter is not None and self.link.credit > 0 and not self._credit_waiter.done():
            self._credit_waiter.set_result(None)

    def on_delivery(self, delivery: Any) -> None:
        """The broker has said what became of a message."""
        state = delivery.remote_state
        if not delivery.updated or (state in (0, Disposition.RECEIVED) and not delivery.settled):
            return
        sent: Sent = delivery.sent
        self._waiting.pop(sent, None)
        taken = state == Disposition.ACCEPTED or state == 0
        sent.settle(None if taken else _failure(state, delivery.remote.condition, sent.to))
        delivery.settle()

    def end(self, error: TransportError) -> None:
        super().end(error)
        waiting = [*self._waiting, *(sent for _, sent in self._backlog)]
        self._waiting.clear()
        self._backlog.clear()
        for sent in waiting:
            sent.settle(error)
        if self._credit_waiter is not None and not self._credit_waiter.done():
            self._credit_waiter.set_result(None)


def _failure(state: int, condition: Condition | None, to: str) -> TransportError:
    """What an outcome other than accepted means for a message."""
    if state == Disposition.RELEASED:
        return Unroutable(f"no queue for {to!r} (the broker released the message)")
    if state == Disposition.REJECTED and condition is not None:
        text = condition.description or condition.name
        if condition.name == "amqp:not-found":
            return Unroutable(f"no queue for {to!r} ({text})")
        if condition.name not in ("amqp:resource-limit-exceeded", "amqp:resource-locked"):
            return Refused(f"the broker refused a message to {to!r}: {text} ({condition.name})")
    return Busy(f"the broker could not take a message to {to!r}")


def encoded(message: Message, size: int | None, **fields: Any) -> bytes:
    """A message's bytes before its body. Raises TooLarge for what AMQP can't hold."""
    try:
        return sections.encode_head(message, size, **fields)
    except (ValueError, TypeError) as error:
        raise TooLarge(str(error)) from None
