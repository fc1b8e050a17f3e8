"""The command `carod broker`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import sys

import click

from carod import log as carod_log
from carod.log import event

log = logging.getLogger("carod.broker")
DEFAULT_LISTEN = "127.0.0.1:5672"


def _address(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, int]:
    """HOST:PORT, with an IPv6 address in brackets."""
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is no HOST:PORT; write {DEFAULT_LISTEN}, or 127.0.0.1:0 for any free port")
    return host, int(port)


@click.command(short_help="Run a small AMQP 1.0 broker, for one machine.")
@click.option(
    "--listen", metavar="HOST:PORT", callback=_address, default=DEFAULT_LISTEN, show_default=True,
    help="Where clients connect.",
)  # fmt: skip
@click.option(
    "--memory", type=click.IntRange(8), metavar="MIB", default=512, show_default=True,
    help="What messages may take; at most a quarter of it one.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Log lines for people or for machines."
)
def broker(listen: tuple[str, int], memory: int, log_format: str) -> None:
    """Run a small AMQP 1.0 broker, in the foreground: for trying things, for tests, for one machine.

    It keeps nothing across a restart, and lets everybody in who can connect: no users, no TLS. SIGTERM or Ctrl-C
    ends it.

    \b
    carod broker
    carod start --broker amqp10://127.0.0.1
    carod submit --broker amqp10://127.0.0.1 -- /bin/echo Hello
    """
    carod_log.set_up(log_format, "info")
    try:
        from carod.amqp.embedded import ListenError
    except ImportError:
        click.echo(
            "carod broker: it needs Qpid Proton; pip install 'carod[amqp10]' (and a C compiler) brings it", err=True
        )
        sys.exit(1)
    try:
        asyncio.run(_serve(*listen, memory << 20))
    except ListenError as error:
        click.echo(f"carod broker: {error}", err=True)
        sys.exit(1)


async def _serve(host: str, port: int, memory: int) -> None:
    from carod.amqp.embedded import EmbeddedBroker

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with EmbeddedBroker(host, port, memory=memory) as running:
        event(log, "ready", broker=running.url, memory=f"{memory >> 20} MiB", keeps="nothing across a restart")
        if not _is_loopback(host):
            event(
                log, "listens to other machines, and lets everybody in: there are no users and no TLS here",
                logging.WARNING, address=host,
            )  # fmt: skip
        await ended.wait()
        event(log, "ends, and all messages with it", messages=sum(queue.waiting for queue in running.queues.values()))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
