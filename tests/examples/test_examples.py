"""Each example of clients/examples against a node, in its own language and with its own AMQP library."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.brokers.process import free_ports
from tests.client.conftest import Gate
from tests.examples.conftest import Grid, Run
from tests.faults.proxy import Proxy

AMQP_091 = ("python-pika", "python-aio_pika", "shell", "nodejs-amqplib", "java-rabbitmq", "go-091")
AMQP_10 = ("python-proton", "cpp-proton", "nodejs-rhea", "java-qpid-jms", "go-10")

ACCEPTED = "JobStatus=2"
RUNNING = 'JobStatus=2 JobState="Running"'
COMPLETED = 'JobStatus=4 JobState="Exited" ExitCode=0'

pytestmark = pytest.mark.broker

Start = Callable[..., Run]


def on(*brokers_10: str) -> pytest.MarkDecorator:
    """Every example, those of AMQP 1.0 on each of these brokers."""
    pairs = [(name, "rabbitmq") for name in AMQP_091]
    pairs += [(name, broker) for broker in brokers_10 for name in AMQP_10]
    return pytest.mark.parametrize(("example", "broker"), pairs)


def said(example: str, lines: list[str]) -> list[str]:
    """What an example said but for updates, of which a slow machine sees more."""
    if example == "shell":  # all status messages look alike
        return [line for number, line in enumerate(lines) if line != lines[number - 1] or not number]
    return [line for line in lines if line != RUNNING]


def of_job(example: str, cmd: str, arguments: str) -> tuple[str, ...]:
    """A job as the example takes it."""
    return (f"{cmd} {arguments}",) if example == "shell" else (cmd, arguments)


def words_of_failure(run: Run) -> str:
    """What it says to the person who started it, in words, not as a dump of the program's stack."""
    assert run.code() not in (0, -9)
    for dump in ("Traceback", "Exception in thread", "goroutine", "    at ", "terminate called"):
        assert dump not in run.stderr
    return run.stderr


@on("broker_j", "rabbitmq4", "carod_broker")
def test_hello_grid_shows_the_status_messages_and_the_jobs_output(run: Start, example: str, grid: Grid) -> None:
    hello = run(grid.url, grid.address, **grid.environ)
    assert (hello.code(), hello.stderr) == (0, "")
    if example == "shell":
        files = ["_condor_stderr", "_condor_stdout", "exit_code", "job.sh"]
        assert said(example, hello.lines) == ["status message", "result:", *files, "Hello Grid"]
    else:
        assert said(example, hello.lines) == [ACCEPTED, COMPLETED, "Hello Grid"]


@on("broker_j")
def test_status_messages_are_shown_as_they_come(run: Start, example: str, grid: Grid, gate: Gate) -> None:
    job = run(grid.url, grid.address, *of_job(example, "/bin/cat", gate.path), **grid.environ)
    if example == "shell":
        job.wait_for("status message", count=2)
    else:
        job.wait_for(RUNNING)
    Path(gate.path).write_text("through the gate\n")
    assert job.code() == 0
    assert job.lines[-1] == "through the gate"


@on("broker_j")
def test_a_job_that_exits_with_an_error_fails_with_its_text(run: Start, example: str, grid: Grid) -> None:
    job = run(grid.url, grid.address, *of_job(example, "/bin/ls", "/no/such/directory"), **grid.environ)
    assert "/bin/ls: cannot access '/no/such/directory'" in words_of_failure(job)


@on("broker_j")
def test_a_job_that_cannot_run_fails_with_the_reason(run: Start, example: str, grid: Grid) -> None:
    job = run(grid.url, grid.address, *of_job(example, "/no/such/program", "Hello"), **grid.environ)
    reason = "/no/such/program: not found" if example == "shell" else "ERROR: Cmd: '/no/such/program' does not exist"
    assert reason in words_of_failure(job)


@on("broker_j", "rabbitmq4", "carod_broker")
def test_a_queue_that_does_not_exist_is_named(run: Start, grid: Grid) -> None:
    queue = f"no-such-queue-{secrets.token_hex(4)}"
    words = words_of_failure(run(grid.url, grid.prefix + queue, PATIENCE="1", **grid.environ))
    assert queue in words
    assert "is a node running" in words or f"no queue '{queue}'" in words


@pytest.mark.parametrize("example", [*AMQP_091, *AMQP_10])
def test_a_broker_that_does_not_answer_is_an_error(run: Start) -> None:
    (port,) = free_ports(1)
    assert "no " in words_of_failure(run(CAROD_BROKER=f"amqp://guest:guest@127.0.0.1:{port}"))


@on("broker_j")
async def test_a_connection_that_is_lost_ends_the_wait(run: Start, example: str, grid: Grid, gate: Gate) -> None:
    async with Proxy(grid.url) as proxy:
        job = run(proxy.url, grid.address, *of_job(example, "/bin/cat", gate.path), **grid.environ)
        await asyncio.to_thread(job.wait_for, "status message" if example == "shell" else ACCEPTED)
    assert "connection" in await asyncio.to_thread(words_of_failure, job)
    await gate.open()
