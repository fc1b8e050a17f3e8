"""Spawners: what a job inherits, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from carod.starter.cgroup import SlotGroups
from carod.starter.process import Ended, SpawnerError


def read(ended: Ended, name: str = "out") -> str:
    assert isinstance(ended.result, bytes)
    return zipfile.ZipFile(io.BytesIO(ended.result)).read(name).decode()


async def gone(pid: int) -> None:
    """Wait until a process is gone, or a zombie that its parent is about to reap."""
    for _ in range(1000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"process {pid} still runs")


async def written(path: Path) -> str:
    """Wait until a job has written a line there."""
    for _ in range(1000):
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} was not written")


async def test_a_job_inherits_no_descriptor_but_its_standard_files(spawn: Callable, files: Callable) -> None:
    spawner = await spawn()
    ended = await spawner.run(files(spawner, "exec ls -l /proc/self/fd"), b"").ended
    descriptors = [line.split(" -> ")[0].split()[-1] for line in read(ended).splitlines() if " -> " in line]
    assert descriptors == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


async def test_what_a_job_leaves_running_is_ended_with_it(spawn: Callable, files: Callable) -> None:
    script = "setsid sleep 1000 & echo $!; (setsid sh -c 'sleep 1000 & echo $!; wait' &) ; sleep 0.2"
    spawner = await spawn()
    ended = await spawner.run(files(spawner, script), b"").ended
    pids = [int(line) for line in read(ended).split()]
    assert len(pids) == 2
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


async def test_a_job_ends_when_its_node_closes_the_channel(spawn: Callable, files: Callable, directory: Path) -> None:
    spawner = await spawn()
    execution = spawner.run(files(spawner, "setsid sleep 1000 & echo $!; wait"), b"")
    pid = int(await written(Path(execution.directory) / "out"))
    spawner.close()
    await gone(pid)


@pytest.mark.parametrize("with_groups", [False, True], ids=["without cgroups", "with cgroups"])
async def test_a_job_ends_with_its_spawner(
    spawn: Callable, files: Callable, with_groups: bool, request: pytest.FixtureRequest
) -> None:
    groups = SlotGroups(request.getfixturevalue("cgroup_base"), "n") if with_groups else None
    spawner = await spawn(groups)
    execution = spawner.run(files(spawner, "setsid sleep 1000 & echo $!; kill -9 $PPID; sleep 1000"), b"")
    with pytest.raises(SpawnerError, match="spawner died"):
        await execution.ended
    pid = int((Path(execution.directory) / "out").read_text())
    await gone(pid)
    if groups is not None:
        groups.sweep()


async def test_a_swept_group_ends_what_an_earlier_life_left(spawn: Callable, files: Callable, cgroup_base: str) -> None:
    spawner = await spawn(SlotGroups(cgroup_base, "n"))
    execution = spawner.run(files(spawner, "setsid sleep 1000 & echo $!; wait"), b"")
    pid = int(await written(Path(execution.directory) / "out"))
    SlotGroups(cgroup_base, "n").sweep()
    await gone(pid)
    assert not os.path.exists(f"{cgroup_base}/carod-n")


async def test_a_stopped_job_that_ignores_its_signal_is_killed_in_the_end(spawn: Callable, files: Callable) -> None:
    spawner = await spawn()
    execution = spawner.run(files(spawner, "trap '' TERM; echo ready; while :; do sleep 0.1; done"), b"")
    await written(Path(execution.directory) / "out")
    execution.signal(signal.SIGSTOP)
    execution.kill(signal.SIGTERM, 0.2)
    ended = await execution.ended
    assert os.waitstatus_to_exitcode(ended.status) == -signal.SIGKILL


async def test_the_next_job_finds_its_directory_empty(spawn: Callable, files: Callable) -> None:
    spawner = await spawn()
    script = "mkdir -p a/b; touch a/b/c; chmod 0 a/b; chmod 500 ."
    assert (await spawner.run(files(spawner, script), b"").ended).status == 0
    ended = await spawner.run(files(spawner, "ls -A"), b"").ended
    assert read(ended).split() == [".job.ad", ".machine.ad", "err", "out"]


async def test_a_job_that_changes_its_machine_ad_changes_only_its_own(spawn: Callable, files: Callable) -> None:
    spawner = await spawn()
    for script in ("echo changed >> .machine.ad", "rm .machine.ad; mkdir -p .machine.ad/x", "ln -sf /etc .machine.ad"):
        await spawner.run(files(spawner, script), b"").ended
        ended = await spawner.run(files(spawner, "cat .machine.ad"), b"").ended
        assert read(ended) == "Machine = 1\n"
