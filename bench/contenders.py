"""Starts what is measured, waits until it consumes, and ends it, with everything it made on the broker."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import bare
import broker
import celery_app

HERE = Path(__file__).resolve().parent
DISK = "/var/tmp"
"""Where /tmp may be memory, this is not, and nor is a node's default."""
START_PATIENCE = 60.0
STOP_PATIENCE = 30.0
SETTLED = 0.25
"""Seconds for which the number of consumers must stay the same: a node opens one for each slot."""
CELERY_PROCESSES = 2


class NotStarted(Exception):
    """A contender ended before it consumed; the text has the end of what it said."""


@dataclass(frozen=True, slots=True)
class Running:
    """A contender that consumes `queue`."""

    name: str
    queue: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """End it now, before its context does."""
        _end(self.process)


def new_queue(name: str) -> str:
    return f"bench.{name}.{uuid.uuid4().hex[:8]}"


@contextmanager
def node(
    url: str, slots: int | None, queue: str | None = None, carod: Sequence[str] = ("-m", "carod.cli")
) -> Iterator[Running]:
    """`carod start` as a user starts it; None slots are its default. `carod` is what Python runs as the command.

    Its EXECUTE is a new one, on the disk: what earlier nodes journaled would be read, and left there after it.
    """
    queue = queue or new_queue("node")
    with tempfile.TemporaryDirectory(prefix="carod-bench-", dir=DISK) as execute:
        Path(execute).chmod(0o755)  # the jobs' user passes through
        command = [sys.executable, *carod, "start", "--broker", url, "--queue", queue, "--execute", execute]
        if slots:
            command += ["--slots", str(slots)]
        with _serving("node", command, url, queue, _clean_environment()) as running:
            yield running


@contextmanager
def floor(url: str, slots: int) -> Iterator[Running]:
    queue = new_queue("floor")
    script = HERE / ("floor10.py" if url.startswith("amqp10:") else "floor.py")
    command = [sys.executable, str(script), url, queue, str(slots)]
    with _serving("floor", command, url, queue, _clean_environment()) as running:
        yield running


@contextmanager
def celery(url: str) -> Iterator[Running]:
    """A prefork worker with CELERY_PROCESSES processes; its default of one a CPU, on the machine this began on."""
    queue = new_queue("celery")
    command = [
        sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-P", "prefork", "-c", str(CELERY_PROCESSES),
        "-n", f"{queue}@%h", "--loglevel", "ERROR",
    ]  # fmt: skip
    environment = _clean_environment() | {
        celery_app.URL: url,
        celery_app.QUEUE: queue,
        "PYTHONPATH": str(HERE),
        "PYTHONWARNINGS": "ignore",
    }
    with _serving("celery", command, url, queue, environment) as running:
        yield running


def _clean_environment() -> dict[str, str]:
    """Without the caller's own settings of a node: what is measured are the defaults."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("CAROD_", "_CAROD_"))}


@contextmanager
def _serving(name: str, command: list[str], url: str, queue: str, environment: dict[str, str]) -> Iterator[Running]:
    with tempfile.TemporaryFile("w+b") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends this
        )
        try:
            _wait_until_it_consumes(process, name, url, queue)
            yield Running(name, queue, process)
        except NotStarted as problem:
            log.seek(0)
            raise NotStarted(f"{problem}\n{log.read()[-2000:].decode(errors='replace')}") from None
        finally:
            _end(process)
            log.seek(0)
            said = log.read(1 << 20).decode(errors="replace")
            _clean_up(name, url, queue, said)


def _wait_until_it_consumes(process: subprocess.Popen[bytes], name: str, url: str, queue: str) -> None:
    deadline, consumers, since = time.monotonic() + START_PATIENCE, 0, 0.0
    while True:
        now = time.monotonic()
        if process.poll() is not None:
            raise NotStarted(f"{name} ended with {process.returncode} before the first job")
        if now > deadline:
            raise NotStarted(f"{name} did not consume {queue} within {START_PATIENCE:g} s")
        found = _side(url).state(url, queue)
        if found is None or found[1] != consumers:
            consumers, since = found[1] if found else 0, now
        elif consumers and now - since >= SETTLED:
            return
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to it; what does not go then, and whatever it left in its session, is killed."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"bench: process {process.pid} did not stop in {STOP_PATIENCE:g} s, killing it", file=sys.stderr)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _clean_up(name: str, url: str, queue: str, said: str) -> None:
    """Delete what a contender left on the broker (docs/reference/wire-contract.md, section 1)."""
    names = {socket.gethostname(), *re.findall(r" ready node=(\S+)", said)}
    queues = [queue, f"{queue}.dead", f"{queue}.parked", *(f"{queue}.node.{each}" for each in names)]
    exchanges = celery_app.exchanges(queue) if name == "celery" else [f"{queue}.control"]
    _side(url).delete(url, queues, exchanges)


def _side(url: str) -> ModuleType:
    """What speaks to a broker of this protocol."""
    return bare if url.startswith("amqp10:") else broker
