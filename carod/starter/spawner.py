"""A slot's own process: it makes the job's directory, starts the job, ends it whole, and zips what it left.

`process.py` starts this program once for a node, as the nursery, from which a spawner is forked for each slot, as
the user whose jobs it runs. So the node itself never forks, never opens a file of a job, and as root shares no
user with it. A spawner

- is its job's parent and, as child subreaper (prctl(2)), inherits what the job leaves behind, setsid or
  double-forked: when wait(2) knows of no child, the process tree is gone;
- ends its job when the node's end of the channel closes, so that a node's death leaves no process behind;
- works beside the node's event loop, on another CPU.

Frames (`channel.py`) from the node: {"run": {...}} with the job's archive as blob; {"signal": number} for the whole
tree; {"kill": seconds until SIGKILL, "with": number}. To the node: {"started": pid}, then {"exited": wait status, ...}
with the result as blob; or {"failed": why, "code": HoldReasonCode} alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import pwd
import resource
import select
import signal
import socket
import stat
import sys
import time
from typing import Any, BinaryIO, NoReturn

if __name__ == "__main__":  # started without site-packages, to be small: our own rooms are found from this file
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from carod.starter import channel
from carod.starter.sandbox import NODE_FILES, Limits, SandboxError, collect, unpack

PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 4, 15, 36  # linux/prctl.h
FAILED_TO_CREATE_PROCESS, UNABLE_TO_OPEN_OUTPUT, UNABLE_TO_OPEN_INPUT = 6, 7, 8  # HTCondor's HoldReasonCode
TRANSFER_OUTPUT_ERROR, TRANSFER_INPUT_ERROR, IWD_ERROR = 12, 13, 14
MACHINE_AD = NODE_FILES[1]
ROUNDS = 200
"""Times 50 ms that a killed process tree has to be gone; what is still there then waits for a device, or is root's."""
LONGEST = 1e6
"""Seconds that a kill may wait; poll(2) counts milliseconds in 32 bits."""
SHORT = 10
"""Milliseconds within which a job's end makes saying that it has started needless: each frame wakes the node."""
DEFAULT_SIGNALS = [
    signal.SIGPIPE, signal.SIGXFSZ,  # ignored by Python
    signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP,  # ignored by the nursery
]  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


class JobFailure(Exception):
    """The job can't be started: the reason, and HTCondor's code for it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


# -- the nursery -----------------------------------------------------------------------------------------------


def nursery(control: socket.socket) -> None:
    """Fork a spawner for each descriptor that comes, until the node closes its end; reap those that ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal's signals reach the whole group; the node decides
    os.umask(0o022)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a killed spawner leaves behind stays below the node
    while True:
        data, fds = channel.receive_fds(control, 1)
        if not data:
            return
        if os.fork() == 0:
            control.close()
            os._exit(_become_spawner(json.loads(data), fds[0]))
        os.close(fds[0])


def _become_spawner(frame: dict[str, Any], fd: int) -> int:
    with socket.socket(fileno=fd) as node:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # for sigtimedwait; jobs start with none blocked
        os.setsid()
        _libc.prctl(PR_SET_NAME, f"carod-{frame['slot']}".encode(), 0, 0, 0)
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            if frame["cgroup"]:
                with open(f"{frame['cgroup']}/cgroup.procs", "w") as procs:
                    procs.write(str(os.getpid()))
            _drop_privileges(frame["user"])
            _check_reachable(frame["directory"])
        except (OSError, KeyError, JobFailure) as error:
            channel.send(node, {"failed": str(error), "code": 0})
            return 1
        channel.send(node, {"ready": os.getpid()})
        spawner = Spawner(node, frame["directory"])
        try:
            spawner.serve()
        except ConnectionError:
            pass  # the node is gone; that it can't be told so is nothing to complain of
        finally:
            spawner.end_tree()
    return 0


def _drop_privileges(user: str) -> None:
    """Become `user` for good, with its groups and nothing else; an ordinary node's jobs stay what it is."""
    if os.geteuid() != 0 or not user:
        return
    account = pwd.getpwnam(user)
    if account.pw_uid == 0:
        raise JobFailure(f"user {user!r} is root, and no job runs as root", 0)
    os.initgroups(user, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # its jobs are the same user: they may not look into it


def _check_reachable(directory: str) -> None:
    """A directory of the node's that this user can't enter would fail every job with a riddle: say which one."""
    path = ""
    for part in directory.split("/")[1:]:
        path = f"{path}/{part}"
        if not os.access(path, os.X_OK):
            user = pwd.getpwuid(os.getuid()).pw_name
            raise JobFailure(f"EXECUTE: user {user!r} can't enter {path!r}; chmod o+x it or choose another EXECUTE", 0)


# -- one slot's spawner ----------------------------------------------------------------------------------------


class Spawner:
    """Serves one slot: one job at a time."""

    def __init__(self, node: socket.socket, directory: str) -> None:
        self.node, self.directory = node, directory
        self.cpu = [0.0, 0.0]
        self.max_rss = 0
        self._machine_ad: tuple[str, tuple[int, int] | None] = ("", None)
        """What `.machine.ad` holds, and its version: it stays from job to job, unless one has touched it."""

    def serve(self) -> None:
        """Run jobs until the node closes the channel."""
        while (received := channel.receive(self.node)) is not None:
            frame, blob = received
            if "run" in frame:  # a signal for a job that has ended meanwhile is none
                self._run(frame["run"], blob)

    def _run(self, spec: dict[str, Any], blob: bytes | BinaryIO) -> None:
        directory = spec["directory"]
        self.cpu, self.max_rss = [0.0, 0.0], 0
        try:
            try:
                self._prepare(spec, blob)
                pid = self._spawn(spec)
            except SandboxError as error:
                raise JobFailure(str(error), TRANSFER_INPUT_ERROR) from None
            except OSError as error:
                raise JobFailure(f"the job's directory {directory!r}: {error.strerror}", TRANSFER_INPUT_ERROR) from None
        except JobFailure as failure:
            self.end_tree()
            channel.send(self.node, {"failed": str(failure), "code": failure.code})
        else:
            status, ended_at = self._wait(pid), time.monotonic()
            survivors = self.end_tree()
            self._report(spec, pid, status, ended_at, survivors)
        finally:
            os.chdir("/")
            _clear(directory)

    # -- before ------------------------------------------------------------------------------------------------

    def _prepare(self, spec: dict[str, Any], blob: bytes | BinaryIO) -> None:
        directory = spec["directory"]
        _make_empty(directory)
        if blob:
            archive: BinaryIO = io.BytesIO(blob) if isinstance(blob, bytes) else blob
            with archive:
                own = None if os.path.isabs(spec["cmd"]) else spec["cmd"]
                unpack(archive, directory, Limits(spec["max_size"], spec["max_files"]), own)
        job_ad, machine_ad = (f"{directory}/{name}" for name in NODE_FILES)
        _write(job_ad, spec["job_ad"])
        if self._machine_ad != (spec["machine_ad"], _version(machine_ad)):
            _write(machine_ad, spec["machine_ad"])
            self._machine_ad = (spec["machine_ad"], _version(machine_ad))

    def _spawn(self, spec: dict[str, Any]) -> int:
        directory, cmd = spec["directory"], spec["cmd"]
        program = cmd if os.path.isabs(cmd) else _inside(directory, cmd, "Cmd", FAILED_TO_CREATE_PROCESS)
        iwd = spec["iwd"] or directory
        if not os.path.isabs(iwd):
            iwd = _inside(directory, iwd, "Iwd", IWD_ERROR)
        try:
            os.chdir(iwd)
        except OSError as error:
            raise JobFailure(f"Iwd: {iwd!r}: {error.strerror} on this node", IWD_ERROR) from None
        files = _standard_files(spec)
        usable = os.sched_getaffinity(0) if spec["cpus"] else None
        try:
            if usable is not None:  # inherited by the job; its spawner takes them back
                os.sched_setaffinity(0, spec["cpus"])
            return os.posix_spawn(
                program, [cmd, *spec["args"]], spec["env"], setsid=True, setsigmask=(), setsigdef=DEFAULT_SIGNALS,
                file_actions=[(os.POSIX_SPAWN_DUP2, file, target) for target, file in enumerate(files)],
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise JobFailure(_why_not(program, cmd, error), FAILED_TO_CREATE_PROCESS) from None
        finally:
            if usable is not None:
                os.sched_setaffinity(0, usable)
            for file in set(files):
                os.close(file)

    # -- while -------------------------------------------------------------------------------------------------

    def _wait(self, pid: int) -> int:
        """Until the job's first process ends; meanwhile do what the node says, end the job if there is no node."""
        watch = select.poll()
        process = os.pidfd_open(pid)
        watch.register(process, select.POLLIN)
        watch.register(self.node, select.POLLIN)
        timeout: int | None = SHORT
        announced = False
        try:
            while True:
                events = watch.poll(timeout)
                if not events and not announced:
                    channel.send(self.node, {"started": pid})
                    announced, timeout = True, None
                elif not events:  # it has had its time to end by itself
                    self._kill_tree()
                    timeout = 1000  # and again: it may have been forking
                elif any(file == process for file, _ in events):
                    break
                elif (received := channel.receive(self.node)) is None:
                    self.end_tree()
                    os._exit(1)
                else:
                    timeout = self._obey(received[0], pid, timeout)
                    announced = announced or timeout != SHORT
        finally:
            os.close(process)
        return self._reap(pid)

    def _obey(self, frame: dict[str, Any], pid: int, timeout: int | None) -> int | None:
        if "signal" in frame:
            self._signal_tree(frame["signal"])
        elif "kill" in frame:
            with contextlib.suppress(OSError):
                os.killpg(pid, frame["with"])
            self._signal_tree(signal.SIGCONT)  # a stopped job would not hear of it
            return max(0, int(min(frame["kill"], LONGEST) * 1000))
        return timeout

    def _signal_tree(self, number: int) -> None:
        for pid in descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, number)

    def _kill_tree(self) -> None:
        self._signal_tree(signal.SIGKILL)

    def end_tree(self) -> list[int]:
        """SIGKILL every descendant and reap, again until there is none. Returns those that would not go."""
        for _ in range(ROUNDS):
            try:
                while (reaped := os.wait4(-1, os.WNOHANG))[0]:
                    self._count(reaped[2])
            except ChildProcessError:
                return []
            self._kill_tree()
            signal.sigtimedwait([signal.SIGCHLD], 0.05)
        return descendants()

    def _reap(self, pid: int) -> int:
        _, status, usage = os.wait4(pid, 0)
        self._count(usage)
        return status

    def _told_rss(self) -> int:
        """The job's largest process in KiB, 0 if unknown: until exec(2) a child counts as large as we are."""
        return self.max_rss if self.max_rss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss else 0

    def _count(self, usage: Any) -> None:
        self.cpu[0] += usage.ru_utime
        self.cpu[1] += usage.ru_stime
        self.max_rss = max(self.max_rss, usage.ru_maxrss)

    # -- after -------------------------------------------------------------------------------------------------

    def _report(self, spec: dict[str, Any], pid: int, status: int, ended_at: float, survivors: list[int]) -> None:
        frame: dict[str, Any] = {"exited": status, "pid": pid, "at": ended_at, "survivors": survivors}
        frame |= {"cpu": self.cpu, "max_rss": self._told_rss()}
        first = tuple(name for name in (spec["err"], spec["out"]) if name != os.devnull)
        try:
            directory = spec["directory"]
            _mend(directory)
            result = collect(directory, spec["max_result"], first=first, names=spec["outputs"], iwd=_present_iwd())
        except (OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            channel.send(
                self.node,
                {**frame, "failed": f"the results can't be zipped: {text}", "code": TRANSFER_OUTPUT_ERROR},
            )
            return
        frame |= {"refused": result.refused, "left_out": result.left_out}
        channel.send(self.node, frame, result.zipped)
        if not isinstance(result.zipped, bytes):
            result.zipped.close()


def descendants() -> list[int]:
    """Pids of all processes below this one, parents first."""
    found = _children(os.getpid())
    for pid in found:
        found += _children(pid)  # the list grows while it is walked
    return found


def _children(pid: int) -> list[int]:
    """From /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN), else from every process's stat."""
    pids: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                pids += map(int, file.read().split())
    except FileNotFoundError:
        if os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
            return pids  # the process is gone, not the file
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(name) == pid]
    return pids


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return -1


def _inside(directory: str, name: str, attribute: str, code: int) -> str:
    """A path in the job's directory, its links resolved. Raises JobFailure when it leads out."""
    if "/" not in name and name not in ("", ".", ".."):
        return f"{directory}/{name}"  # a plain name; no archive puts a link there that leads out
    path, top = os.path.realpath(os.path.join(directory, name)), os.path.realpath(directory)
    if path != top and not path.startswith(top + "/"):
        raise JobFailure(f"{attribute}: {name!r} leads out of the job's directory", code)
    return path


def _standard_files(spec: dict[str, Any]) -> list[int]:
    """Descriptors of stdin, stdout and stderr; the same name for both outputs is one file."""
    files: list[int] = []
    try:
        source = _standard_path(spec, "in", UNABLE_TO_OPEN_INPUT)
        files.append(_open_standard("In", spec["in"], source, os.O_RDONLY, UNABLE_TO_OPEN_INPUT))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        target = _standard_path(spec, "out", UNABLE_TO_OPEN_OUTPUT)
        files.append(_open_standard("Out", spec["out"], target, flags, UNABLE_TO_OPEN_OUTPUT))
        if spec["err"] == spec["out"]:
            files.append(files[1])
        else:
            target = _standard_path(spec, "err", UNABLE_TO_OPEN_OUTPUT)
            files.append(_open_standard("Err", spec["err"], target, flags, UNABLE_TO_OPEN_OUTPUT))
    except JobFailure:
        for file in files:
            os.close(file)
        raise
    return files


def _standard_path(spec: dict[str, Any], key: str, code: int) -> str:
    name: str = spec[key]
    return name if name == os.devnull else _inside(spec["directory"], name, key.capitalize(), code)


def _open_standard(attribute: str, name: str, path: str, flags: int, code: int) -> int:
    """Open one of a job's standard files. Nothing there can block: no archive brings a pipe or a device."""
    try:
        file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        hint = "; send it in the body" if attribute == "In" else ""
        raise JobFailure(f"{attribute}: {name!r}: {error.strerror} in the job's directory{hint}", code) from None
    if not stat.S_ISREG(os.fstat(file).st_mode) and path != os.devnull:
        os.close(file)
        raise JobFailure(f"{attribute}: {name!r} is no regular file in the job's directory", code)
    return file


def _why_not(program: str, cmd: str, error: OSError | ValueError) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if not os.path.exists(program):
        if os.path.isabs(cmd):
            return f"Cmd: {cmd!r} does not exist on this node"
        return f"Cmd: {cmd!r} is not among the job's input files; send it in the body or give an absolute path"
    if os.path.isdir(program):
        return f"Cmd: {cmd!r} is a directory, not a program"
    if not os.access(program, os.X_OK):
        return f"Cmd: {cmd!r} is not executable for the job's user"
    if "format" in reason.lower():
        return f"Cmd: {cmd!r} is no program for this machine (a script needs a first line like #!/bin/sh)"
    if isinstance(error, FileNotFoundError):
        return f"Cmd: the interpreter that {cmd!r} names in its first line does not exist on this node"
    return f"Cmd: {cmd!r} could not be started: {reason}"


def _make_empty(directory: str) -> None:
    """The job's directory as if new. It is kept from job to job, for making one costs as much as starting a program."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        if stat.S_ISDIR(os.lstat(directory).st_mode) and os.listdir(directory) in ([], [MACHINE_AD]):
            os.chmod(directory, 0o700)
            return
        os.rename(directory, f"{directory}.{time.time_ns()}")  # a job left what its own user can't remove
        os.mkdir(directory, 0o700)


def _write(path: str, text: str) -> None:
    """A new file, whatever was there."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:  # an archive's, or what a job made of the last one
        _remove(path)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(file, text.encode("utf-8", "surrogateescape"))
    os.close(file)


def _version(path: str) -> tuple[int, int] | None:
    """What changes when a file does: its inode and the time of that change, which only the kernel sets."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_ino, info.st_ctime_ns


def _mend(directory: str) -> None:
    """A job may have shut its directory to itself, or put something else in its place, which is not to be followed."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(os.lstat(directory).st_mode):
            os.unlink(directory)
        elif not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            os.chmod(directory, 0o700)


def _present_iwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # the job has removed it
        return None


def _clear(directory: str) -> None:
    """Remove all that a job left, in its directory and beside it, also what it took its own permissions from."""
    _mend(directory)
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(directory)):
            if entry.name != MACHINE_AD:
                _remove(entry.path)
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(os.path.dirname(directory))):
            if entry.path != directory:
                _remove(entry.path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except IsADirectoryError:
        _remove_directory(path)
    except OSError:
        pass


def _remove_directory(top: str) -> None:
    """Remove a directory and all below it, however deep: what it holds is moved beside it before it is looked at.

    So no path becomes longer than the kernel takes, and nothing recurses.
    """
    pending, moved = [top], 0
    while pending:
        path = pending.pop()
        with contextlib.suppress(OSError):
            try:
                entries = list(os.scandir(path))
            except PermissionError:
                os.chmod(path, 0o700)
                entries = list(os.scandir(path))
            if entries and not os.access(path, os.W_OK | os.X_OK):
                os.chmod(path, 0o700)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    moved += 1
                    pending.append(f"{top}.{moved}.{os.getpid()}")
                    _move(entry.path, pending[-1])
                else:
                    os.unlink(entry.path)
            os.rmdir(path)


def _move(directory: str, to: str) -> None:
    try:
        os.rename(directory, to)
    except PermissionError:  # a directory that moves is written to: its `..` changes
        os.chmod(directory, 0o700)
        os.rename(directory, to)


def main() -> NoReturn:
    """Serve as the nursery on the descriptor that the command line names."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        nursery(control)
    sys.exit(0)


if __name__ == "__main__":
    main()
