"""A command that runs with a broker: `NAME.py -- COMMAND`, with the broker's URL in CAROD_BROKER."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Protocol
from urllib.parse import urlsplit

from tests.brokers.process import BrokerFailed, BrokerUnavailable, say

BROKER_VARIABLE = "CAROD_BROKER"


class PrivateBroker(Protocol):
    """A broker that is a context manager, and runs within it."""

    @property
    def url(self) -> str: ...

    def __enter__(self) -> PrivateBroker: ...

    def __exit__(self, *_: object) -> None: ...


def main_of(name: str, private: Callable[[], PrivateBroker], script: str) -> int:
    """The command line of a broker that is always started anew. Its exit code."""
    parser = argparse.ArgumentParser(
        prog=Path(script).name,
        usage="%(prog)s -- COMMAND [ARGUMENT ...]",
        description=f"Run COMMAND with CAROD_BROKER=URL in its environment: a private {name} that is started on "
        "loopback and stopped when COMMAND ends. Exits as COMMAND does.",
    )
    parser.add_argument("command", nargs="+", help=argparse.SUPPRESS)
    return run_with_broker(parser.parse_args().command, started(name, private))


@contextlib.contextmanager
def started(name: str, private: Callable[[], PrivateBroker]) -> Iterator[str]:
    """The URL of a new one, which ends with the context."""
    begun = time.monotonic()
    say(f"starting a private {name} on loopback")
    with private() as broker:
        say(f"it answers at {broker.url} after {time.monotonic() - begun:.1f} s")
        yield broker.url


def run_with_broker(command: list[str], broker: AbstractContextManager[str]) -> int:
    """Exit code of `command`, run with the broker's URL in its environment; 128 + n if signal n ended it."""
    signals = _Signals()
    try:
        with broker as url:
            try:
                signals.command = subprocess.Popen(command, env={**os.environ, BROKER_VARIABLE: url})
            except OSError as problem:
                say(f"cannot run {command[0]}: {problem.strerror}")
                return 127
            code = signals.command.wait()
    except (BrokerUnavailable, BrokerFailed) as problem:
        say(str(problem))
        return 1
    return code if code >= 0 else 128 - code


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class _Signals:
    """SIGINT, SIGTERM and SIGHUP on their way to the command; before it runs, they end the set-up."""

    def __init__(self) -> None:
        self.command: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._forward)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self.command is None:
            raise SystemExit(128 + number)
        if number == signal.SIGINT and _terminal_signals_us():
            return  # The terminal has sent it to the command too; a second one would cut its clean-up short.
        self.command.send_signal(number)


def _terminal_signals_us() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
