"""What a job gave: how it ended, and the files it left, as the node zipped them."""

from __future__ import annotations

import io
import os
import shutil
import stat
import zipfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from carod.classad import ClassAd
from carod_client.errors import BadArchive


class Results:
    """The files of a job's directory, in a zip. Read-only; nothing is unpacked before it is asked for."""

    __slots__ = ("_archive", "body")

    def __init__(self, body: bytes) -> None:
        """`body` is the zip itself, empty when nothing came back. Raises BadArchive when it is no zip."""
        self.body = body
        self._archive: zipfile.ZipFile | None = None
        if body:
            try:
                self._archive = zipfile.ZipFile(io.BytesIO(body))
            except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
                raise BadArchive(f"the {len(body)} bytes that came back are no zip: {error}") from None

    def __repr__(self) -> str:
        return f"Results({', '.join(self.names()) or 'nothing'})"

    def __len__(self) -> int:
        return len(self.names())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def names(self) -> list[str]:
        """The files' names, in the job's directory, in the zip's order; directories are not named."""
        return [entry.filename for entry in self._entries() if not entry.is_dir()]

    def read(self, name: str) -> bytes:
        """A file's content. Raises KeyError naming what there is, BadArchive when it is damaged."""
        if self._archive is None or name not in self:
            raise KeyError(f"no file {name!r} came back; there are: {', '.join(self.names()) or 'none'}")
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise BadArchive(f"file {name!r} can't be read from the results: {error}") from None

    def checksum(self, name: str) -> tuple[int, int] | None:
        """A file's size and CRC-32, as the zip has them; None if there is no such file."""
        if self._archive is None or name not in self:
            return None
        entry = self._archive.getinfo(name)
        return entry.file_size, entry.CRC

    def extract(self, directory: str | os.PathLike[str], only: Container[str] | None = None) -> list[Path]:
        """Unpack everything below `directory` (made if need be), with permission bits; the files' paths come
        back.

        With `only`, files of other names are left out. Files there already are replaced. Links that stay inside
        are kept as links. Raises BadArchive, before anything is written, if an entry would land elsewhere: an
        absolute name, `..`, a link that leads out.
        """
        root = Path(directory)
        entries = [(entry, _inside(entry)) for entry in self._entries() if only is None or entry.filename in only]
        links = {name: self._link_target(entry, name) for entry, name in entries if _is_link(entry)}
        for _, name in entries:
            if not links.keys().isdisjoint(name.parents):
                raise BadArchive(f"the results hold {str(name)!r} below a link; nothing was unpacked")
        root.mkdir(parents=True, exist_ok=True)
        written = []
        for entry, name in entries:
            target = _below(root, name)
            if entry.is_dir():
                _make_directory(target)
            elif name in links:
                _make_way(target)
                target.symlink_to(links[name])
            else:
                self._unpack(entry, target)
            written += [] if entry.is_dir() else [target]
        for entry, name in reversed(entries):  # last, or a read-only directory would take no files
            if entry.is_dir() and _mode(entry):
                root.joinpath(*name.parts).chmod(_mode(entry) | stat.S_IRWXU)
        return written

    def _link_target(self, entry: zipfile.ZipInfo, name: PurePosixPath) -> str:
        """Where a link leads, if that stays inside: `..` only at its start, and not past the top."""
        target = os.fsdecode(self.read(entry.filename))
        parts = PurePosixPath(target).parts
        up = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
        if target.startswith("/") or not target or ".." in parts[up:] or up >= len(name.parts) or "\0" in target:
            raise BadArchive(f"the results' link {entry.filename!r} -> {target!r} may lead out; nothing unpacked")
        return target

    def _entries(self) -> list[zipfile.ZipInfo]:
        return self._archive.infolist() if self._archive else []

    def _unpack(self, entry: zipfile.ZipInfo, target: Path) -> None:
        assert self._archive is not None
        _make_way(target)
        # O_EXCL: never through a link that somebody put there meanwhile
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            try:
                with self._archive.open(entry) as source:
                    shutil.copyfileobj(source, file, 1 << 18)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
                raise BadArchive(f"file {entry.filename!r} can't be read from the results: {error}") from None
            os.fchmod(descriptor, _mode(entry) or 0o644)


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended.

    Either `exit_code` or `signal` is None. `ad` is the job's ClassAd with all that the node added. Times are
    in seconds: `duration` is the job's own run on the node, `queued_seconds` from submission to the first
    word that it runs (None if that never came), `elapsed_seconds` from submission to this result, by the
    client's clock. In a sweep `item` is the item it belongs to and `index` that item's place, counted from 0.
    """

    job_id: str
    exit_code: int | None
    signal: int | None
    ad: ClassAd
    results: Results
    duration: float
    queued_seconds: float | None
    elapsed_seconds: float
    item: Any = field(default=None)
    index: int = field(default=-1)

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with code 0."""
        return self.exit_code == 0

    @property
    def returncode(self) -> int:
        """The code as a shell gives it: the exit code, or 128 + the signal's number."""
        return self.exit_code if self.exit_code is not None else 128 + (self.signal or 0)

    @property
    def stdout(self) -> bytes:
        """The job's standard output; empty when it did not come back."""
        return self._stream("Out", "_condor_stdout")

    @property
    def stderr(self) -> bytes:
        """The job's standard error; empty when it did not come back."""
        return self._stream("Err", "_condor_stderr")

    def _stream(self, attribute: str, default: str) -> bytes:
        name = self.ad.get(attribute)
        name = str(PurePosixPath(name)) if isinstance(name, str) and name else default
        return self.results.read(name) if name in self.results else b""


def _inside(entry: zipfile.ZipInfo) -> PurePosixPath:
    """The entry's name, if it stays below the directory it is unpacked to and is a file or directory."""
    pure = PurePosixPath(entry.filename)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in entry.filename:
        raise BadArchive(f"the results hold {entry.filename!r}, which would land outside; nothing was unpacked")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise BadArchive(f"the results hold {entry.filename!r}, which is a device or socket; nothing was unpacked")
    return pure


def _below(root: Path, name: PurePosixPath) -> Path:
    """The path for a name, its directories made; raises BadArchive where a link leads out."""
    here = root
    for part in name.parts[:-1]:
        here = here / part
        _make_directory(here)
    return here / name.name


def _make_directory(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise BadArchive(f"{str(path)!r} is a link or a file where a directory must be; unpack elsewhere")
    path.mkdir(exist_ok=True)


def _make_way(path: Path) -> None:
    """Remove what is in a file's place; a directory is left to the user."""
    if path.is_dir() and not path.is_symlink():
        raise BadArchive(f"{str(path)!r} is a directory, but a file of that name came back; unpack elsewhere")
    path.unlink(missing_ok=True)


def _is_link(entry: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(entry.external_attr >> 16)


def _mode(entry: zipfile.ZipInfo) -> int:
    """Permission bits without setuid, setgid and sticky; 0 when the zip has none."""
    return entry.external_attr >> 16 & 0o777
