"""The daemon: how it starts and ends, its window, its bounds, and who may do what."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carod.amqp import Address, Endpoint, Message, Queue, Transport, open_transport
from qmf_agent.config import load
from qmf_agent.model import Code
from tests.agent.agents import AGENT, PATIENCE, AgentProcess, Console, MethodFailed, a_console
from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.node.conftest import Node

Start = Callable[..., AgentProcess]
StartNode = Callable[..., Node]


async def code_of(console: Console, method: str, **arguments: object) -> Code:
    with pytest.raises(MethodFailed) as caught:
        await console.do(method, **arguments)
    return Code(caught.value.code)


# -- starting and ending ---------------------------------------------------------------------------------------


def test_it_ends_in_order_at_sigterm(start_agent: Start) -> None:
    agent = start_agent()
    agent.send(signal.SIGTERM)
    assert agent.wait() == 0
    assert agent.events("stopped")
    assert "Traceback" not in agent.log


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([AGENT, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--broker", "http://x"], "scheme 'http' is not one of amqp"),
        (["--name", "a b"], "SCHEDD_NAME = 'a b'"),
        (["--spool", "/proc/nowhere"], "name a directory that can be written"),
        (["--config", "/no/such/file"], "configuration file '/no/such/file' does not exist"),
    ],
)
def test_what_can_not_be_is_said_at_once(arguments: list[str], text: str, tmp_path: Path) -> None:
    spool = [] if "--spool" in arguments else ["--spool", str(tmp_path)]
    ended = run("start", *arguments, *spool)
    assert ended.returncode == 1
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_second_agent_of_a_name_is_refused_on_this_machine_and_on_the_broker(
    start_agent: Start, broker_url: str, queue_name: str, tmp_path: Path
) -> None:
    agent = start_agent("twin")
    common = ["start", "--broker", broker_url, "--queue", queue_name, "--name", "twin"]
    here = run(*common, "--spool", str(agent.spool))
    assert (here.returncode, "an agent named 'twin' runs on this machine already" in here.stderr) == (1, True)
    elsewhere = run(*common, "--spool", str(tmp_path / "other"))
    assert (elsewhere.returncode, "Traceback" in elsewhere.stderr) == (1, False)
    assert "twin" in elsewhere.stderr


def test_help_has_examples_and_every_knob_is_printed() -> None:
    assert "qmf-agent start --spool" in run("start", "--help").stdout
    printed = run("config").stdout
    for name in load(environ={}).table:
        assert f"{name.name} = " in printed


async def test_it_comes_back_when_the_broker_does(
    new_rabbitmq: Callable[..., object], tmp_path: Path, work_directory: Path
) -> None:
    from tests.agent.agents import an_agent_process
    from tests.node.conftest import _start

    rabbitmq = await asyncio.to_thread(new_rabbitmq)
    url = rabbitmq.url  # type: ignore[attr-defined]
    node = await asyncio.to_thread(_start, url, "grid", work_directory / "execute", "--slots", "1")
    try:
        with an_agent_process(url, "grid", tmp_path / "spool") as agent:
            async with a_console(url, agent.agent) as console:
                job = await console.submit(Cmd="/bin/sleep", Args="1")
                waiting = [await console.submit() for _ in range(5)]
            await asyncio.to_thread(rabbitmq.restart)  # type: ignore[attr-defined]
            await agent.seen("ready", 2)
            async with a_console(url, agent.agent) as console:
                for each in (job, *waiting):
                    assert (await console.until(each, 4))["NumJobStarts"] == 1
    finally:
        node.stop()


# -- the window ------------------------------------------------------------------------------------------------


async def depth(url: str, queue: str) -> int:
    transport = open_transport(Endpoint(url))
    await transport.connect()
    try:
        return await transport.depth(queue) or 0
    finally:
        await transport.close()


async def test_only_a_window_of_the_jobs_is_on_the_grid(start_agent: Start) -> None:
    agent = start_agent(JOB_WINDOW_MIN=5)
    async with a_console(agent.url, agent.agent) as console:
        ids = (await console.do("SubmitJobs", Ads=[{"Cmd": "/bin/true", "Owner": "t"}] * 50))["Ids"]
        assert len(ids) == 50
        end = time.monotonic() + PATIENCE
        while await depth(agent.url, agent.queue) < 5:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        await console.submit()
        assert await depth(agent.url, agent.queue) == 5


async def test_jobs_go_by_priority_and_waiting_ones_can_be_held_and_removed_at_once(
    start_agent: Start, start_node: StartNode, work_directory: Path
) -> None:
    agent = start_agent(JOB_WINDOW_MIN=1, JOB_WINDOW=0)
    log = work_directory / f"order-{agent.name}"
    log.touch()
    log.chmod(0o666)
    async with a_console(agent.url, agent.agent) as console:

        async def job(name: str, prio: int) -> str:
            return await console.submit(Cmd="/bin/sh", Arguments=f"-c 'echo {name} >> {log}'", JobPrio=prio)

        first = await job("first", 0)
        low, high, changed, held, removed = [
            await job(name, prio) for name, prio in (("low", 0), ("high", 5), ("changed", 0), ("held", 9), ("gone", 9))
        ]
        await console.do("HoldJob", Id=held)
        await console.do("RemoveJob", Id=removed)
        await console.do("SetJobAttribute", Id=changed, Name="JobPrio", Value="7")
        start_node("--slots", "1")
        for each in (first, low, high, changed):
            await console.until(each, 4)
        assert log.read_text().split() == ["first", "changed", "high", "low"]
        assert (await console.job(held))["JobStatus"] == 5
        assert (await console.job(removed))["JobStatus"] == 3


async def test_orders_for_a_job_that_waits_on_the_broker_hold_when_a_node_takes_it(
    start_agent: Start, start_node: StartNode
) -> None:
    agent = start_agent()
    async with a_console(agent.url, agent.agent) as console:
        held, removed, changed, after = [await console.submit(Cmd="/bin/sleep", Args="60") for _ in range(3)] + [
            await console.submit()
        ]
        end = time.monotonic() + PATIENCE
        while await depth(agent.url, agent.queue) < 4:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        await console.do("HoldJob", Id=held, Reason="later")
        await console.do("RemoveJob", Id=removed)
        await console.do("SetJobAttribute", Id=changed, Name="Args", Value='"0.01"')
        start_node("--slots", "1")
        await console.until(after, 4)
        assert (await console.until(changed, 4))["JobDuration"] < 30
        assert (await console.job(held))["JobStatus"] == 5
        assert (await console.job(removed))["JobStatus"] == 3
        await console.do("RemoveJob", Id=held)


async def test_a_job_that_is_removed_or_held_while_it_waits_on_the_broker_is_never_started(
    start_agent: Start, start_node: StartNode, work_directory: Path
) -> None:
    start_node("--slots", "1")
    agent = start_agent()
    log = work_directory / f"started-{agent.name}"
    log.touch()
    log.chmod(0o666)
    async with a_console(agent.url, agent.agent) as console:
        blocker = await console.submit(Cmd="/bin/sleep", Args="60")
        await console.until(blocker, 2)
        waiting = [
            await console.submit(Cmd="/bin/sh", Arguments=f"-c 'echo {name} >> {log}'")
            for name in ("removed", "held", "changed", "free")
        ]
        end = time.monotonic() + PATIENCE
        while await depth(agent.url, agent.queue) < 4:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        removed, held, changed, free = waiting
        await console.do("RemoveJob", Id=removed)
        await console.do("HoldJob", Id=held)
        await console.do("SetJobAttribute", Id=changed, Name="Arguments", Value=f"\"-c 'echo new >> {log}'\"")
        await console.do("RemoveJob", Id=blocker)
        for job in (free, changed):
            await console.until(job, 4)
        assert sorted(log.read_text().split()) == ["free", "new"]
        assert (await console.job(held))["JobStatus"] == 5
        await console.do("ReleaseJob", Id=held)
        await console.until(held, 4)
        assert log.read_text().split()[-1] == "held"


async def test_a_held_job_is_the_agents_and_not_in_the_dead_letter_queue(
    start_agent: Start, start_node: StartNode
) -> None:
    start_node("--slots", "1")
    agent = start_agent()
    async with a_console(agent.url, agent.agent) as console:
        await console.until(await console.submit(Cmd="/no/such/program"), 5)
        assert await depth(agent.url, f"{agent.queue}.dead") == 0


async def test_a_node_that_is_not_reached_is_said_and_the_order_is_kept(
    start_agent: Start, start_node: StartNode
) -> None:
    node = start_node("--slots", "1")
    agent = start_agent(CONTROL_TIMEOUT=0.3)
    async with a_console(agent.url, agent.agent) as console:
        job = await console.submit(Cmd="/bin/sleep", Args="60")
        await console.until(job, 2)
        node.send(signal.SIGSTOP)
        try:
            assert await code_of(console, "SuspendJob", Id=job) is Code.NOT_REACHED
            assert (await console.job(job))["JobStatus"] == 2
            with pytest.raises(MethodFailed, match=r"is Held, but no node answered within 0\.3 s") as caught:
                await console.do("HoldJob", Id=job)
            assert caught.value.code == Code.NOT_REACHED
        finally:
            node.send(signal.SIGCONT)
        await console.until(job, 5)
        again = await console.submit()
        await console.until(again, 4)  # the only slot is free again
        assert (await console.job(job))["JobStatus"] == 5


async def test_a_job_that_the_broker_lost_is_sent_again(start_agent: Start, start_node: StartNode) -> None:
    agent = start_agent(AUDIT_INTERVAL=0.5)
    async with a_console(agent.url, agent.agent) as console:
        jobs = [await console.submit() for _ in range(3)]
        end = time.monotonic() + PATIENCE
        while await depth(agent.url, agent.queue) < 3:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        transport = open_transport(Endpoint(agent.url))
        await transport.connect()
        await transport.delete(agent.queue)
        await transport.close()
        await agent.seen("job sent again", 3)
        start_node("--slots", "1")
        for job in jobs:
            assert (await console.until(job, 4))["NumJobStarts"] == 1


async def test_memory_is_for_the_window_and_not_for_the_queue(start_agent: Start) -> None:
    agent = start_agent()
    async with a_console(agent.url, agent.agent) as console:
        ads = [{"Cmd": "/bin/sleep", "Args": str(number), "Owner": "t"} for number in range(500)]
        await console.do("SubmitJobs", Ads=ads)
        before = agent.rss
        for _ in range(20):
            await console.do("SubmitJobs", Ads=ads)
        assert (await console.objects("Scheduler"))[0]["TotalIdleJobs"] == 10_500
        assert agent.rss - before < 60 << 20


# -- bounds ----------------------------------------------------------------------------------------------------


async def test_bounds_are_said_and_kept(start_agent: Start) -> None:
    agent = start_agent(MAX_JOBS_SUBMITTED=4, MAX_JOBS_PER_OWNER=2, MAX_INPUT_SIZE=1000, SPOOL_QUOTA=1500)
    async with a_console(agent.url, agent.agent) as console:
        for _ in range(2):
            await console.submit(Owner="jane")
        with pytest.raises(MethodFailed, match="jane has 2 jobs in the queue, MAX_JOBS_PER_OWNER = 2"):
            await console.submit(Owner="jane")
        for _ in range(2):
            await console.submit(Owner="joe")
        with pytest.raises(MethodFailed, match="4 jobs are in the queue, MAX_JOBS_SUBMITTED = 4") as caught:
            await console.submit(Owner="jack")
        assert caught.value.code == Code.QUOTA
        await console.do("RemoveJob", Id="1.0")
        await console.submit(Owner="jack")
        drafts = [(await console.do("create"))["Id"] for _ in range(2)]
        await console.do("send", Id=drafts[0], Data=b"x" * 1000)
        assert await code_of(console, "send", Id=drafts[0], Data=b"x") is Code.QUOTA
        await console.do("send", Id=drafts[1], Data=b"x" * 1000)
        await console.do("RemoveJob", Id="2.0")
        with pytest.raises(MethodFailed, match="inputs and results take 2000 bytes, SPOOL_QUOTA = 1500"):
            await console.submit(Owner="jack")
        assert await code_of(console, "create") is Code.QUOTA


async def test_what_is_over_is_forgotten_by_count_with_its_files(start_agent: Start, start_node: StartNode) -> None:
    start_node("--slots", "2")
    agent = start_agent(HISTORY_MAX_COUNT=3)
    async with a_console(agent.url, agent.agent) as console:
        for _ in range(6):
            job = await console.submit(Cmd="/bin/sh", Arguments="-c 'head -c 100000 /dev/urandom > noise'")
            await console.until(job, 4)
        assert len(list(agent.spool.rglob("*.zip"))) == 6
    agent.start_again()
    await agent.seen("ready")
    async with a_console(agent.url, agent.agent) as console:
        end = time.monotonic() + PATIENCE
        while len(jobs := await console.objects("Job")) > 3:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert [job["ClusterId"] for job in jobs] == [4, 5, 6]
        assert len(await console.objects("Submission")) == 3
        while len(list(agent.spool.rglob("*.zip"))) > 3:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        assert await code_of(console, "GetSteps", Id="1.0") is Code.UNKNOWN_JOB
        assert (await console.submit()).endswith("#7.0")


# -- who may do what -------------------------------------------------------------------------------------------


@pytest.fixture
def users(rabbitmq: PrivateRabbitMQ, queue_name: str) -> Iterator[dict[str, str]]:
    """URLs of the broker for some users, who are there for one test."""
    names = ("jane", "joe", "boss")
    for user in names:
        rabbitmq.ctl("add_user", user, "secret")
        rabbitmq.ctl("set_permissions", user, ".*", ".*", ".*")
    yield {user: str(rabbitmq.url).replace("guest:guest", f"{user}:secret") for user in names}
    for user in names:
        rabbitmq.ctl("delete_user", user)


async def test_an_owner_acts_on_its_own_jobs_and_super_users_on_all(start_agent: Start, users: dict[str, str]) -> None:
    agent = start_agent(QUEUE_SUPER_USERS="boss")
    async with (
        a_console(users["jane"], agent.agent, "jane") as jane,
        a_console(users["joe"], agent.agent, "joe") as joe,
        a_console(users["boss"], agent.agent, "boss") as boss,
        a_console(users["joe"], agent.agent) as nobody,
    ):
        job = await jane.submit(Owner="root")
        values = await joe.job(job)
        assert (values["Owner"], values["AuthenticatedIdentity"]) == ("jane", "jane")
        with pytest.raises(MethodFailed, match=r"job 1\.0 is jane's; joe may not hold it") as caught:
            await joe.do("HoldJob", Id=job)
        assert caught.value.code == Code.FORBIDDEN
        assert await code_of(joe, "SetJobAttribute", Id=job, Name="Foo", Value="1") is Code.FORBIDDEN
        assert await code_of(nobody, "RemoveJob", Id=job) is Code.FORBIDDEN
        await jane.do("HoldJob", Id=job)
        await boss.do("ReleaseJob", Id=job)
        assert (await boss.do("GetSteps", Id=job))["Steps"][-1]["Who"] == "boss"
        await boss.do("RemoveJob", Id=job)
        assert (await boss.job(await boss.submit(Owner="someone")))["Owner"] == "someone"
        shared = await nobody.submit(Owner="whoever")
        await joe.do("RemoveJob", Id=shared)
        draft = (await jane.do("create"))["Id"]
        assert await code_of(joe, "send", Id=draft, Data=b"x") is Code.FORBIDDEN


# -- hostile replies -------------------------------------------------------------------------------------------


async def put(transport: Transport, queue: str, **message: object) -> None:
    await transport.publish(Message(**message), Address("", queue))  # type: ignore[arg-type]


async def test_what_is_no_reply_of_a_node_is_dropped_with_a_line_in_the_log(start_agent: Start) -> None:
    agent = start_agent()
    queue = f"{agent.queue}.agent.{agent.name}"
    transport = open_transport(Endpoint(agent.url))
    await transport.connect()
    try:
        await put(transport, queue)
        await put(transport, queue, correlation_id="x", headers={"JobStatus": 4})
        await put(transport, queue, correlation_id="x" * 200, headers={"JobStatus": "four"}, body=b"\xff" * 1000)
        await put(transport, queue, headers={"JobStatus": [1], "JobState": {"a": 1}})
        await agent.seen("message dropped", 4)
        other, _ = await transport.declare(Queue("", False, exclusive=True, auto_delete=True))
        async with a_console(agent.url, agent.agent) as console:
            assert (await console.submit()).endswith("#1.0")
        await transport.delete(other)
    finally:
        await transport.close()
