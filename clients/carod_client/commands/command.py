"""What the operator's commands have in common: their options, what they say and to whom, their exit codes."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, TypeVar, cast

import click
from rich.console import Console

from carod.amqp import SCHEMES, BadEndpoint, with_protocol
from carod_client.commands.tables import clean
from carod_client.control import CENSUS, PATIENCE, Control, NoSuchJob, NoSuchNode
from carod_client.errors import GridError, NoQueue
from carod_client.grid import DEFAULT_QUEUE, DEFAULT_URL

F = TypeVar("F", bound=Callable[..., Any])


class Code(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOBODY = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class Out:
    """What a command says: news to people at a terminal, objects to machines, errors to all; and its exit code."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False)
        self.errors = Console(stderr=True, highlight=False)
        self.code = Code.DONE

    def done(self, text: str, **fields: Any) -> None:
        """Something was done."""
        if self.as_json:
            self.object(**fields, ok=True)
        elif self.errors.is_terminal:
            self.errors.print(f"carod: {clean(text)}", style="dim", markup=False, soft_wrap=True)

    def failed(self, error: Exception, **fields: Any) -> None:
        """Something was not done. A refusal outweighs that nobody was there."""
        nobody = isinstance(error, NoSuchJob | NoSuchNode | NoQueue)
        self.code = Code.NOBODY if nobody and self.code is not Code.FAILED else Code.FAILED
        if self.as_json:
            self.object(**fields, ok=False, error=type(error).__name__, message=str(error))
        else:
            self.errors.print(f"carod: {clean(str(error))}", markup=False, soft_wrap=True)

    def object(self, **values: Any) -> None:
        """One JSON object, on a line of its own."""
        print(json.dumps(values), flush=True)


def broker_options(command: F) -> F:
    """The options that say where the broker is; the command gets them as one URL, `broker`."""

    @functools.wraps(command)
    def located(broker: str, protocol: str | None, *args: Any, **settings: Any) -> Any:
        return command(*args, broker=with_protocol(broker, protocol or ""), **settings)

    with_options = click.option(
        "--broker", envvar=["CAROD_BROKER", "_CAROD_BROKER_URL"], default=DEFAULT_URL, metavar="URL",
        help="The broker. Default: $CAROD_BROKER, $_CAROD_BROKER_URL, or RabbitMQ on this machine.",
    )(
        click.option("--protocol", type=click.Choice(list(SCHEMES)), help="AMQP's; default: as the URL's scheme says.")(
            located
        )
    )  # fmt: skip
    return cast(F, with_options)


def grid_options(command: F) -> F:
    """The options that all these commands have; they end in `run`."""
    options = (
        broker_options,
        click.option(
            "--queue", envvar="_CAROD_BROKER_QUEUE", default=DEFAULT_QUEUE, metavar="NAME", show_default=True,
            help="The job queue.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def patience_option(command: F) -> F:
    return click.option(
        "--wait", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), default=PATIENCE, show_default=True,
        help="How long a node has to answer.",
    )(command)  # fmt: skip


def census_option(command: F) -> F:
    return click.option(
        "--wait", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), default=CENSUS, show_default=True,
        help="How long nodes have to answer.",
    )(command)  # fmt: skip


def operator_command(name: str, summary: str, **settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A command for operators; `summary` is its line in the list of all."""
    settings = {"help_option_names": ["-h", "--help"], **settings}
    return click.command(name, short_help=summary, context_settings=settings)


def run(
    work: Callable[[Control, Out], Awaitable[None]], broker: str, queue: str, as_json: bool, wait: float = PATIENCE
) -> None:
    """Do it with a connection, and end with the code that says how it went."""
    out = Out(as_json)

    async def connected() -> None:
        async with Control(broker, queue, patience=wait) as control:
            await work(control, out)

    try:
        asyncio.run(connected())
        sys.stdout.flush()
    except BadEndpoint as error:
        out.failed(error)
        out.code = Code.USAGE
    except GridError as error:
        out.failed(error)
    except KeyboardInterrupt:
        out.code = Code.INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor can Python flush to it at exit
        out.code = Code.BROKEN_PIPE
    sys.exit(out.code)
