"""Jobs on a real node, one at a time."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from carod_client import (
    BadJob,
    BrokerLost,
    Grid,
    GridError,
    JobExpired,
    JobFailed,
    JobHeld,
    JobRejected,
    JobRemoved,
    JobStatus,
    JobTimeout,
    NoQueue,
)

from carod.amqp import Queue
from tests.client.conftest import Gate, own_tasks

PATIENCE = 60.0
"""Seconds until a test is given up; no test waits so long for a job that works."""


async def test_a_job_gives_its_output_and_exit_code(grid: Grid) -> None:
    result = await grid.run("/bin/sh", "-c", "echo out; echo err >&2; exit 7", timeout=PATIENCE)
    assert (result.exit_code, result.signal, result.ok, result.returncode) == (7, None, False, 7)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


async def test_arguments_environment_and_stdin_arrive_as_given(grid: Grid) -> None:
    script = 'printf "%s|" "$@"; printf "%s" "$GREETING"; cat'
    result = await grid.run(
        "/bin/sh", "-c", script, "sh", "it's", "", "two words", 'quo"te',
        env={"GREETING": "héllo 'you'"}, stdin=b"\nfrom stdin", timeout=PATIENCE,
    )  # fmt: skip
    assert result.stdout.decode() == "it's||two words|quo\"te|héllo 'you'\nfrom stdin"


async def test_a_local_script_runs_with_its_inputs_and_leaves_files(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.sh").write_text("#!/bin/sh\nmkdir out && tr a-z A-Z < data/in.txt > out/result.txt\n")
    Path("data").mkdir()
    Path("data/in.txt").write_text("hello")
    result = await grid.run("./job.sh", inputs=["data"], timeout=PATIENCE)
    assert (result.stderr, result.results.read("out/result.txt")) == (b"", b"HELLO")
    result.results.extract("got")
    assert Path("got/out/result.txt").read_text() == "HELLO"


async def test_only_the_outputs_asked_for_come_back(grid: Grid) -> None:
    result = await grid.run("/bin/sh", "-c", "touch a b; echo c", outputs=["a"], timeout=PATIENCE)
    assert ("a" in result.results, "b" in result.results, result.stdout) == (True, False, b"c\n")


async def test_inputs_too_large_for_memory_arrive_whole(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(3 << 20))
    result = await grid.run("/usr/bin/cksum", "noise", inputs=[tmp_path / "noise"], outputs=[], timeout=PATIENCE)
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/cksum", "noise", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert result.stdout == (await process.communicate())[0]


async def test_a_job_killed_by_a_signal_says_which(grid: Grid) -> None:
    result = await grid.run("/bin/sh", "-c", "kill -KILL $$", timeout=PATIENCE)
    assert (result.exit_code, result.signal, result.returncode) == (None, signal.SIGKILL, 128 + 9)


async def test_check_turns_a_failure_into_an_exception_with_the_result(grid: Grid) -> None:
    with pytest.raises(JobFailed, match="exit code 3: no luck") as caught:
        await grid.run("/bin/sh", "-c", "echo no luck >&2; exit 3", check=True, timeout=PATIENCE)
    assert caught.value.result.exit_code == 3


async def test_updates_come_one_by_one_and_again_for_who_asks_later(grid: Grid, gate: Gate) -> None:
    handle = await grid.submit("/bin/sh", "-c", f"cat {gate.path}", timeout=PATIENCE)
    seen = []
    async for reply in handle:
        seen.append((reply.status, reply.state))
        if reply.state == "Running":  # a periodic update, so the job runs: let it end
            await gate.open()
    assert seen[0] == (JobStatus.RUNNING, None)
    assert seen[-1] == (JobStatus.COMPLETED, "Exited")
    assert [(reply.status, reply.state) async for reply in handle] == seen
    assert (await handle).stdout == b"go"


async def test_a_cancelled_wait_leaves_the_job_to_be_waited_for_again(grid: Grid, gate: Gate) -> None:
    handle = await grid.submit("/bin/cat", gate.path, timeout=PATIENCE)
    waiter = asyncio.ensure_future(handle)
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert own_tasks() == 1  # the one that keeps the connection
    await gate.open()
    assert (await handle).ok


async def test_a_timeout_says_that_the_job_still_runs(grid: Grid, gate: Gate) -> None:
    running = asyncio.Event()
    handle = await grid.submit("/bin/cat", gate.path, timeout=0.5, on_update=lambda _: running.set())
    with pytest.raises(JobTimeout, match=r"no result within 0\.5 s; it still|is still running") as caught:
        await handle
    assert isinstance(caught.value, TimeoutError)
    await running.wait()
    await gate.open()


async def test_a_job_that_cannot_start_is_held_with_the_reason(grid: Grid) -> None:
    with pytest.raises(JobHeld, match="no-such-program") as caught:
        await grid.run("/no-such-program", timeout=PATIENCE)
    assert caught.value.reason
    assert caught.value.code > 0
    assert caught.value.ad is not None


async def test_a_job_ad_that_makes_no_sense_is_rejected_with_the_reason(grid: Grid) -> None:
    with pytest.raises(JobRejected, match="JobUniverse"):
        await grid.run("/bin/true", attributes={"JobUniverse": 7}, timeout=PATIENCE)


async def test_a_job_that_no_slot_takes_expires(grid: Grid) -> None:
    with pytest.raises(JobExpired, match=r"no node took it within 0\.2 s"):
        await grid.run("/bin/true", requirements="FALSE", expires=0.2, timeout=PATIENCE)


async def test_a_job_that_nobody_wants_expires_though_the_broker_is_silent(broker_url: str, queue_name: str) -> None:
    async with Grid(broker_url, queue_name) as grid:
        await grid._transport.declare(Queue(queue_name))
        with pytest.raises(JobExpired):
            await grid.run("/bin/true", expires=0.1, timeout=PATIENCE)


async def test_a_queue_that_no_node_serves_is_named(broker_url: str) -> None:
    async with Grid(broker_url, "test-nobody") as grid:
        with pytest.raises(NoQueue, match=r"no queue 'test-nobody' .* is a node running\? \(carod start"):
            await grid.run("/bin/true")


async def test_a_broker_that_is_not_there_is_named() -> None:
    with pytest.raises(BrokerLost, match=r"127\.0\.0\.1:1/.*is a broker running there\?"):
        async with Grid("amqp://guest:guest@127.0.0.1:1/"):
            pass


async def test_a_message_id_is_the_jobs_and_cannot_be_used_twice_at_a_time(grid: Grid, gate: Gate) -> None:
    handle = await grid.submit("/bin/cat", gate.path, message_id="mine", timeout=PATIENCE)
    with pytest.raises(BadJob, match="message_id 'mine' is that of a job under way"):
        await grid.submit("/bin/true", message_id="mine")
    await gate.open()
    assert (await handle).job_id == handle.id == "mine"


async def test_leaving_the_grid_tells_whoever_still_waits(broker_url: str, node_queue: str, gate: Gate) -> None:
    async with Grid(broker_url, node_queue) as grid:
        handle = await grid.submit("/bin/cat", gate.path)
    with pytest.raises(BrokerLost, match="the grid was closed before its result came"):
        await handle
    with pytest.raises(GridError, match="not open"):
        await grid.run("/bin/true")
    await gate.open()


async def test_a_removed_job_raises_job_removed_with_the_reason(grid: Grid, gate: Gate) -> None:
    handle = await grid.submit("/bin/cat", gate.path, timeout=PATIENCE)
    async for _ in handle:
        await handle.remove("enough")
        break
    with pytest.raises(JobRemoved, match="enough") as caught:
        await handle
    assert caught.value.results.names() == handle.results.names()


async def test_a_running_job_can_be_asked_for_its_ad(grid: Grid, gate: Gate) -> None:
    handle = await grid.submit("/bin/cat", gate.path, attributes={"Tag": "mine"}, timeout=PATIENCE)
    async for _ in handle:
        break
    ad = await grid.control("Query", handle.id)
    assert (ad["Tag"], ad["JobStatus"]) == ("mine", JobStatus.RUNNING)
    await gate.open()
    assert (await handle).ok


async def test_a_job_that_no_node_runs_cannot_be_removed(grid: Grid) -> None:
    with pytest.raises(GridError, match="Remove job no-such-job: no node runs it"):
        await grid.control("Remove", "no-such-job", timeout=0.5)
