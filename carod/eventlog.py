"""HTCondor's user log: what becomes of jobs, as text that condor_wait, DAGMan and `carod wait` read.

    005 (0012.003.000) 2026-11-21 14:03:07 Job terminated.
        (1) Normal termination (return value 0)
        ...
    ...

An event is a line with its number, the job's id and the local time, lines with what there is to say, and a line of
three dots. Source: HTCondor manual, "Job event log codes"; HTCondor's own reader is the oracle in the tests.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

from carod.classad import ClassAd

END = "..."
_HEAD = re.compile(r"(?P<kind>\d{3}) \((?P<cluster>\d+)\.(?P<proc>\d+)\.\d+\) (?P<rest>.*)")
LONGEST_LINE = 8191
"""Bytes of a line; HTCondor's reader takes no longer ones."""


class EventKind(IntEnum):
    """The events that are written here; HTCondor has more, and they are read, too."""

    SUBMIT = 0
    EXECUTE = 1
    EVICTED = 4
    TERMINATED = 5
    IMAGE_SIZE = 6
    ABORTED = 9
    SUSPENDED = 10
    UNSUSPENDED = 11
    HELD = 12
    RELEASED = 13


class EventLogError(ValueError):
    """A log that can't be read or written; the text names the file."""


@dataclass(frozen=True, slots=True)
class Event:
    """What was read: a number of EventKind or another of HTCondor's, whose, and the event's text."""

    kind: int
    cluster: int
    proc: int
    text: str

    @property
    def job(self) -> str:
        return f"{self.cluster}.{self.proc}"


# -- the text of events ------------------------------------------------------------------------------------------


def submitted(host: str, notes: str = "") -> list[str]:
    return [f"Job submitted from host: <{host}>", *([f"    {notes}"] if notes else [])]


def executing(slot: str) -> list[str]:
    host = slot.rpartition("@")[2] or "unknown"
    return [f"Job executing on host: <{host}>", f"\tSlotName: {slot or 'unknown'}"]


def evicted(ad: ClassAd) -> list[str]:
    return ["Job was evicted.", "\t(0) CPU times", *_usage(ad, "Run"), *_bytes(ad, "Run")]


def terminated(ad: ClassAd) -> list[str]:
    """How a job ended by itself, and what it used, by what its last ad says."""
    if ad.get("ExitBySignal") is True:
        how = [f"\t(0) Abnormal termination (signal {_integer(ad, 'ExitSignal')})", "\t(0) No core file"]
    else:
        how = [f"\t(1) Normal termination (return value {_integer(ad, 'ExitCode')})"]
    return [
        "Job terminated.", *how, *_usage(ad, "Run"), *_usage(ad, "Total"), *_bytes(ad, "Run"), *_bytes(ad, "Total"),
        *_resources(ad),
    ]  # fmt: skip


def aborted(reason: str) -> list[str]:
    return ["Job was aborted.", *([f"\t{reason}"] if reason else [])]


def held(reason: str, code: int, subcode: int = 0) -> list[str]:
    return ["Job was held.", f"\t{reason or 'Reason unspecified'}", f"\tCode {code} Subcode {subcode}"]


def released(reason: str) -> list[str]:
    return ["Job was released.", *([f"\t{reason}"] if reason else [])]


def suspended(processes: int) -> list[str]:
    return ["Job was suspended.", f"\tNumber of processes actually suspended: {processes}"]


def unsuspended() -> list[str]:
    return ["Job was unsuspended."]


def image_size(ad: ClassAd) -> list[str]:
    lines = [f"Image size of job updated: {_integer(ad, 'ImageSize')}"]
    return [*lines, f"\t{_integer(ad, 'ResidentSetSize')}  -  ResidentSetSize of job (KB)"]


def event_text(kind: EventKind, cluster: int, proc: int, lines: Iterable[str], when: float) -> str:
    """An event as it stands in a log; what users or nodes wrote can't end it or begin another one."""
    first, *others = (_one_line(line) for line in lines)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    head = f"{int(kind):03} ({cluster:03}.{proc:03}.000) {stamp} {first}"
    return "\n".join([head, *others, END, ""])


def _one_line(text: str) -> str:
    indent = text[: len(text) - len(text.lstrip("\t "))]
    shown = "".join(char if char.isprintable() else " " for char in text[len(indent) :])
    return (indent + shown).encode("utf-8", "replace")[:LONGEST_LINE].decode("utf-8", "ignore")


def _usage(ad: ClassAd, which: str) -> list[str]:
    used = f"Usr {_span(ad, 'RemoteUserCpu')}, Sys {_span(ad, 'RemoteSysCpu')}"
    return [f"\t\t{used}  -  {which} Remote Usage", f"\t\tUsr {NONE}, Sys {NONE}  -  {which} Local Usage"]


NONE = "0 00:00:00"


def _span(ad: ClassAd, name: str) -> str:
    value = ad.get(name)
    seconds = int(value) if isinstance(value, int | float) and 0 <= value < 1e15 else 0
    days, rest = divmod(seconds, 86400)
    return f"{days} {rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def _bytes(ad: ClassAd, which: str) -> list[str]:
    return [
        f"\t{_integer(ad, 'BytesSent')}  -  {which} Bytes Sent By Job",
        f"\t{_integer(ad, 'BytesRecvd')}  -  {which} Bytes Received By Job",
    ]


def _resources(ad: ClassAd) -> list[str]:
    """The table of what was used, asked for and given."""
    rows = [
        ("Cpus", "", _text(ad, "RequestCpus"), _text(ad, "RequestCpus")),
        ("Disk (KB)", _text(ad, "DiskUsage"), _text(ad, "RequestDisk"), _text(ad, "RequestDisk")),
        ("Memory (MB)", _mebibytes(ad), _text(ad, "RequestMemory"), _text(ad, "RequestMemory")),
    ]
    return [
        "\tPartitionable Resources :    Usage  Request Allocated ",
        *(f"\t   {name:<20} : {used:>8} {asked:>8} {given:>9} " for name, used, asked, given in rows),
    ]


def _mebibytes(ad: ClassAd) -> str:
    size = ad.get("ResidentSetSize")
    return str((size + 1023) // 1024) if isinstance(size, int) else ""


def _text(ad: ClassAd, name: str) -> str:
    value = ad.get(name)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _integer(ad: ClassAd, name: str) -> int:
    value = ad.get(name)
    return int(value) if isinstance(value, int | float) and abs(value) < 1 << 53 else 0


# -- writing -----------------------------------------------------------------------------------------------------


class EventLog:
    """A log that events are added to. Several programs may add to one: each event is written as a whole."""

    def __init__(self, path: str | os.PathLike[str], *, only_begun: bool = False) -> None:
        """Raises EventLogError if the file can't be written.

        With `only_begun` it must be there, and be a log already: for those who are told by others where to write.
        """
        self.path = os.fspath(path)
        mode = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK if only_begun else os.O_WRONLY | os.O_CREAT
        try:
            self._file = os.open(self.path, mode | os.O_APPEND | os.O_CLOEXEC, 0o664)
        except OSError as error:
            raise self._error(error) from None
        if only_begun and not self._is_begun():
            self.close()
            raise EventLogError(f"log {self.path!r} does not begin with a job's event; nothing is written to it")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, kind: EventKind, cluster: int, proc: int, lines: Iterable[str], when: float | None = None) -> None:
        """Add one event. Raises EventLogError, as for a full disk."""
        text = event_text(kind, cluster, proc, lines, time.time() if when is None else when)
        try:
            self._write(text.encode("utf-8", "replace"))
        except OSError as error:
            raise self._error(error) from None

    def _is_begun(self) -> bool:
        try:
            regular = stat.S_ISREG(os.fstat(self._file).st_mode)
            return regular and _HEAD.match(os.pread(self._file, 64, 0).decode("utf-8", "replace")) is not None
        except OSError:
            return False

    def _write(self, data: bytes) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            start = os.lseek(self._file, 0, os.SEEK_END)
            written = 0
            try:
                while written < len(data):
                    written += os.write(self._file, data[written:])
            except OSError:  # half an event would make the rest unreadable
                with suppress(OSError):
                    os.ftruncate(self._file, start)
                raise
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _error(self, error: OSError) -> EventLogError:
        return EventLogError(f"log {self.path!r}: {error.strerror}; give another file: log = FILE")


# -- reading -----------------------------------------------------------------------------------------------------


class EventReader:
    """Reads a log that may still grow: `new` gives the events that are complete and were not given before."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._offset = 0
        self._rest = b""
        self._inode = 0

    def new(self) -> Iterator[Event]:
        """Raises EventLogError for a file that can't be read or is no log; one that is not there yet has no events."""
        try:
            with self.path.open("rb") as file:
                info = os.fstat(file.fileno())
                if info.st_size < self._offset or (self._inode and info.st_ino != self._inode):
                    self._offset, self._rest = 0, b""  # somebody began it anew
                self._inode = info.st_ino
                file.seek(self._offset)
                data = self._rest + file.read()
                self._offset = file.tell()
        except FileNotFoundError:
            return
        except OSError as error:
            raise EventLogError(f"log {str(self.path)!r}: {error.strerror}") from None
        *whole, self._rest = _split(data)
        for block in whole:
            yield self._event(block.decode("utf-8", "replace"))

    def _event(self, text: str) -> Event:
        head, _, body = text.lstrip("\n").partition("\n")
        match = _HEAD.match(head)
        if match is None:
            raise EventLogError(
                f"log {str(self.path)!r}: {head[:60]!r} begins no event; is it a job's log? "
                "(XML and JSON logs are not read)"
            )
        return Event(int(match["kind"]), int(match["cluster"]), int(match["proc"]), f"{match['rest']}\n{body}")


def _split(data: bytes) -> list[bytes]:
    """The events in it, and what is left after the last one. Their end is a line of three dots."""
    if len(data) > 4096 and b"\n" not in data[:4096]:
        return [data[:4096], b""]  # no log at all; to be complained of
    return re.split(rb"^\.\.\.\n", data, flags=re.MULTILINE)
