"""What must survive the node: which jobs run, which are done, and results that no broker has confirmed yet.

An append-only file of JSON lines beside the node's directory, and a file for each unconfirmed result. Nothing is
synced to disk: the page cache survives the node, and after a crash of the machine none of its jobs is left, so they
run again as after any node's death. A line costs some 10 us; it is written while the job runs, or after its reply.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import psutil

from carod.amqp import HeaderValue, Message

DONE_SECONDS = 3600.0
"""How long a finished job is remembered. Its delivery comes back, if ever, when a connection has been given up."""
DONE_COUNT = 100_000
COMPACT_BYTES = 16 << 20
COPY = 1 << 20


@dataclass(frozen=True, slots=True)
class Started:
    """A job that ran when the journal was last written; `started` is its process's start in clock ticks since boot."""

    job: str
    pid: int
    started: int


class Journal:
    """The journal of one node. Loads what an earlier life left: `left_running`, `done`, and `unconfirmed()`."""

    def __init__(self, path: str) -> None:
        self._path, self._results = path, f"{path}.results"
        self.done: OrderedDict[str, float] = OrderedDict()
        self._running: dict[str, Started] = {}
        self._load()
        self.left_running = list(self._running.values())
        self._running.clear()
        os.makedirs(self._results, 0o700, exist_ok=True)
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
        self._remember(key, time.time())
        self._append({"done": job, "key": key, "at": int(time.time())})

    def ended(self, job: str) -> None:
        """A job runs here no more, but may elsewhere: it was handed back."""
        if self._running.pop(job, None) is not None:
            self._append({"ended": job})

    def is_done(self, key: str) -> bool:
        return key in self.done

    # -- unconfirmed results -----------------------------------------------------------------------------------

    def keep(self, message: Message, reply_to: str) -> None:
        """Store a final reply until `drop`; a stored one is stored already. Copies a body that is a file."""
        path = self._result_path(message)
        if os.path.exists(path):
            return
        head = {
            "reply_to": reply_to,
            "job": message.correlation_id,
            "id": message.message_id,
            "durable": message.durable,
            "headers": dict(message.headers),
        }
        text = json.dumps(head, default=_base64).encode()
        with open(f"{path}.new", "wb") as file:
            file.write(len(text).to_bytes(8, "big") + text)
            _copy_body(message, file)
        os.rename(f"{path}.new", path)

    def drop(self, message: Message) -> None:
        """A stored reply is confirmed."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._result_path(message))

    def unconfirmed(self) -> Iterator[tuple[Message, str]]:
        """Replies that an earlier life stored, oldest first, and where each goes. Bodies are open files."""
        paths = [f"{self._results}/{name}" for name in os.listdir(self._results)]
        for path in sorted(paths, key=os.path.getmtime):
            if path.endswith(".new"):
                os.unlink(path)
                continue
            file = open(path, "rb")
            try:
                head = json.loads(file.read(int.from_bytes(file.read(8), "big")))
                body = file.read()
            except ValueError:  # cut off by a full disk
                body, head = b"", None
            finally:
                file.close()
            if head is None:
                os.unlink(path)
            else:
                yield Message(body, head["headers"], head["id"], head["job"], durable=head["durable"]), head["reply_to"]

    def _result_path(self, message: Message) -> str:
        return f"{self._results}/{message.message_id}"

    # -- the file ----------------------------------------------------------------------------------------------

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            if self._file.tell() > COMPACT_BYTES:
                self._file.close()
                self._file = self._compact()
        except OSError:  # a full disk: the node goes on without a memory rather than not at all
            pass

    def _remember(self, key: str, when: float) -> None:
        self.done[key] = when
        self.done.move_to_end(key)
        while self.done and (len(self.done) > DONE_COUNT or next(iter(self.done.values())) < when - DONE_SECONDS):
            self.done.popitem(last=False)

    def _load(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            for line in file:
                with contextlib.suppress(ValueError, KeyError):  # the last line may be cut off
                    entry = json.loads(line)
                    if "started" in entry:
                        self._running[entry["started"]] = Started(entry["started"], entry["pid"], entry["ticks"])
                    elif "ended" in entry:
                        self._running.pop(entry["ended"], None)
                    else:
                        self._running.pop(entry["done"], None)
                        self._remember(entry["key"], float(entry["at"]))

    def _compact(self) -> BinaryIO:
        """Write what still counts to a new file, and go on there."""
        lines: list[dict[str, Any]] = [{"done": key, "key": key, "at": int(when)} for key, when in self.done.items()]
        lines += [{"started": item.job, "pid": item.pid, "ticks": item.started} for item in self._running.values()]
        with open(f"{self._path}.new", "wb") as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
        os.rename(f"{self._path}.new", self._path)
        return open(self._path, "ab", buffering=0)

    def close(self) -> None:
        self._file.close()


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), stat, field 22); 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def sweep(left: list[Started]) -> int:
    """Kill what an earlier life's jobs left running, and say how many processes that was.

    Spawners end their jobs when their node dies; this is for when both were killed at once. A job's processes are
    its first one, if it is still the same, its descendants, and its session.
    """
    sessions = {entry.pid for entry in left}
    doomed: set[int] = set()
    for entry in left:
        if entry.started and start_ticks(entry.pid) == entry.started:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(entry.pid)
                doomed |= {entry.pid, *(child.pid for child in process.children(recursive=True))}
                for pid in psutil.pids():
                    with contextlib.suppress(OSError):
                        if os.getsid(pid) in sessions and os.getsid(pid) == entry.pid:
                            doomed.add(pid)
    for pid in doomed:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(doomed)


def _copy_body(message: Message, file: BinaryIO) -> None:
    body = message.body
    if isinstance(body, bytes):
        file.write(body)
        return
    body.seek(0)
    while chunk := body.read(COPY):
        file.write(chunk)


def _base64(value: HeaderValue) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} can't be stored")
