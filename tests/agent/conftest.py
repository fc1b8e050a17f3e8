"""A node and an agent that a module's tests share, and a console that talks to them.

Not a session's: consoles of other tests would find the agent, too, on the same broker.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from carod.amqp import Endpoint, open_transport
from tests.agent.agents import AgentProcess, Console, a_console, an_agent_process
from tests.amqp.conftest import Embedded, embedded
from tests.node.conftest import Node, _start

__all__ = ["embedded"]

AGENT_SUFFIXES = (".parked", ".dead", ".agent.shared", ".node.test-shared-agent", "")


async def _delete(url: str, queues: list[str]) -> None:
    transport = open_transport(Endpoint(url))
    await transport.connect()
    try:
        for queue in queues:
            await transport.delete(queue)
    finally:
        await transport.close()


def _in_thread(url: str, queues: list[str]) -> None:
    with ThreadPoolExecutor(1) as pool, suppress(ConnectionError):
        pool.submit(asyncio.run, _delete(url, queues)).result()


@pytest.fixture(params=[pytest.param("0-9-1", marks=pytest.mark.broker), "1.0"])
def console_url(request: pytest.FixtureRequest) -> str:
    """A broker for consoles and agents, for each of the two protocols."""
    if request.param == "0-9-1":
        return str(request.getfixturevalue("broker_url"))
    box: Embedded = request.getfixturevalue("embedded")
    return box.url


@pytest.fixture(scope="session")
def work_directory() -> Iterator[Path]:
    """A directory that jobs can enter and write in."""
    directory = Path(tempfile.mkdtemp(prefix="carod-test-", dir="/var/tmp"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module", params=[pytest.param("0-9-1", marks=pytest.mark.broker), "1.0"])
def agent_url(request: pytest.FixtureRequest) -> str:
    """The broker of the shared agent and its node, for each of the two protocols."""
    if request.param == "0-9-1":
        return str(request.getfixturevalue("broker_url"))
    box: Embedded = request.getfixturevalue("embedded")
    return box.url


@pytest.fixture(scope="module")
def shared_agent_queue(agent_url: str) -> Iterator[str]:
    name = f"test-agent-{secrets.token_hex(6)}"
    yield name
    _in_thread(agent_url, [name + suffix for suffix in AGENT_SUFFIXES])


@pytest.fixture(scope="module")
def shared_agent_node(agent_url: str, shared_agent_queue: str, work_directory: Path) -> Iterator[Node]:
    node = _start(
        agent_url, shared_agent_queue, work_directory / "execute", "--slots", "2", "--name", "test-shared-agent",
        KILLING_TIMEOUT="1", SHUTDOWN_GRACEFUL_TIMEOUT="1",
    )  # fmt: skip
    try:
        node.wait_for("ready")
        yield node
    finally:
        node.stop()


@pytest.fixture(scope="module")
def shared_agent(
    agent_url: str, shared_agent_queue: str, shared_agent_node: Node, work_directory: Path
) -> Iterator[AgentProcess]:
    with an_agent_process(
        agent_url, shared_agent_queue, work_directory / f"spool-{shared_agent_queue}", "shared"
    ) as agent:
        yield agent


@pytest.fixture
def agent(shared_agent: AgentProcess) -> Iterator[AgentProcess]:
    """The agent that most tests share; whatever a test does to it, it lives."""
    yield shared_agent
    assert shared_agent.process.poll() is None, f"the test ended the agent:\n{shared_agent.log[-5000:]}"
    assert "Traceback" not in shared_agent.log, shared_agent.log[-5000:]


@pytest.fixture
async def console(agent_url: str, agent: AgentProcess) -> AsyncIterator[Console]:
    async with a_console(agent_url, agent.agent) as console:
        yield console


@pytest.fixture
def start_agent(broker_url: str, queue_name: str, tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Starts agents on the test's own queue: `start_agent(JOB_WINDOW_MIN=1)`; they end with the test."""
    started: list[AgentProcess] = []
    with ExitStack() as stack:

        def start(name: str | None = None, **knobs: Any) -> AgentProcess:
            agent = stack.enter_context(an_agent_process(broker_url, queue_name, tmp_path / "spool", name, **knobs))
            started.append(agent)
            return agent

        yield start
    _in_thread(broker_url, [f"{queue_name}.agent.{agent.name}" for agent in started])


@pytest.fixture
def start_node(broker_url: str, queue_name: str, work_directory: Path) -> Iterator[Callable[..., Node]]:
    """Starts nodes on the test's own queue: `start_node("--slots", "2", START="TRUE")`; they end with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, **environ: Any) -> Node:
            knobs = {"KILLING_TIMEOUT": 1, "SHUTDOWN_GRACEFUL_TIMEOUT": 1} | environ
            node = _start(broker_url, queue_name, work_directory / "execute", *arguments, **knobs)
            stack.callback(node.stop)
            node.wait_for("ready")
            return node

        yield start
