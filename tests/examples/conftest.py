"""The examples, built, and a grid on each kind of broker for them."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import pika
import pytest

from tests.brokers.broker_j import PrivateBrokerJ
from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.client.conftest import _delete, a_node, gate, open_directory  # noqa: F401  fixtures
from tests.examples.toolchains import TOOLCHAINS, Command, Missing

PATIENCE = 60.0
"""Seconds until an example is given up; none takes so long if it works."""


@dataclass(frozen=True)
class Grid:
    """A node's job queue, with its broker's URL, as clients write them; `environ` is for clients of AMQP 1.0."""

    url: str
    queue: str
    prefix: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.prefix + self.queue


@pytest.fixture(scope="session")
def on_rabbitmq(broker_url: str) -> Iterator[Grid]:
    with _grid(broker_url) as grid:
        yield grid
    asyncio.run(_delete(broker_url, grid.queue))


@pytest.fixture(scope="session")
def on_broker_j(broker_j: PrivateBrokerJ) -> Iterator[Grid]:
    with _grid(broker_j.url) as grid:
        yield grid


@pytest.fixture(scope="session")
def on_rabbitmq4(rabbitmq4: PrivateRabbitMQ) -> Iterator[Grid]:
    with _grid(rabbitmq4.url10) as grid:
        yield replace(grid, prefix="/queues/")


@pytest.fixture(scope="session")
def on_carod_broker() -> Iterator[Grid]:
    """The broker in the box, as its command runs it."""
    command = [sys.executable, "-m", "carod.cli", "broker", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            ready = process.stderr.readline()
            url = re.search(r"broker=(amqp10://\S+)", ready)
            assert url, f"the broker did not start: {ready}"
            with _grid(url[1]) as grid:
                yield grid
        finally:
            process.terminate()


@contextmanager
def _grid(node_url: str) -> Iterator[Grid]:
    """A node of two slots that reports often."""
    queue = f"test-examples-{secrets.token_hex(6)}"
    with a_node(node_url, queue, STARTER_INITIAL_UPDATE_INTERVAL=0.2, STARTER_UPDATE_INTERVAL=0.2):
        yield Grid(node_url.replace("amqp10:", "amqp:"), queue)


@pytest.fixture
def grid(request: pytest.FixtureRequest, broker: str) -> Grid:
    """The one on the broker that the test is to run on; `broker` is its parameter."""
    found = request.getfixturevalue(f"on_{broker}")
    assert isinstance(found, Grid)
    if broker != "rabbitmq4":
        return found
    # It makes up no reply queues for clients of AMQP 1.0, nor lets them declare any.
    replies = f"{found.queue}.replies-{secrets.token_hex(4)}"
    with pika.BlockingConnection(pika.URLParameters(found.url + "/")) as connection:
        connection.channel().queue_declare(replies, arguments={"x-expires": 600_000})
    return replace(found, environ={"REPLY_QUEUE": f"/queues/{replies}"})


class Run:
    """An example as a process, and what it says; ended after PATIENCE, whatever it does."""

    def __init__(self, command: Command, *arguments: str, **environ: str) -> None:
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [*command.argv, *arguments],
            env={**os.environ, **command.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._guard = threading.Timer(PATIENCE, self._process.kill)
        self._guard.start()
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.code()
        self._stderr.close()

    def wait_for(self, line: str, count: int = 1) -> None:
        """Until it has said that, for the `count`th time."""
        assert self._process.stdout is not None
        while self.lines.count(line) < count:
            said = self._process.stdout.readline()
            assert said, f"ended without having said {line!r}: {self.lines}, {self.stderr}"
            self.lines.append(said.rstrip("\n"))

    def code(self) -> int:
        """Its exit code, once it has ended; all that it said is in `lines` then, and in `stderr`."""
        assert self._process.stdout is not None
        if not self._process.stdout.closed:
            with self._process.stdout as rest:
                self.lines += rest.read().splitlines()
        code = self._process.wait()
        self._guard.cancel()
        return code

    @property
    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()


class Examples:
    """Each toolchain's examples, built beside each other and beside the first tests."""

    def __init__(self, toolchains: set[str], directory: Path, pool: ThreadPoolExecutor) -> None:
        self._built: dict[str, Future[dict[str, Command]]] = {}
        for name in [name for name in TOOLCHAINS if name in toolchains]:
            place = directory / name
            place.mkdir()
            self._built[name] = pool.submit(TOOLCHAINS[name], place)

    def command(self, example: str) -> Command:
        """Skips the test if the toolchain is missing; where there is to be one, in CI, it fails."""
        try:
            return self._built[toolchain(example)].result()[example]
        except Missing as reason:
            if os.environ.get("CI"):
                pytest.fail(str(reason), pytrace=False)
            pytest.skip(str(reason))


def toolchain(example: str) -> str:
    return example.partition("-")[0]


@pytest.fixture(scope="session")
def examples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Examples]:
    chosen = [getattr(item, "callspec", None) for item in request.session.items]
    names = {call.params["example"] for call in chosen if call is not None and "example" in call.params}
    with ThreadPoolExecutor(len(TOOLCHAINS)) as pool:
        yield Examples({toolchain(name) for name in names}, tmp_path_factory.mktemp("examples"), pool)


@pytest.fixture
def run(examples: Examples, example: str) -> Iterator[Callable[..., Run]]:
    """Runs the example that the test is about: `run(url, queue, REPLY_QUEUE="replies")`; it ends with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, **environ: str) -> Run:
            return stack.enter_context(Run(examples.command(example), *arguments, **environ))

        yield start
