"""What lives on a 0-9-1 channel: a consumer with its deliveries, or a publisher with its confirms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from aiormq.abc import AbstractChannel as Channel
from aiormq.exceptions import AMQPError, ChannelClosed, ChannelNotFoundEntity

from carod.amqp import fields, frames
from carod.amqp.transport import (
    Address,
    Busy,
    ConnectionLost,
    Message,
    OnDelivery,
    OnEnd,
    Outcome,
    Refused,
    StaleDelivery,
    TooLarge,
    Unroutable,
)

log = logging.getLogger("carod.amqp")


class Connection(Protocol):
    """What a channel needs of its transport."""

    lanes: dict[int, frames.Lane]

    def write(self, data: bytes) -> None:
        """Put whole frames on the wire. Raises ConnectionLost."""

    async def drain(self) -> None:
        """Wait until the socket has taken most of what was written."""

    def run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something that closing waits for."""


@contextmanager
def not_cancelled() -> Iterator[None]:
    """Tell a connection's end from a cancellation: raises OSError where nobody has cancelled the task.

    Of a broker that falls silent aiormq tells whoever waits for an answer in the form of a CancelledError, which would
    end the task, and nobody would know.
    """
    task = asyncio.current_task()
    asked = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError:
        if task is None or task.cancelling() > asked:
            raise
        raise OSError("the broker has not been heard of for too long") from None


def _take_lane(connection: Connection, channel: Channel, lane: frames.Lane) -> None:
    """Have a channel's frames come to `lane` until it closes; its number may then be another's."""
    connection.lanes[channel.number] = lane

    def leave(_: object) -> None:
        if connection.lanes.get(channel.number) is lane:
            del connection.lanes[channel.number]

    channel.closing.add_done_callback(leave)


# -- consuming -------------------------------------------------------------------------------------------------


class Amqp091Subscription:
    """A consumer on a channel of its own, which lives until the last of its deliveries is settled."""

    __slots__ = ("_cancelled", "_connection", "_on_delivery", "_presettled", "_tag", "channel", "unsettled")

    def __init__(self, connection: Connection, channel: Channel, on_delivery: OnDelivery, presettled: bool) -> None:
        self._connection, self.channel = connection, channel
        self._on_delivery, self._presettled = on_delivery, presettled
        self._tag, self._cancelled = "", False
        self.unsettled = 0
        _take_lane(connection, channel, self)

    def content(self, method: bytes, properties: bytes, body: bytes) -> None:
        tag, redelivered = frames.delivered(method)
        try:
            message = fields.decode_properties(properties, body)
            self.unsettled += not self._presettled
            self._on_delivery(Amqp091Delivery(self._connection, self, message, tag, redelivered, self._presettled))
        except Exception:
            log.exception("a delivery could not be handled; it stays unsettled")

    def confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        """Nothing is published on this channel."""

    def watch(self, tag: str, on_end: OnEnd | None) -> None:
        """Tell `on_end` when the broker cancels the consumer or closes its channel."""
        self._tag = tag

        def ended(why: str) -> None:
            if not self._cancelled:
                self._cancelled = True
                if on_end is not None:
                    on_end(why)

        async def cancelled_by_broker(_: object) -> None:
            ended("the broker cancelled the consumer: its queue is gone")
            await self._close()

        def closed(closing: asyncio.Future[Any]) -> None:
            error = None if closing.cancelled() else closing.exception()
            ended(str(error) if error else "the channel was closed")

        self.channel.on_consumer_cancel_callbacks.add(cancelled_by_broker)
        self.channel.closing.add_done_callback(closed)

    async def cancel(self) -> None:
        """Take no more; a connection that is gone has cancelled it already."""
        if self._cancelled:
            return
        self._cancelled = True
        with suppress(AMQPError, RuntimeError, OSError), not_cancelled():
            await self.channel.basic_cancel(self._tag)
        await self._close()

    def released(self) -> None:
        """One of its deliveries is settled."""
        self.unsettled -= 1
        if self._cancelled and not self.unsettled:
            self._connection.run(self._close())

    async def _close(self) -> None:
        if not self.unsettled and not self.channel.is_closed:
            with suppress(AMQPError, RuntimeError, OSError), not_cancelled():
                await self.channel.close()


class Amqp091Delivery:
    """A delivery on RabbitMQ. Settling after its channel ended raises StaleDelivery."""

    __slots__ = ("_connection", "_tag", "message", "redelivered", "settled", "subscription")

    def __init__(
        self,
        connection: Connection,
        subscription: Amqp091Subscription,
        message: Message,
        tag: int,
        redelivered: bool,
        settled: bool,
    ) -> None:
        self._connection, self.subscription, self._tag = connection, subscription, tag
        self.message, self.redelivered, self.settled = message, redelivered, settled

    def settle(self, outcome: Outcome) -> None:
        """Settle exactly once; see `transport.Delivery`."""
        if self.settled:
            raise AssertionError(f"delivery {self._tag} is settled already")
        channel = self.subscription.channel
        if channel.is_closed:
            raise StaleDelivery("the connection that brought this message is gone; the broker offers it again")
        taken, requeue = outcome is Outcome.ACCEPTED, outcome is Outcome.RELEASED
        self._connection.write(frames.settle(channel.number, self._tag, taken=taken, requeue=requeue))
        self.settled = True
        self.subscription.released()


# -- publishing ------------------------------------------------------------------------------------------------


class Confirm:
    """The broker's answer to one publish, awaited with `arrived`."""

    __slots__ = ("_future", "message_id", "to")

    def __init__(self, message_id: str | None, to: Address) -> None:
        self.message_id, self.to = message_id, to
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def arrived(self) -> None:
        """Wait for it. Raises Unroutable, Refused or ConnectionLost, as the broker or its end had it."""
        await self._future

    def settle(self, error: Exception | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(error)
            self._future.exception()  # whoever did not wait for it does not want to hear of it


class Publisher:
    """A channel in confirm mode. Frames of one message are written in one go, so calls need no lock."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self._connection, self.channel = connection, channel
        self._frame_max = channel.connection.connection_tune.frame_max - frames.OVERHEAD
        self._count = 0
        self._waiting: dict[int, Confirm] = {}
        self._returned: dict[str, str] = {}
        _take_lane(connection, channel, self)
        channel.closing.add_done_callback(self._closed)

    def send(self, message: Message, body: bytes, to: Address, mandatory: bool) -> Confirm:
        """Write all frames of a message now. Raises TooLarge or Unroutable for what can't be written."""
        head = self._head(message, len(body), to, mandatory)
        confirm = self._expect(message, to)
        if body:
            head = b"".join((head, *frames.body_frames(self.channel.number, body, self._frame_max)))
        self._connection.write(head)
        return confirm

    async def stream(self, message: Message, size: int, to: Address, mandatory: bool) -> Confirm:
        """Write a large body a frame at a time, waiting for the socket: memory holds one frame of it.

        The caller must have this channel to itself: no other frame may come between those of a message.
        """
        head = self._head(message, size, to, mandatory)
        body, sent = message.body, 0
        confirm = self._expect(message, to)
        self._connection.write(head)
        if not isinstance(body, bytes):
            body.seek(0)
        while sent < size:
            count = min(self._frame_max, size - sent)
            chunk = body[sent : sent + count] if isinstance(body, bytes) else body.read(count)
            if not chunk:  # half a message is on the wire: only the channel's end can take it back
                await self.channel.close()
                raise Refused(f"the body ended after {sent} of {size} bytes")
            self._connection.write(frames.body_frame(self.channel.number, chunk))
            sent += len(chunk)
            await self._connection.drain()
        return confirm

    async def flush(self) -> None:
        """Wait until the broker has answered for everything sent so far."""
        for confirm in list(self._waiting.values()):
            with suppress(Unroutable, Refused):
                await confirm.arrived()

    def content(self, method: bytes, properties: bytes, body: bytes) -> None:
        """A message came back; its confirm follows."""
        message_id = fields.decode_properties(properties, b"").message_id
        if message_id is not None:
            self._returned[message_id] = frames.return_reason(method)

    def confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        tags = [waiting for waiting in self._waiting if waiting <= tag] if multiple else [tag]
        for number in tags:
            confirm = self._waiting.pop(number, None)
            if confirm is None:
                continue
            reason = self._returned.pop(confirm.message_id or "", None)
            if reason is not None:
                confirm.settle(Unroutable(f"no queue for {str(confirm.to)!r} ({reason})"))
            elif taken:
                confirm.settle(None)
            else:
                confirm.settle(Busy(f"the broker could not take a message to {str(confirm.to)!r}"))

    def _head(self, message: Message, size: int, to: Address, mandatory: bool) -> bytes:
        try:
            properties = fields.encode_properties(message)
        except ValueError as error:
            raise TooLarge(str(error)) from None
        if len(properties) + 12 > self._frame_max:
            raise TooLarge(f"headers of {len(properties)} bytes do not fit a frame of {self._frame_max} bytes")
        try:
            return frames.publish(self.channel.number, to.exchange, to.key, mandatory, size, properties)
        except (OverflowError, UnicodeError):
            raise Unroutable(
                f"{str(to)[:60]!r}... is no address: an exchange's name is ASCII, a key up to 255 bytes"
            ) from None

    def _expect(self, message: Message, to: Address) -> Confirm:
        if self.channel.is_closed:
            raise ConnectionLost("the channel to the broker is closed")
        self._count += 1
        confirm = self._waiting[self._count] = Confirm(message.message_id, to)
        return confirm

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        waiting, self._waiting = self._waiting, {}
        for confirm in waiting.values():
            confirm.settle(_failure(error, confirm.to))


def _failure(error: BaseException | None, to: Address) -> Exception:
    """What a channel's end means for a message that was not confirmed."""
    if isinstance(error, ChannelNotFoundEntity):
        return Unroutable(f"no exchange for {str(to)!r} ({error})")
    if isinstance(error, ChannelClosed):
        return Refused(f"the broker refused a message to {str(to)!r}: {error}")
    return ConnectionLost(f"the connection ended before the broker confirmed: {error or 'closed'}")
