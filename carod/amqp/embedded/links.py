"""The links of a connection, and the messages that come and go over them.

The hot path is written with Proton's C functions: its Python objects, made anew for each event, would cost more than
all else that is done for a message.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from cproton import (  # type: ignore[import-untyped]
    PN_ACCEPTED,
    PN_MODIFIED,
    PN_REJECTED,
    PN_RELEASED,
    isnull,
    pn_delivery,
    pn_delivery_aborted,
    pn_delivery_partial,
    pn_delivery_pending,
    pn_delivery_remote,
    pn_delivery_remote_state,
    pn_delivery_settle,
    pn_delivery_settled,
    pn_delivery_update,
    pn_disposition_is_failed,
    pn_disposition_is_undeliverable,
    pn_link_advance,
    pn_link_credit,
    pn_link_current,
    pn_link_drained,
    pn_link_flow,
    pn_link_get_drain,
    pn_link_recv,
    pn_link_send,
    pn_link_session,
    pn_session_outgoing_bytes,
)
from proton import Condition, Delivery, Link, Receiver, Sender, Terminus

from carod.amqp.amqp10.codec import Malformed
from carod.amqp.embedded import management
from carod.amqp.embedded.message import HEAD, Stored
from carod.amqp.embedded.queue import Entry, Queue, TooMany, Traits

if TYPE_CHECKING:
    from carod.amqp.embedded.connection import Connection

CREDIT = 200
"""Messages that a sender may send without hearing from us."""
OUTGOING = 1 << 20
"""Bytes on the way to a session's consumers; who does not read gets no more than that."""
SPARE = 1.25
"""Of the memory, for messages that had begun to come while there was room."""
_OUTCOMES = (PN_ACCEPTED, PN_REJECTED, PN_RELEASED, PN_MODIFIED)


class Refusal(Exception):
    """Why a link can't be: an AMQP error condition, and its text."""

    def __init__(self, condition: str, text: str) -> None:
        super().__init__(text)
        self.condition = condition


class Incoming:
    """A link over which a client sends."""

    def __init__(self, connection: Connection, link: Receiver) -> None:
        self.connection, self.proton, self.link = connection, link, link._impl
        self._broker = connection.broker
        self._chunks: list[bytearray] = []
        self._size = 0
        self._refused: tuple[str, str] | None = None
        """Why the message that is coming is not taken; the rest of it is not kept."""
        self._taken = 0
        self._private: Queue | None = None
        self.address = self._attach(link)

    def _attach(self, link: Receiver) -> str | None:
        """Where the messages go; None if each says it. Raises Refusal."""
        target = link.remote_target
        if target.type == Terminus.COORDINATOR:
            raise Refusal("amqp:not-implemented", "this broker has no transactions")
        address: str | None = target.address
        if target.dynamic:
            self._private = private(self.connection)
            address = self._private.name
        elif address and address != management.ADDRESS and self._broker.find(address) is None:
            raise Refusal("amqp:not-found", f"there is no queue or exchange {address!r}")
        link.source.copy(link.remote_source)
        link.target.copy(target)
        link.target.address = address  # type: ignore[assignment]
        link.max_message_size = self._broker.max_message
        return address or None

    def start(self) -> None:
        pn_link_flow(self.link, CREDIT)

    def read(self) -> None:
        """Take what has come, as far as there is room for it."""
        link = self.link
        while not isnull(delivery := pn_link_current(link)):
            begins = not self._size and not self._refused
            if begins and not self.connection.may_send() and self.address != management.ADDRESS:
                self._broker.stalled[self] = None
                self._broker.memory.wanted = True
                return
            aborted = pn_delivery_aborted(delivery)
            if not aborted and (pending := pn_delivery_pending(delivery)):
                self._keep(pn_link_recv(link, pending)[1])
            if pn_delivery_partial(delivery) and not aborted:
                return
            self._finish(delivery, aborted)

    def _keep(self, data: bytearray) -> None:
        memory = self._broker.memory
        if self._refused is not None:
            return
        if self._size + len(data) > self._broker.max_message:
            self._refused = (
                "amqp:link:message-size-exceeded", f"a message has {self._broker.max_message} bytes at most"
            )  # fmt: skip
        elif self._size and memory.held + len(data) > memory.limit * SPARE:
            self._refused = "amqp:resource-limit-exceeded", f"the broker holds {memory.held} bytes and takes no more"
        if self._refused is not None:
            self._clear()
        else:
            if self._chunks and len(self._chunks[-1]) < HEAD:
                self._chunks[-1] += data  # an object for each of a thousand small frames would be the larger part
            else:
                self._chunks.append(data)
            self._size += len(data)
            memory.take(len(data))

    def _clear(self) -> list[bytearray]:
        """What has come of the message, which is not ours any more."""
        chunks, self._chunks = self._chunks, []
        size, self._size = self._size, 0
        self._broker.memory.give(size)
        return chunks

    def _finish(self, delivery: Any, aborted: bool) -> None:
        """All of a message is here."""
        chunks, refused = self._clear(), self._refused
        self._refused = None
        pn_link_advance(self.link)
        if not aborted:
            refused = refused or self._route(chunks)
            if refused is None:
                pn_delivery_update(delivery, PN_ACCEPTED)
            else:
                rejected = Delivery.wrap(delivery)  # type: ignore[no-untyped-call]
                rejected.local.condition = Condition(*refused)
                rejected.update(Delivery.REJECTED)
        pn_delivery_settle(delivery)
        self._taken += 1
        if self._taken >= CREDIT // 2:
            pn_link_flow(self.link, self._taken)
            self._taken = 0

    def _route(self, chunks: list[bytearray]) -> tuple[str, str] | None:
        """Put a message where it belongs; why not, as condition and text, if that can't be."""
        try:
            message = Stored(chunks)
        except Malformed as error:
            return "amqp:decode-error", f"the message can't be read: {error}"
        address = self.address or message.to
        if not address:
            return "amqp:precondition-failed", "neither the link nor the message's `to` says where it goes"
        if address == management.ADDRESS:
            management.answer(self._broker, self.connection, b"".join(chunks))
            return None
        problem = self._broker.deliver(message, address, message.subject)
        return ("amqp:not-found", problem) if problem else None

    def resume(self) -> None:
        """There may be room."""
        if self.link in self.connection.incoming:
            self.read()
            self.connection.engine.flush()

    def gone(self) -> None:
        self._clear()
        self._broker.stalled.pop(self, None)
        if self._private is not None:
            self._broker.delete(self._private)


class Outgoing:
    """A link over which a client consumes a queue."""

    def __init__(self, connection: Connection, link: Sender) -> None:
        self.connection, self.proton, self.link = connection, link, link._impl
        self.turn = False
        self._session = pn_link_session(self.link)
        self._settled = link.remote_snd_settle_mode == Link.SND_SETTLED
        self._number = 0
        self._unsettled: dict[Any, Entry] = {}
        self._rest: deque[bytes | bytearray] = deque()
        """What is left to be sent of a message that is under way."""
        self._private: Queue | None = None
        self.queue = self._attach(link)
        self.queue.add(self)

    def _attach(self, link: Sender) -> Queue:
        """The queue to consume. Raises Refusal."""
        source, broker = link.remote_source, self.connection.broker
        if source.distribution_mode == Terminus.DIST_MODE_COPY:
            raise Refusal("amqp:not-implemented", "this broker's queues can't be browsed, only consumed")
        address: str | None = source.address
        queue = broker.queues.get(address or "")
        name, slash, key = (address or "").partition("/")
        if source.dynamic:
            queue = self._private = private(self.connection)
            address = queue.name
        elif queue is None and name in broker.exchanges:
            exchange = broker.exchanges[name]
            queue = self._private = private(self.connection)
            exchange.bind(queue, key if slash else "#" if exchange.kind == "topic" else "")
        elif queue is None:
            raise Refusal("amqp:not-found", f"there is no queue or exchange {address!r}")
        if queue.owner is not None and queue.owner is not self.connection:
            raise Refusal("amqp:resource-locked", f"queue {queue.name!r} belongs to another connection")
        if queue.traits.exclusive == "LINK" and queue.consumers:
            raise Refusal("amqp:resource-locked", f"queue {queue.name!r} has a consumer, and is for one")
        link.source.copy(source)
        link.source.address = address  # type: ignore[assignment]
        link.target.copy(link.remote_target)
        link.snd_settle_mode = link.remote_snd_settle_mode
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        return queue

    @property
    def ready(self) -> bool:
        if pn_link_credit(self.link) <= 0:
            return False
        if self._rest or pn_session_outgoing_bytes(self._session) >= OUTGOING:
            self.connection.blocked[self] = None
            return False
        return True

    def flow(self) -> None:
        """The client has changed its credit."""
        self.queue.line_up(self)
        if pn_link_get_drain(self.link) and self.ready:  # still: then there is nothing for it
            pn_link_drained(self.link)
            self.connection.engine.flush()

    def send(self, entry: Entry) -> None:
        self._number += 1
        delivery = pn_delivery(self.link, self._number.to_bytes(4, "big"))
        chunks = entry.message.encoded(entry.count)
        if self._settled:
            self.queue.accept(entry)
        else:
            self._unsettled[delivery] = entry
            self.connection.unsettled += 1
        if len(chunks) == 1:
            pn_link_send(self.link, chunks[0])
            self._sent(delivery)
        else:
            self._rest.extend(chunks)
            self._push()
        self.connection.engine.flush()

    def _sent(self, delivery: Any) -> None:
        pn_link_advance(self.link)
        if self._settled:
            pn_delivery_settle(delivery)

    def _push(self) -> None:
        """Send more of a large message, as far as the session takes it."""
        while self._rest:
            if pn_session_outgoing_bytes(self._session) >= OUTGOING:
                self.connection.blocked[self] = None
                return
            pn_link_send(self.link, self._rest.popleft())
        self._sent(pn_link_current(self.link))

    def settle(self, delivery: Any) -> None:
        """The client may have said what became of a delivery."""
        state = pn_delivery_remote_state(delivery)
        over = pn_delivery_settled(delivery)
        if (state not in _OUTCOMES and not over) or (entry := self._unsettled.pop(delivery, None)) is None:
            return
        self.connection.unsettled -= 1
        queue = self.queue
        if state == PN_ACCEPTED:
            queue.accept(entry)
        elif state == PN_REJECTED:
            queue.reject(entry)
        elif state == PN_RELEASED:
            queue.put_back(entry, failed=False)
        elif state == PN_MODIFIED:
            outcome = pn_delivery_remote(delivery)
            barred = self if pn_disposition_is_undeliverable(outcome) else None
            queue.put_back(entry, failed=pn_disposition_is_failed(outcome), barred=barred)
        else:  # settled without a word
            queue.put_back(entry, failed=True)
        if not over:
            pn_delivery_update(delivery, state)
        pn_delivery_settle(delivery)
        if state not in (PN_ACCEPTED, PN_REJECTED):
            queue.pump()

    def proceed(self) -> None:
        """There may be room on the way to the client."""
        if self._rest:
            self._push()
            self.connection.engine.flush()
        self.flow()

    def end(self, condition: str, text: str) -> None:
        self.connection.end(self, condition, text)

    def gone(self) -> None:
        """What the client has not settled is the queue's again."""
        connection = self.connection
        connection.blocked.pop(self, None)
        self._rest.clear()
        self.queue.remove(self)
        connection.unsettled -= len(self._unsettled)
        for entry in sorted(self._unsettled.values(), key=lambda entry: -entry.number):
            self.queue.put_back(entry, failed=True)
        self._unsettled.clear()
        broker = connection.broker
        if self._private is not None:
            broker.delete(self._private)
        elif not self.queue.consumers and self.queue.traits.lifetime in management.UNTIL_UNUSED:
            broker.delete(self.queue)
        else:
            self.queue.pump()


def private(connection: Connection) -> Queue:
    """A queue that ends with the link that asked for it. Raises Refusal."""
    try:
        return connection.broker.declare_private(Traits(exclusive="CONNECTION"), connection)
    except TooMany as error:
        raise Refusal("amqp:resource-limit-exceeded", str(error)) from None
