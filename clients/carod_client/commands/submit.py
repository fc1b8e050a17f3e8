"""The command `carod submit`: run a program on the grid as if it ran here, or submit the jobs of a description."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click

from carod.amqp import BadEndpoint
from carod.classad import ClassAd
from carod.job import JobError as HeaderError
from carod.job import read_headers
from carod_client.commands.command import broker_options
from carod_client.commands.report import OWN_FAILURE, Report
from carod_client.commands.submission import Submission, exit_code_of
from carod_client.errors import GridError
from carod_client.grid import DEFAULT_QUEUE, Grid

INTERRUPTED = 130


DESCRIPTIONS = (".sub", ".submit", ".condor", ".jdl")
"""How the name of a submit description ends; after `--` any name is a program's."""


class _Command(click.Command):
    """Usage errors end with 125 too: any lower code is a job's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["after dashes"] = "--" in args
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.exit_code = OWN_FAILURE  # type: ignore[misc]
            raise


def _attributes(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    ad = ClassAd()
    for text in given:
        name, equals, source = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=EXPR; write for instance RequestMemory=512")
        try:
            read_headers({name: source.strip()}, ad)
        except HeaderError as error:
            raise click.BadParameter(str(error).removeprefix("ERROR: header ")) from None
    return dict(ad)


def _environment(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE; write for instance LANG=C")
        variables[name] = value
    return variables


@click.command(cls=_Command, context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]})
@broker_options
@click.option(
    "--queue", envvar="_CAROD_BROKER_QUEUE", default=DEFAULT_QUEUE, metavar="NAME", show_default=True,
    help="The job queue.",
)  # fmt: skip
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="FILE|DIR",
    help="Send a file or directory along; DIR/ with a slash sends what is in it. Repeatable.",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Unpack what the job left here; a sweep's into DIR/0, DIR/1, ...",
)  # fmt: skip
@click.option(
    "-a", "--attr", "attributes", multiple=True, metavar="NAME=EXPR", callback=_attributes,
    help="Set an attribute of the job ad to a ClassAd expression. Repeatable.",
)  # fmt: skip
@click.option(
    "-e", "--env", multiple=True, metavar="NAME=VALUE", callback=_environment,
    help="Set an environment variable of the job. Repeatable.",
)  # fmt: skip
@click.option(
    "--stdin", metavar="FILE", type=click.File("rb"),
    help="The job's standard input; - is this command's own.",
)  # fmt: skip
@click.option(
    "-n", "--count", metavar="N", type=click.IntRange(min=1),
    help="Run N jobs, a sweep. {n} in ARGS, --input and --env is 0 to N-1, and so is attribute ProcId.",
)  # fmt: skip
@click.option(
    "--in-flight", metavar="N", type=click.IntRange(min=1), default=100, show_default=True,
    help="Jobs of a sweep that are out at a time.",
)  # fmt: skip
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
    help="Give up on a job after so long, all in all.",
)  # fmt: skip
@click.option(
    "--expires", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
    help="Don't start a job that waited so long in the queue.",
)  # fmt: skip
@click.option(
    "--priority", metavar="N", type=click.IntRange(0, 255),
    help="Larger goes first, if the queue has priorities.",
)  # fmt: skip
@click.option(
    "--append", "-append", multiple=True, metavar="LINE",
    help="FILE.sub: a further line, before the first queue. Repeatable.",
)  # fmt: skip
@click.option("--dump", "-dump", is_flag=True, help="FILE.sub: submit nothing, print the jobs' ads; or [OUT] FILE.sub.")
@click.option("--direct", is_flag=True, help="FILE.sub: straight to the queue, even if an agent answers.")
@click.option(
    "--name", "-name", "agent_name", metavar="NAME", default="", help="FILE.sub: the agent, if several answer."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line: updates, results, errors.")
@click.option("-q", "--quiet", is_flag=True, help="Print what the job prints, and errors; no status, no bar.")
@click.argument("command", metavar="[-- CMD [ARGS]... | FILE.sub]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    broker: str,
    queue: str,
    command: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    append: tuple[str, ...],
    dump: bool,
    direct: bool,
    agent_name: str,
    **settings: Any,
) -> None:
    """Run CMD on the grid; its output comes out here, its exit code is this command's.
    Or submit the jobs that FILE.sub describes in HTCondor's submit language.

    CMD is an absolute path on the node's machine, or a file that is sent along: one of the inputs, or a local
    file written with a slash, such as ./job.sh.

    \b
    Examples:
      carod submit -- /bin/echo Hello
      carod submit --input scenario.json --output results -- ./price.py scenario.json
      carod submit --attr RequestMemory=512 --env LANG=C --timeout 60 -- /usr/bin/env
      echo data | carod submit --stdin - -- /usr/bin/sort
      carod submit --count 200 -i 'scenarios/{n}.json' -o out -- ./price.py '{n}.json'
      carod submit --json -- /bin/hostname | jq -r 'select(.event == "result").stdout'
      carod submit sweep.sub
      carod submit -append 'request_memory = 2GB' -dump sweep.sub

    A FILE.sub (its name ends in .sub, .submit, .condor or .jdl; - is standard input) goes to the agent, which keeps
    its jobs and results: see `carod q` and `carod fetch`. Without an agent, or with --direct, the jobs go straight to
    the queue; this command then stays until the last one ends, and writes their output, error and log files.

    \b
    Exit code:
      0-255    the job's own; 128 + the signal's number if it was killed
      124      timed out
      125      never ran or gave no result: refused, held, removed, expired,
               no broker, wrong usage
      130      interrupted (Ctrl-C): jobs that run are removed, jobs that still
               wait in the queue can't be called back
      A sweep ends with the highest of its jobs' codes.

    Status and progress go to a terminal only: in a pipe there is nothing but what the job prints.
    """
    described = _description(ctx, command, dump)
    if described is not None:
        from carod_client.commands.submit_file import submit_file

        _only_for_programs(ctx)
        out, file = described
        sys.exit(
            submit_file(
                file, out, append=append, dump=dump, direct=direct, agent_name=agent_name, broker=broker, queue=queue,
                as_json=as_json,
                quiet=quiet, **{name: settings[name] for name in FOR_BOTH},
            )
        )  # fmt: skip
    if append or dump or direct or agent_name:
        raise _wrong_usage("--append, --dump, --direct and --name are for submit descriptions, whose names end in .sub")
    report = Report(as_json=as_json, quiet=quiet, sweep=settings["count"])
    submission = Submission(report=report, command=command, **settings)
    try:
        code = asyncio.run(_run(submission, broker, queue))
    except (GridError, BadEndpoint) as error:
        report.own_failure(error)
        code = exit_code_of(error)
    except KeyboardInterrupt:
        report.interrupted(submission.left_behind)
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor can Python flush to it at exit
        code = 128 + 13
    sys.exit(code)


FOR_BOTH = ("in_flight", "timeout", "expires", "attributes")


def _description(ctx: click.Context, words: tuple[str, ...], dump: bool) -> tuple[str | None, str] | None:
    """The file to dump to, and the description, if it is one that is meant and not a program."""
    named = [word == "-" or word.endswith(DESCRIPTIONS) for word in words]
    if ctx.meta["after dashes"] or not (named[0] or (dump and named[-1])):
        return None
    if len(words) == 1:
        return None, words[0]
    if dump and len(words) == 2 and named[1]:
        return words[0], words[1]
    raise _wrong_usage(f"one description at a time; {words[1]!r} is too much (to run a program, write -- before it)")


def _only_for_programs(ctx: click.Context) -> None:
    """Raise UsageError for options that a description has commands for."""
    given = [
        param
        for param in ctx.command.params
        if isinstance(param, click.Option)
        and param.name in ("inputs", "output", "env", "stdin", "count", "priority")
        and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise _wrong_usage(f"{given[0].opts[-1]} is for programs; a submit description has commands for that")


def _wrong_usage(text: str) -> click.UsageError:
    error = click.UsageError(text)
    error.exit_code = OWN_FAILURE  # type: ignore[misc]
    return error


async def _run(submission: Submission, broker: str, queue: str) -> int:
    async with Grid(broker, queue) as grid:
        return await submission.run(grid)


if __name__ == "__main__":
    submit(prog_name="carod submit")
