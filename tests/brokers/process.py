"""What every private broker needs: a directory, free ports, and a process that leaves nothing behind.

Only the standard library: it runs before there is a virtual environment.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

# A second or two on idle cores; a shared machine in the middle of a build takes many times that.
START_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
POLL_INTERVAL = 0.05
LOG_TAIL_LINES = 25

# Read to its end by a shell that outlives a killed parent: each line names the process groups that now run.
WATCHDOG = """
groups=
while read -r line; do groups=$line; done
for group in $groups; do kill -s KILL -- "-$group"; done
[ -z "$groups" ] || rm -rf -- "$1"
"""


class BrokerUnavailable(Exception):
    """No such broker can be had here. The text says what was tried and what to do."""


class BrokerFailed(Exception):
    """A private broker did not start, or a command for it failed. The text has the end of its log."""


def say(text: str) -> None:
    """Progress, for a person who waits: standard error, so that a wrapped command keeps its standard output."""
    print(f"carod: {text}", file=sys.stderr, flush=True)


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on, from below the kernel's range for outgoing connections.

    A port from that range could be taken by any client while a broker that owns it restarts.
    """
    try:
        first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first_outgoing = 32768
    candidates = list(range(10000, min(first_outgoing, 32768))) or list(range(32768, 60999))
    random.shuffle(candidates)
    free: list[int] = []
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise BrokerFailed(f"fewer than {count} free ports on loopback")


class BrokerProcess:
    """A broker's process, with a process group and a temporary directory of its own; both end with our process.

    `open`, then `launch` and `wait_until`; `shut_down` or `kill`, and `launch` again; `close`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[str] | None = None
        self._helper: int | None = None

    @property
    def pid(self) -> int | None:
        """The broker's process, None while it is stopped."""
        return self._process.pid if self._process else None

    @property
    def pids(self) -> list[int]:
        """The broker and what watches over it, each a child of this process."""
        return [process.pid for process in (self._process, self._watchdog) if process]

    def open(self) -> Path:
        """Makes the directory."""
        slug = self.name.lower().replace(" ", "-")
        self.directory = Path(tempfile.mkdtemp(prefix=f"carod-{slug}-"))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, f"carod-{slug}-watchdog", str(self.directory)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        return self.directory

    def watch(self, helper: int) -> None:
        """One more process group that is to end if this process dies."""
        self._helper = helper
        self._tell_watchdog()

    def launch(self, command: Sequence[str | Path], environment: dict[str, str]) -> None:
        """Its output goes to `output` in the directory, which is its working directory too."""
        assert self.directory is not None
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tell_watchdog()

    def wait_until(self, ready: Callable[[], bool], timeout: float = START_TIMEOUT) -> None:
        """Raises BrokerFailed, with the end of its output, if it ends or the time is over."""
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while not ready():
            if (code := self._process.poll()) is not None:
                raise BrokerFailed(f"{self.name} ended with {code} before it was up:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise BrokerFailed(f"{self.name} not up after {timeout:.0f} s:\n{self.log_tail()}")
            time.sleep(POLL_INTERVAL)

    def shut_down(self) -> None:
        """An orderly shutdown that keeps the directory, for a `launch` later."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            say(f"{self.name} did not stop in {STOP_TIMEOUT:.0f} s, killing it")
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole group. The directory stays, for a `launch` later."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._tell_watchdog()

    def close(self) -> None:
        """Kills what still runs; the directory and all that was in it goes."""
        self.kill()
        if self._watchdog is not None:
            self._tell_watchdog(nothing=True)
            with contextlib.suppress(BrokenPipeError):
                _stdin_of(self._watchdog).close()
            self._watchdog.wait()
            self._watchdog = None
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None

    def log(self, *patterns: str) -> str:
        """All that the broker has said so far: its output, then the files in the directory that match."""
        if self.directory is None:
            return ""
        found = [file for pattern in patterns for file in sorted(self.directory.glob(pattern))]
        files = [self.directory / "output", *found]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def log_tail(self) -> str:
        return "\n".join(self.log("log/*.log").splitlines()[-LOG_TAIL_LINES:])

    def _tell_watchdog(self, *, nothing: bool = False) -> None:
        if self._watchdog is None:
            return
        groups = [] if nothing else [group for group in (self.pid, self._helper) if group]
        pipe = _stdin_of(self._watchdog)
        with contextlib.suppress(BrokenPipeError):
            pipe.write(" ".join(map(str, groups)) + "\n")
            pipe.flush()


def _stdin_of(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin is not None
    return process.stdin
