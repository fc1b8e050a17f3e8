"""Frames between the node and its spawners, over a SOCK_SEQPACKET socket.

A frame is a JSON object and a blob: four bytes with the object's length, the object, the blob. What does not fit
into INLINE bytes comes as a file descriptor instead, an object too (its length is then TOO_LONG). JSON, because
one end runs as the jobs' user and the other may be root: nothing read here can do more than be a value.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, BinaryIO

INLINE = 64 << 10
"""Bytes of a frame without descriptors; a default socket buffer holds three of them."""
TOO_LONG = 0xFFFFFFFF


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, frame: dict[str, Any], blob: bytes | BinaryIO = b"") -> None:
    """Send one frame. A file is sent as it is, open. Raises OSError when the other end is gone."""
    head = json.dumps(frame).encode()
    files: list[BinaryIO] = []
    length = len(head)
    if length > INLINE // 2:
        files.append(_memory_file(head))
        length, head = TOO_LONG, b""
    if not isinstance(blob, bytes):
        files.append(blob)
        blob = b""
    elif len(head) + len(blob) > INLINE - 4:
        files.append(_memory_file(blob))
        blob = b""
    data = length.to_bytes(4, "big") + head + blob
    if files:
        socket.send_fds(channel, [data], [file.fileno() for file in files])
    else:
        channel.send(data)


def receive(channel: socket.socket) -> tuple[dict[str, Any], bytes | BinaryIO] | None:
    """The next frame and its blob, None when the other end is closed.

    A blob that came as a descriptor is an open file, at its start. Raises BlockingIOError when nothing is there.
    """
    try:
        data, fds = receive_fds(channel, 2)
    except ConnectionResetError:  # closed, with something of ours unread
        return None
    if not data:
        return None
    files = [open(fd, "r+b") for fd in fds]
    for file in files:
        file.seek(0)
    length = int.from_bytes(data[:4], "big")
    if length == TOO_LONG:
        with files.pop(0) as head:
            frame = json.loads(head.read())
        length = 0
    else:
        frame = json.loads(data[4 : 4 + length])
    return frame, files[0] if files else data[4 + length :]


def receive_fds(channel: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """One message and its descriptors, which no job inherits: a job could speak for its spawner with one.

    Python's recv_fds leaves them inheritable, and drops its `flags` (MSG_CMSG_CLOEXEC) unseen in 3.11.
    """
    data, fds, _, _ = socket.recv_fds(channel, INLINE, most)
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, fds


def _memory_file(content: bytes) -> BinaryIO:
    file = open(os.memfd_create("carod"), "w+b", buffering=0)
    file.write(content)
    return file
