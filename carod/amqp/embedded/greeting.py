"""How a connection begins: SASL, which lets everybody in, and what is no AMQP 1.0.

Proton's own SASL knows only ANONYMOUS on this side, and most clients that are given a user name want PLAIN. Frames
are in the specification's part 5, "Security", 5.3.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from carod.amqp.amqp10 import codec
from carod.amqp.amqp10.codec import Described, Malformed
from carod.amqp.embedded.connection import Connection

if TYPE_CHECKING:
    from carod.amqp.embedded.broker import EmbeddedBroker

log = logging.getLogger("carod.amqp.embedded")
PATIENCE = 10.0
"""Seconds for a client to say who it is."""
LONGEST = 4096
"""Bytes of the longest frame that a client may begin with."""
MECHANISMS = ("ANONYMOUS", "PLAIN", "EXTERNAL")
AMQP, SASL = b"AMQP\x00\x01\x00\x00", b"AMQP\x03\x01\x00\x00"
_MECHANISMS, _INIT, _OUTCOME = 0x40, 0x41, 0x44
_OK, _REFUSED = b"\x50\x00", b"\x50\x01"


class Greeting(asyncio.Protocol):
    """A connection until it speaks AMQP; then a Connection has it."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._data = b""
        self._sasl = False
        self._socket: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket = transport
        self._timeout = asyncio.get_running_loop().call_later(PATIENCE, self.abort)
        self._broker.greetings.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._done()

    def _done(self) -> None:
        self._broker.greetings.discard(self)
        if self._timeout is not None:
            self._timeout.cancel()

    def abort(self) -> None:
        if self._socket is not None:
            self._socket.abort()

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            if self._sasl:
                self._read_init()
            elif len(self._data) >= len(SASL):
                self._read_protocol()
        except Malformed as error:
            self._refuse(f"{error}")

    def _read_protocol(self) -> None:
        assert self._socket is not None
        asked, rest = self._data[: len(SASL)], self._data[len(SASL) :]
        if asked == AMQP:
            self._hand_over()
        elif asked == SASL:
            self._data = rest
            self._sasl = True
            offer = codec.encode_list([_symbols(MECHANISMS)])
            self._socket.write(SASL + _frame(_MECHANISMS, offer))
            self._read_init()
        elif asked.startswith(b"AMQP"):
            version = ".".join(map(str, asked[5:]))
            self._refuse(f"it speaks AMQP {version.lstrip('.')}, here is AMQP 1.0; URLs begin with amqp10://", SASL)
        elif asked.startswith(b"\x16\x03"):
            self._refuse("it speaks TLS, which this broker does not; URLs begin with amqp10://")
        else:
            self._refuse(f"it speaks no AMQP: {asked!r}", SASL)

    def _read_init(self) -> None:
        """Once sasl-init is here, answer it; what follows is AMQP."""
        assert self._socket is not None
        if len(self._data) < 8:
            return
        size, start = int.from_bytes(self._data[:4], "big"), 4 * self._data[4]
        if not 8 <= start <= size <= LONGEST or self._data[5] != 1:
            raise Malformed("no SASL frame")
        if len(self._data) < size:
            return
        init, _ = codec.decode(self._data[start:size])
        known = isinstance(init, Described) and init.descriptor == _INIT and isinstance(init.value, list) and init.value
        if not known or init.value[0] not in MECHANISMS:
            self._socket.write(_frame(_OUTCOME, codec.encode_list([_REFUSED])))
            self._refuse(f"SASL mechanism {str(init.value)[:80] if known else None} is none of {', '.join(MECHANISMS)}")
            return
        self._socket.write(_frame(_OUTCOME, codec.encode_list([_OK])))
        self._data, self._sasl = self._data[size:], False
        self.data_received(b"")

    def _hand_over(self) -> None:
        assert self._socket is not None
        self._done()
        connection = Connection(self._broker, self._peer)
        self._socket.set_protocol(connection.engine)
        connection.engine.connection_made(self._socket)
        connection.engine.data_received(self._data)

    def _refuse(self, why: str, answer: bytes = b"") -> None:
        """Close, with an answer that says what we speak (part 2, 2.2)."""
        assert self._socket is not None
        log.warning("refused a connection from %s: %s", self._peer, why)
        self._socket.write(answer)
        self._socket.close()

    @property
    def _peer(self) -> str:
        assert self._socket is not None
        host, port, *_ = self._socket.get_extra_info("peername") or ("", 0)
        return f"{host}:{port}"


def _frame(performative: int, fields: bytes) -> bytes:
    body = b"\x00\x53" + bytes((performative,)) + fields
    return (len(body) + 8).to_bytes(4, "big") + b"\x02\x01\x00\x00" + body


def _symbols(names: tuple[str, ...]) -> bytes:
    """An array of symbols."""
    items = b"".join(bytes((len(name),)) + name.encode() for name in names)
    return b"\xe0" + bytes((len(items) + 2, len(names))) + b"\xa3" + items
