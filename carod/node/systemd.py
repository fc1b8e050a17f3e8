"""What systemd wants to hear (sd_notify(3)); nothing is said where it does not listen."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send lines such as READY=1 to the service manager."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send("\n".join(lines).encode())


def watchdog_period() -> float | None:
    """Seconds between two WATCHDOG=1: half of what systemd allows (sd_watchdog_enabled(3)), else None."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isdigit() and int(text) else None
