"""The operator's commands, run as operators run them, and the library below them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import secrets
import select
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from carod_client import Grid, GridError, Handle, JobHeld, JobRemoved, JobStatus
from carod_client.control import Control, NoSuchJob, NoSuchNode, RequestRefused
from click.testing import CliRunner

from carod.amqp import Address, Endpoint, open_transport
from carod.cli import COMMANDS, main
from carod.job import job_message
from tests.client.conftest import _delete, a_node

PATIENCE = 120.0
"""Seconds until a test is given up; no test waits so long for what works."""
WAIT = ("--wait", "30")
"""For what does answer; on a machine busy with other tests that may take a while."""
WINDOW = ("--wait", "5")
"""For what takes all answers within a time: all of it is spent."""
CAROD = [sys.executable, "-m", "carod.cli"]
OPERATOR = """nodes top query dead hold release rm suspend continue vacate setattr drain resume ping""".split()

Carod = Callable[..., Awaitable[tuple[int, str, str]]]


@dataclass(frozen=True)
class Pool:
    """A node of two slots that only these tests use: they may drain it, but leave it as it was."""

    url: str
    queue: str
    node: str


@pytest.fixture(scope="module")
def pool(broker_url: str) -> Iterator[Pool]:
    queue = f"test-operate-{secrets.token_hex(6)}"

    async def name() -> str:
        async with Control(broker_url, queue) as control:
            while not (nodes := await control.nodes(wait=1, enough=1)):  # it has a queue, but may not listen yet
                pass
            return nodes[0].name

    try:
        with a_node(broker_url, queue):
            yield Pool(broker_url, queue, asyncio.run(asyncio.wait_for(name(), PATIENCE)))
    finally:
        asyncio.run(_delete(broker_url, queue))


def environment(url: str, queue: str) -> dict[str, str]:
    return os.environ | {"CAROD_BROKER": url, "_CAROD_BROKER_QUEUE": queue, "TERM": "xterm", "COLUMNS": "120"}


@pytest.fixture
def carod(pool: Pool) -> Carod:
    """Runs `carod` with these arguments, its output in pipes: exit code, output, errors."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(
            subprocess.run, [*CAROD, *arguments], env=environment(pool.url, pool.queue),
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
async def grid(pool: Pool) -> AsyncIterator[Grid]:
    async with Grid(pool.url, pool.queue) as grid:
        yield grid


@pytest.fixture
async def control(pool: Pool) -> AsyncIterator[Control]:
    async with Control(pool.url, pool.queue, patience=30) as control:
        yield control


class Starts:
    """A pipe into which each job that `started` sends says that it starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    async def next(self) -> None:
        """Wait for one more start."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pipe, readable.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await readable.wait()
            assert os.read(self._pipe, 3) == b"up\n"
        finally:
            loop.remove_reader(self._pipe)

    def close(self) -> None:
        os.close(self._pipe)


@pytest.fixture
def starts(open_directory: Path) -> Iterator[Starts]:
    path = open_directory / "starts"
    os.mkfifo(path)
    path.chmod(0o666)
    starts = Starts(path)
    yield starts
    starts.close()


@pytest.fixture
async def started(grid: Grid, starts: Starts) -> AsyncIterator[Callable[..., Awaitable[Handle]]]:
    """Sends a job that sleeps, and waits until it does: `await started(attributes=...)`."""
    handles = []

    async def start(**options: Any) -> Handle:
        handle = await grid.submit("/bin/sh", "-c", f"echo up > {starts.path}; exec sleep 1000", **options)
        handles.append(handle)
        await starts.next()
        return handle

    yield start
    for handle in handles:
        with suppress(GridError):
            if not handle.done:
                await handle.remove()
            await handle


async def status(handle: Handle, wanted: JobStatus, state: str | None) -> None:
    """Wait until a reply says so."""
    async with asyncio.timeout(PATIENCE):
        async for reply in handle:
            if (reply.status, reply.state) == (wanted, state):
                return
    pytest.fail(f"no reply says {wanted.name} {state}")


async def buried(control: Control, job: str) -> None:
    """Wait until a job is in the dead-letter queue, and leave it there."""
    there = asyncio.Event()
    transport = open_transport(control.endpoint)
    await transport.connect()
    try:
        await transport.consume(
            f"{control.queue}.dead", lambda it: there.set() if it.message.message_id == job else None, credit=0
        )
        async with asyncio.timeout(PATIENCE):
            await there.wait()
    finally:
        await transport.close()


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# -- jobs ------------------------------------------------------------------------------------------------------


async def test_a_held_job_is_listed_and_runs_again_once_released(
    carod: Carod, started: Callable[..., Awaitable[Handle]], starts: Starts, control: Control
) -> None:
    handle = await started()
    assert await carod("hold", handle.id, "--reason", "no licence", *WAIT) == (0, "", "")
    with pytest.raises(JobHeld, match="no licence"):
        await handle
    await buried(control, handle.id)

    code, out, _ = await carod("dead", "--json")
    (dead,) = [entry for entry in objects(out) if entry["id"] == handle.id]
    assert (code, dead["kind"], dead["reason"], dead["cmd"]) == (0, "job", "no licence", "/bin/sh")

    released = asyncio.create_task(carod("release", handle.id))
    await starts.next()
    assert await released == (0, "", "")
    assert (await control.query(handle.id))["JobStatus"] == JobStatus.RUNNING
    assert handle.id not in [entry.id for entry in await control.dead_letters()]
    code, _, err = await carod("release", handle.id)
    assert (code, f"runs on node {(await control.nodes(30, 1))[0].name}" in err) == (1, True)
    await control.remove(handle.id)


async def test_all_held_jobs_are_released_at_once(
    carod: Carod, started: Callable[..., Awaitable[Handle]], starts: Starts, control: Control
) -> None:
    handles = [await started(), await started()]
    ids = [handle.id for handle in handles]
    assert await carod("hold", *ids, *WAIT) == (0, "", "")
    for handle in handles:
        with pytest.raises(JobHeld):
            await handle
        await buried(control, handle.id)
    code, out, err = await carod("release", "--all", "--json")
    assert (code, err) == (0, "")
    assert {(entry["job"], entry["ok"]) for entry in objects(out)} == {(job, True) for job in ids}
    for _ in ids:
        await starts.next()
    for job in ids:
        await control.remove(job)
    assert await carod("release", "--all") == (0, "", "")


async def test_a_removed_job_ends_and_its_owner_is_told_why(
    carod: Carod, started: Callable[..., Awaitable[Handle]]
) -> None:
    handle = await started()
    code, out, _ = await carod("rm", "--json", "--reason", "too long", handle.id, *WAIT)
    (said,) = objects(out)
    assert (code, said["action"], said["job"], said["ok"]) == (0, "rm", handle.id, True)
    with pytest.raises(JobRemoved, match="too long"):
        await handle


async def test_a_suspended_job_shows_as_such_and_goes_on(
    carod: Carod, started: Callable[..., Awaitable[Handle]], pool: Pool
) -> None:
    handle = await started()
    assert await carod("suspend", handle.id, *WAIT) == (0, "", "")
    await status(handle, JobStatus.RUNNING, "Suspended")
    _, out, _ = await carod("nodes", pool.node, *WAIT)
    (line,) = [line for line in out.splitlines() if line.startswith(handle.id)]
    assert line.split()[2] == "S"
    assert " sh -c " in line
    assert await carod("continue", handle.id, *WAIT) == (0, "", "")
    await status(handle, JobStatus.RUNNING, "Running")


async def test_a_vacated_job_runs_again(
    carod: Carod, started: Callable[..., Awaitable[Handle]], starts: Starts, control: Control
) -> None:
    handle = await started()
    assert await carod("vacate", handle.id, *WAIT) == (0, "", "")
    await status(handle, JobStatus.IDLE, "Exited")
    await starts.next()
    assert (await control.query(handle.id))["NumJobStarts"] == 2


async def test_an_attribute_is_set_and_queried(carod: Carod, started: Callable[..., Awaitable[Handle]]) -> None:
    handle = await started(attributes={"Tag": "a b"})
    assert await carod("setattr", handle.id, "Offset", "-5", *WAIT) == (0, "", "")
    assert await carod("setattr", handle.id, "Note", '"seen"', *WAIT) == (0, "", "")
    values = await carod("query", handle.id, "--attr", "Offset", "--attr", "tag", "--attr", "Nothing", *WAIT)
    assert values == (0, "-5\ta b\tundefined\n", "")
    _, out, _ = await carod("query", handle.id, *WAIT)
    assert {'Cmd = "/bin/sh"', 'Note = "seen"', "Offset = -5"} <= set(out.splitlines())
    assert not any(line.startswith(("Status =", "Node =")) for line in out.splitlines())
    _, out, _ = await carod("query", "--json", handle.id, *WAIT)
    (said,) = objects(out)
    assert (said["job"], said["ad"]["Offset"], said["ad"]["Note"]) == (handle.id, -5, "seen")


async def test_what_a_node_refuses_ends_with_1_and_its_reason(
    carod: Carod, started: Callable[..., Awaitable[Handle]], control: Control
) -> None:
    handle = await started()
    code, out, err = await carod("setattr", handle.id, "Owner", '"root"', *WAIT)
    assert (code, out, "attribute Owner is the node's to set" in err) == (1, "", True)
    code, _, err = await carod("setattr", handle.id, "Note", "1 +", *WAIT)
    assert (code, "column 4 of '1 +'" in err) == (1, True)
    with pytest.raises(RequestRefused, match="Owner is the node's to set") as caught:
        await control.set_attribute(handle.id, "Owner", '"root"')
    assert caught.value.job_id == handle.id


async def test_a_users_own_job_can_be_controlled_by_that_user(pool: Pool, control: Control, starts: Starts) -> None:
    user, _ = Endpoint(pool.url).credentials or ("guest", "guest")
    transport = open_transport(Endpoint(pool.url))
    await transport.connect()
    try:
        message = job_message(
            {"Cmd": "/bin/sh", "Arguments": f"-c 'echo up > {starts.path}; exec sleep 1000'"}, reply_to="nobody"
        )
        message.user_id = user
        await transport.publish(message, Address("", pool.queue))
    finally:
        await transport.close()
    await starts.next()
    assert message.message_id is not None
    assert (await control.query(message.message_id))["AuthenticatedIdentity"] == user
    assert await control.remove(message.message_id) == pool.node


@pytest.mark.parametrize("action", ["hold", "rm", "suspend", "continue", "vacate", "query"])
async def test_a_job_that_no_node_has_ends_with_3_and_says_where_it_may_be(carod: Carod, action: str) -> None:
    code, out, err = await carod(action, "no-such-job", "--wait", "0.1")
    assert (code, out) == (3, "")
    for text in ("no-such-job: no node has it", "may still be waiting in queue", "only the agent", "be over"):
        assert text in err


async def test_one_job_of_several_that_is_not_there_does_not_keep_the_others(
    carod: Carod, started: Callable[..., Awaitable[Handle]]
) -> None:
    handle = await started()
    code, out, err = await carod("rm", "--json", "no-such-job", handle.id, "--wait", "5")
    assert (code, err) == (3, "")
    assert [(entry["job"], entry["ok"], entry.get("error")) for entry in objects(out)] == [
        ("no-such-job", False, "NoSuchJob"),
        (handle.id, True, None),
    ]
    with pytest.raises(JobRemoved):
        await handle


async def test_the_library_says_that_nobody_has_a_job(pool: Pool) -> None:
    async with Control(pool.url, pool.queue, patience=0.1) as control:
        with pytest.raises(NoSuchJob) as caught:
            await control.hold("no-such-job")
        assert caught.value.job_id == "no-such-job"
        with pytest.raises(NoSuchJob, match="no node knows of it"):
            await control.release("no-such-job")
    async with Control(pool.url, "test-nobody", patience=0.1) as control:
        with pytest.raises(NoSuchJob, match="there is no queue 'test-nobody'"):
            await control.remove("no-such-job")


# -- nodes -----------------------------------------------------------------------------------------------------


async def test_nodes_and_what_runs_on_them_are_listed(
    carod: Carod, started: Callable[..., Awaitable[Handle]], pool: Pool
) -> None:
    handle = await started(attributes={"Owner": "ann"})
    code, out, _ = await carod("nodes", pool.node, "--json", *WAIT)
    (node,) = objects(out)
    assert (code, node["node"], node["state"], node["busy"], node["total"]) == (0, pool.node, "serving", 1, 2)
    (job,) = [slot["job"] for slot in node["slots"] if slot["job"]]
    assert (job["id"], job["owner"], job["cmd"]) == (handle.id, "ann", "/bin/sh")
    assert job["seconds"] >= 0

    _, out, _ = await carod("nodes", pool.node, "--slots", *WAIT)
    lines = out.splitlines()
    assert lines[0].split() == ["NODE", "BUSY", "STATE", "LOAD"]
    assert lines[1].split()[:3] == [pool.node, "1/2", "serving"]
    assert sorted(line.split()[1] for line in lines if line.startswith("slot")) == ["Claimed", "Unclaimed"]
    assert any(line.startswith(handle.id) and " ann " in line for line in lines)
    assert not any(line.endswith(" ") for line in lines)


async def test_without_names_every_node_is_listed(carod: Carod, pool: Pool) -> None:
    code, out, _ = await carod("nodes", *WINDOW)
    assert (code, pool.node in out) == (0, True)


async def test_a_drained_node_takes_no_jobs_until_it_resumes(
    carod: Carod, grid: Grid, pool: Pool, control: Control
) -> None:
    try:
        assert await carod("drain", pool.node, *WAIT) == (0, "", "")
        _, out, _ = await carod("nodes", "--json", pool.node, *WAIT)
        assert objects(out)[0]["state"] == "drained"
        handle = await grid.submit("/bin/true", timeout=PATIENCE)
        assert (await control.ping(pool.node)).busy == 0
        assert handle.status is JobStatus.IDLE
    finally:
        assert await carod("resume", pool.node, *WAIT) == (0, "", "")
    assert (await handle).ok


async def test_all_nodes_are_drained_and_resumed_at_once(carod: Carod, pool: Pool) -> None:
    for action in ("drain", "resume"):
        code, out, _ = await carod(action, "--all", "--json", *WINDOW)
        assert (code, objects(out)) == (0, [{"action": action, "node": pool.node, "ok": True}])


async def test_a_ping_says_how_long_the_answer_took(carod: Carod, pool: Pool) -> None:
    code, out, _ = await carod("ping", pool.node, *WAIT)
    assert (code, out.startswith(f"{pool.node}: serving, ")) == (0, True)
    code, out, _ = await carod("ping", "--all", "--json", *WINDOW)
    assert (code, objects(out)[0]["node"]) == (0, pool.node)


@pytest.mark.parametrize("action", ["nodes", "drain", "resume", "ping"])
async def test_an_unknown_node_ends_with_3_and_names_the_others(carod: Carod, pool: Pool, action: str) -> None:
    code, out, err = await carod(action, "no-such-node", "--wait", "0.1")
    assert (code, out, f"no answer; nodes of queue {pool.queue} that answer: " in err) == (3, "", True)


async def test_the_library_names_the_node_that_does_not_answer(pool: Pool) -> None:
    async with Control(pool.url, pool.queue, patience=0.1) as control:
        with pytest.raises(NoSuchNode, match="node no-such-node: no answer"):
            await control.drain("no-such-node")


@pytest.mark.parametrize(
    "command", [("nodes", "--wait", "0.1"), ("ping", "--all"), ("drain", "--all"), ("dead",), ("release", "a")]
)
async def test_a_queue_that_nobody_serves_ends_with_3(carod: Carod, command: tuple[str, ...]) -> None:
    code, out, err = await carod(*command, "--queue", "test-nobody")
    assert (code, out, "test-nobody" in err, "Traceback" in err) == (3, "", True, False)


# -- top -------------------------------------------------------------------------------------------------------


async def test_in_a_pipe_top_looks_once_or_as_often_as_asked(
    carod: Carod, started: Callable[..., Awaitable[Handle]], pool: Pool
) -> None:
    handle = await started()
    code, out, err = await carod("top", *WINDOW)
    assert (code, err, pool.node in out, handle.id in out) == (0, "", True, True)
    assert "1 node, 1 of 2 slots busy, 0 waiting" in out.splitlines()[0]
    _, out, _ = await carod("top", "--json", "--count", "2", *WINDOW)
    looks = objects(out)
    assert [(look["queue"], look["waiting"], look["nodes"][0]["busy"]) for look in looks] == [(pool.queue, 0, 1)] * 2


@pytest.mark.parametrize("leave", ["q", "ctrl-c", "count"])
async def test_top_is_live_on_a_terminal_and_leaves_it_as_it_was(pool: Pool, leave: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    more = ["--count", "1"] if leave == "count" else []
    process = subprocess.Popen(  # noqa: ASYNC220
        [*CAROD, "top", *more], env=environment(pool.url, pool.queue), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    shown = b"" if leave == "count" else await asyncio.to_thread(read_until, ours, pool.node.encode())
    if leave == "q":
        os.write(ours, b"q")
    elif leave == "ctrl-c":
        process.send_signal(signal.SIGINT)
    shown += await asyncio.to_thread(read_until, ours, b"\x1b[?1049l")
    rest = asyncio.create_task(asyncio.to_thread(read_all, ours))
    code = await asyncio.to_thread(process.wait, PATIENCE)
    after = termios.tcgetattr(theirs)
    os.close(theirs)
    shown += await rest
    os.close(ours)
    assert (code, after) == (0, before)
    assert b"Traceback" not in shown


def read_until(terminal: int, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        assert select.select([terminal], [], [], PATIENCE)[0], f"{text!r} does not come after {shown!r}"
        shown += os.read(terminal, 1 << 16)
    return shown


def read_all(terminal: int) -> bytes:
    shown = b""
    with suppress(OSError):  # Linux says so when the other side is closed
        while data := os.read(terminal, 1 << 16):
            shown += data
    return shown


# -- all of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("hold",), ("rm",), ("release",), ("release", "--all", "a"), ("drain",), ("ping", "--all", "a"), ("query",),
     ("setattr", "a", "b"), ("top", "--count", "0"), ("nodes", "--wait", "-1"), ("dead", "--broker", "http://x/")],
)  # fmt: skip
async def test_wrong_usage_ends_with_2(carod: Carod, command: tuple[str, ...]) -> None:
    code, out, err = await carod(*command)
    assert (code, out, bool(err), "Traceback" in err) == (2, "", True, False)


@pytest.mark.parametrize("command", [("nodes",), ("top",), ("dead",), ("hold", "a"), ("release", "--all")])
async def test_a_broker_that_is_not_there_ends_with_1(carod: Carod, command: tuple[str, ...]) -> None:
    code, out, err = await carod(*command, "--broker", "amqp://127.0.0.1:1/")
    assert (code, out, "is a broker running there?" in err) == (1, "", True)


@pytest.mark.parametrize("command", OPERATOR)
def test_every_command_has_examples_and_names_its_exit_codes(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert (result.exit_code, f"carod {command}" in result.output.partition("Example")[2]) == (0, True)
    assert "Exit code: 0" in result.output


def test_every_command_is_in_the_list_of_all() -> None:
    listed = [line.split()[0] for line in CliRunner().invoke(main, ["--help"]).output.splitlines() if line.strip()]
    assert set(COMMANDS) <= set(listed)
    assert set(OPERATOR) <= set(COMMANDS)


def test_a_node_loads_none_of_it() -> None:
    script = (
        "import sys, carod.cli; print([name for name in sys.modules if name.split('.')[0] in ('rich', 'carod_client')])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
