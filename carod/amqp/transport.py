"""The one interface to a broker: messages, deliveries, and what can be done with them.

Knows nothing of jobs. `amqp091` (RabbitMQ) implements it on aiormq, `amqp10` (Qpid, RabbitMQ 4, Artemis) on Proton.
The terms are AMQP 1.0's where the two protocols differ (settle, released), because 1.0 has a word for every case and
0-9-1 does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, BinaryIO, Protocol, TypeAlias

HeaderValue: TypeAlias = "None | bool | int | float | str | bytes | list[HeaderValue] | dict[str, HeaderValue]"
"""A header's value. Timestamps are integers, seconds since the epoch; text that is not UTF-8 stays bytes."""
Body: TypeAlias = bytes | BinaryIO
"""Bytes, or a file open for reading in binary mode that is streamed from its start and never held whole."""


class TransportError(Exception):
    """A broker could not do what was asked; the text says what, where and how to mend it."""


class ConnectionLost(TransportError):
    """The connection is gone (or was never there): nothing unconfirmed may be taken as done."""


class StaleDelivery(ConnectionLost):
    """The connection that brought this delivery is gone; the broker offers the message again by itself."""


class Unroutable(TransportError):
    """The broker has no queue for this address, and says so."""


class TooLarge(TransportError):
    """The message does not fit what the broker takes; sending it would cost the connection."""


class Refused(TransportError):
    """The broker refused: access, a missing queue, a full disk, an argument it does not know."""


class Busy(Refused):
    """The broker could not take a message just now (nacked it): a full queue, or one that looks for a new leader."""


class TypedId(str):
    """The text form of a message id of AMQP 1.0; `kind` is what it was: uuid, ulong or binary.

    Whoever answers with it as correlation id answers with what the client sent. To a transport a kind may say more,
    as of which way the id came.
    """

    kind: str

    def __new__(cls, text: str, kind: str) -> TypedId:
        self = super().__new__(cls, text)
        self.kind = kind
        return self


@dataclass(slots=True)
class Message:
    """One AMQP message, in either direction.

    `expiration` is in seconds from publication, `timestamp` in seconds since the epoch, `durable` is 0-9-1's
    delivery mode 2. Properties that are None are not on the wire. `malformed` says what could not be decoded
    in a received message: then `body` is all that can be trusted. `value` is a body that is no bytes but a map or
    a list: AMQP 1.0's AmqpValue, sent as JSON where the protocol has none (bytes in it as `{"_bytes": "base64"}`).
    """

    body: Body = b""
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: float | None = None
    priority: int | None = None
    user_id: str | None = None
    durable: bool = False
    content_type: str | None = None
    type: str | None = None
    timestamp: int | None = None
    malformed: str = ""
    value: list[Any] | dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where a message goes: an exchange and a routing key. The default exchange `""` routes to queues by name."""

    exchange: str
    key: str

    def __str__(self) -> str:
        return f"{self.exchange}/{self.key}" if self.exchange else self.key


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare. `kind` is direct, topic, fanout or headers."""

    name: str
    kind: str = "direct"
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to declare; an empty name asks the broker for one. Times are in seconds.

    An unused queue is gone after `expires`.
    `quorum` queues live on several nodes of a RabbitMQ cluster.
    `dead_letter` is where the broker sends what stays for longer than `message_ttl`; `bindings` are (exchange, key)
    pairs.
    """

    name: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    message_ttl: float | None = None
    expires: float | None = None
    dead_letter: Address | None = None
    bindings: tuple[Address, ...] = ()
    quorum: bool = False


class Outcome(Enum):
    """How a delivery is settled (AMQP 1.0, 3.4 "Delivery State").

    There is no `rejected`: one broker drops what is, another dead-letters it, a third offers it again.
    """

    ACCEPTED = "accepted"
    """Done with: the broker forgets the message."""
    RELEASED = "released"
    """Back to the queue, for anyone."""


class Delivery(Protocol):
    """A message that a broker handed over, until it is settled, exactly once."""

    @property
    def message(self) -> Message: ...

    @property
    def subscription(self) -> Subscription:
        """The consumer that it came through."""

    @property
    def redelivered(self) -> bool:
        """Whether the broker may have handed it to someone before."""

    @property
    def settled(self) -> bool:
        """Whether it is settled; then there is nothing to settle any more."""

    def settle(self, outcome: Outcome) -> None:
        """Settle. Queues the frame and returns; raises StaleDelivery when its connection is gone."""


OnDelivery: TypeAlias = Callable[[Delivery], None]
OnEnd: TypeAlias = Callable[[str], None]


class Subscription(Protocol):
    """A consumer on a queue."""

    @property
    def unsettled(self) -> int:
        """How many of its deliveries are not settled yet."""

    async def cancel(self) -> None:
        """Take no more; what was delivered already stays with its receiver."""


class Transport(Protocol):
    """A connection to a broker, made anew by each `connect`.

    All methods but `connect` raise ConnectionLost when there is no connection.
    """

    async def connect(self) -> None:
        """Connect once. Raises ConnectionLost (no broker there) or Refused (credentials, vhost, TLS)."""

    async def close(self) -> None:
        """Close. Unsettled deliveries go back to their queues. Does nothing when not connected."""

    @property
    def heard(self) -> float:
        """When the broker was last heard from (time.monotonic)."""

    async def wait_closed(self) -> str:
        """Wait until the connection ends, and say why."""

    async def declare(self, what: Queue | Exchange) -> tuple[str, bool]:
        """Make sure that it exists: (its name, whether it has the arguments asked for).

        What exists already with other arguments is left as it is, and False comes back.
        """

    async def delete(self, queue: str, *, if_empty: bool = False) -> None:
        """Delete a queue; none there is fine, and so is one that stays because it is not empty."""

    async def depth(self, queue: str) -> int | None:
        """How many messages wait in a queue; None when there is no such queue."""

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
        """Have `on_delivery` called, in the event loop, for each message.

        At most `credit` deliveries are unsettled at a time (0: no limit). With `settled` the broker settles each
        as it sends it. `on_end` is called with the reason if the broker ends it (the queue is deleted, a
        delivery took too long): its unsettled deliveries are stale then. Neither may raise. Raises Refused when
        there is no such queue.
        """

    async def publish(self, message: Message, to: Address, *, confirm: bool = True) -> None:
        """Publish. With `confirm`, come back once the broker has the message.

        Raises Unroutable if it has no queue for it, Refused if it can't take it, TooLarge if it was not sent
        at all. Messages to one address arrive in the order of the calls.
        """

    async def resolve(self, reply_to: str) -> Address:
        """The address that a `reply_to` of any client means (docs/reference/wire-contract.md, section 4)."""
