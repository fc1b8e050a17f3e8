"""The first frames of AMQP: whether a broker is there, and lets a user in. Before any library is installed."""

from __future__ import annotations

import socket
import struct

# AMQP 0-9-1, the few bytes of it that tell a broker from another server: class and method numbers.
CONNECTION_START = b"\x00\x0a\x00\x0a"
CONNECTION_START_OK = b"\x00\x0a\x00\x0b"
CONNECTION_TUNE = b"\x00\x0a\x00\x1e"
FRAME_END = b"\xce"
LARGEST_FRAME = 131072

# AMQP 1.0: a client that will log in opens with this header, and the broker with the same (part 5, section 5.3.2).
SASL_HEADER = b"AMQP\x03\x01\x00\x00"


def answers_amqp(host: str, port: int, timeout: float = 2.0) -> bool:
    """Whether an AMQP 0-9-1 broker greets us there."""
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            return _greeted(connection)
    except OSError:
        return False


def answers_amqp10(host: str, port: int, timeout: float = 2.0) -> bool:
    """Whether an AMQP 1.0 broker greets us there."""
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.sendall(SASL_HEADER)
            return _exactly(connection, len(SASL_HEADER)) == SASL_HEADER
    except OSError:
        return False


def lets_in(host: str, port: int, user: str, password: str, timeout: float = 5.0) -> bool:
    """Whether the AMQP 0-9-1 broker there, if any, accepts that user: somebody else's may not know `guest`."""
    response = f"\0{user}\0{password}".encode()
    start_ok = b"".join(
        [
            CONNECTION_START_OK,
            struct.pack(">I", 0),  # client properties: none
            b"\x05PLAIN",
            struct.pack(">I", len(response)) + response,
            b"\x05en_US",
        ]
    )
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            if not _greeted(connection):
                return False
            connection.sendall(struct.pack(">BHI", 1, 0, len(start_ok)) + start_ok + FRAME_END)
            return _method(connection) == CONNECTION_TUNE
    except OSError:
        return False


def _greeted(connection: socket.socket) -> bool:
    connection.sendall(b"AMQP\x00\x00\x09\x01")
    return _method(connection) == CONNECTION_START


def _method(connection: socket.socket) -> bytes | None:
    """Class and method of the next frame; None if that is no method frame."""
    kind, _, size = struct.unpack(">BHI", _exactly(connection, 7))
    if kind != 1 or not 4 <= size <= LARGEST_FRAME:
        return None
    return _exactly(connection, size + len(FRAME_END))[:4]


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        if not (some := connection.recv(size - len(received))):
            raise ConnectionResetError("closed by the broker")
        received += some
    return received
