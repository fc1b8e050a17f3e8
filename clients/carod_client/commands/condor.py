"""What the commands with HTCondor's habits have in common: its options, in its spelling, and an agent to talk to."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click

from carod.amqp import BadEndpoint
from carod.classad import ClassAd
from carod_client.agent import UNKNOWN_JOB, Agent, AgentRefused, NoAgent
from carod_client.commands.command import Code, grid_options
from carod_client.commands.printing import (
    AutoFormat,
    BadFormat,
    Format,
    json_array,
    json_lines,
    long_text,
)
from carod_client.commands.tables import clean
from carod_client.errors import GridError, NoQueue

F = TypeVar("F", bound=Callable[..., Any])
_AUTOFORMAT = re.compile(r"--?(?:af|autoformat)(?::(?P<options>.*))?\Z")


class CondorCommand(click.Command):
    """A command that takes `-af A B C` as HTCondor's do: all words up to the next option are attributes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        rest = iter(args)
        taking = False
        for word in rest:
            if word == "--":
                words += [word, *rest]
            elif match := _AUTOFORMAT.match(word):
                taking = True
                words += ["--af-options", match["options"] or ""]
            elif taking and not word.startswith("-"):
                words += ["--af-name", word]
            else:
                taking = False
                words.append(word)
        return super().parse_args(ctx, words)


def condor_command(name: str, summary: str, **settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A command in HTCondor's habits; `summary` is its line in the list of all."""
    settings = {"help_option_names": ["-h", "-help", "--help"], **settings}
    return click.command(name, cls=CondorCommand, short_help=summary, context_settings=settings)


def constraint_option(command: F) -> F:
    return click.option(
        "--constraint", "-constraint", "-c", metavar="EXPR", default="", help="Those for which this expression is true."
    )(command)


def name_option(command: F) -> F:
    return click.option(
        "--name", "-name", "-n", "agent_name", metavar="NAME", default="", help="The agent, if several answer."
    )(command)


def _hidden(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, hidden=True, **settings)


def printing_options(command: F) -> F:
    """-format, -af, -long, -json, -jsonl: how ads are printed. They end in `Printer`."""
    options = (
        click.option("--long", "-long", "-l", "as_long", is_flag=True, help="Whole ads, an attribute a line."),
        click.option(
            "--format", "-format", "-f", "formats", nargs=2, multiple=True, metavar="FMT ATTR",
            help="An attribute in a printf format, such as '%-8s' Owner; \\n ends a line. Repeatable.",
        ),
        click.option(
            "-af", "autoformat_shown", metavar="[:,htlnrgVj] ATTR...", expose_value=False,
            help="The values of attributes, a line for each ad. , t n between them; h headings, l labels, "
            "j job id, r unevaluated, V quoted, g blank lines.",
        ),
        _hidden("--af-options", "af_options", multiple=True),
        _hidden("--af-name", "af_names", multiple=True),
        click.option("--json", "-json", "as_json", is_flag=True, help="A JSON array, an ad a line."),
        click.option("--jsonl", "-jsonl", "as_jsonl", is_flag=True, help="A JSON object a line."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def agent_options(command: F) -> F:
    """The options of all these commands, without grid_options' --json; they end in `run_agent`."""
    command = name_option(command)
    params = len(getattr(command, "__click_params__", []))
    command = grid_options(command)
    added: list[click.Option] = command.__click_params__  # type: ignore[attr-defined]
    added[params:] = [option for option in added[params:] if option.name != "as_json"]
    return command


class Printer:
    """How ads are to be printed, by the options of `printing_options`. Raises UsageError."""

    def __init__(
        self,
        *,
        as_long: bool,
        formats: tuple[tuple[str, str], ...],
        af_options: tuple[str, ...],
        af_names: tuple[str, ...],
        as_json: bool,
        as_jsonl: bool,
    ) -> None:
        chosen = [bool(formats), bool(af_options), as_json, as_jsonl]
        if sum(chosen) > 1:
            raise click.UsageError("choose one of -format, -af, -json and -jsonl")
        self._long, self._json, self._jsonl = as_long, as_json, as_jsonl
        try:
            self._formats = [Format.read(*pair) for pair in formats]
            self._auto = AutoFormat.read("".join(af_options), af_names) if af_options else None
        except BadFormat as error:
            raise click.UsageError(str(error)) from None

    @property
    def asked(self) -> bool:
        """Whether any of them was given; else the command's own table is printed."""
        return bool(self._long or self._formats or self._auto or self._json or self._jsonl)

    @property
    def for_machines(self) -> bool:
        return self._json or self._jsonl

    @property
    def names(self) -> list[str]:
        """The attributes that are needed, as far as that is known; none means all of them."""
        if self._auto is not None and all(name.isidentifier() for name in self._auto.names):
            return [*self._auto.names, "ClusterId", "ProcId"]
        if self._formats and all(str(each.value).isidentifier() for each in self._formats):
            return [str(each.value) for each in self._formats]
        return []

    def text(self, ads: Iterable[ClassAd]) -> Iterator[str]:
        """The ads as they are to be printed, piece by piece."""
        if self._json:
            yield from json_array(ads)
        elif self._jsonl:
            yield from json_lines(ads)
        elif self._auto is not None:
            yield from self._auto.lines(ads)
        elif self._formats:
            yield from ("".join(each.text(ad) for each in self._formats) for ad in ads)
        else:
            yield from map(long_text, ads)


def printer(settings: dict[str, Any]) -> Printer:
    """Take the options of `printing_options` out of a command's."""
    names = ("as_long", "formats", "af_options", "af_names", "as_json", "as_jsonl")
    return Printer(**{name: settings.pop(name) for name in names})


def write(pieces: Iterable[str]) -> None:
    """Print it as it comes."""
    for piece in pieces:
        sys.stdout.write(piece)
    sys.stdout.flush()


def complain(error: Exception | str) -> None:
    """Tell of an error, on one line."""
    sys.stdout.flush()
    print(f"carod: {clean(str(error))}", file=sys.stderr, flush=True)


def guarded(work: Callable[[], Code]) -> None:
    """Do it, and end with the code that says how it went."""
    try:
        code = work()
        sys.stdout.flush()
    except BadEndpoint as error:
        complain(error)
        code = Code.USAGE
    except (NoAgent, NoQueue) as error:
        complain(error)
        code = Code.NOBODY
    except GridError as error:
        complain(error)
        unknown = isinstance(error, AgentRefused) and error.status == UNKNOWN_JOB
        code = Code.NOBODY if unknown else Code.FAILED
    except KeyboardInterrupt:
        code = Code.INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Code.BROKEN_PIPE
    sys.exit(code)


def run_agent(work: Callable[[Agent], Code], broker: str, queue: str, agent_name: str = "") -> None:
    """Do it with the agent of a queue."""

    def connected() -> Code:
        with Agent.find(broker, queue, agent_name) as agent:
            return work(agent)

    guarded(connected)
