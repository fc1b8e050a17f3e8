"""Brokers. Knows nothing of jobs; only this package meets a broker's library."""

from __future__ import annotations

from carod.amqp.endpoint import BadEndpoint, Endpoint
from carod.amqp.transport import (
    Address,
    Body,
    Busy,
    ConnectionLost,
    Delivery,
    Exchange,
    HeaderValue,
    Message,
    OnDelivery,
    OnEnd,
    Outcome,
    Queue,
    Refused,
    StaleDelivery,
    Subscription,
    TooLarge,
    Transport,
    TransportError,
    TypedId,
    Unroutable,
)

__all__ = [
    "Address",
    "BadEndpoint",
    "Body",
    "Busy",
    "ConnectionLost",
    "Delivery",
    "Endpoint",
    "Exchange",
    "HeaderValue",
    "Message",
    "OnDelivery",
    "OnEnd",
    "Outcome",
    "Queue",
    "Refused",
    "StaleDelivery",
    "Subscription",
    "TooLarge",
    "Transport",
    "TransportError",
    "TypedId",
    "Unroutable",
    "open_transport",
]


def open_transport(endpoint: Endpoint) -> Transport:
    """The transport for an endpoint's scheme, not yet connected."""
    from carod.amqp.amqp091 import Amqp091Transport  # here, so that naming a type loads no broker's library

    return Amqp091Transport(endpoint)
