"""carod's own broker in a process of its own, for a command: what `make demo` runs with.

    python tests/brokers/embedded.py -- COMMAND

Run it with the Python that carod is installed for.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.brokers.command import BROKER_VARIABLE, run_with_broker, started, without_password
from tests.brokers.handshake import answers_amqp10
from tests.brokers.process import BrokerProcess, BrokerUnavailable, free_ports, say
from tests.brokers.rabbitmq import PrivateRabbitMQ, reachable_url


class PrivateEmbedded:
    """`carod broker` on a free port, which dies with its parent. Raises BrokerUnavailable without Qpid Proton."""

    def __init__(self) -> None:
        if importlib.util.find_spec("proton") is None:
            raise BrokerUnavailable(
                "carod's own broker needs Qpid Proton, which is not installed (pip builds it with a C compiler)"
            )
        self._process = BrokerProcess("broker")
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        return f"amqp10://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The broker's process, None while it is stopped."""
        return self._process.pid

    def __enter__(self) -> Self:
        """Returns once it answers clients. Raises BrokerFailed, with the end of its log."""
        try:
            self._process.open()
            self.launch()
        except BaseException:
            self._process.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shut_down()
        self._process.close()

    def launch(self) -> None:
        """Start it, on the same port as before; nothing is left of what it held."""
        command = [sys.executable, "-m", "carod.cli", "broker", "--listen", f"127.0.0.1:{self.port}"]
        self._process.launch(command, dict(os.environ))
        self._process.wait_until(lambda: answers_amqp10("127.0.0.1", self.port))

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def log(self) -> str:
        return self._process.log()


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """URL of a reachable broker, else of a new one: carod's own, or a RabbitMQ where that can't be."""
    if url := reachable_url():
        say(f"using the broker at {without_password(url)}")
        yield url
        return
    if BROKER_VARIABLE in os.environ:
        say(f"no broker that lets us in at {without_password(os.environ[BROKER_VARIABLE])} ({BROKER_VARIABLE})")
    try:
        private = PrivateEmbedded()
    except BrokerUnavailable as problem:
        say(f"{problem}; taking a RabbitMQ")
        with started("RabbitMQ", PrivateRabbitMQ) as url:
            yield url
    else:
        with started("carod broker", lambda: private) as url:
            yield url


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="embedded.py",
        usage="%(prog)s -- COMMAND [ARGUMENT ...]",
        description="Run COMMAND with CAROD_BROKER=URL in its environment: the broker that it names now, or the "
        "RabbitMQ on this machine, if that answers; else carod's own, stopped when COMMAND ends. Exits as it does.",
    )
    parser.add_argument("command", nargs="+", help=argparse.SUPPRESS)
    return run_with_broker(parser.parse_args().command, broker())


if __name__ == "__main__":
    sys.exit(main())
