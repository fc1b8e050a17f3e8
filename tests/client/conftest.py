"""A real node on a real broker, for tests of the client."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from carod_client import Grid

from carod.amqp import Endpoint, open_transport

START_PATIENCE = 60.0
"""Seconds for a node to declare its queue, on a machine busy with other tests."""


@contextmanager
def a_node(url: str, queue: str, *, slots: int = 2, **knobs: object) -> Iterator[subprocess.Popen[bytes]]:
    """A node as a process of its own, ready for jobs; knobs go by the environment."""
    with tempfile.TemporaryDirectory(prefix="carod-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # a root node's jobs run as another user
        knobs = {"SHUTDOWN_GRACEFUL_TIMEOUT": 1, "KILLING_TIMEOUT": 1} | knobs
        environment = os.environ | {f"_CAROD_{name}": str(value) for name, value in knobs.items()}
        command = [
            sys.executable, "-m", "carod.cli", "start", "--broker", url, "--queue", queue, "--slots", str(slots),
            "--name", f"node-{secrets.token_hex(4)}", "--execute", str(directory / "execute"),
        ]  # fmt: skip
        log = directory / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            asyncio.run(_declared(url, queue, process, log))
            yield process
        finally:
            process.terminate()
            try:
                process.wait(START_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _text(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def _declared(url: str, queue: str, process: subprocess.Popen[bytes], log: Path) -> None:
    transport = open_transport(Endpoint(url))
    await transport.connect()
    try:
        give_up = time.monotonic() + START_PATIENCE
        while await transport.depth(queue) is None:
            if process.poll() is not None or time.monotonic() > give_up:
                pytest.fail(f"the node did not start:\n{_text(log)}", pytrace=False)
            await asyncio.sleep(0.05)
    finally:
        await transport.close()


async def _delete(url: str, queue: str) -> None:
    transport = open_transport(Endpoint(url))
    await transport.connect()
    try:
        for suffix in ("", ".parked", ".dead", f".node.{socket.gethostname()}"):
            await transport.delete(queue + suffix)
    finally:
        await transport.close()


@pytest.fixture(scope="session")
def node_queue(broker_url: str) -> Iterator[str]:
    """The queue of a node with two slots that all tests share: nobody may stop it or fill it."""
    queue = f"test-client-{secrets.token_hex(6)}"
    try:
        with a_node(broker_url, queue, STARTER_INITIAL_UPDATE_INTERVAL=0.2, STARTER_UPDATE_INTERVAL=0.2):
            yield queue
    finally:
        asyncio.run(_delete(broker_url, queue))


@pytest.fixture
def start_node(broker_url: str, queue_name: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a node on the test's own queue: `start_node(slots=1)`."""
    with ExitStack() as stack:

        def start(url: str = broker_url, **options: object) -> subprocess.Popen[bytes]:
            return stack.enter_context(a_node(url, queue_name, **options))  # type: ignore[arg-type]

        yield start


@dataclass(frozen=True)
class Gate:
    """A pipe that a job reads (`/bin/cat` with `path`) until the test opens it."""

    path: str

    async def open(self) -> None:
        """Let the one job that reads, or will read, go on; it reads `go`."""
        await asyncio.to_thread(Path(self.path).write_text, "go")


def own_tasks() -> int:
    """How many of the tasks that are alive are the client's; one keeps its connection."""
    codes = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()]
    return sum(code is not None and "carod_client" in code.co_filename for code in codes)


@pytest.fixture
def gate(open_directory: Path) -> Iterator[Gate]:
    path = open_directory / "gate"
    os.mkfifo(path, 0o644)
    yield Gate(str(path))
    with suppress(OSError):  # nobody waits there
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that any user may enter: a root node's jobs run as another one."""
    with tempfile.TemporaryDirectory(prefix="carod-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def grid(broker_url: str, node_queue: str) -> AsyncIterator[Grid]:
    """A connection to the shared node."""
    async with Grid(broker_url, node_queue) as grid:
        yield grid
