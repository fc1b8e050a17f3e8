"""RabbitMQ and other AMQP 0-9-1 brokers, on aiormq.

aiormq does the connection, its channels, heartbeats, and every method that has an answer. Messages, confirms and
settlements, which are nearly all that goes over the wire, take a shorter way: `frames` and `channels`.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import logging
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel as Channel
from aiormq.connection import TransportFactory
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelClosed,
    ChannelPreconditionFailed,
    InvalidFrameError,
)
from yarl import URL

from carod.amqp.addresses import DEFAULT_EXCHANGE, read_reply_to
from carod.amqp.channels import Amqp091Subscription, Publisher, not_cancelled
from carod.amqp.endpoint import Endpoint
from carod.amqp.frames import Lane, Switch
from carod.amqp.transport import (
    Address,
    ConnectionLost,
    Exchange,
    Message,
    OnDelivery,
    OnEnd,
    Queue,
    Refused,
    Subscription,
)

# aiormq reports each lost connection and closed channel at error level; here they become exceptions, said once.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)

LARGE_BODY = 1 << 20
"""A body over this many bytes goes over a channel of its own, so that small replies need not wait behind it."""
MAX_EXCHANGE_CHANNELS = 64
"""Replies name their exchange: no client may have a node open channels without end."""
CLOSE_TIMEOUT = 5.0
"""Seconds for an orderly goodbye; a broker that does not answer is left without one."""


class _Connection(aiormq.Connection):
    """aiormq's, but two missed heartbeats are a dead connection, as for RabbitMQ; its three are much more than that."""

    HEARTBEAT_GRACE_MULTIPLIER = 2


class _Sockets(TransportFactory):
    """Opens the connection for aiormq and keeps the writer, for frames that need not queue."""

    def __init__(self, endpoint: Endpoint, lanes: dict[int, Lane]) -> None:
        self._endpoint, self._lanes = endpoint, lanes
        self.writer: asyncio.StreamWriter | None = None
        self.switch: Switch | None = None

    async def create(self, url: URL, **unused: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        end, loop = self._endpoint, asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        switch = self.switch = Switch(reader, self._lanes)
        connecting = loop.create_connection(lambda: switch, end.host, end.port, ssl=end.tls_context())
        transport, _ = await asyncio.wait_for(connecting, end.connect_timeout)
        self.writer = asyncio.StreamWriter(transport, switch, reader, loop)
        return reader, self.writer


class Amqp091Transport:
    """A connection to a 0-9-1 broker; see `transport.Transport` for what each method promises."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection: aiormq.abc.AbstractConnection | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._switch: Switch | None = None
        self.lanes: dict[int, Lane] = {}
        self._publishers: dict[str, Publisher] = {}
        self._opening = asyncio.Lock()
        self._bulk = asyncio.Lock()
        self._known_exchanges: dict[str, bool] = {}
        self._unsent: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the connection ----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        end = self.endpoint
        lanes: dict[int, Lane] = {}
        sockets = _Sockets(end, lanes)
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
        connection = _Connection(
            url, transport_factory=sockets, client_properties={"product": "carod", "information": end.name}
        )
        try:
            async with asyncio.timeout(end.connect_timeout):
                with not_cancelled():
                    await connection.connect()
        except (AMQPError, OSError, EOFError, TimeoutError, RuntimeError, StopAsyncIteration) as error:
            raise self._why_not(error) from None  # aiormq's words for an early end differ with the moment
        self._connection, self._writer, self._switch = connection, sockets.writer, sockets.switch
        self.lanes = lanes
        self._unsent.clear()
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
        if isinstance(error, InvalidFrameError) and "Connection.Close" in text:  # in answer to connection.open
            vhost = self.endpoint.vhost
            return Refused(f"{where} refused the connection: there is no vhost {vhost!r}, or the user may not use it")
        if "CONNECTION_FORCED" in text or "INTERNAL_ERROR" in text:  # it is going down, or not up yet
            return ConnectionLost(f"{where}: {text}")
        if any(word in name for word in ("Authentication", "NotAllowed", "ConnectionClosed")):
            return Refused(f"{where} refused the connection: {text}; check user, password and vhost")
        if isinstance(error, TimeoutError):
            text = f"no answer within {self.endpoint.connect_timeout:g} s"
        return ConnectionLost(f"{where}: {text}")

    async def close(self) -> None:
        self._flush()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(AMQPError, OSError):
                await asyncio.wait({asyncio.ensure_future(connection.close())}, timeout=CLOSE_TIMEOUT)
            if self._writer is not None:
                self._writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something that `close` waits for."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def heard(self) -> float:
        return self._switch.heard if self._switch is not None else 0.0

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
        """Put whole frames on the wire, together with all that is written before the loop turns. Raises ConnectionLost.

        A system call costs more than what is in it, here and in the broker.
        """
        self._live()
        if self._writer is None or self._writer.is_closing():
            raise ConnectionLost(f"the connection to broker {self.endpoint.safe_url} is closing")
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(frames)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._writer is not None and not self._writer.is_closing():
            self._writer.write(b"".join(unsent))

    async def drain(self) -> None:
        """Wait until the socket has taken most of what was written."""
        self._flush()
        try:
            if self._writer is not None:
                await self._writer.drain()
        except OSError as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None

    # -- queues and exchanges ----------------------------------------------------------------------------------

    async def _channel(self, confirms: bool = False) -> Channel:
        try:
            with not_cancelled():
                return await self._live().channel(publisher_confirms=confirms)
        except (AMQPError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One request on a channel of its own, for a refused one costs its channel."""
        channel = await self._channel()
        try:
            with not_cancelled():
                return await getattr(channel, method)(*args, **kwargs)
        except ChannelClosed:
            raise
        except (AMQPError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None
        finally:
            # aiormq's close swallows a cancellation, which would then be lost on whoever cancelled us.
            await asyncio.wait({self.run(_close(channel))})

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
        subscription = Amqp091Subscription(self, channel, on_delivery, settled)
        try:
            with not_cancelled():
                if credit:
                    await channel.basic_qos(prefetch_count=credit)
                answer = await channel.basic_consume(queue, _never, no_ack=settled, exclusive=exclusive)
            subscription.watch(answer.consumer_tag or "", on_end)
        except ChannelClosed as error:
            raise Refused(f"queue {queue!r}: {error}") from None
        except (AMQPError, RuntimeError, OSError) as error:
            raise ConnectionLost(f"broker {self.endpoint.safe_url}: {error}") from None
        return subscription

    # -- publishing --------------------------------------------------------------------------------------------

    async def publish(self, message: Message, to: Address, *, confirm: bool = True) -> None:
        if message.value is not None:
            text = json.dumps(message.value, default=_as_json).encode()
            message = dataclasses.replace(message, body=text, value=None, content_type="application/json")
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
            await confirmed.arrived()

    async def _publish_large(self, message: Message, size: int, to: Address, confirm: bool) -> None:
        async with self._bulk:
            earlier = self._publishers.get(to.exchange)
            if earlier is not None:  # channels may overtake each other: what was sent before must be there before
                await earlier.flush()
            channel = await self._channel(confirms=True)
            try:
                confirmed = await Publisher(self, channel).stream(message, size, to, mandatory=confirm)
                await confirmed.arrived()
            finally:
                await _close(channel)

    async def _publisher(self, exchange: str) -> Publisher:
        """A channel for each exchange: a refused publish costs its channel and whatever waits on it."""
        async with self._opening:
            publisher = self._publishers.get(exchange)
            if publisher is not None and not publisher.channel.is_closed:
                return publisher
            while len(self._publishers) >= MAX_EXCHANGE_CHANNELS:
                oldest = next(name for name in self._publishers if name != DEFAULT_EXCHANGE)
                await self._publishers.pop(oldest).channel.close()
            publisher = Publisher(self, await self._channel(confirms=True))
            publisher.channel.closing.add_done_callback(lambda _: self._publishers.pop(exchange, None))
            self._publishers[exchange] = publisher
            return publisher

    # -- addresses ---------------------------------------------------------------------------------------------

    async def resolve(self, reply_to: str) -> Address:
        if (address := read_reply_to(reply_to)) is not None:
            return address
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


async def _close(channel: Channel) -> None:
    with suppress(AMQPError, RuntimeError, OSError), not_cancelled():
        await channel.close()


def _as_json(value: object) -> object:
    """What JSON has no form for, in a body that is a map or a list."""
    return {"_bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)


async def _never(_: object) -> None:
    """aiormq's callback for deliveries, which do not come its way."""


def _arguments(queue: Queue) -> Mapping[str, Any]:
    arguments: dict[str, Any] = {}
    if queue.quorum:
        arguments["x-queue-type"] = "quorum"
    if queue.message_ttl is not None:
        arguments["x-message-ttl"] = round(queue.message_ttl * 1000)
    if queue.expires is not None:
        arguments["x-expires"] = round(queue.expires * 1000)
    if queue.dead_letter is not None:
        arguments["x-dead-letter-exchange"] = queue.dead_letter.exchange
        arguments["x-dead-letter-routing-key"] = queue.dead_letter.key
    return arguments
