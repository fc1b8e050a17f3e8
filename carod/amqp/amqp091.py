"""RabbitMQ and other AMQP 0-9-1 brokers, on aiormq.

aiormq does the connection, the channels, heartbeats, confirms and consumers. Two things are done here instead,
beside its queues and in fewer steps: publishing writes its frames straight to the socket, and the properties of
a delivery pass through aiormq sealed (see `_SealingReader`) and are opened by `fields`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import aiormq
from aiormq.abc import AbstractChannel as Channel
from aiormq.abc import DeliveredMessage
from aiormq.connection import TransportFactory
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from pamqp.commands import Basic
from pamqp.frame import marshal
from yarl import URL

from carod.amqp import fields
from carod.amqp.endpoint import Endpoint
from carod.amqp.transport import (
    Address,
    ConnectionLost,
    Exchange,
    Message,
    OnDelivery,
    OnEnd,
    Outcome,
    Queue,
    Refused,
    StaleDelivery,
    Subscription,
    TooLarge,
    Unroutable,
)

# aiormq reports each lost connection and closed channel at error level; here they become exceptions, said once.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)

log = logging.getLogger("carod.amqp")

FRAME_OVERHEAD = 8
"""Bytes of a frame around its payload: type, channel, length, end mark (specification 4.2.3)."""
LARGE_BODY = 1 << 20
"""A body over this many bytes goes over a channel of its own, so that small replies need not wait behind it."""
MAX_EXCHANGE_CHANNELS = 64
"""Replies name their exchange: no client may have a node open channels without end."""
DEFAULT_EXCHANGE = ""


class _SealingReader:
    """Hands frames to aiormq with the properties of deliveries sealed: as one byte array in a headers table.

    pamqp raises on what it can't decode, and that ends the connection. Sealed, it has nothing to decode. Only
    the content header after a basic.deliver is touched; a returned message must stay legible to aiormq.
    """

    _DELIVER = b"\x00\x3c\x00\x3c"
    _METHOD, _HEADER = 1, 2

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._pieces: list[bytes] = []
        self._delivering: set[bytes] = set()

    def at_eof(self) -> bool:
        return self._reader.at_eof()

    async def read(self, count: int = -1) -> bytes:
        return await self._reader.read(count)

    async def readexactly(self, count: int) -> bytes:
        """The next piece of a frame; aiormq asks for its type, then the rest of its head, then payload and end."""
        if not self._pieces:
            head = await self._reader.readexactly(7)
            if head.startswith(b"AMQP"):  # the broker speaks another version and hangs up
                self._pieces = [head[1:], head[:1]]
            else:
                rest = await self._reader.readexactly(int.from_bytes(head[3:], "big") + 1)
                head, rest = self._seal(head, rest)
                self._pieces = [rest, head[1:], head[:1]]
        return self._pieces.pop()

    def _seal(self, head: bytes, rest: bytes) -> tuple[bytes, bytes]:
        kind, channel = head[0], head[1:3]
        if kind == self._METHOD and rest.startswith(self._DELIVER):
            self._delivering.add(channel)
        elif kind == self._HEADER and channel in self._delivering:
            self._delivering.discard(channel)
            sealed = b"\x00x" + len(rest[12:-1]).to_bytes(4, "big") + rest[12:-1]
            rest = b"".join((rest[:12], b"\x20\x00", len(sealed).to_bytes(4, "big"), sealed, b"\xce"))
            head = head[:3] + (len(rest) - 1).to_bytes(4, "big")
        return head, rest


class _Sockets(TransportFactory):
    """Opens the connection for aiormq and keeps the writer, for frames that need not queue."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        end = self._endpoint
        reader, self.writer = await asyncio.wait_for(
            asyncio.open_connection(end.host, end.port, ssl=end.tls_context()), end.connect_timeout
        )
        return _SealingReader(reader), self.writer  # type: ignore[return-value]


class Amqp091Subscription:
    """A consumer on a channel of its own, which lives until the last of its deliveries is settled."""

    __slots__ = ("_cancelled", "_tag", "_transport", "channel", "unsettled")

    def __init__(self, transport: Amqp091Transport, channel: Channel) -> None:
        self._transport, self.channel = transport, channel
        self._tag, self._cancelled = "", False
        self.unsettled = 0

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
        with suppress(AMQPError, RuntimeError, OSError):
            await self.channel.basic_cancel(self._tag)
        await self._close()

    def received(self) -> None:
        self.unsettled += 1

    def released(self) -> None:
        self.unsettled -= 1
        if self._cancelled and not self.unsettled:
            self._transport.run(self._close())

    async def _close(self) -> None:
        if not self.unsettled and not self.channel.is_closed:
            with suppress(AMQPError, RuntimeError, OSError):
                await self.channel.close()


class Amqp091Delivery:
    """A delivery on RabbitMQ. Settling after its channel ended raises StaleDelivery."""

    __slots__ = ("_tag", "_transport", "message", "redelivered", "settled", "subscription")

    def __init__(
        self,
        transport: Amqp091Transport,
        subscription: Amqp091Subscription,
        raw: DeliveredMessage,
        settled: bool,
    ) -> None:
        self._transport, self.subscription, self.settled = transport, subscription, settled
        deliver: Any = raw.delivery
        sealed: Any = raw.header.properties.headers
        self._tag: int = deliver.delivery_tag
        self.message = fields.decode_properties(bytes(sealed[""]), raw.body)
        self.redelivered = bool(deliver.redelivered)
        if not settled:
            subscription.received()

    def settle(self, outcome: Outcome) -> None:
        """Settle exactly once; see `transport.Delivery`."""
        if self.settled:
            raise AssertionError(f"delivery {self._tag} is settled already")
        channel = self.subscription.channel
        if channel.is_closed:
            raise StaleDelivery("the connection that brought this message is gone; the broker offers it again")
        frame: Any
        if outcome is Outcome.ACCEPTED:
            frame = Basic.Ack(delivery_tag=self._tag)
        else:
            frame = Basic.Nack(delivery_tag=self._tag, requeue=outcome is Outcome.RELEASED)
        self._transport.write(marshal(frame, channel.number))
        self.settled = True
        self.subscription.released()


class _Publisher:
    """A channel in confirm mode. Frames of one message are written in one go, so calls need no lock."""

    def __init__(self, transport: Amqp091Transport, channel: Channel) -> None:
        self._transport, self.channel = transport, channel
        self._frame_max = channel.connection.connection_tune.frame_max - FRAME_OVERHEAD
        self._count = 0

    def head(self, message: Message, size: int, to: Address, mandatory: bool) -> bytes:
        """Method and content header frames. Raises TooLarge when the headers do not fit one frame."""
        try:
            properties = fields.encode_properties(message)
        except ValueError as error:
            raise TooLarge(str(error)) from None
        if len(properties) + 12 > self._frame_max:
            raise TooLarge(f"headers of {len(properties)} bytes do not fit a frame of {self._frame_max} bytes")
        if len(to.key.encode("utf-8", "surrogateescape")) > 255:
            raise TooLarge(f"routing key {to.key[:60]!r}... is longer than 255 bytes")
        number = self.channel.number
        try:
            method = marshal(Basic.Publish(exchange=to.exchange, routing_key=to.key, mandatory=mandatory), number)
        except ValueError as error:  # pamqp checks names, and text that is not UTF-8 fails here
            raise Unroutable(f"{str(to)[:200]!r} is no address: {error}") from None
        payload = b"\x00\x3c\x00\x00" + size.to_bytes(8, "big") + properties
        return method + self._frame(2, payload)

    def _frame(self, kind: int, payload: bytes) -> bytes:
        return b"".join(
            (
                bytes((kind,)),
                self.channel.number.to_bytes(2, "big"),
                len(payload).to_bytes(4, "big"),
                payload,
                b"\xce",
            )
        )

    def send(self, message: Message, body: bytes, to: Address, mandatory: bool) -> asyncio.Future[Any]:
        """Write all frames of a message now; the future is the broker's confirm."""
        frames = [self.head(message, len(body), to, mandatory)]
        frames += [
            self._frame(3, body[start : start + self._frame_max]) for start in range(0, len(body), self._frame_max)
        ]
        confirm = self._expect_confirm(message)
        self._transport.write(b"".join(frames))
        return confirm

    async def stream(self, message: Message, size: int, to: Address, mandatory: bool) -> asyncio.Future[Any]:
        """Write a large body a frame at a time, waiting for the socket: memory holds one frame of it.

        The caller must have this channel to itself: no other frame may come between those of a message.
        """
        head = self.head(message, size, to, mandatory)
        body, sent = message.body, 0
        confirm = self._expect_confirm(message)
        self._transport.write(head)
        if not isinstance(body, bytes):
            body.seek(0)
        while sent < size:
            count = min(self._frame_max, size - sent)
            chunk = body[sent : sent + count] if isinstance(body, bytes) else body.read(count)
            if not chunk:  # half a message is on the wire: only the channel's end can take it back
                await self.channel.close()
                raise Refused(f"the body ended after {sent} of {size} bytes")
            self._transport.write(self._frame(3, chunk))
            sent += len(chunk)
            await self._transport.drain()
        return confirm

    def _expect_confirm(self, message: Message) -> asyncio.Future[Any]:
        if self.channel.is_closed:
            raise ConnectionLost("the channel to the broker is closed")
        self._count += 1
        tag = self._count
        confirm = self.channel.create_future()
        self.channel.confirmations[tag] = confirm  # type: ignore[attr-defined]
        if message.message_id is not None:  # aiormq finds a returned message's confirm by it
            returned = self.channel.message_id_delivery_tag  # type: ignore[attr-defined]
            returned[message.message_id] = tag
            confirm.add_done_callback(lambda _: returned.pop(message.message_id, None))
        return confirm


class Amqp091Transport:
    """A connection to a 0-9-1 broker; see `transport.Transport` for what each method promises."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection: aiormq.abc.AbstractConnection | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._publishers: dict[str, _Publisher] = {}
        self._opening = asyncio.Lock()
        self._bulk = asyncio.Lock()
        self._known_exchanges: dict[str, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the connection ----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        end, sockets = self.endpoint, _Sockets(self.endpoint)
        end.tls_context()  # a file that can't be read is the user's to mend, not a reason to try again
        user, password = end.credentials or ("guest", "guest")
        query = {
            "heartbeat": str(end.heartbeat),
            "name": end.name,
            "auth": "external" if end.external else "plain",
        }
        url = URL.build(
            scheme="amqp", user=user, password=password, host=end.host, port=end.port,
            path="/" + end.vhost.replace("/", "%2F"), query=query, encoded=False,
        )  # fmt: skip
        connection = aiormq.Connection(
            url, transport_factory=sockets, client_properties={"product": "carod", "information": end.name}
        )
        try:
            async with asyncio.timeout(end.connect_timeout):
                await connection.connect()
        except (AMQPError, OSError, EOFError, TimeoutError) as error:
            raise self._why_not(error) from None
        self._connection, self._writer = connection, sockets.writer
        self._publishers.clear()
        self._known_exchanges.clear()

    def _why_not(self, error: BaseException) -> Exception:
        where = f"broker {self.endpoint.safe_url}"
        if isinstance(error, aiormq.exceptions.AMQPConnectionError) and not isinstance(
            error, ConnectionError | OSError
        ):
            return Refused(f"{where} refused the connection: {error}")
        text = str(error) or type(error).__name__
        name = type(error).__name__
        if any(word in name for word in ("Authentication", "NotAllowed", "ConnectionClosed")):
            return Refused(f"{where} refused the connection: {text}; check user, password and vhost")
        if isinstance(error, TimeoutError):
            text = f"no answer within {self.endpoint.connect_timeout:g} s"
        return ConnectionLost(f"{where}: {text}")

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(AMQPError, OSError, asyncio.CancelledError):
                await connection.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something that `close` waits for."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_closed(self) -> str:
        connection = self._live()
        try:
            await asyncio.shield(connection.closing)
        except asyncio.CancelledError:
            if not connection.is_closed:
                raise
        except (AMQPError, OSError) as error:
            return str(error) or type(error).__name__
        return "closed"

    def _live(self) -> aiormq.abc.AbstractConnection:
        if self._connection is None or self._connection.is_closed:
            raise ConnectionLost(f"not connected to broker {self.endpoint.safe_url}")
        return self._connection

    def write(self, frames: bytes) -> None:
        """Put whole frames on the wire. Raises ConnectionLost."""
        self._live()
        if self._writer is None or self._writer.is_closing():
            raise ConnectionLost(f"the connection to broker {self.endpoint.safe_url} is closing")
        self._writer.write(frames)

    async def drain(self) -> None:
        """Wait until the socket has taken most of what was written."""
        try:
            if self._writer is not None:
                await self._writer.drain()
        except OSError as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None

    # -- queues and exchanges ----------------------------------------------------------------------------------

    async def _channel(self, confirms: bool = False) -> Channel:
        try:
            return await self._live().channel(publisher_confirms=confirms)
        except (AMQPError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One request on a channel of its own, for a refused one costs its channel."""
        channel = await self._channel()
        try:
            return await getattr(channel, method)(*args, **kwargs)
        except ChannelClosed:
            raise
        except (AMQPError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None
        finally:
            with suppress(AMQPError, RuntimeError, OSError):
                await channel.close()

    async def declare(self, what: Queue | Exchange) -> tuple[str, bool]:
        as_asked = True
        name = what.name
        try:
            if isinstance(what, Exchange):
                await self._ask("exchange_declare", name, exchange_type=what.kind, durable=what.durable)
            else:
                answer = await self._ask(
                    "queue_declare", name, durable=what.durable, exclusive=what.exclusive,
                    auto_delete=what.auto_delete, arguments=_arguments(what),
                )  # fmt: skip
                name = answer.queue
        except (ChannelPreconditionFailed, ChannelAccessRefused) as error:
            method = "exchange_declare" if isinstance(what, Exchange) else "queue_declare"
            try:
                await self._ask(method, name, passive=True)
            except ChannelClosed:
                raise Refused(f"{name}: {error}") from None
            as_asked = False
        except ChannelClosed as error:
            raise Refused(f"{name}: {error}") from None
        if isinstance(what, Queue):
            for binding in what.bindings:
                try:
                    await self._ask("queue_bind", name, binding.exchange, routing_key=binding.key)
                except ChannelClosed as error:
                    raise Refused(f"binding {name} to {binding}: {error}") from None
        return name, as_asked

    async def delete(self, queue: str, *, if_empty: bool = False) -> None:
        with suppress(ChannelClosed):
            await self._ask("queue_delete", queue, if_empty=if_empty)

    async def depth(self, queue: str) -> int | None:
        try:
            answer = await self._ask("queue_declare", queue, passive=True)
        except ChannelClosed:
            return None
        return int(answer.message_count)

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
        channel = await self._channel()
        subscription = Amqp091Subscription(self, channel)

        async def on_message(raw: DeliveredMessage) -> None:
            try:
                on_delivery(Amqp091Delivery(self, subscription, raw, settled))
            except Exception:
                log.exception("a delivery from %s could not be handled; it stays unsettled", queue)

        try:
            if credit:
                await channel.basic_qos(prefetch_count=credit)
            answer = await channel.basic_consume(queue, on_message, no_ack=settled, exclusive=exclusive)
            subscription.watch(answer.consumer_tag or "", on_end)
        except ChannelClosed as error:
            raise Refused(f"queue {queue!r}: {error}") from None
        except (AMQPError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None
        return subscription

    # -- publishing --------------------------------------------------------------------------------------------

    async def publish(self, message: Message, to: Address, *, confirm: bool = True) -> None:
        body = message.body
        size = len(body) if isinstance(body, bytes) else body.seek(0, 2)
        if size > LARGE_BODY:
            await self._publish_large(message, size, to, confirm)
            return
        publisher = self._publishers.get(to.exchange) or await self._publisher(to.exchange)
        if not isinstance(body, bytes):
            body.seek(0)
            body = body.read()
        confirmed = publisher.send(message, body, to, mandatory=confirm)
        if confirm:
            await self._confirmed(confirmed, to)

    async def _publish_large(self, message: Message, size: int, to: Address, confirm: bool) -> None:
        async with self._bulk:
            earlier = self._publishers.get(to.exchange)
            if earlier is not None:  # channels may overtake each other: what was sent before must be there before
                await asyncio.wait([*earlier.channel.confirmations.values()] or [_done()])  # type: ignore[attr-defined]
            channel = await self._channel(confirms=True)
            try:
                confirmed = await _Publisher(self, channel).stream(message, size, to, mandatory=confirm)
                await self._confirmed(confirmed, to)
            finally:
                with suppress(AMQPError, RuntimeError, OSError):
                    await channel.close()

    async def _publisher(self, exchange: str) -> _Publisher:
        """A channel for each exchange: a refused publish costs its channel and whatever waits on it."""
        async with self._opening:
            publisher = self._publishers.get(exchange)
            if publisher is not None and not publisher.channel.is_closed:
                return publisher
            while len(self._publishers) >= MAX_EXCHANGE_CHANNELS:
                oldest = next(name for name in self._publishers if name != DEFAULT_EXCHANGE)
                await self._publishers.pop(oldest).channel.close()
            publisher = _Publisher(self, await self._channel(confirms=True))
            publisher.channel.closing.add_done_callback(lambda _: self._publishers.pop(exchange, None))
            self._publishers[exchange] = publisher
            return publisher

    async def _confirmed(self, confirm: asyncio.Future[Any], to: Address) -> None:
        try:
            await confirm
        except PublishError as error:
            raise Unroutable(f"no queue for {str(to)!r} ({error})") from None
        except DeliveryError as error:
            raise Refused(f"the broker could not take a message to {str(to)!r}: {error}") from None
        except ChannelNotFoundEntity as error:
            raise Unroutable(f"no exchange for {str(to)!r} ({error})") from None
        except ChannelClosed as error:
            raise Refused(f"the broker refused a message to {str(to)!r}: {error}") from None
        except (AMQPError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if confirm.cancelled() and task is not None and not task.cancelling():
                raise ConnectionLost(f"broker {self.endpoint.safe_url}: closed before it confirmed") from None
            raise

    # -- addresses ---------------------------------------------------------------------------------------------

    async def resolve(self, reply_to: str) -> Address:
        if "/" not in reply_to:
            return Address(DEFAULT_EXCHANGE, reply_to)
        first, *rest = reply_to.split("/")
        if first == "" and len(rest) >= 2:
            kind, parts = rest[0], [unquote(part) for part in rest[1:]]
            if kind in ("queues", "queue"):
                return Address(DEFAULT_EXCHANGE, "/".join(parts))
            if kind in ("exchanges", "exchange"):
                return Address(parts[0], "/".join(parts[1:]))
        exchange, _, key = reply_to.partition("/")
        if exchange and await self._exchange_exists(exchange):
            return Address(exchange, key)
        return Address(DEFAULT_EXCHANGE, reply_to)

    async def _exchange_exists(self, name: str) -> bool:
        if name not in self._known_exchanges:
            try:
                await self._ask("exchange_declare", name, passive=True)
                self._known_exchanges[name] = True
            except (ChannelClosed, ValueError):
                return False  # not remembered: a client may declare it before the next reply
        return True


def _done() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def _arguments(queue: Queue) -> Mapping[str, Any]:
    arguments: dict[str, Any] = {}
    if queue.message_ttl is not None:
        arguments["x-message-ttl"] = round(queue.message_ttl * 1000)
    if queue.expires is not None:
        arguments["x-expires"] = round(queue.expires * 1000)
    if queue.dead_letter is not None:
        arguments["x-dead-letter-exchange"] = queue.dead_letter.exchange
        arguments["x-dead-letter-routing-key"] = queue.dead_letter.key
    return arguments
