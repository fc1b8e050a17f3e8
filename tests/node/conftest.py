"""A real node for the tests of this room, and the client that talks to it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.fixtures import _delete
from tests.node.client import PATIENCE, Client
from tests.node.wire import Wire

CAROD = Path(sys.executable).with_name("carod")
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="a node's jobs have a user of their own only where root runs it")


class Node:
    """`carod start` as a process, and its log, which is read as it is written."""

    def __init__(self, *arguments: str, environ: dict[str, str] | None = None) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("_CAROD", "CAROD"))}
        self.process = subprocess.Popen(
            [CAROD, "start", *arguments],
            env={**kept, "HOME": "/nonexistent", **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Log lines of that event so far, with these fields; of a log as text, those that hold the name."""
        if self.lines and not self.lines[0].startswith("{"):
            return [{"line": line} for line in self.lines if name in line]
        events = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [item for item in events if item["event"] == name and fields.items() <= item.items()]

    def wait_for(self, name: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait for the log line of an event (or the `count`th of them)."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.events(name, **fields)) >= count or self._ended, PATIENCE)
        found = self.events(name, **fields)
        assert len(found) >= count, f"no {name!r} with {fields} in the node's log:\n{self.log[-5000:]}"
        return found[count - 1]

    async def seen(self, name: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """`wait_for` beside an event loop."""
        return await asyncio.to_thread(self.wait_for, name, count, **fields)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code."""
        code = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        return code

    async def ended(self) -> int:
        return await asyncio.to_thread(self.wait)

    def stop(self) -> None:
        """End it, at once, whatever it does."""
        if self.process.poll() is None:
            self.send(signal.SIGQUIT)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        assert self.process.stderr is not None
        self._thread.join(PATIENCE)
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@pytest.fixture(scope="session")
def execute() -> Iterator[Path]:
    """A directory for the jobs' directories, which the jobs' user can enter."""
    directory = Path(tempfile.mkdtemp(prefix="carod-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory of the test's own in which jobs may write."""
    directory = Path(tempfile.mkdtemp(prefix="carod-test-", dir="/var/tmp"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def _start(url: str, queue: str, execute: Path, *arguments: str, **environ: Any) -> Node:
    name = [] if "--name" in arguments else ["--name", f"test-{secrets.token_hex(4)}"]
    variables = {f"_CAROD_{key}": str(value) for key, value in environ.items()}
    return Node(
        "--broker", url, "--queue", queue, "--execute", str(execute), "--log-format", "json", *name, *arguments,
        environ=variables,
    )  # fmt: skip


@pytest.fixture
def start_node(broker_url: str, queue_name: str, execute: Path) -> Iterator[Callable[..., Node]]:
    """Starts nodes on this test's own queue: `start_node("--slots", "2", START="TRUE")`; they end with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, ready: bool = True, **environ: Any) -> Node:
            node = _start(broker_url, queue_name, execute, *arguments, **environ)
            stack.callback(node.stop)
            if ready:
                node.wait_for("ready")
            return node

        yield start


@pytest.fixture
async def new_client(broker_url: str, queue_name: str) -> AsyncIterator[Client]:
    """A client of this test's own queue; to be used with `start_node`."""
    client = await Client.connect(broker_url, queue_name)
    yield client
    await client.close()


@pytest.fixture(scope="session")
def shared_queue(broker_url: str) -> Iterator[str]:
    name = f"test-shared-{secrets.token_hex(6)}"
    yield name
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _delete(broker_url, name)).result()


@pytest.fixture(scope="session")
def shared_node(broker_url: str, shared_queue: str, execute: Path) -> Iterator[Node]:
    node = _start(
        broker_url, shared_queue, execute, "--slots", "2",
        MAX_UNPACKED_SIZE="64M", MAX_UNPACKED_FILES="1000", MAX_RESULT_SIZE="40M", STARTER_MEMORY_INTERVAL="0.1",
        SECRET_OF_THE_NODE="mellon",
    )  # fmt: skip
    try:
        node.wait_for("ready")
        yield node
    finally:
        node.stop()


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """The node that most tests share; whatever a test does to it, it still runs jobs afterwards."""
    yield shared_node
    assert shared_node.process.poll() is None, f"the test ended the node:\n{shared_node.log[-5000:]}"
    assert "Traceback" not in shared_node.log, shared_node.log[-5000:]


@pytest.fixture
async def client(broker_url: str, shared_queue: str, node: Node) -> AsyncIterator[Client]:
    """A client of the shared node. At the end, all of the node's slots still run jobs."""
    client = await Client.connect(broker_url, shared_queue)
    yield client
    assert node.process.poll() is None, f"the test ended the node:\n{node.log[-5000:]}"
    jobs = [await client.submit({"Cmd": "/bin/true"}) for _ in range(2)]
    assert [(await client.end(job)).status for job in jobs] == [4, 4]
    await client.close()


@pytest.fixture
async def wire(broker_url: str) -> AsyncIterator[Wire]:
    """A connection that sends whatever bytes it is given."""
    wire = await Wire.connect(broker_url)
    yield wire
    await wire.close()


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return re.search(r"\) Z ", stat) is not None


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll for what no event tells of, within bounds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
        await asyncio.sleep(0.02)
