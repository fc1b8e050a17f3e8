"""What a client's `reply_to` says, as far as its text tells (wire contract, section 4, "reply_to forms")."""

from __future__ import annotations

from urllib.parse import unquote

from carod.amqp.transport import Address

DEFAULT_EXCHANGE = ""


def read_reply_to(reply_to: str) -> Address | None:
    """The address in a `reply_to`; None if `exchange/key` and a queue of that name are both possible.

    RabbitMQ's forms for AMQP 1.0 (version 2, percent-encoded: `/queues/NAME`, `/exchanges/NAME/KEY`; version 1:
    `/queue/...`, `/exchange/...`) reach a node as the client wrote them.
    """
    if "/" not in reply_to:
        return Address(DEFAULT_EXCHANGE, reply_to)
    first, *rest = reply_to.split("/")
    if first == "" and len(rest) >= 2:
        kind, parts = rest[0], [unquote(part) for part in rest[1:]]
        if kind in ("queues", "queue"):
            return Address(DEFAULT_EXCHANGE, "/".join(parts))
        if kind in ("exchanges", "exchange"):
            return Address(parts[0], "/".join(parts[1:]))
    return None
