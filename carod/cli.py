"""The command `carod`."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from carod.config import Settings

SECTIONS = {
    "Run": {
        "start": "carod.cli:start",
        "submit": "carod_client.commands.submit:submit",
        "broker": "carod.broker_command:broker",
        "config": "carod.cli:config",
    },
    "Look": {
        "q": "carod_client.commands.q:q",
        "history": "carod_client.commands.q:history",
        "status": "carod_client.commands.status:status",
        "fetch": "carod_client.commands.fetch:fetch",
        "tail": "carod_client.commands.fetch:tail",
        "wait": "carod_client.commands.wait:wait",
        "nodes": "carod_client.commands.nodes:nodes",
        "top": "carod_client.commands.top:top",
        "query": "carod_client.commands.operate:query",
        "dead": "carod_client.commands.held:dead",
    },
    "Jobs": {
        "hold": "carod_client.commands.operate:hold",
        "release": "carod_client.commands.held:release",
        "rm": "carod_client.commands.operate:rm",
        "suspend": "carod_client.commands.operate:suspend",
        "continue": "carod_client.commands.operate:continue_",
        "vacate": "carod_client.commands.operate:vacate",
        "qedit": "carod_client.commands.qedit:qedit",
        "setattr": "carod_client.commands.operate:setattr_",
    },
    "Nodes": {
        "drain": "carod_client.commands.nodes:drain",
        "resume": "carod_client.commands.nodes:resume",
        "ping": "carod_client.commands.nodes:ping",
    },
}
COMMANDS = {name: where for section in SECTIONS.values() for name, where in section.items()}
"""Where each command lives. Loaded when it is called: a node has no use for a client's progress bars in memory."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for title, section in SECTIONS.items():
            commands = [command for name in section if (command := self.get_command(ctx, name)) is not None]
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{command.name:{width}}", command.get_short_help_str(80)) for command in commands]
                )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="carod")
def main() -> None:
    """Run command-line jobs from an AMQP queue, at once.

    \b
    carod start                                   serve the queue `grid` on this machine
    carod submit -- /bin/echo Hello               run a job on any node, see its output
    carod nodes                                   nodes, their slots, what runs on them
    carod hold JOB                                stop a job until `carod release JOB`
    carod config                                  every knob and where its value comes from
    """


@click.command(short_help="Run jobs from the queue on this machine.")
@click.option("--broker", "carod_broker_url", metavar="URL", help="amqp[s][10]://user:password@host:port/vhost")
@click.option(
    "--protocol", "carod_broker_protocol", type=click.Choice(["0-9-1", "1.0"]), help="AMQP's, if not as the URL says."
)
@click.option("--queue", "carod_broker_queue", metavar="NAME", help="The job queue (default grid).")
@click.option(
    "--slots",
    "num_slots",
    type=click.IntRange(1),
    metavar="N",
    help="Jobs side by side (default: one a CPU).",
)
@click.option("--name", "startd_name", metavar="NAME", help="The node's name (default: the host's).")
@click.option("--execute", metavar="DIR", help="Where the jobs' directories are made.")
@click.option("--metrics", "metrics_address", metavar="HOST:PORT", help="Serve Prometheus metrics there.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Log lines for people or for machines.")
@click.option("--config", "file", metavar="FILE", help="Configuration file (default /etc/carod/carod.conf).")
def start(file: str | None, **overrides: Any) -> None:
    """Run jobs from the queue on this machine, in the foreground.

    SIGTERM or Ctrl-C takes no more jobs, lets the running ones end for SHUTDOWN_GRACEFUL_TIMEOUT, then hands them
    back to the queue; SIGQUIT, or a second Ctrl-C, hands them back at once.

    \b
    carod start
    carod start --broker amqp://me:secret@broker.example/prod --queue risk --slots 16
    carod start --broker amqp10://me:secret@qpid.example
    carod start --config /etc/carod/carod.conf --log-format json
    """
    from carod import log
    from carod.amqp import BadEndpoint, TransportError
    from carod.config import ConfigError, load
    from carod.starter.process import SpawnerError

    failures: list[Exception] = []
    try:
        settings = load(file, overrides={name.upper(): value for name, value in overrides.items() if value is not None})
        log.set_up(settings.config.log_format, settings.config.log_level)
        asyncio.run(_serve(settings))
    except* (ConfigError, BadEndpoint, TransportError, SpawnerError) as group:
        failures = list(leaves(group))
    for error in failures:
        click.echo(f"carod start: {error}", err=True)
    if failures:
        sys.exit(1)


def leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    """The exceptions of a group and of the groups in it."""
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from leaves(error)
        else:
            yield error


async def _serve(settings: Any) -> None:
    from carod.amqp import with_protocol
    from carod.log import event
    from carod.node import node

    for warning in settings.warnings:
        event(node.log, warning, 30)
    config = settings.config
    url = with_protocol(config.carod_broker_url, config.carod_broker_protocol)
    await node.Node(dataclasses.replace(config, carod_broker_url=url), settings.macros).run()


@click.command(short_help="Print every knob, its value and where that comes from.")
@click.option("--config", "file", metavar="FILE", help="Configuration file (default /etc/carod/carod.conf).")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, for machines.")
@click.argument("names", nargs=-1)
def config(file: str | None, as_json: bool, names: tuple[str, ...]) -> None:
    """Print every knob: name, type, default, present value, where it comes from, meaning.

    \b
    carod config
    carod config NUM_SLOTS EXECUTE
    carod config --json
    """
    from carod.config import load

    print_knobs("carod config", load, file, names, as_json)


def print_knobs(
    command: str, load: Callable[[str | None], Settings[Any]], file: str | None, names: tuple[str, ...], as_json: bool
) -> None:
    """What `carod config` and its like print of a configuration, all of it or these knobs."""
    from carod.config import ConfigError

    try:
        settings = load(file)
    except ConfigError as error:
        click.echo(f"{command}: {error}", err=True)
        sys.exit(1)
    wanted = {name.upper() for name in names}
    unknown = wanted - {setting.name for setting in settings.table}
    if unknown:
        click.echo(
            f"{command}: no knob is named {', '.join(sorted(unknown))}; `{command}` lists them",
            err=True,
        )
        sys.exit(2)
    table = [setting for setting in settings.table if not wanted or setting.name in wanted]
    if as_json:
        rows = [{name: getattr(setting, name) for name in setting.__slots__} for setting in table]
        click.echo(json.dumps(rows, indent=2))
        return
    for setting in table:
        click.echo(f"{setting.name} = {setting.value}")
        default = "" if setting.source == "default" else f"; default {setting.default}"
        click.echo(f"    {setting.meaning} ({setting.kind}{default}; from: {setting.source})")
    for warning in settings.warnings:
        click.echo(f"{command}: {warning}", err=True)


if __name__ == "__main__":
    main()
