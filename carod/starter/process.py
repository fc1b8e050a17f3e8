"""The node's side of its spawners: start them, give one a job, signal it, learn how it ended, clean up after it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import psutil

from carod.starter import channel
from carod.starter.cgroup import SlotGroups

log = logging.getLogger("carod.process")
SPAWNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "spawner.py")
"""The program that nursery and spawners run. Not imported: what it needs would be in the node's memory, too."""
READY_TIMEOUT = 30.0
"""Seconds that a new spawner has to say `ready`; forking one takes some milliseconds."""


class SpawnerError(Exception):
    """A spawner could not be started, or is gone while its job ran."""


@dataclass(frozen=True, slots=True)
class JobFiles:
    """What a spawner needs to start one job; `None` outputs are everything, `None` cpus all of them. Sizes in bytes."""

    directory: str
    cmd: str
    args: list[str]
    env: dict[str, str]
    iwd: str
    stdin: str
    stdout: str
    stderr: str
    cpus: list[int] | None
    outputs: list[str] | None
    job_ad: str
    machine_ad: str
    max_size: int
    max_files: int
    max_result: int

    def frame(self) -> dict[str, Any]:
        return {
            "directory": self.directory, "cmd": self.cmd, "args": self.args, "env": self.env, "iwd": self.iwd,
            "in": self.stdin, "out": self.stdout, "err": self.stderr, "cpus": self.cpus, "outputs": self.outputs,
            "job_ad": self.job_ad, "machine_ad": self.machine_ad,
            "max_size": self.max_size, "max_files": self.max_files, "max_result": self.max_result,
        }  # fmt: skip


@dataclass(slots=True)
class Ended:
    """How a job ended.

    `status` is wait(2)'s, None if the job never started; `failure` and `code` (HTCondor's HoldReasonCode) say why
    it did not, or why its results could not be zipped. `at` is when it ended, by the monotonic clock; times are in
    seconds, `max_rss` in KiB.
    """

    status: int | None = None
    at: float = 0.0
    failure: str = ""
    code: int = 0
    user_cpu: float = 0.0
    system_cpu: float = 0.0
    max_rss: int = 0
    result: bytes | BinaryIO = b""
    refused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job's process tree uses now; CPU times in seconds, memory and disk in KiB."""

    processes: int
    user_cpu: float
    system_cpu: float
    image_size: int
    resident: int
    disk: int


class Execution:
    """One job in a spawner: its pid once it has one, and how it ended."""

    __slots__ = ("_spawner", "directory", "ended", "on_started", "pid")

    def __init__(self, owner: Spawner, directory: str) -> None:
        self._spawner, self.directory = owner, directory
        self.pid = 0
        self.on_started: Callable[[int], None] | None = None
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    def signal(self, number: int) -> None:
        """Send a signal to every process of the job."""
        self._spawner.tell({"signal": number})

    def kill(self, number: int, grace: float) -> None:
        """Send `number` to the job's process group, and SIGKILL to the whole tree `grace` seconds later."""
        self._spawner.tell({"kill": grace, "with": number})

    def usage(self) -> Usage:
        """Measure it. Walks /proc and the job's directory: not for the event loop's thread."""
        return _measure(self._spawner.pid, self.directory)


class Nursery:
    """The process from which the spawners are forked; it takes no part in their work."""

    def __init__(self, groups: SlotGroups) -> None:
        self.groups = groups
        ours, theirs = channel.pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-E", "-s", "-S", SPAWNER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
                env={"PATH": os.defpath, "LC_CTYPE": "C.UTF-8"},  # the node's may hold its broker's password
            )  # fmt: skip
        self._control = ours
        self.spawners: dict[int, Spawner] = {}

    def fork(self, slot: str, user: str, directory: str) -> socket.socket:
        """Have a spawner forked; its end of the channel comes back, it says `ready` there."""
        ours, theirs = channel.pair()
        group = self.groups.make(_group_name(slot, user))
        request = json.dumps({"slot": slot, "user": user, "directory": directory, "cgroup": group}).encode()
        with theirs:
            socket.send_fds(self._control, [request], [theirs.fileno()])
        return ours

    def sweep(self) -> int:
        """Kill what dead spawners left running, and say how many processes that was.

        The nursery is child subreaper to its spawners: whatever has lost its spawner is now its own child.
        """
        killed = 0
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                if child.pid not in self.spawners:
                    for process in [child, *child.children(recursive=True)]:
                        with contextlib.suppress(psutil.Error):
                            process.kill()
                            killed += 1
        return killed

    def close(self) -> None:
        """End it; the spawners have ends of their own."""
        self._control.close()
        self._process.wait()


class Spawner:
    """A slot's spawner, as the node sees it."""

    def __init__(self, nursery: Nursery, slot: str, user: str, directory: str) -> None:
        self.slot, self.user, self.directory, self.pid = slot, user, directory, 0
        self._nursery = nursery
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._execution: Execution | None = None
        self._socket = nursery.fork(slot, user, directory)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    @property
    def alive(self) -> bool:
        return self._socket.fileno() >= 0

    async def ready(self) -> None:
        """Wait until it can run jobs. Raises SpawnerError, which says why it can't."""
        async with asyncio.timeout(READY_TIMEOUT):
            await self._ready

    @property
    def job_directory(self) -> str:
        """Where its jobs run, one after the other."""
        return f"{self.directory}/dir_{self.pid}"

    def run(self, files: JobFiles, archive: bytes | BinaryIO) -> Execution:
        """Start a job; its end is a future, which raises SpawnerError if the spawner dies. One at a time."""
        assert self._execution is None
        execution = Execution(self, files.directory)
        try:
            channel.send(self._socket, {"run": files.frame()}, archive)
        except OSError as error:
            execution.ended.set_exception(SpawnerError(f"the slot's spawner can't be reached: {error}"))
            return execution
        self._execution = execution
        return execution

    def tell(self, frame: dict[str, Any]) -> None:
        """Send an order for the running job; one that has ended needs none."""
        with contextlib.suppress(OSError):
            channel.send(self._socket, frame)

    def close(self) -> None:
        """Let it go: it ends its job and itself."""
        if self.alive:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._nursery.spawners.pop(self.pid, None)

    def _readable(self) -> None:
        try:
            received = channel.receive(self._socket)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            log.error("spawner %d: %s", self.pid, error)
            received = None
        if received is None:
            self._await_death()
            return
        frame, blob = received
        if "ready" in frame:
            self.pid = frame["ready"]
            self._nursery.spawners[self.pid] = self
            self._ready.set_result(None)
        elif not self._ready.done():
            self._ready.set_exception(SpawnerError(frame["failed"]))
        elif self._execution is not None:
            self._on_frame(self._execution, frame, blob)

    def _on_frame(self, execution: Execution, frame: dict[str, Any], blob: bytes | BinaryIO) -> None:
        if "started" in frame:
            execution.pid = frame["started"]
            if execution.on_started is not None:
                execution.on_started(execution.pid)
            return
        self._execution = None
        execution.pid = frame.get("pid", 0)
        if frame.get("survivors"):
            self._kill_survivors(frame["survivors"])
        cpu = frame.get("cpu", (0.0, 0.0))
        ended = Ended(
            frame.get("exited"), frame.get("at", 0.0), frame.get("failed", ""), frame.get("code", 0), cpu[0], cpu[1],
            frame.get("max_rss", 0), blob, frame.get("refused", []), frame.get("left_out", []),
        )  # fmt: skip
        if not execution.ended.done():
            execution.ended.set_result(ended)

    def _kill_survivors(self, pids: list[int]) -> None:
        """Processes that the job's user may not kill (set-uid programs), or that fork faster than they are killed."""
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        by_group = self._nursery.groups.kill(self._group)  # and the spawner with them: the slot gets another
        log.warning("spawner %d could not end processes %s of its job; killed them%s", self.pid, pids,
                    " with their cgroup" if by_group else "")  # fmt: skip

    @property
    def _group(self) -> str:
        return _group_name(self.slot, self.user)

    def _await_death(self) -> None:
        """Its end of the channel is closed, but only when it has exited are its processes the nursery's."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        try:
            exited = os.pidfd_open(self.pid)
        except (OSError, ValueError):  # it is gone, or was never there
            self._died("the slot's spawner died")
            return

        def dead() -> None:
            loop.remove_reader(exited)
            os.close(exited)
            self._died("the slot's spawner died")

        loop.add_reader(exited, dead)

    def _died(self, why: str) -> None:
        self.close()
        self._nursery.groups.kill(self._group)
        self._nursery.sweep()
        error = SpawnerError(why)
        if not self._ready.done():
            self._ready.set_exception(error)
        execution, self._execution = self._execution, None
        if execution is not None and not execution.ended.done():
            execution.ended.set_exception(error)


def _group_name(slot: str, user: str) -> str:
    return f"{slot}-{user}" if user else slot


def _measure(spawner_pid: int, directory: str) -> Usage:
    user = system = 0.0
    image = resident = count = 0
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(spawner_pid).children(recursive=True):
            with contextlib.suppress(psutil.Error), process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                user += times.user + times.children_user
                system += times.system + times.children_system
                image += memory.vms
                resident += memory.rss
                count += 1
    disk = sum(info.st_blocks * 512 for info in _files_below(directory))
    return Usage(count, user, system, image >> 10, resident >> 10, disk >> 10)


def _files_below(directory: str) -> Iterator[os.stat_result]:
    stack = [directory]
    while stack:
        try:
            with os.scandir(stack.pop()) as listing:
                for entry in listing:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    with contextlib.suppress(OSError):
                        yield entry.stat(follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile, or closed to us
