"""A client's connection: its sessions, its links, and how it ends."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cproton import (  # type: ignore[import-untyped]
    pn_delivery_link,
    pn_event_delivery,
    pn_event_link,
)
from proton import Condition, Link, symbol

from carod.amqp.embedded.links import Incoming, Outgoing, Refusal
from carod.amqp.embedded.queue import Queue
from carod.amqp.engine import Engine, Event

if TYPE_CHECKING:
    from carod.amqp.embedded.broker import EmbeddedBroker

PRODUCT = "carod-broker"
MAX_FRAME = 1 << 16
SESSION_WINDOW = 64 * MAX_FRAME
"""Bytes that a session may have on the way to us, which is what Proton holds for a link that waits for room."""
MAX_SESSIONS = 256
MAX_LINKS = 1024
"""Links of one connection."""
IDLE_TIMEOUT = 60.0
"""Seconds of silence after which a client is taken for dead."""
PATIENCE = 10.0
"""Seconds for a client to open its connection."""
PRODUCERS_SHARE = 0.75
"""Of the memory, for those who only send. The rest is for those who have deliveries to settle: a node must be able to
send a result before it settles the job that takes the room."""


class Connection:
    """One client. Handles Proton's events."""

    def __init__(self, broker: EmbeddedBroker, peer: str) -> None:
        self.broker, self.peer = broker, peer
        self.engine = Engine(self, server=True)
        self.incoming: dict[Any, Incoming] = {}
        """By link. Proton's C pointers are equal if they are to the same."""
        self.outgoing: dict[Any, Outgoing] = {}
        self.unsettled = 0
        """Deliveries that the client has to settle."""
        self.owned: dict[Queue, None] = {}
        """Queues that end with this connection."""
        self.blocked: dict[Outgoing, None] = {}
        """Consumers whose session has too much on the way."""
        self._patience = asyncio.get_running_loop().call_later(PATIENCE, self.abort)
        transport = self.engine.transport
        transport.require_auth(False)
        transport.max_frame_size = MAX_FRAME
        transport.channel_max = MAX_SESSIONS - 1
        transport.idle_timeout = IDLE_TIMEOUT
        self.engine.open()
        broker.connections.add(self)

    def close(self, condition: str, text: str) -> None:
        """End with a goodbye that says why."""
        self.engine.connection.condition = Condition(condition, text)
        self.engine.connection.close()
        self.engine.flush()

    def abort(self) -> None:
        self.engine.abort("the broker closed the connection")

    def may_send(self) -> bool:
        """Whether there is room in memory for another message from here."""
        memory = self.broker.memory
        return memory.held < memory.limit * (1.0 if self.unsettled else PRODUCERS_SHARE)

    # -- events ------------------------------------------------------------------------------------------------

    def on_delivery(self, event: Event) -> None:
        delivery = pn_event_delivery(event.impl)
        link = pn_delivery_link(delivery)
        if (incoming := self.incoming.get(link)) is not None:
            incoming.read()
        elif (outgoing := self.outgoing.get(link)) is not None:
            outgoing.settle(delivery)

    def on_link_flow(self, event: Event) -> None:
        outgoing = self.outgoing.get(pn_event_link(event.impl))
        if outgoing is not None:
            outgoing.flow()

    def progressed(self) -> None:
        """Bytes have gone out: more may follow."""
        if self.blocked:
            blocked, self.blocked = self.blocked, {}
            for outgoing in blocked:
                outgoing.proceed()

    def on_connection_remote_open(self, event: Event) -> None:
        self._patience.cancel()
        connection = event.connection
        connection.container = PRODUCT
        connection.properties = {symbol("product"): PRODUCT, symbol("version"): _version()}
        connection.offered_capabilities = [symbol("ANONYMOUS-RELAY")]
        connection.open()

    def on_connection_remote_close(self, event: Event) -> None:
        event.connection.close()

    def on_session_remote_open(self, event: Event) -> None:
        session = event.session
        session.incoming_capacity = SESSION_WINDOW
        session.open()

    def on_session_remote_close(self, event: Event) -> None:
        session = event.session
        ends: list[Incoming | Outgoing] = [*self.incoming.values(), *self.outgoing.values()]
        self._forget(*(end for end in ends if end.proton.session == session))
        session.close()
        session.free()

    def on_link_remote_open(self, event: Event) -> None:
        link = event.link
        try:
            if len(self.incoming) + len(self.outgoing) >= MAX_LINKS:
                raise Refusal("amqp:resource-limit-exceeded", f"a connection has {MAX_LINKS} links at most")
            if link.is_receiver:
                incoming = self.incoming[link._impl] = Incoming(self, link)
                link.open()
                incoming.start()
            else:
                outgoing = Outgoing(self, link)
                self.outgoing[link._impl] = outgoing
                link.open()
        except Refusal as refusal:
            _refuse(link, refusal.condition, str(refusal))
        except UnicodeDecodeError as error:
            _refuse(link, "amqp:decode-error", f"an address that is no UTF-8: {error.object[:80]!r}")

    def on_link_remote_close(self, event: Event) -> None:
        link = event.link
        end = self.incoming.get(link._impl) or self.outgoing.get(link._impl)
        if end is not None:
            self._forget(end)
        if not link.state & Link.LOCAL_CLOSED:
            link.close()
        link.free()

    on_link_remote_detach = on_link_remote_close

    def lost(self, _reason: str) -> None:
        """The connection has ended; what it had is others'."""
        self._patience.cancel()
        self.broker.connections.discard(self)
        self._forget(*self.incoming.values(), *self.outgoing.values())
        for queue in list(self.owned):
            self.broker.delete(queue)

    def _forget(self, *ends: Incoming | Outgoing) -> None:
        """Take links out, all before any of them: what one gives back is not to go to another."""
        known = [end for end in ends if end.link in (self.incoming if isinstance(end, Incoming) else self.outgoing)]
        for end in known:
            if isinstance(end, Incoming):
                del self.incoming[end.link]
            else:
                del self.outgoing[end.link]
                end.queue.remove(end)
        for end in known:
            end.gone()

    def end(self, end: Outgoing, condition: str, text: str) -> None:
        """Close a link from here."""
        self._forget(end)
        end.proton.condition = Condition(condition, text)
        end.proton.close()
        self.engine.flush()


def _refuse(link: Link, condition: str, text: str) -> None:
    """Answer a link with none: it has no terminus, and is closed (part 2, 2.6.3)."""
    link.open()
    link.condition = Condition(condition, text)
    link.close()


@cache
def _version() -> str:
    return version("carod")
