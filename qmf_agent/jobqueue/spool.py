"""Inputs and results on the disk, and the pieces of them that consoles send and fetch.

    SPOOL/NAME/files/<cluster / 1000>/<cluster>.<proc>.in      what `send` collected, the job's message body later
    SPOOL/NAME/files/<cluster / 1000>/<cluster>.<proc>.zip     a result that is too large for the database

No name that a console or a job gives is ever a path here: files inside a result are looked up in its zip.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from qmf_agent.jobqueue.jobs import JobId
from qmf_agent.model import MAX_DATA, Code, MethodError

INLINE = 1 << 16
"""Results up to so many bytes are kept in the database: they are there when the job's end is, at no further cost."""
CLUSTERS_A_DIRECTORY = 1000
OPEN_READERS = 16
COPY = 1 << 20


class Spool:
    """The files of a queue, and how many bytes inputs and results take together.

    Everything but `used` and `exceeded` may block, and belongs into a thread.
    """

    def __init__(self, directory: str, quota: int, *, fsync: bool) -> None:
        self._directory = Path(directory, "files")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.quota, self._fsync = quota, fsync
        self.used = 0
        self._readers: OrderedDict[tuple[JobId, str], _Reader] = OrderedDict()

    @property
    def exceeded(self) -> bool:
        """Whether nothing further may be begun: what is under way may still end."""
        return bool(self.quota) and self.used >= self.quota

    def input_path(self, job: JobId) -> Path:
        return self._path(job, "in")

    def result_path(self, job: JobId) -> Path:
        return self._path(job, "zip")

    def _path(self, job: JobId, kind: str) -> Path:
        return self._directory / str(job.cluster // CLUSTERS_A_DIRECTORY) / f"{job}.{kind}"

    # -- inputs ------------------------------------------------------------------------------------------------

    def append(self, job: JobId, size: int, data: bytes) -> int:
        """Add a piece to a draft that has `size` bytes: how many it has then. What a crash left behind it goes."""
        path = self.input_path(job)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb", buffering=0) as file:
            file.truncate(size)
            file.seek(size)
            file.write(data)
            self._sync(file)
        return size + len(data)

    def share_input(self, job: JobId, other: JobId) -> None:
        """Give another job the same input; it is on the disk once. Raises OSError."""
        path = self.input_path(other)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.hardlink_to(self.input_path(job))

    def open_input(self, job: JobId) -> BinaryIO:
        """The job's input. Raises OSError."""
        return self.input_path(job).open("rb")

    # -- results -----------------------------------------------------------------------------------------------

    def keep_result(self, job: JobId, body: bytes | BinaryIO) -> int:
        """Write a result beside an earlier one and put it in that one's place: its size."""
        path = self.result_path(job)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            if isinstance(body, bytes):
                file.write(body)
            else:
                while piece := body.read(COPY):
                    file.write(piece)
            size = file.tell()
            file.flush()
            self._sync(file)
        unfinished.rename(path)
        self.close_readers(job)
        return size

    def fetch(self, job: JobId, small: bytes | None, file: str, start: int, end: int) -> tuple[bytes, int]:
        """Bytes `start` to `end` of a file of a result, and the file's size. Raises MethodError.

        `file` empty means the whole zip. Negative numbers count from the end; `end` 0 is the file's end. At most
        MAX_DATA bytes come at a time. `small` is the result if the database has it.
        """
        if not file:
            with self._open_result(job, small) as whole:
                size = whole.seek(0, os.SEEK_END)
                start, end = _range(start, end, size)
                whole.seek(start)
                return whole.read(end - start), size
        reader = self._readers.get((job, file))
        if reader is None:
            reader = _Reader.open(job, self._open_result(job, small), file)
            self._readers[job, file] = reader
            while len(self._readers) > OPEN_READERS:
                self._readers.popitem(last=False)[1].close()
        self._readers.move_to_end((job, file))
        return reader.read(start, end), reader.size

    def names(self, job: JobId, small: bytes | None) -> list[str]:
        """The files in a result."""
        with self._open_result(job, small) as whole, _zip(job, whole) as archive:
            return [info.filename for info in archive.infolist() if not info.is_dir()]

    def _open_result(self, job: JobId, small: bytes | None) -> BinaryIO:
        if small is not None:
            return io.BytesIO(small)
        try:
            return self.result_path(job).open("rb")
        except OSError as error:
            raise MethodError(Code.NOT_KEPT, f"job {job}: its result can't be read: {error}") from None

    # -- house-keeping -----------------------------------------------------------------------------------------

    def remove(self, job: JobId) -> None:
        """Remove all files of a job that is forgotten."""
        self.close_readers(job)
        for path in (self.input_path(job), self.result_path(job)):
            path.unlink(missing_ok=True)

    def close_readers(self, job: JobId) -> None:
        for key in [key for key in self._readers if key[0] == job]:
            self._readers.pop(key).close()

    def files(self) -> Iterator[tuple[JobId, Path]]:
        """All files here and the jobs that they are named for."""
        for path in self._directory.glob("*/*"):
            matched = re.fullmatch(r"(\d{1,12})\.(\d{1,7})\.(in|zip|part)", path.name)
            if matched:
                yield JobId(int(matched[1]), int(matched[2])), path

    def _sync(self, file: io.FileIO | BinaryIO | io.BufferedWriter) -> None:
        if self._fsync:
            os.fdatasync(file.fileno())


@dataclass(slots=True)
class _Reader:
    """A file inside a zip that is read on from where the last piece ended, as consoles do."""

    archive: zipfile.ZipFile
    whole: BinaryIO
    info: zipfile.ZipInfo
    member: IO[bytes] | None = None
    at: int = 0

    @classmethod
    def open(cls, job: JobId, whole: BinaryIO, file: str) -> _Reader:
        try:
            archive = _zip(job, whole)
        except MethodError:
            whole.close()
            raise
        try:
            return cls(archive, whole, archive.getinfo(file))
        except KeyError:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            archive.close()
            whole.close()
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            text = f"job {job}: its result has no file {file[:100]!r}; it has {shown[:500] or 'none'}"
            raise MethodError(Code.BAD_VALUE, text) from None

    @property
    def size(self) -> int:
        return self.info.file_size

    def read(self, start: int, end: int) -> bytes:
        start, end = _range(start, end, self.size)
        try:
            member = self.member
            if member is None or start < self.at:
                self.member = member = self.archive.open(self.info)
                self.at = 0
            while self.at < start:  # a compressed file is read from its start
                skipped = len(member.read(min(COPY, start - self.at)))
                if not skipped:
                    break
                self.at += skipped
            data = member.read(end - start)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
            self.member = None
            raise MethodError(Code.NOT_KEPT, f"{self.info.filename[:100]!r} can't be read: {error}") from None
        self.at += len(data)
        return data

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.archive.close()
            self.whole.close()


def _zip(job: JobId, whole: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(whole)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        text = f"job {job}: its result is no zip ({error}); File '' fetches it as it is"
        raise MethodError(Code.NOT_KEPT, text) from None


def _range(start: int, end: int, size: int) -> tuple[int, int]:
    start = max(0, size + start) if start < 0 else min(start, size)
    end = size if end == 0 else max(0, size + end) if end < 0 else min(end, size)
    return start, min(max(start, end), start + MAX_DATA)
