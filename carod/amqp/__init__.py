"""Brokers. Knows nothing of jobs; only this package meets a broker's library."""

from __future__ import annotations

from carod.amqp.endpoint import SCHEMES, BadEndpoint, Endpoint, with_protocol
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
    "SCHEMES",
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
    "with_protocol",
]


def open_transport(endpoint: Endpoint) -> Transport:
    """The transport for an endpoint's protocol, not yet connected. Raises BadEndpoint where its library is missing."""
    if endpoint.amqp10:  # here, so that naming a type loads no broker's library
        try:
            from carod.amqp.amqp10.transport import Amqp10Transport
        except ImportError as error:
            raise BadEndpoint(f"AMQP 1.0 needs {error.name}: pip install 'carod[amqp10]'") from None
        return Amqp10Transport(endpoint)
    from carod.amqp.amqp091 import Amqp091Transport

    return Amqp091Transport(endpoint)
