"""One AMQP 1.0 connection: how it is opened, what is attached to it, how it ends."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from uuid import uuid4

from proton import UNDESCRIBED, Array, Condition, Data, Link, Session, Terminus, symbol

from carod.amqp.amqp10.links import LinkEnd, Publisher10, Subscription10, link_error
from carod.amqp.endpoint import Endpoint
from carod.amqp.engine import Engine, Event
from carod.amqp.transport import ConnectionLost, OnDelivery, OnEnd, Refused, TransportError

MAX_FRAME = 1 << 17
"""Bytes of a frame we take; a large message is cut into frames, between which others pass."""
MIN_IDLE = 2
"""Seconds of silence that a broker must be allowed: it hears of half of it, and some refuse less than 1."""
CONSUMERS = "consumers"
"""The session whose end is the connection's: there are consumers on it that nobody would miss in time."""
OUTCOMES = ("amqp:accepted:list", "amqp:rejected:list", "amqp:released:list", "amqp:modified:list")
"""What a sender can be told of a message. Where `rejected` is not among them, a broker closes the link instead."""
CLOSE_TIMEOUT = 5.0
"""Seconds for an orderly goodbye; a broker that does not answer is left without one."""


class Wire:
    """A connection, from `open` to its end; a new one is another object. Handles Proton's events."""

    def __init__(self, endpoint: Endpoint, hostname: str) -> None:
        self.endpoint = endpoint
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = loop.create_future()
        """Done when the connection has ended, with the reason."""
        self._begun: asyncio.Future[None] = loop.create_future()
        self._reason = ""
        self._links: set[LinkEnd] = set()
        self._numbers = 0
        engine = self.engine = Engine(self)
        transport, connection = engine.transport, engine.connection
        sasl = transport.sasl()
        sasl.allow_insecure_mechs = True  # TLS, if there is any, is the socket's
        if endpoint.external:
            sasl.allowed_mechs("EXTERNAL")
        elif endpoint.credentials is not None:
            sasl.allowed_mechs("PLAIN")
            connection.user, connection.password = endpoint.credentials
        else:
            sasl.allowed_mechs("ANONYMOUS")
        transport.idle_timeout = max(MIN_IDLE, endpoint.heartbeat)
        transport.max_frame_size = MAX_FRAME
        connection.container = f"{endpoint.name} {uuid4()}"
        connection.hostname = hostname
        connection.properties = {symbol("product"): "carod", symbol("information"): endpoint.name}
        engine.open()
        connection.open()
        self._sessions: dict[str, Session] = {}

    @property
    def properties(self) -> dict[str, Any]:
        """What the broker says of itself."""
        return {str(name): value for name, value in (self.engine.connection.remote_properties or {}).items()}

    def check(self) -> None:
        """Raises ConnectionLost when there is no connection any more."""
        if self.closed.done():
            raise ConnectionLost(f"not connected to broker {self.endpoint.safe_url}: {self.closed.result()}")

    async def open(self, context: ssl.SSLContext | None) -> None:
        """Raises Refused, ConnectionLost, OSError (also for TLS) or TimeoutError."""
        end = self.endpoint
        try:
            async with asyncio.timeout(end.connect_timeout):
                await asyncio.get_running_loop().create_connection(lambda: self.engine, end.host, end.port, ssl=context)
                await self._begun  # a broker opens a connection before it closes it with the reason for a refusal
        except BaseException:
            self.engine.abort("not connected")
            raise

    async def close(self) -> None:
        if not self.closed.done():
            self.engine.connection.close()
            self.engine.flush()
            await asyncio.wait((self.closed,), timeout=CLOSE_TIMEOUT)
        self.engine.abort("closed")

    # -- links -------------------------------------------------------------------------------------------------

    def _lane(self, name: str) -> Session:
        """The session of that name: some brokers end a session for what went wrong on one of its links.

        They stay: a channel whose end the broker has not answered yet can't be begun again, which Proton would do.
        """
        if name not in self._sessions:
            session = self._sessions[name] = self.engine.connection.session()
            session.open()
        return self._sessions[name]

    async def publisher(
        self,
        address: str,
        *,
        lane: str,
        capability: str = "",
        settled: bool = False,
        name: str = "",
        properties: dict[symbol, Any] | None = None,
    ) -> Publisher10:
        """A link on which to send to an address; to the messages' own ones, if it is empty.

        With `settled`, nobody says what becomes of a message. Raises Unroutable (none there), Refused or
        ConnectionLost.
        """
        self.check()
        link = self._lane(lane).sender(name or self._name())
        link.source.address = address or link.name
        if address:
            link.target.address = address
        if capability:
            link.target.capabilities.put_object(_symbols((capability,)))
        link.source.outcomes.put_object(_symbols(OUTCOMES))
        link.snd_settle_mode = Link.SND_SETTLED if settled else Link.SND_MIXED
        link.properties = properties
        publisher = Publisher10(self, link, settled)
        await self._attach(publisher)
        return publisher

    async def subscription(
        self,
        address: str,
        on_delivery: OnDelivery,
        *,
        credit: int = 0,
        settled: bool = False,
        on_end: OnEnd | None = None,
        lane: str = CONSUMERS,
        capability: str = "",
        name: str = "",
        properties: dict[symbol, Any] | None = None,
        **traits: Any,
    ) -> Subscription10:
        """A link on which messages come, as soon as it is started; without an address, from a queue made for it.

        Raises Refused or ConnectionLost.
        """
        self.check()
        link = self._lane(lane).receiver(name or self._name())
        link.snd_settle_mode = Link.SND_SETTLED if settled else Link.SND_UNSETTLED
        if address:
            link.source.address = link.target.address = address
            if capability:
                link.source.capabilities.put_object(_symbols((capability,)))
        else:
            link.source.dynamic = True
            link.source.expiry_policy = Terminus.EXPIRE_WITH_LINK
        link.properties = properties
        subscription = Subscription10(self, link, on_delivery, credit=credit, settled=settled, on_end=on_end, **traits)
        try:
            await self._attach(subscription)
        except ConnectionLost:
            raise
        except TransportError as error:
            raise Refused(f"queue {address!r}: {error}") from None
        return subscription

    async def _attach(self, end: LinkEnd) -> None:
        self._links.add(end)
        await end.attach()

    def _name(self) -> str:
        self._numbers += 1
        return f"{self._numbers}-{self.engine.connection.container}"

    # -- events ------------------------------------------------------------------------------------------------

    def on_connection_remote_open(self, _event: Event) -> None:
        self._lane(
            CONSUMERS
        )  # not earlier: a broker that refuses the connection would cut it off for what it can't read

    def on_session_remote_open(self, _event: Event) -> None:
        if not self._begun.done():
            self._begun.set_result(None)

    def on_session_remote_close(self, event: Event) -> None:
        session = event.session
        error = link_error(session.remote_condition, "the session")
        session.close()
        for link in [link for link in self._links if link.link.session == session]:
            self._forget(link, error)
        for name in [name for name, lane in self._sessions.items() if lane == session]:
            del self._sessions[name]
            if name == CONSUMERS:
                self._reason = self._reason or str(error)
                self.engine.connection.close()

    def on_link_remote_open(self, event: Event) -> None:
        event.link.owner.opened()

    def on_link_remote_close(self, event: Event) -> None:
        link = event.link
        link.owner.closed(link.remote_condition)
        self._links.discard(link.owner)
        link.free()

    on_link_remote_detach = on_link_remote_close

    def on_link_flow(self, event: Event) -> None:
        event.link.owner.on_flow()

    def on_delivery(self, event: Event) -> None:
        delivery = event.delivery
        delivery.link.owner.on_delivery(delivery)

    def on_connection_remote_close(self, _event: Event) -> None:
        connection = self.engine.connection
        condition = connection.remote_condition
        if condition is not None:
            self._reason = str(condition.description or condition.name)
            self._fail(self._refusal(condition))
        connection.close()

    def lost(self, reason: str) -> None:
        """The end, whatever it was."""
        condition = self.engine.transport.condition
        self._reason = self._reason or reason
        where = f"broker {self.endpoint.safe_url}"
        name = condition.name if condition is not None else ""
        if name == "amqp:unauthorized-access":
            self._fail(Refused(f"{where} refused the connection: {self._reason}; check user and password"))
        elif "protocol header" in self._reason or "header mismatch" in self._reason:
            hint = "it speaks another protocol there; amqp:// is AMQP 0-9-1, amqp10:// AMQP 1.0"
            self._fail(Refused(f"{where} refused the connection: {self._reason}; {hint}"))
        self._fail(ConnectionLost(f"{where}: {self._reason}"))
        if not self.closed.done():
            self.closed.set_result(self._reason)
        error = ConnectionLost(f"the connection to {where} ended: {self._reason}")
        for link in list(self._links):
            self._forget(link, error)

    def _forget(self, link: LinkEnd, error: TransportError) -> None:
        self._links.discard(link)
        link.end(error)

    def _fail(self, error: TransportError) -> None:
        """Have opening fail, if it is still under way."""
        if not self._begun.done():
            self._begun.set_exception(error)
            self._begun.exception()

    def _refusal(self, condition: Condition) -> TransportError:
        where = f"broker {self.endpoint.safe_url}"
        if condition.name in ("amqp:connection:forced", "amqp:internal-error"):  # it is going down, or not up yet
            return ConnectionLost(f"{where}: {self._reason}")
        if "redirect" in condition.name:
            return link_error(condition, where)
        return Refused(f"{where} refused the connection: {self._reason} (vhost {self.endpoint.vhost!r})")


def _symbols(names: tuple[str, ...]) -> Array:
    items: list[Any] = [UNDESCRIBED, Data.SYMBOL, *map(symbol, names)]
    return Array(*items)
