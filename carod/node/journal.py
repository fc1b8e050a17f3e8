"""What must survive the node: which jobs run, which are done, and results that no broker has confirmed yet.

Beside the node's directory, an append-only file of JSON lines, and a directory of unconfirmed results. Nothing is
synced to disk: the page cache survives the node, and after a crash of the machine none of its jobs is left, so they
run again as after any node's death. A line costs some 10 us; it is written while the job runs, or after its reply.

A result is written down before it is sent, in one write to a file that is open already (some 15 us): between the
broker's receipt and its confirm nobody else can know that the job is done.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import marshal
import os
import signal
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import psutil

from carod.amqp import Message, TypedId
from carod.log import event

log = logging.getLogger("carod.journal")
DONE_SECONDS = 3600.0
"""How long a finished job is remembered. Its delivery comes back, if ever, when a connection has been given up."""
DONE_COUNT = 100_000
LAST_DONE = 1000
"""Jobs of our own that are remembered in their order, and of those that the broker may bring again."""
COMPACT_BYTES = 16 << 20
COPY = 1 << 20
INLINE = 1 << 18
"""Bytes of a result that are written in one go; what is larger is copied in a thread, beside the event loop."""
_LENGTH = 12
"""Bytes before a result's head: the head's length (8) and checksum (4). A length of 0 says that there is none."""


@dataclass(frozen=True, slots=True)
class Started:
    """A job that ran when the journal was last written; `started` is its process's start in clock ticks since boot."""

    job: str
    pid: int
    started: int


class Journal:
    """The journal of one node. Loads what an earlier life left: `left_running`, `done`, and `unconfirmed()`.

    Times are seconds since the machine's start, which nobody sets back.
    """

    def __init__(self, path: str) -> None:
        self._path, self._results = path, f"{path}.results"
        self.done: OrderedDict[str, float] = OrderedDict()
        self._own_done: deque[str] = deque(maxlen=LAST_DONE)
        self._doubtful: OrderedDict[str, None] = OrderedDict()
        self._running: dict[str, Started] = {}
        self._load()
        self.left_running = list(self._running.values())
        self._running.clear()
        os.makedirs(self._results, 0o700, exist_ok=True)
        self._left = self._set_aside()
        self._boxes: list[Box] = []
        self._sending: dict[str, Box | str] = {}
        self._made = 0
        self._cut_off = False
        self._file = self._compact()

    # -- events ------------------------------------------------------------------------------------------------

    def started(self, job: str, pid: int) -> None:
        """A job's first process runs."""
        entry = Started(job, pid, start_ticks(pid))
        self._running[job] = entry
        self._append({"started": job, "pid": pid, "ticks": entry.started})

    def finished(self, job: str, key: str) -> None:
        """A job's final reply is confirmed: it must not run again, whoever is offered it (`key`: see `Job.key`)."""
        self._running.pop(job, None)
        now = _now()
        self._remember(key, now)
        self._own_done.append(key)
        self._append({"done": job, "key": key, "at": int(now)})
        self._forget_result(job)

    def ended(self, job: str) -> None:
        """A job runs here no more, but may elsewhere: it was handed back."""
        self._forget_result(job)
        if self._running.pop(job, None) is not None:
            self._append({"ended": job})

    def told(self, key: str) -> None:
        """Another node says that a job is done."""
        if key not in self.done:
            now = _now()
            self._remember(key, now)
            self._append({"done": key, "key": key, "at": int(now), "told": True})

    def last_done(self, count: int) -> list[str]:
        """Keys of the jobs that were finished here last."""
        return list(self._own_done)[-count:]

    def doubt(self, key: str) -> None:
        """This job, which is done, is not settled, and comes again, however long that takes."""
        if key not in self._doubtful:
            self._add_doubtful(key)
            self._append({"doubt": key})

    @property
    def doubtful(self) -> list[str]:
        """Keys of the jobs that are done and come again."""
        return list(self._doubtful)

    def _add_doubtful(self, key: str) -> None:
        self._doubtful[key] = None
        if len(self._doubtful) > LAST_DONE:
            self._doubtful.popitem(last=False)

    def is_done(self, key: str) -> bool:
        return key in self.done

    # -- unconfirmed results -----------------------------------------------------------------------------------

    def sending(self, message: Message, reply_to: str, key: str) -> bool:
        """A final reply is about to be sent: write it down until the job is `finished` or `ended`. Raises OSError.

        False if it is too large for that: then `keep` it.
        """
        body = message.body
        if not isinstance(body, bytes):
            if body.seek(0, os.SEEK_END) > INLINE:
                return False
            body.seek(0)
            body = body.read()
        elif len(body) > INLINE:
            return False
        job = message.correlation_id or ""
        self._forget_result(job)
        box = self._boxes.pop() if self._boxes else self._new_box()
        self._sending[job] = box
        box.write(_head(message, reply_to, key, len(body)) + body)
        return True

    def keep(self, message: Message, reply_to: str, key: str) -> None:
        """The same for a large one. Copies its body: not for the event loop's thread. Raises OSError."""
        body = message.body
        size = len(body) if isinstance(body, bytes) else body.seek(0, os.SEEK_END)
        path = f"{self._results}/{message.message_id}"
        with open(f"{path}.new", "wb") as file:
            file.write(_head(message, reply_to, key, size))
            _copy_body(message, file)
        os.rename(f"{path}.new", path)
        self._sending[message.correlation_id or ""] = path

    def _new_box(self) -> Box:
        self._made += 1
        return Box(f"{self._results}/box-{self._made}")

    def _forget_result(self, job: str) -> None:
        match self._sending.pop(job, None):
            case Box() as box:
                box.clear()
                self._boxes.append(box)
            case str(path):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def unconfirmed(self) -> Iterator[tuple[Message, str, str]]:
        """Replies that an earlier life left, oldest first, with reply_to and job's key, until they are `dispatched`."""
        for path in list(self._left.values()):
            with open(path, "rb") as file:
                head = _read_head(file)
                assert head is not None
                job = TypedId(head["job"], head["kind"]) if head.get("kind") else head["job"]
                yield (
                    Message(file.read(head["size"]), head["headers"], head["id"], job, durable=head["durable"]),
                    head["reply_to"],
                    head["key"],
                )

    def dispatched(self, key: str) -> None:
        """An earlier life's result is with the broker, or not needed any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._left.pop(key))

    @property
    def left(self) -> int:
        """How many results an earlier life left that are not dispatched yet."""
        return len(self._left)

    def holds(self, key: str) -> bool:
        """Whether an earlier life left this job's result."""
        return key in self._left

    def _set_aside(self) -> dict[str, str]:
        """Move an earlier life's results out of this one's way: their jobs' keys, and where they are, oldest first."""
        left: dict[str, str] = {}
        paths = sorted((f"{self._results}/{name}" for name in os.listdir(self._results)), key=os.path.getmtime)
        for number, path in enumerate(paths):
            with open(path, "rb") as file:
                head = None if path.endswith(".new") else _read_head(file)
                whole = head is not None and os.fstat(file.fileno()).st_size - file.tell() >= head["size"]
            if head is None or not whole or head["key"] in left or self.is_done(head["key"]):
                os.unlink(path)
                continue
            left[head["key"]] = f"{self._results}/left-{time.time_ns()}-{number}"
            os.rename(path, left[head["key"]])
        return left

    # -- the file ----------------------------------------------------------------------------------------------

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            if self._cut_off:
                self._file.write(b"\n")
            self._cut_off = self._file.write(line) < len(line)
            if self._file.tell() > COMPACT_BYTES:
                self._file.close()
                self._file = self._compact()
        except OSError as error:  # a full disk: the node goes on without a memory rather than not at all
            if not self._cut_off:
                event(log, "journal not written", logging.ERROR, path=self._path, reason=str(error))
            self._cut_off = True

    def _remember(self, key: str, when: float) -> None:
        self.done[key] = when
        self.done.move_to_end(key)
        while self.done and (len(self.done) > DONE_COUNT or next(iter(self.done.values())) < when - DONE_SECONDS):
            oldest, _ = self.done.popitem(last=False)
            self._doubtful.pop(oldest, None)

    def _load(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            for line in file:
                with contextlib.suppress(ValueError, KeyError):  # the last line may be cut off
                    entry = json.loads(line)
                    if "started" in entry:
                        self._running[entry["started"]] = Started(entry["started"], entry["pid"], entry["ticks"])
                    elif "ended" in entry:
                        self._running.pop(entry["ended"], None)
                    elif "doubt" in entry:
                        self._add_doubtful(entry["doubt"])
                    else:
                        self._running.pop(entry["done"], None)
                        self._remember(entry["key"], float(entry["at"]))
                        if not entry.get("told"):
                            self._own_done.append(entry["key"])

    def _compact(self) -> BinaryIO:
        """Write what still counts to a new file, and go on there."""
        own = set(self._own_done)
        lines: list[dict[str, Any]] = [
            {"done": key, "key": key, "at": int(when), **({} if key in own else {"told": True})}
            for key, when in self.done.items()
        ]
        lines += [{"doubt": key} for key in self._doubtful]
        lines += [{"started": item.job, "pid": item.pid, "ticks": item.started} for item in self._running.values()]
        with open(f"{self._path}.new", "wb") as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
        os.rename(f"{self._path}.new", self._path)
        return open(self._path, "ab", buffering=0)

    def close(self) -> None:
        self._file.close()
        for box in self._boxes:  # one in use stays, its result has not been confirmed
            box.remove()


class Box:
    """A file for one result at a time: written over with the next, so that the disk has no names to make and forget."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Raises OSError, also when not all of it can be written."""
        if os.pwrite(self._file, data, 0) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(self._file, bytes(_LENGTH), 0)

    def remove(self) -> None:
        os.close(self._file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), stat, field 22); 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def sweep(left: list[Started], directory: str) -> int:
    """Kill what an earlier life's jobs left running, and say how many processes that was.

    Spawners end their jobs when their node dies; this is for when both were killed at once. A job's processes are
    its first one, if it is still the same, its descendants, and all whose environment has a job's directory of ours:
    also those that left its session and lost their parents.
    """
    doomed = {pid for pid in psutil.pids() if _has_scratch_directory(pid, directory)}
    for entry in left:
        if entry.started and start_ticks(entry.pid) == entry.started:
            with contextlib.suppress(psutil.Error):
                doomed |= {entry.pid, *(child.pid for child in psutil.Process(entry.pid).children(recursive=True))}
    doomed.discard(os.getpid())  # a node that a job of its own started: let it be
    for pid in doomed:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(doomed)


def _has_scratch_directory(pid: int, directory: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"\0_CONDOR_SCRATCH_DIR={directory}/".encode() in b"\0" + file.read()
    except OSError:
        return False


def _head(message: Message, reply_to: str, key: str, size: int) -> bytes:
    """What is known of a result whose body of `size` bytes follows."""
    head = {
        "reply_to": reply_to,
        "job": str(message.correlation_id or ""),
        "kind": message.correlation_id.kind if isinstance(message.correlation_id, TypedId) else "",
        "key": str(key),
        "id": message.message_id,
        "durable": message.durable,
        "headers": dict(message.headers),
        "size": size,
    }
    data = marshal.dumps(head)
    return len(data).to_bytes(8, "big") + zlib.crc32(data).to_bytes(4, "big") + data


def _read_head(file: BinaryIO) -> dict[str, Any] | None:
    """The head of a stored result; None if there is none, or it was cut off."""
    length, checksum = int.from_bytes(file.read(8), "big"), int.from_bytes(file.read(4), "big")
    data = file.read(length) if length <= COMPACT_BYTES else b""
    if not data or zlib.crc32(data) != checksum:
        return None
    try:
        head = marshal.loads(data)
    except (ValueError, EOFError, TypeError):  # another Python's
        return None
    return head if isinstance(head, dict) else None


def _copy_body(message: Message, file: BinaryIO) -> None:
    body = message.body
    if isinstance(body, bytes):
        file.write(body)
        return
    body.seek(0)
    while chunk := body.read(COPY):
        file.write(chunk)
