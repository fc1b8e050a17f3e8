"""A disk that is full, a directory that can't be read, a clock that is set back."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.grid import Client, Grid, kill

ROOT = os.geteuid() == 0
DISK = 8 << 20
WRONG_CLOCK = """
import os, time
_real, _file = time.time, os.environ["WRONG_CLOCK"]
def _time():
    with open(_file) as file:
        return _real() + float(file.read() or 0)
time.time = _time
"""


@pytest.fixture
def small_disk(grid: Grid) -> Iterator[Path]:
    """EXECUTE as a file system of its own, of a few MiB."""
    if not ROOT:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("only root may mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "carod-test", grid.execute], check=True)
    yield grid.execute
    grid.close()
    subprocess.run(["umount", "--lazy", grid.execute], check=True)


async def each_answered_once(grid: Grid, client: Client, jobs: list[str]) -> set[int | None]:
    """The states in which jobs have ended, all with one final reply."""
    await client.all_final(jobs)
    await grid.settled()
    assert {job: len(client.finals[job]) for job in jobs} == dict.fromkeys(jobs, 1)
    return {client.final(job).status for job in jobs}


async def test_every_job_is_answered_once_while_the_disk_is_full(grid: Grid, small_disk: Path) -> None:
    node = await asyncio.to_thread(grid.start, "full", 2)
    async with grid.client() as client:
        greedy = await client.submit_all(
            grid.job("dd if=/dev/zero of=big bs=1M count=20; status=$?; rm big; exit $status") for _ in range(2)
        )
        assert await each_answered_once(grid, client, greedy) == {4}
        assert all(client.final(job).ad["ExitCode"] for job in greedy), "they met the end of the disk"
        await fill(small_disk / "filler")
        held = await client.submit_all(grid.job("true") for _ in range(20))
        assert await each_answered_once(grid, client, held) <= {4, 5}
        for job in held:
            if client.final(job).status == 5:
                assert "No space left on device" in client.final(job).ad["HoldReason"]
        await grid.close_connections("full")
        await node.seen("ready", 2)
        (small_disk / "filler").unlink()
        fine = await client.submit_all(grid.job("true") for _ in range(20))
        await grid.each_ran_once(client, fine)
        assert node.process.poll() is None
        assert "Traceback" not in node.log


async def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


async def test_a_directory_that_jobs_can_not_enter_holds_them_with_the_reason(grid: Grid) -> None:
    """Taken away under a running node; given back, it goes on."""
    if not ROOT:
        pytest.skip("jobs of an ordinary user's node enter what the node may enter")
    await asyncio.to_thread(grid.start, "locked", 2)
    async with grid.client() as client:
        running = await client.submit_all(grid.job("sleep 2; echo done") for _ in range(2))
        await grid.started(running)
        grid.execute.chmod(0o700)
        locked_out = await client.submit_all(grid.job("true") for _ in range(4))
        assert await each_answered_once(grid, client, [*running, *locked_out]) <= {4, 5}
        assert {client.final(job).status for job in locked_out} == {5}
        assert all("ermission denied" in client.final(job).ad["HoldReason"] for job in locked_out)
        grid.execute.chmod(0o755)
        fine = await client.submit_all(grid.job("true") for _ in range(4))
        await grid.each_ran_once(client, fine)


async def test_a_node_with_a_directory_that_jobs_can_not_enter_does_not_start(grid: Grid) -> None:
    grid.execute.chmod(0o000)
    node = grid.start("locked", 1, ready=False)
    if ROOT:
        assert await node.ended() == 1
        assert "EXECUTE" in node.log
        assert str(grid.execute) in node.log
    else:
        assert await node.ended() == 1
        assert "EXECUTE" in node.log
    assert "Traceback" not in node.log
    grid.execute.chmod(0o755)


async def test_a_clock_set_back_delays_nothing_and_loses_nothing(grid: Grid) -> None:
    """An hour, on all nodes, under running jobs: limits hold, parked jobs return, durations are what they were."""
    (grid.directory / "sitecustomize.py").write_text(WRONG_CLOCK)
    clock = grid.directory / "clock"
    clock.write_text("0")
    variables = {"PYTHONPATH": str(grid.directory), "WRONG_CLOCK": str(clock)}
    nodes = [
        await asyncio.to_thread(grid.start, name, 4, variables=variables, KILLING_TIMEOUT=1) for name in ("one", "two")
    ]
    async with grid.client() as client:
        limited = await client.submit_all([grid.job("sleep 600", AllowedExecuteDuration=4)])
        timed = await client.submit_all([grid.job("sleep 5")])
        long = await client.submit_all(grid.job("sleep 6") for _ in range(6))
        await grid.started([*limited, *timed, *long])
        clock.write_text("-3600")
        await grid.close_connections("one")
        await nodes[0].seen("ready", 2)
        await grid.each_ran_once(client, timed)
        assert 5 <= client.final(timed[0]).ad["JobDuration"] < 600
        victims = {event["job"] for event in nodes[1].events("job running")}
        kill(nodes[1])
        jobs = [*limited, *timed, *long]
        await client.all_final(jobs)
        await grid.settled()
        assert client.final(limited[0]).status == 5
        assert "AllowedExecuteDuration" in client.final(limited[0]).ad["HoldReason"]
        assert {job: len(client.finals[job]) for job in jobs} == dict.fromkeys(jobs, 1)
        assert {job for job in jobs if grid.starts()[job] > 1} <= victims
