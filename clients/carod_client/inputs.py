"""A job's input files: paths and bytes -> the zip that is the body of its message."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias, cast

from carod.amqp import Body
from carod_client.errors import BadJob

AnyPath: TypeAlias = str | os.PathLike[str]
Input: TypeAlias = AnyPath | tuple[str, bytes]
"""A path of a file or directory, or (name in the job's directory, content)."""
Inputs: TypeAlias = Iterable[Input] | Mapping[str, bytes | AnyPath]
"""Inputs in a row, or by the name they get in the job's directory."""

HELD_IN_MEMORY = 1 << 20
"""Bytes of zip kept in memory; a larger one goes through a temporary file and is streamed to the broker."""
BUILT_AT_ONCE = 256 << 10
"""Bytes of input zipped in the event loop (about 5 ms at level 1); more is left to a thread."""
COMPRESSION = 1
"""zlib's fastest: a zip is made while somebody waits for the job, and travels over a fast network."""
THE_EPOCH = (1980, 1, 1, 0, 0, 0)
"""A zip's earliest time, for every entry: the same inputs make the same bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the zip to be: `name` in the job's directory, from `path` or with `content`. `size` in
    bytes.
    """

    name: str
    mode: int
    size: int
    path: Path | None = None
    content: bytes = b""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


def members(inputs: Inputs) -> list[Member]:
    """What the inputs come to, sorted by name. Raises BadJob for what is missing, unreadable or there twice.

    A directory comes with its name (`data` -> `data/...`), with a slash at its end only its content does
    (`data/` -> `...`), as HTCondor's `transfer_input_files` has it. Symbolic links are followed.
    """
    found: dict[str, Member] = {}
    for member in _each(inputs):
        other = found.get(member.name)
        if other is None:
            found[member.name] = member
        elif not (other.is_directory and member.is_directory):
            raise BadJob(
                f"two inputs are both named {member.name!r} in the job's directory "
                f"({_origin(other)} and {_origin(member)}); give one of them another name"
            )
    for name in found:
        for parent in PurePosixPath(name).parents:
            above = found.get(str(parent))
            if above is not None and not above.is_directory:
                raise BadJob(f"input {name!r} lies below {str(parent)!r}, which is an input file, not a directory")
    return [found[name] for name in sorted(found)]


def build(entries: Iterable[Member]) -> Body:
    """The zip of the entries, empty bytes for none; bytes, or an open file when it is large. Same in, same
    out.

    Raises BadJob when a file can't be read (any more).
    """
    entries = list(entries)
    if not entries:
        return b""
    spool = tempfile.SpooledTemporaryFile(max_size=HELD_IN_MEMORY, prefix="carod-inputs-")
    try:
        with zipfile.ZipFile(spool, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION) as archive:
            for entry in entries:
                _write(archive, entry)
    except BaseException:
        spool.close()
        raise
    if spool.tell() > HELD_IN_MEMORY:
        return cast(BinaryIO, spool)
    spool.seek(0)
    with spool:
        return spool.read()


def release(body: Body) -> None:
    """Close the temporary file behind a large body; it is gone then."""
    if not isinstance(body, bytes):
        body.close()


def _each(inputs: Inputs) -> Iterator[Member]:
    if isinstance(inputs, str | bytes | os.PathLike):
        raise BadJob(f"inputs={inputs!r} is one path; inputs are a list: inputs=[{inputs!r}]")
    pairs: Iterable[tuple[str | None, object]]
    if isinstance(inputs, Mapping):
        pairs = inputs.items()
    else:
        pairs = [item if isinstance(item, tuple) and len(item) == 2 else (None, item) for item in inputs]
    for name, what in pairs:
        if isinstance(what, bytes | bytearray | memoryview) and name is not None:
            yield Member(_safe(name), stat.S_IFREG | 0o644, len(what), content=bytes(what))
        elif isinstance(what, str | os.PathLike):
            yield from _from_path(what, name)
        else:
            raise BadJob(f"input {what!r} is a {type(what).__name__}; an input is a path, or a pair (name, bytes)")


def _from_path(given: AnyPath, name: str | None) -> Iterator[Member]:
    text = os.fspath(given)
    path = Path(text)
    try:
        kind = path.stat()
    except (OSError, ValueError) as error:
        raise BadJob(f"input {text!r}: {_why(error)}; paths are relative to {os.getcwd()!r}") from None
    if name is None:
        contents_only = stat.S_ISDIR(kind.st_mode) and (text.endswith(os.sep) or path.resolve().name != path.name)
        name = "" if contents_only else path.name
    else:
        name = _safe(name)
    yield from _walk(path, name, kind, ())


def _walk(path: Path, name: str, kind: os.stat_result, above: tuple[tuple[int, int], ...]) -> Iterator[Member]:
    if stat.S_ISREG(kind.st_mode):
        if not os.access(path, os.R_OK):
            raise BadJob(f"input {str(path)!r} can't be read by this user; check its permissions")
        yield Member(name, kind.st_mode, kind.st_size, path)
        return
    if not stat.S_ISDIR(kind.st_mode):
        raise BadJob(f"input {str(path)!r} is neither a file nor a directory; leave it out")
    identity = (kind.st_dev, kind.st_ino)
    if identity in above:
        raise BadJob(f"input {str(path)!r} is a link to a directory it lies in; leave it out")
    if name:
        yield Member(name, kind.st_mode, 0)
    try:
        for entry in sorted(os.listdir(path)):
            child = path / entry
            yield from _walk(child, f"{name}/{entry}".lstrip("/"), child.stat(), (*above, identity))
    except OSError as error:
        raise BadJob(f"input {error.filename or str(path)!r}: {_why(error)}") from None


def _safe(name: str) -> str:
    """A name that stays in the job's directory, without `./`; raises BadJob for any other."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in name:
        raise BadJob(f"input name {name!r} does not lie in the job's directory; give a relative name without '..'")
    return str(pure)


def _write(archive: zipfile.ZipFile, entry: Member) -> None:
    info = zipfile.ZipInfo(entry.name + "/" * entry.is_directory, THE_EPOCH)
    info.create_system = 3  # Unix: only then do the permission bits count
    info.external_attr = entry.mode << 16 | (0x10 if entry.is_directory else 0)
    info.compress_type = zipfile.ZIP_STORED if entry.is_directory else zipfile.ZIP_DEFLATED
    info.file_size = entry.size
    if entry.path is None:
        archive.writestr(info, entry.content)
        return
    try:
        with entry.path.open("rb") as source, archive.open(info, "w") as target:
            shutil.copyfileobj(source, target, 1 << 18)
    except OSError as error:
        raise BadJob(f"input {str(entry.path)!r}: {_why(error)}") from None


def _origin(member: Member) -> str:
    return repr(str(member.path)) if member.path else f"{member.size} bytes given as such"


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
