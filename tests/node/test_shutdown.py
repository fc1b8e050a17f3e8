"""How a node ends: running jobs end or go back to the queue, and nothing stays behind."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from tests.node.client import Client, shell
from tests.node.conftest import Node, gone, until


async def running(client: Client, directory: Path, script: str = "sleep 1000", **headers: object) -> tuple[str, int]:
    """A job that runs: its id and its process's."""
    pids = directory / "pid"
    pids.unlink(missing_ok=True)
    job = await client.submit(shell(f"echo $$ >{pids}.tmp; mv {pids}.tmp {pids}; {script}", **headers))
    await until(pids.exists, "the job runs")
    return job, int(pids.read_text())


async def test_sigterm_lets_running_jobs_end_and_takes_no_more(
    start_node: Callable[..., Node], new_client: Client, open_directory: Path, queue_name: str
) -> None:
    node = start_node("--slots", "2")
    go = open_directory / "go"
    job, _ = await running(new_client, open_directory, f"while [ ! -e {go} ]; do sleep 0.05; done; echo done")
    node.send(signal.SIGTERM)
    await node.seen("stopping", signal="SIGTERM", running=1)
    late = await new_client.submit({"Cmd": "/bin/true"})
    go.touch()
    reply = await new_client.end(job)
    assert (reply.status, reply.state, reply.out) == (4, '"Exited"', "done\n")
    assert await node.ended() == 0
    assert (await new_client.take(queue_name)).properties.message_id == late
    assert new_client.waiting(late) == 0


async def test_a_job_that_outlasts_sigterm_is_evicted_and_goes_back_to_the_queue(
    start_node: Callable[..., Node], new_client: Client, open_directory: Path, queue_name: str, execute: Path
) -> None:
    node = start_node("--slots", "1", SHUTDOWN_GRACEFUL_TIMEOUT="0.2")
    job, pid = await running(
        new_client, open_directory, "echo so far; trap 'echo caught; exit 1' TERM; sleep 1000 & wait"
    )
    node.send(signal.SIGTERM)
    reply = await new_client.until(job, lambda reply: reply.status != 2)
    assert (reply.status, reply.state, reply.out) == (1, '"Exited"', "so far\ncaught\n")
    assert await node.ended() == 0
    assert gone(pid)
    back = await new_client.take(queue_name)
    assert (back.properties.message_id, back.properties.reply_to) == (job, new_client.reply_to)
    assert back.headers["Cmd"] == "/bin/sh"
    assert new_client.waiting(job) == 0


async def test_an_evicted_job_is_run_by_another_node(
    start_node: Callable[..., Node], new_client: Client, open_directory: Path
) -> None:
    node = start_node("--slots", "1", SHUTDOWN_GRACEFUL_TIMEOUT="0.1")
    go = open_directory / "go"
    job, _ = await running(new_client, open_directory, f"while [ ! -e {go} ]; do sleep 0.05; done; cat input", body=1)
    node.send(signal.SIGTERM)
    assert (await new_client.until(job, lambda reply: reply.status != 2)).status == 1
    await node.ended()
    go.touch()
    start_node("--slots", "1")
    reply = await new_client.end(job)
    assert (reply.status, reply.headers["NumJobStarts"]) == (4, 2)


async def test_sigquit_evicts_at_once_whatever_the_job_does(
    start_node: Callable[..., Node], new_client: Client, open_directory: Path, queue_name: str
) -> None:
    node = start_node("--slots", "1", SHUTDOWN_GRACEFUL_TIMEOUT="1000", KILLING_TIMEOUT="1000")
    job, pid = await running(new_client, open_directory, "trap 'echo caught' TERM; sleep 1000; sleep 1000")
    node.send(signal.SIGQUIT)
    reply = await new_client.until(job, lambda reply: reply.status != 2)
    assert (reply.status, reply.headers["ExitSignal"]) == (1, signal.SIGKILL)
    assert await node.ended() == 0
    assert gone(pid)
    assert (await new_client.take(queue_name)).properties.message_id == job


async def test_a_second_ctrl_c_evicts_at_once(
    start_node: Callable[..., Node], new_client: Client, open_directory: Path
) -> None:
    node = start_node("--slots", "1", SHUTDOWN_GRACEFUL_TIMEOUT="1000", KILLING_TIMEOUT="1000")
    job, _ = await running(new_client, open_directory, "trap '' INT TERM; sleep 1000; sleep 1000")
    node.send(signal.SIGINT)
    await node.seen("stopping", fast=False)
    node.send(signal.SIGINT)
    assert (await new_client.until(job, lambda reply: reply.status != 2)).status == 1
    assert await node.ended() == 0


async def test_a_node_leaves_neither_process_nor_file(
    start_node: Callable[..., Node], new_client: Client, execute: Path
) -> None:
    node = start_node("--slots", "3", "--name", "tidy")
    assert (await new_client.shell("mkdir -p a/b; touch a/b/c; chmod 0 a")).status == 4
    children = [int(pid) for pid in Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()]
    assert children
    node.send(signal.SIGTERM)
    assert await node.ended() == 0
    for pid in children:
        await until(lambda pid=pid: gone(pid), f"child {pid} of an ended node is gone")
    assert not list((execute / "tidy").iterdir())


async def test_a_rejected_job_that_is_kept_goes_back_when_the_node_stops(
    start_node: Callable[..., Node], new_client: Client, queue_name: str
) -> None:
    node = start_node("--slots", "1", START="FALSE", REJECT_DELAY_MIN="1000", REJECT_DELAY_MAX="1000")
    job = await new_client.submit({"Cmd": "/bin/true"})
    await node.seen("job rejected", job=job)
    node.send(signal.SIGTERM)
    assert await node.ended() == 0
    assert (await new_client.take(queue_name)).properties.message_id == job
