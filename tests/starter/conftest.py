"""Spawners without a node: real processes, no broker."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from carod.starter.cgroup import SlotGroups
from carod.starter.process import JobFiles, Nursery, Spawner

USER = "nobody" if os.geteuid() == 0 else ""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A slot's directory, which the jobs' user can enter and write."""
    top = Path(tempfile.mkdtemp(prefix="carod-test-", dir="/var/tmp"))
    top.chmod(0o755)
    slot = top / "slot1"
    slot.mkdir(0o700)
    if USER:
        shutil.chown(slot, USER)
    yield slot
    shutil.rmtree(top)


@pytest.fixture
def cgroup_base() -> Iterator[str]:
    """A group that may be divided; skips where the machine has none to give."""
    with open("/proc/self/mounts") as file:
        mounts = [line.split()[1] for line in file if line.split()[2] == "cgroup2"]
    for mount in mounts:
        base = Path(mount) / f"carod-test-{os.getpid()}"
        try:
            base.mkdir()
        except OSError:
            continue
        yield str(base)
        base.rmdir()
        return
    pytest.skip("no cgroup (v2) here that this user may divide")


@pytest.fixture
async def spawn(directory: Path) -> AsyncIterator[Callable[..., Spawner]]:
    """A function that starts a spawner and waits until it is ready."""
    nurseries: list[Nursery] = []
    spawners: list[Spawner] = []

    async def start(groups: SlotGroups | None = None) -> Spawner:
        nurseries.append(Nursery(groups or SlotGroups("", "")))
        spawners.append(Spawner(nurseries[-1], "slot1", USER, str(directory)))
        await spawners[-1].ready()
        return spawners[-1]

    yield start
    for spawner in spawners:
        spawner.close()
    for nursery in nurseries:
        nursery.close()


@pytest.fixture
def files(directory: Path) -> Callable[..., JobFiles]:
    """What to start: a shell script, in the spawner's directory."""

    def make(spawner: Spawner, script: str) -> JobFiles:
        env = {"PATH": "/usr/bin:/bin"}
        return JobFiles(
            spawner.job_directory, "/bin/sh", ["-c", script], env, "", os.devnull, "out", "err", None, None,
            "Job = 1\n", "Machine = 1\n", 1 << 20, 100, 1 << 20,
        )  # fmt: skip

    return make
