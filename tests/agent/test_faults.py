"""The agent is killed at any moment: no job is lost, none is run twice, results are complete."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from carod.amqp import TransportError
from tests.agent.agents import AgentProcess, Console, MethodFailed, NoAnswer, a_console
from tests.node.conftest import Node

Start = Callable[..., AgentProcess]
StartNode = Callable[..., Node]
SEED = int(os.environ.get("CAROD_FAULTS_SEED", "0")) or random.SystemRandom().randrange(1 << 31)
PATIENCE = 120.0


@pytest.fixture
def rolls(work_directory: Path) -> Path:
    """A file to which each run of a job appends a line."""
    path = work_directory / f"rolls-{secrets.token_hex(4)}"
    path.touch()
    path.chmod(0o666)
    return path


def ad_of(rolls: Path, key: str, seconds: float = 0.0) -> dict[str, object]:
    """A job that enters itself in the roll, and has its key for its output."""
    script = (
        f"echo {key} >> {rolls}; sleep {seconds}; echo done {key}"
        if seconds
        else f"echo {key} >> {rolls}; echo done {key}"
    )
    return {
        "Owner": "tester", "Cmd": "/bin/sh", "Arguments": f"-c '{script}'", "SubmitKey": key, "Submission": "storm",
    }  # fmt: skip


async def submit_until_accepted(console: Console, ad: dict[str, object]) -> str:
    """Submit a job as a careful client does: ask again, with the same SubmitKey, until there is an answer."""
    while True:
        try:
            return str((await console.do("Submit", patience=2.0, Ad=ad))["Id"])
        except (NoAnswer, TransportError):
            await asyncio.sleep(0.05)


async def kill_again_and_again(agent: AgentProcess, chance: random.Random, stop: asyncio.Event, least: int) -> int:
    """Kill the agent and start it again, until told to stop, and at least so often."""
    kills = 0
    while not stop.is_set() or kills < least:
        await asyncio.sleep(chance.uniform(0.0, 0.8))
        agent.kill()
        kills += 1
        await asyncio.to_thread(agent.start_again)
        if chance.random() < 0.7:  # else it is killed while it starts
            await agent.seen("ready")
    return kills


async def until_all_over(console: Console, count: int) -> list[dict[str, object]]:
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(NoAnswer):
                jobs = await console.objects("Job", Submission="storm")
                if len(jobs) >= count and all(job["JobStatus"] in (3, 4) for job in jobs):
                    return jobs
            await asyncio.sleep(0.2)


async def a_storm(start_agent: Start, rolls: Path, jobs: int, kills: int) -> None:
    chance = random.Random(SEED)
    print(f"CAROD_FAULTS_SEED={SEED}")
    agent = start_agent()
    keys = [f"job-{number}" for number in range(jobs)]
    stop = asyncio.Event()
    async with a_console(agent.url, agent.agent) as console:
        killing = asyncio.create_task(kill_again_and_again(agent, chance, stop, kills))
        gate = asyncio.Semaphore(8)

        async def one(key: str) -> str:
            async with gate:
                return await submit_until_accepted(console, ad_of(rolls, key))

        ids = await asyncio.gather(*(one(key) for key in keys))
        stop.set()
        killed = await killing
        await agent.seen("ready")
        found = await until_all_over(console, jobs)
        print(f"{killed} kills, {agent.log.count('job sent again')} sent again by the last life")
        assert len(set(ids)) == jobs
        assert {job["CustomId"] for job in found} == set(ids)
        assert {job["JobStatus"] for job in found} == {4}
        ran = Counter(rolls.read_text().split())
        assert ran == dict.fromkeys(keys, 1), {key: count for key, count in ran.items() if count != 1}
        for key, job_id in random.Random(SEED).sample(list(zip(keys, ids, strict=True)), 20):
            fetched = await console.call(f"job:{job_id}", "Fetch", File="_condor_stdout", Start=0, End=0)
            assert fetched["Data"] == f"done {key}\n".encode()


async def test_no_submission_is_lost_or_run_twice_when_the_agent_is_killed(
    start_agent: Start, start_node: StartNode, rolls: Path
) -> None:
    start_node("--slots", "4")
    await a_storm(start_agent, rolls, 150, 6)


@pytest.mark.soak
async def test_of_1000_submissions_none_is_lost_or_run_twice_in_a_storm_of_kills(
    start_agent: Start, start_node: StartNode, rolls: Path
) -> None:
    start_node("--slots", "4")
    start_node("--slots", "4")
    await a_storm(start_agent, rolls, 1000, 40)


async def test_results_of_100_running_jobs_are_complete_when_the_agent_is_killed_meanwhile(
    start_agent: Start, start_node: StartNode, rolls: Path
) -> None:
    start_node("--slots", "25")
    agent = start_agent(JOB_WINDOW_MIN=100)
    keys = [f"job-{number}" for number in range(100)]
    async with a_console(agent.url, agent.agent) as console:
        ids = await asyncio.gather(*(submit_until_accepted(console, ad_of(rolls, key, 1.0)) for key in keys))
        await console.until(ids[0], 2, 4)
        for _ in range(3):
            agent.kill()
            await asyncio.sleep(0.7)  # jobs end while there is no agent
            await asyncio.to_thread(agent.start_again)
            await agent.seen("ready")
        await until_all_over(console, 100)
        assert Counter(rolls.read_text().split()) == dict.fromkeys(keys, 1)
        for key, job in zip(keys, ids, strict=True):
            fetched = await console.call(f"job:{job}", "Fetch", File="_condor_stdout", Start=0, End=0)
            assert fetched["Data"] == f"done {key}\n".encode()


async def test_an_order_for_a_job_is_kept_across_a_kill(start_agent: Start, start_node: StartNode, rolls: Path) -> None:
    agent = start_agent(JOB_WINDOW_MIN=1)
    async with a_console(agent.url, agent.agent) as console:
        await submit_until_accepted(console, ad_of(rolls, "first"))  # takes the window: the next waits with the agent
        waiting = await submit_until_accepted(console, ad_of(rolls, "held"))
        await console.do("HoldJob", Id=waiting, Reason="not yet")
        agent.kill()
        await asyncio.to_thread(agent.start_again)
        await agent.seen("ready")
        job = await console.job(waiting)
        assert (job["JobStatus"], job["HoldReason"]) == (5, "not yet")
        start_node("--slots", "1")
        with pytest.raises(MethodFailed, match="only a job that is Running"):
            await console.do("SuspendJob", Id=waiting)
        await console.do("ReleaseJob", Id=waiting)
        await console.until(waiting, 4)
        assert "held" in rolls.read_text()
