"""A job can't harm the node, and leaves no process behind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.node.client import Client, shell
from tests.node.conftest import Node, gone, needs_root, until


def python(program: str) -> dict[str, str]:
    """Headers of a job that runs a Python program."""
    quoted = program.replace("'", "''")
    return {"Cmd": "/usr/bin/env", "Arguments": f"python3 -c '{quoted}'"}


async def all_gone(text: str) -> None:
    """Every process whose id the text names is no more."""
    pids = [int(pid) for pid in re.findall(r"\d+", text)]
    assert pids
    for pid in pids:
        await until(lambda pid=pid: gone(pid), f"process {pid} of an ended job is gone")


LEFT_BEHIND = {
    "in the background": "sleep 1000 & echo $!",
    "in a session of its own": "setsid sleep 1000 & sleep 0.1; pgrep -s 0 sleep; echo $!",
    "double-forked": "(setsid sh -c 'echo $$; exec sleep 1000' &) ; sleep 0.2",
    "deaf to signals": "(trap '' TERM INT HUP; setsid sh -c 'echo $$; exec sleep 1000' &) ; sleep 0.2",
    "stopped": "sleep 1000 & echo $!; kill -STOP $!",
}


@pytest.mark.parametrize("how", LEFT_BEHIND)
async def test_no_process_outlives_its_job(client: Client, how: str) -> None:
    reply = await client.shell(LEFT_BEHIND[how])
    assert reply.status == 4
    await all_gone(reply.out)


async def test_children_that_go_on_forking_are_ended(client: Client) -> None:
    program = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        while True:
            if os.fork():
                os._exit(0)
            print(os.getpid(), flush=True)
            time.sleep(0.01)
time.sleep(0.3)
"""
    reply = await client.run(python(program))
    assert reply.status == 4
    await all_gone(reply.out)


async def test_a_job_past_its_time_is_ended_with_all_its_children(client: Client) -> None:
    deaf = "sh -c 'trap \"\" TERM; echo $$; sleep 1000; :'"
    script = f"trap '' TERM; setsid sleep 1000 & echo $!; {deaf} & wait; wait; sleep 1000"
    reply = await client.run(shell(script, AllowedExecuteDuration=0.5, KillSigTimeout=0.2))
    assert (reply.status, reply.headers["HoldReasonCode"]) == (5, 47)
    await all_gone(reply.out)


async def test_a_job_that_kills_its_spawner_is_held_and_the_slot_goes_on(client: Client) -> None:
    reply = await client.shell("kill -KILL $PPID; sleep 1000")
    assert (reply.status, "spawner" in reply.headers["HoldReason"]) == (5, True)


async def test_processes_of_a_job_that_killed_its_spawner_are_ended(client: Client, open_directory: Path) -> None:
    script = f"setsid sleep 1000 & echo $! $$ >{open_directory}/pids; kill -KILL $PPID; sleep 1000"
    assert (await client.shell(script)).status == 5
    await all_gone((open_directory / "pids").read_text())


async def test_a_job_that_stops_its_spawner_can_still_be_ended_with_the_node(
    start_node: Callable[..., Node], new_client: Client, open_directory: Path
) -> None:
    node = start_node("--slots", "1", SHUTDOWN_GRACEFUL_TIMEOUT="0.1", KILLING_TIMEOUT="0.1")
    await new_client.reply(await new_client.submit(shell(f"echo $$ >{open_directory}/pids; sleep 1000")))
    await until(lambda: (open_directory / "pids").exists(), "the job runs")
    node.send(9)
    await node.ended()
    await all_gone((open_directory / "pids").read_text())


@needs_root
async def test_a_job_cannot_read_the_nodes_environment(client: Client, node: Node) -> None:
    assert b"mellon" in Path(f"/proc/{node.pid}/environ").read_bytes()
    reply = await client.shell(
        f"cat /proc/{node.pid}/environ /proc/$PPID/environ /proc/{node.pid}/cmdline; "
        "for p in /proc/[0-9]*; do cat $p/environ; done 2>/dev/null"
    )
    assert "mellon" not in reply.out


async def test_the_nodes_environment_is_not_its_spawners(client: Client) -> None:
    reply = await client.shell("env; cat /proc/$PPID/environ /proc/$$/environ 2>/dev/null")
    assert "mellon" not in reply.out


@needs_root
async def test_a_job_cannot_signal_the_node(client: Client, node: Node) -> None:
    reply = await client.shell(f"for s in KILL TERM STOP 0; do kill -$s {node.pid} || echo refused; done")
    assert (reply.status, reply.out) == (4, "refused\n" * 4)


@needs_root
async def test_a_job_has_no_groups_or_rights_of_roots(client: Client) -> None:
    reply = await client.shell("id -G; id -u; grep -E '^(CapEff|CapPrm|CapInh|Uid)' /proc/self/status; cat /etc/shadow")
    lines = reply.out.splitlines()
    nobody = lines[1]
    assert nobody != "0"
    assert "0" not in lines[0].split()
    assert lines[2].split()[1:] == [nobody] * 4
    assert {line.split()[1] for line in lines[3:]} == {"0000000000000000"}
    assert "Permission denied" in reply.err


@needs_root
async def test_a_job_cannot_write_where_the_node_does(client: Client, execute: Path) -> None:
    reply = await client.shell(
        f"for d in {execute} {execute}/*/; do touch $d/x && echo written; mv $d $d.x && echo moved; done"
    )
    assert (reply.status, reply.out) == (4, "")
    assert "Permission denied" in reply.err


async def test_a_job_starts_with_nothing_of_its_spawner(client: Client) -> None:
    """No open file, no blocked or ignored signal, no terminal."""
    reply = await client.run(python(
        "import os, signal\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:4], signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "print([line.split()[1][-7:] for line in open('/proc/self/status') if line.startswith(('SigIgn', 'SigBlk'))])\n"
        "print(os.getpid() == os.getsid(0), oct(os.umask(0)))\n"
    ))  # fmt: skip
    assert reply.out.splitlines() == [
        "[0, 1, 2, 3] set()",  # 3 is the listing's own
        "['0000000', '1001000']",  # Python ignores SIGPIPE and SIGXFSZ
        "True 0o22",
    ]


async def test_64_jobs_on_64_slots_run_side_by_side(
    start_node: Callable[..., Node], new_client: Client, open_directory: Path
) -> None:
    start_node("--slots", "64")
    script = (
        f"touch {open_directory}/$_CONDOR_SLOT; while [ $(ls {open_directory} | wc -l) -lt 64 ]; do sleep 0.2; done"
    )
    jobs = [await new_client.submit(shell(script)) for _ in range(64)]
    replies = [await new_client.end(job) for job in jobs]
    assert {(reply.status, reply.headers["ExitCode"]) for reply in replies} == {(4, 0)}
    assert len({reply.headers["RemoteHost"] for reply in replies}) == 64


async def test_a_hundred_jobs_at_once_are_all_answered(client: Client) -> None:
    jobs = [await client.submit({"Cmd": "/bin/echo", "Arguments": str(number)}) for number in range(100)]
    replies = await asyncio.gather(*(client.end(job) for job in jobs))
    assert [reply.out for reply in replies] == [f"{number}\n" for number in range(100)]
