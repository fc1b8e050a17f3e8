"""One AMQP 1.0 connection: Proton's protocol engine on asyncio's socket.

Proton's own reactor would need a thread, and every delivery and settlement two hops between threads, each of them
some 50 us and a wake-up of the event loop. Its engine does no I/O: bytes go in, events and bytes come out, so it
fits into the loop that is there. `amqp10` (client) and `embedded` (broker) are both built on this.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cproton import (  # type: ignore[import-untyped]
    isnull,
    pn_collector_peek,
    pn_collector_pop,
    pn_event_connection,
    pn_event_delivery,
    pn_event_link,
    pn_event_session,
    pn_event_type,
)
from proton import Collector, Connection, Delivery, EventType, Link, Session, Transport, TransportException

WRITE_LIMIT = 1 << 20
"""Bytes handed to a socket at a time; what it can't take waits in Proton, where the session's window bounds it."""


class Event:
    """What happened, and to what. Proton's own `Event` makes five wrappers for each; here those that are asked for."""

    __slots__ = ("impl",)

    def __init__(self, impl: Any) -> None:
        self.impl = impl

    @property
    def delivery(self) -> Any:
        return Delivery.wrap(pn_event_delivery(self.impl))  # type: ignore[no-untyped-call]

    @property
    def link(self) -> Any:
        """A Sender or a Receiver."""
        return Link.wrap(pn_event_link(self.impl))  # type: ignore[no-untyped-call]

    @property
    def session(self) -> Any:
        return Session.wrap(pn_event_session(self.impl))  # type: ignore[no-untyped-call]

    @property
    def connection(self) -> Any:
        return Connection.wrap(pn_event_connection(self.impl))  # type: ignore[no-untyped-call]


class Engine(asyncio.Protocol):
    """A Proton connection whose bytes go over an asyncio transport.

    `handler` gets Proton's events as calls of `on_<event>(event)`, those that it has (proton.EventType),
    `progressed()`, if it has that, whenever bytes have gone out or come in, and `lost(reason)` once, when there is
    nothing more to come. After using the connection's objects from outside such a
    call, call `flush`. Times are in seconds.
    """

    def __init__(self, handler: Any, *, server: bool = False) -> None:
        self._handler = handler
        self._methods: dict[int, Callable[[Event], None] | None] = {}
        self._progressed: Callable[[], None] | None = getattr(handler, "progressed", None)
        self._waiters: list[asyncio.Future[None]] = []
        self.connection = Connection()
        self._collector = Collector()
        self.connection.collect(self._collector)
        self.transport = Transport(Transport.SERVER if server else Transport.CLIENT)
        self._socket: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._flush_due = self._dispatching = self._paused = self._ended = False
        self._tick: asyncio.TimerHandle | None = None
        self.heard = time.monotonic()
        """When the peer was last heard from (time.monotonic)."""

    def open(self) -> None:
        """Bind transport and connection; set SASL, idle timeout and the connection's fields before."""
        self.transport.bind(self.connection)

    @property
    def socket(self) -> asyncio.Transport | None:
        return self._socket

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket = transport
        transport.set_write_buffer_limits(WRITE_LIMIT)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        try:
            while data and (room := self.transport.capacity()) > 0:
                self.transport.push(data[:room])
                data = data[room:]
                self._dispatch()
        except TransportException:
            pass  # the events say what was wrong
        self._flush()

    def eof_received(self) -> bool:
        if not self._ended:
            self.transport.close_tail()
            self._flush()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error or "") or "the connection was closed by the other side")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.flush()

    # -- the engine ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Have what was said go on the wire before the loop turns, together with what else is said until then."""
        if not (self._flush_due or self._dispatching or self._ended):
            self._flush_due = True
            self._loop.call_soon(self._flush)

    async def progress(self) -> None:
        """Wait until bytes have gone out or come in, or there is an end: for whoever has more to send than fits."""
        if not self._ended:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            self.flush()
            await waiter

    def abort(self, reason: str) -> None:
        """End without a goodbye."""
        if self._socket is not None:
            self._socket.abort()
        self._end(reason)

    def _flush(self) -> None:
        self._flush_due = False
        if self._ended or self._socket is None:
            return
        self._dispatch()
        while not self._paused and (pending := self.transport.pending()) > 0:
            self._socket.write(self.transport.peek(pending) or b"")
            self.transport.pop(pending)
            self._dispatch()
        if self.transport.pending() < 0:  # everything is said
            self._socket.close()
        else:
            self._set_tick()
        self._wake()
        if self._progressed is not None:
            self._progressed()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _set_tick(self) -> None:
        """Heartbeats and idle timeouts: Proton says when it wants to look at the clock again."""
        if self._tick is None and (due := self.transport.tick(time.monotonic())):
            self._tick = self._loop.call_later(max(0.0, due - time.monotonic()), self._ticked)

    def _ticked(self) -> None:
        self._tick = None
        self._flush()

    def _dispatch(self) -> None:
        self._dispatching = True
        collector = self._collector._impl
        try:
            while not isnull(happened := pn_collector_peek(collector)):
                number = pn_event_type(happened)
                try:
                    method = self._methods[number]
                except KeyError:
                    name = EventType.TYPES[number].method
                    method = self._methods[number] = getattr(self._handler, name, None)
                try:
                    if method is not None:
                        method(Event(happened))
                finally:
                    pn_collector_pop(collector)
        finally:
            self._dispatching = False

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        if self._tick is not None:
            self._tick.cancel()
        self._wake()
        condition = self.transport.condition
        self._handler.lost(str(condition.description or condition.name) if condition else reason)
