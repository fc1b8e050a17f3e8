"""The job's directory: what comes in is unpacked here, what goes out is zipped here, hostile archives stop here.

Runs in a slot's spawner, as the job's user: whatever a check here misses, the kernel still refuses. Imports no
more than it must, for every slot has a spawner in memory.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO

# Zip's encoding of names that are not UTF-8. Here, as everything is that a spawner may ever import: later it is the
# jobs' user, who may not be allowed to read Python's library.
codecs.lookup("cp437")

NODE_FILES = (".job.ad", ".machine.ad")
"""Written by the node into each job's directory, and not returned."""
IN_MEMORY = 256 << 10
"""Results whose files sum to no more bytes than this are zipped in memory, larger ones into a file."""
COPY = 1 << 18
MAX_NAME = 4096
MAX_TAR_EXTRAS = 1 << 20
"""Bytes of a tar's long names and pax records, which tarfile reads whole: a few of gzip can claim gigabytes."""
MAX_NAMED = 100
"""Refused or left-out names that are told one by one: they travel in a header, and headers end at 128 KiB."""
COMPRESS_FROM = 256
"""Files of fewer bytes are stored: deflating them costs more than it saves."""
SAMPLE = 64 << 10
DEFLATE_LEVEL = 1
"""A result waits for its compression; level 1 takes a third of the default's time for some 10 % more bytes."""


class SandboxError(ValueError):
    """An archive or a file name that is refused; the text names it and says why."""


@dataclass(slots=True)
class Limits:
    """Bounds on what an archive may become; bytes and number of entries."""

    size: int
    files: int


# -- in --------------------------------------------------------------------------------------------------------


def unpack(archive: BinaryIO, directory: str, limits: Limits, executable: str | None = None) -> None:
    """Unpack zip, tar or tar.gz, told apart by content, into `directory`.

    `executable` is the entry that gets its execute bits whatever the archive says. Raises SandboxError; what was
    unpacked till then stays, for the directory is thrown away.
    """
    head = archive.read(512)
    archive.seek(0)
    placer = _Placer(directory, limits, executable)
    try:
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            _unpack_zip(archive, placer)
        elif head.startswith(b"\x1f\x8b"):
            with gzip.open(archive) as plain:
                _unpack_tar(plain, placer)
        elif _is_tar(head):
            _unpack_tar(archive, placer)
        else:
            raise SandboxError(
                f"the body begins with {head[:8]!r}, which is no zip, tar or tar.gz; send the files as one of these"
            )
    except SandboxError:
        raise
    except RuntimeError as error:  # how zipfile says "encrypted" or "compressed in a way I don't know"
        raise SandboxError(f"the archive in the body can't be read: {error}") from None
    except OSError as error:
        if error.errno is not None:  # the disk's, not the archive's
            raise
        raise SandboxError(f"the archive in the body is damaged: {error}") from None
    except Exception as error:  # each format and compression has errors of its own, and not all are documented
        raise SandboxError(f"the archive in the body is damaged: {error or type(error).__name__}") from None


class _Placer:
    """Puts entries into the directory and counts them against the limits as they grow, not as they claim."""

    def __init__(self, directory: str, limits: Limits, executable: str | None) -> None:
        self.directory, self.limits = directory, limits
        self.executable = os.path.normpath(executable) if executable else None
        self.size = self.files = 0

    def path(self, name: str) -> str:
        """Where an entry belongs. Raises SandboxError for a name that leads elsewhere."""
        self._count()
        clean = os.path.normpath(name)
        if not name or "\0" in name or len(name) > MAX_NAME or os.path.isabs(clean) or clean.split("/")[0] == "..":
            raise SandboxError(f"the archive's entry {name[:200]!r} leads out of the job's directory")
        parent = self.directory
        for part in clean.split("/")[:-1]:
            parent = f"{parent}/{part}"
            if self._make_directory(parent, name):
                self._count()
            elif not stat.S_ISDIR(os.lstat(parent).st_mode):
                raise SandboxError(f"the archive's entry {name[:200]!r} passes through a file or a link")
        return f"{self.directory}/{clean}" if clean != "." else self.directory

    def _count(self) -> None:
        self.files += 1
        if self.files > self.limits.files:
            raise SandboxError(f"the archive holds more than MAX_UNPACKED_FILES = {self.limits.files} entries")

    def _make_directory(self, path: str, name: str) -> bool:
        """Whether it is new. Raises SandboxError for a name that the file system does not take."""
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            return False
        except OSError as error:
            raise SandboxError(f"the archive's entry {name[:200]!r}: {error.strerror}") from None
        return True

    def add_directory(self, name: str) -> None:
        self._make_directory(self.path(name), name)

    def add_file(self, name: str, mode: int, content: IO[bytes]) -> None:
        path = self.path(name)
        bits = (mode & 0o777) | 0o600 if mode & 0o777 else 0o644
        if os.path.normpath(name) == self.executable:
            bits |= 0o100
        try:
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, bits)
        except OSError as error:
            raise SandboxError(f"the archive's entry {name[:200]!r}: {error.strerror}") from None
        with open(target, "wb") as file:
            while chunk := content.read(COPY):
                self.size += len(chunk)
                if self.size > self.limits.size:
                    raise SandboxError(f"the archive unpacks to more than MAX_UNPACKED_SIZE = {self.limits.size} bytes")
                file.write(chunk)
        os.chmod(path, bits)  # the umask does not know what the job needs

    def add_link(self, name: str, target: str) -> None:
        path = self.path(name)
        if not _leads_inside(os.path.normpath(name).count("/"), target):
            raise SandboxError(
                f"the archive's link {name[:200]!r} -> {target[:200]!r} leads out of the job's directory"
            )
        try:
            os.symlink(target, path)
        except OSError as error:
            raise SandboxError(f"the archive's link {name[:200]!r}: {error.strerror}") from None


def _leads_inside(depth: int, target: str) -> bool:
    """Whether a link `depth` directories down stays inside, wherever other links lead.

    It may climb before it descends, not after: what looks like `name/..` is not where it started if `name` is a
    link.
    """
    if not target or os.path.isabs(target) or "\0" in target:
        return False
    climbed = 0
    descending = False
    for part in target.split("/"):
        if part == "..":
            if descending:
                return False
            climbed += 1
        elif part not in ("", "."):
            descending = True
    return climbed <= depth


def _unpack_zip(archive: BinaryIO, placer: _Placer) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for entry in zipped.infolist():
            mode = entry.external_attr >> 16
            if entry.is_dir():
                placer.add_directory(entry.filename)
            elif stat.S_ISLNK(mode):
                placer.add_link(entry.filename, zipped.open(entry).read(MAX_NAME).decode())
            else:
                with zipped.open(entry) as content:
                    placer.add_file(entry.filename, mode, content)


_TAR_EXTRAS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class _TarInfo(tarfile.TarInfo):
    def _proc_member(self, tarred: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _TAR_EXTRAS and self.size > MAX_TAR_EXTRAS:
            raise SandboxError(f"the archive holds a name of {self.size} bytes; no more than {MAX_TAR_EXTRAS} are read")
        return super()._proc_member(tarred)  # type: ignore[misc,no-any-return]


def _unpack_tar(archive: Any, placer: _Placer) -> None:
    with tarfile.open(fileobj=archive, mode="r|", tarinfo=_TarInfo) as tarred:
        for entry in tarred:
            if entry.isdir():
                placer.add_directory(entry.name)
            elif entry.isreg():
                content = tarred.extractfile(entry)
                assert content is not None  # extractfile gives None only for what is no file
                placer.add_file(entry.name, entry.mode, content)
            elif entry.issym():
                placer.add_link(entry.name, entry.linkname)
            elif entry.islnk():
                _hard_link(entry, placer)
            else:
                raise SandboxError(f"the archive's entry {entry.name[:200]!r} is a device or a pipe")


def _hard_link(entry: tarfile.TarInfo, placer: _Placer) -> None:
    source = os.path.normpath(entry.linkname)
    path = placer.path(entry.name)
    if os.path.isabs(source) or source.split("/")[0] == "..":
        raise SandboxError(
            f"the archive's link {entry.name[:200]!r} -> {source[:200]!r} leads out of the job's directory"
        )
    try:
        os.link(f"{placer.directory}/{source}", path, follow_symlinks=False)
    except OSError as error:
        raise SandboxError(f"the archive's link {entry.name[:200]!r}: {error.strerror}") from None


def _is_tar(head: bytes) -> bool:
    """A tar header block: its checksum counts itself as eight spaces (POSIX pax, "ustar Interchange Format")."""
    if len(head) < 512:
        return False
    try:
        claimed = int(head[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return False
    return claimed == sum(head) - sum(head[148:156]) + 8 * 32


# -- out -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    """A zip of what a job left behind.

    `zipped` is bytes, or an open file of its own without a name; `refused` names what was asked for but lies
    outside, is missing or is no file; `left_out` names what did not fit into `size_limit` bytes.
    """

    zipped: bytes | BinaryIO
    refused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Entry:
    name: str
    path: str
    info: os.stat_result


def collect(
    directory: str,
    size_limit: int,
    *,
    first: tuple[str, ...] = (),
    names: list[str] | None = None,
    iwd: str | None = None,
) -> Result:
    """Zip a job's directory, or only `names` of it (relative to it, else to `iwd`), the files of `first` before all.

    The job's processes must be gone. Links are kept as links where they stay inside and are never followed.
    `size_limit` is in bytes of zip.
    """
    result = Result(b"")
    roots = [root for root in (directory, iwd) if root]
    if names is None:
        entries = list(_walk(directory, "", directory, result.refused))
    else:
        entries = [entry for name in (*first, *names) for entry in _named(name, roots, result.refused)]
    wanted = {entry.name: entry for entry in entries if entry.name not in NODE_FILES}
    ordered = [wanted.pop(name) for name in first if name in wanted]
    ordered += wanted.values()
    total = sum(entry.info.st_size for entry in ordered)
    target: BinaryIO = io.BytesIO() if total <= IN_MEMORY else _nameless_file(os.path.dirname(directory))
    _write_zip(target, ordered, size_limit, result)
    result.refused, result.left_out = _tellable(result.refused), _tellable(result.left_out)
    result.zipped = target.getvalue() if isinstance(target, io.BytesIO) else target
    return result


def _tellable(names: list[str]) -> list[str]:
    """Names as text that fits a header."""
    told = [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:200] for name in names[:MAX_NAMED]]
    return told if len(names) <= MAX_NAMED else [*told, f"and {len(names) - MAX_NAMED} more"]


def _nameless_file(directory: str) -> BinaryIO:
    try:
        return open(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600), "w+b")
    except OSError:  # not every file system has O_TMPFILE
        path = f"{directory}/result.{time.time_ns()}"
        file = open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "w+b")
        os.unlink(path)
        return file


def _walk(top: str, prefix: str, root: str, refused: list[str]) -> Iterator[_Entry]:
    """Every file, link and empty directory below `top`, in order, depth first, without recursion.

    Names begin with `prefix`; links may lead anywhere in `root`.
    """
    stack = [(top, prefix)]
    while stack:
        path, base = stack.pop()
        try:
            with os.scandir(path) as listing:
                found = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            refused.append(f"{base or '.'} ({error.strerror})")
            continue
        if not found and base:
            yield _Entry(base + "/", path, os.lstat(path))
        for entry in found:
            name = f"{base}/{entry.name}" if base else entry.name
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError as error:  # a path may be longer than the kernel takes
                refused.append(f"{name} ({error.strerror})")
                continue
            if stat.S_ISDIR(info.st_mode):
                stack.append((entry.path, name))
            else:
                yield from _file(_Entry(name, entry.path, info), root, refused)


def _file(entry: _Entry, root: str, refused: list[str]) -> Iterator[_Entry]:
    kind = entry.info.st_mode
    if stat.S_ISLNK(kind):
        absolute = os.path.isabs(os.readlink(entry.path))
        if absolute or not _inside(os.path.realpath(entry.path), os.path.realpath(root)):
            refused.append(entry.name)
            return
    elif not stat.S_ISREG(kind):
        refused.append(entry.name)
        return
    yield entry


def _inside(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _named(name: str, roots: list[str], refused: list[str]) -> Iterator[_Entry]:
    """What one name of TransferOutput stands for. Its path is resolved: no link on the way may lead out."""
    for root in roots:
        path = os.path.join(root, name)
        real = os.path.realpath(path)
        top = os.path.realpath(root)
        if not os.path.lexists(path) or real == top or not _inside(real, top):
            continue
        relative = os.path.relpath(real, top)
        info = os.lstat(real)
        if stat.S_ISDIR(info.st_mode):
            yield from _walk(real, relative, top, refused)
            return
        if stat.S_ISREG(info.st_mode):
            yield _Entry(relative, real, info)
            return
    refused.append(name)


def _write_zip(target: BinaryIO, entries: list[_Entry], size_limit: int, result: Result) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=DEFLATE_LEVEL) as zipped:
        central = 22  # bytes of the directory at the archive's end, so far only its end record
        for entry in entries:
            cost = 46 + 30 + 24 + 2 * len(entry.name.encode("utf-8", "surrogateescape"))  # headers at both places
            try:
                content = _open(entry)
            except OSError as error:
                result.refused.append(f"{entry.name} ({error.strerror})")
                continue
            with content:
                if _add(zipped, target, entry, content, size_limit - central - cost):
                    central += cost
                else:
                    result.left_out.append(entry.name)


def _open(entry: _Entry) -> IO[bytes]:
    if entry.name.endswith("/") or not entry.info.st_size:
        return io.BytesIO()
    if stat.S_ISLNK(entry.info.st_mode):
        return io.BytesIO(os.readlink(entry.path).encode("utf-8", "surrogateescape"))
    return open(os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0)


def _add(zipped: zipfile.ZipFile, target: BinaryIO, entry: _Entry, content: IO[bytes], end: int) -> bool:
    """Add one entry unless the archive would grow past `end` bytes; then it is as if it had never been there."""
    info = _zip_info(entry)
    before = target.tell()
    if entry.info.st_size <= IN_MEMORY:
        data = content.read(entry.info.st_size)
        if info.compress_type == zipfile.ZIP_STORED and before + len(data) > end:
            return False
        zipped.writestr(info, data)
    else:
        if _incompressible(content):
            info.compress_type = zipfile.ZIP_STORED
        with zipped.open(info, "w", force_zip64=entry.info.st_size > 0x7FFFFFFF) as into:
            while target.tell() <= end and (chunk := content.read(COPY)):
                into.write(chunk)
    if target.tell() <= end:
        return True
    zipped.filelist.pop()
    del zipped.NameToInfo[info.filename]
    target.seek(before)
    target.truncate()
    zipped.start_dir = before
    return False


def _incompressible(content: IO[bytes]) -> bool:
    """Whether deflating is wasted on a file, by a look at its beginning; it runs at some 40 MB/s."""
    sample = content.read(SAMPLE)
    content.seek(0)
    return len(zlib.compress(sample, DEFLATE_LEVEL)) > 0.95 * len(sample)


def _zip_info(entry: _Entry) -> zipfile.ZipInfo:
    when = time.localtime(entry.info.st_mtime)[:6]
    name = entry.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    info = zipfile.ZipInfo(name, when if 1980 <= when[0] <= 2107 else (1980, 1, 1, 0, 0, 0))
    info.external_attr = (entry.info.st_mode & 0xFFFF) << 16
    info.file_size = entry.info.st_size
    if entry.info.st_size >= COMPRESS_FROM:
        info.compress_type = zipfile.ZIP_DEFLATED
        info._compresslevel = DEFLATE_LEVEL  # type: ignore[attr-defined]
    return info
