"""What to run and with what: a call's arguments -> the job's ClassAd and its input files."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from carod.amqp import Body
from carod.arguments import ArgumentsError, join_arguments, join_environment
from carod.classad import ClassAd, ClassAdSyntaxError, Expr, parse, unparse
from carod.job import Reply
from carod_client.errors import BadJob
from carod_client.inputs import BUILT_AT_ONCE, AnyPath, Inputs, Member, build, members

STDIN_NAME = "_condor_stdin"
"""The input file that holds what `stdin` gave; named as HTCondor names a job's other two streams."""
_ATTRIBUTE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
LONGEST_NAME = 255
"""Bytes in an AMQP header's name or a message id (shortstr, AMQP 0-9-1 specification 4.2.5.3)."""


class CommonOptions(TypedDict, total=False):
    """What jobs and sweeps take besides command, arguments and inputs. All optional."""

    outputs: Iterable[str] | None
    """Only these files come back, besides standard output and error; by default all that the job left."""
    requirements: str | Expr | None
    """A ClassAd expression that a slot must meet, such as 'TARGET.Memory >= 4096'."""
    timeout: float | None
    """Seconds from the call to the result, all in all; then JobTimeout. None waits for ever."""
    expires: float | None
    """Seconds the job may wait for a node; then it is not started any more, and JobExpired is raised."""
    priority: int | None
    """0 to 255, where the queue has priorities; larger goes first."""
    durable: bool | None
    """Whether the job and its replies survive a restart of the broker. Default: as the reply queue does."""
    check: bool
    """Raise JobFailed for a job that ends with another code than 0, or by a signal."""
    on_update: Callable[[Reply], None] | None
    """Called in the event loop with each reply as it comes; it must not block. What it raises ends the wait."""


class JobOptions(CommonOptions, total=False):
    """What `Grid.submit` and `Grid.run` take besides command and arguments. All optional."""

    inputs: Inputs
    """Files and directories sent along: paths, (name, bytes) pairs, or a mapping of names to either."""
    attributes: Mapping[str, Any]
    """Further attributes of the job ad. A str is a string; an expression is `carod_client.expr("...")`."""
    env: Mapping[str, str]
    """The job's environment, on top of the node's clean one."""
    stdin: bytes | None
    """What the job reads from its standard input; nothing by default."""
    message_id: str | None
    """The job's id, unique for ever; a new uuid by default."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """The command as the node is to call it, and the input files; `stdin` says whether one is that."""

    cmd: str
    members: list[Member]
    stdin: bool

    @property
    def at_once(self) -> bool:
        """Whether it is small enough to be zipped without a thread."""
        return sum(member.size for member in self.members) <= BUILT_AT_ONCE

    def body(self) -> Body:
        """The zip for the job's message."""
        return build(self.members)


def parcel(cmd: AnyPath, inputs: Inputs = (), stdin: bytes | None = None) -> Parcel:
    """The command and its files. Raises BadJob when an input is missing, or nobody could find the command.

    An absolute `cmd` is a program of the node's machine. A relative one comes from the inputs: by its name in
    the job's directory, or as the local file that is among them; one written with a slash (`./job.sh`) and
    found here is sent along by itself.
    """
    command = os.fspath(cmd)
    if not isinstance(command, str) or not command or "\0" in command:
        raise BadJob(f"cmd {cmd!r} is no program's name; give an absolute path, or one of the inputs")
    files = members(inputs)
    if stdin is not None:
        if not isinstance(stdin, bytes | bytearray):
            raise BadJob(f"stdin is a {type(stdin).__name__}, not bytes; write stdin=text.encode()")
        files = _with(files, Member(STDIN_NAME, stat.S_IFREG | 0o644, len(stdin), content=bytes(stdin)))
    if not os.path.isabs(command):
        command, files = _from_inputs(command, files)
    return Parcel(command, files, stdin is not None)


def describe(
    package: Parcel,
    args: Iterable[str],
    *,
    attributes: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    outputs: Iterable[str] | None = None,
    requirements: str | Expr | None = None,
) -> ClassAd:
    """The job's ClassAd. Raises BadJob naming the attribute that can't be sent, or that is given twice."""
    ad = ClassAd({"Cmd": package.cmd})
    words = _listed("args", args)
    try:
        if words:
            ad["Arguments"] = join_arguments([_text(word, "argument") for word in words])
        if env:
            ad["Environment"] = join_environment(
                {name: _text(value, f"environment variable {name}") for name, value in env.items()}
            )
    except ArgumentsError as error:
        raise BadJob(str(error)) from None
    if package.stdin:
        ad["In"] = STDIN_NAME
    if outputs is not None:
        ad["TransferOutput"] = _names(_listed("outputs", outputs))
    if requirements is not None:
        ad["Requirements"] = _expression("requirements", requirements)
    for name, value in (attributes or {}).items():
        if name in ad:
            raise BadJob(f"attribute {name} is given twice: {ad[name]!r} by its own argument, and {value!r}")
        ad[name] = _sendable(name, value)
    return ad


def checked_id(message_id: str) -> str:
    """A message id that fits its property. Raises BadJob."""
    if not isinstance(message_id, str) or not 0 < len(message_id.encode("utf-8", "replace")) <= LONGEST_NAME:
        raise BadJob(f"message_id {message_id!r} is not a text of 1 to {LONGEST_NAME} bytes; leave it out for a uuid")
    return message_id


def checked_seconds(name: str, value: float | None) -> float | None:
    """A time of more than 0 seconds, or None. Raises BadJob."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise BadJob(f"{name}={value!r} is not a number of seconds above 0; leave it out for no limit")
    return value


def _from_inputs(command: str, files: list[Member]) -> tuple[str, list[Member]]:
    """A relative command's name in the job's directory, and the files with it among them."""
    name = str(PurePosixPath(command))
    here = Path(command)
    for file in files:
        same_file = file.path is not None and here.is_file() and file.path.exists() and file.path.samefile(here)
        if not file.is_directory and (file.name == name or same_file):
            return file.name, files
    if "/" in command and here.is_file():
        info = here.stat()
        sent = Member(here.name, info.st_mode, info.st_size, here)
        return sent.name, _with(files, sent)
    known = shutil.which(command)
    if known and os.path.isabs(known):
        mend = f"for the node's own program give its absolute path, such as {known}"
    elif here.is_file():
        mend = f"to send the local file along write ./{command}"
    else:
        mend = "give an absolute path for a program of the node's machine, or add the file to the inputs"
    raise BadJob(f"command {command!r} is neither an absolute path nor one of the inputs; {mend}")


def _with(files: list[Member], added: Member) -> list[Member]:
    if any(file.name == added.name for file in files):
        raise BadJob(f"an input is named {added.name!r}, a name that is needed for another file; rename the input")
    return [*files, added]


def _listed(name: str, values: Iterable[str]) -> list[str]:
    if isinstance(values, str):
        raise BadJob(f"{name}={values!r} is one text; write a list: {name}=[{values!r}]")
    return list(values)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadJob(f"{what} {value!r} is a {type(value).__name__}, not text; write str({value!r})")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadJob(f"{what} {value!r} can't be sent as UTF-8; send it in an input file") from None
    return value


def _names(names: list[str]) -> str:
    for name in names:
        if not isinstance(name, str) or not name.strip() or "," in name:
            raise BadJob(f"outputs: {name!r} is no file name that TransferOutput can hold; rename the file")
    return ", ".join(names)


def _expression(name: str, value: str | Expr) -> Expr:
    if isinstance(value, Expr):
        return value
    try:
        return parse(value)
    except ClassAdSyntaxError as error:
        raise BadJob(f"{name}: {error}") from None


def _sendable(name: str, value: Any) -> Any:
    if not isinstance(name, str) or not _ATTRIBUTE_NAME.match(name) or len(name) > LONGEST_NAME:
        raise BadJob(f"attribute name {name!r}: a name is letters, digits and underscores, not starting with a digit")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise BadJob(f"attribute {name}: {value} does not fit 64 bits; send it as a string")
    try:
        unparse(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise BadJob(
            f"attribute {name}: {value!r} is a {type(value).__name__}, which has no ClassAd form ({error}); "
            "send a number, a bool, a str, a list of these, or carod_client.expr('...')"
        ) from None
    return value
