"""The command `qmf-agent`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="carod")
def main() -> None:
    """The management agent: a job queue in front of the grid, and its jobs as objects for QMF consoles.

    \b
    qmf-agent start                               serve the queue `grid` and consoles on the local broker
    qmf-agent config                              every knob and where its value comes from
    """


@main.command(short_help="Keep the job queue and answer consoles.")
@click.option("--broker", "carod_broker_url", metavar="URL", help="amqp[s]://user:password@host:port/vhost")
@click.option(
    "--protocol", "carod_broker_protocol", type=click.Choice(["0-9-1", "1.0"]), help="AMQP's, if not as the URL says."
)
@click.option("--queue", "carod_broker_queue", metavar="NAME", help="The job queue of the grid (default grid).")
@click.option("--name", "schedd_name", metavar="NAME", help="The agent's name, first in job ids (default: the host's).")
@click.option("--spool", metavar="DIR", help="Where the queue, inputs and results are kept.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Log lines for people or for machines.")
@click.option("--config", "file", metavar="FILE", help="Configuration file (default /etc/carod/qmf-agent.conf).")
def start(file: str | None, **overrides: Any) -> None:
    """Keep the job queue and answer consoles, in the foreground.

    Jobs that are submitted here wait here, a few of them on the grid, and are there again after any crash. SIGTERM or
    Ctrl-C ends the agent at once; jobs that run go on, and their results wait on the broker until it is back.

    \b
    qmf-agent start
    qmf-agent start --broker amqp://me:secret@broker.example/prod --queue risk --name risk-1
    qmf-agent start --spool /srv/spool --log-format json
    """
    from carod import log
    from carod.amqp import BadEndpoint, TransportError
    from carod.cli import leaves
    from carod.config import ConfigError
    from qmf_agent.config import load

    failures: list[Exception] = []
    try:
        settings = load(file, overrides={name.upper(): value for name, value in overrides.items() if value is not None})
        log.set_up(settings.config.log_format, settings.config.log_level)
        asyncio.run(_serve(settings))
    except* (ConfigError, BadEndpoint, TransportError) as group:
        failures = list(leaves(group))
    for error in failures:
        click.echo(f"qmf-agent start: {error}", err=True)
    if failures:
        sys.exit(1)


async def _serve(settings: Any) -> None:
    from carod.log import event
    from qmf_agent import agent

    for warning in settings.warnings:
        event(agent.log, warning, 30)
    await agent.Agent(settings.config).run()


@main.command(short_help="Print every knob, its value and where that comes from.")
@click.option("--config", "file", metavar="FILE", help="Configuration file (default /etc/carod/qmf-agent.conf).")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, for machines.")
@click.argument("names", nargs=-1)
def config(file: str | None, as_json: bool, names: tuple[str, ...]) -> None:
    """Print every knob: name, type, default, present value, where it comes from, meaning.

    \b
    qmf-agent config
    qmf-agent config JOB_WINDOW SPOOL
    """
    from carod.cli import print_knobs
    from qmf_agent.config import load

    print_knobs("qmf-agent config", load, file, names, as_json)


if __name__ == "__main__":
    main()
