"""Control groups (version 2) for the slots, where the node may make some: what ends a slot's processes for certain.

A slot's spawner is moved into the slot's group once, when it is forked, and every process of its jobs is born there,
whatever it does later. So groups cost a job nothing. They are the last word where the spawner's own (it is subreaper
to its jobs) is not enough: a spawner that died, processes it may not signal, and what a killed node left behind.
"""

from __future__ import annotations

import contextlib
import os
import time

from carod.config import ConfigError

GONE = 5.0
"""Seconds in which killed processes have to leave their group."""


def find(base: str) -> str:
    """The group that the node may divide: BASE_CGROUP, else its own if systemd delegated it; empty if there is none.

    Raises ConfigError for a BASE_CGROUP that can't be used.
    """
    if base:
        if not os.path.isfile(f"{base}/cgroup.procs"):
            raise ConfigError(f"BASE_CGROUP = {base!r} is no cgroup; name a directory below a cgroup2 mount")
        if not os.access(base, os.W_OK):
            raise ConfigError(f"BASE_CGROUP = {base!r} can't be written by this user; delegate it, or leave it empty")
        return base
    own = _own_group()
    return own if own and _delegated(own) else ""


def _own_group() -> str:
    """The directory of this process's group in the unified hierarchy (cgroups(7)); empty if there is none."""
    with contextlib.suppress(OSError):
        with open("/proc/self/mounts") as file:
            mounts = [line.split()[1] for line in file if line.split()[2] == "cgroup2"]
        with open("/proc/self/cgroup") as file:
            paths = [line.rstrip("\n")[3:] for line in file if line.startswith("0::")]
        if mounts and paths and paths[0] != "/":
            return mounts[0] + paths[0]
    return ""


def _delegated(group: str) -> bool:
    """Whether it was given to us: as an ordinary user, if it is ours; as root, if systemd marked it (Delegate=yes)."""
    if os.geteuid() != 0:
        return os.access(group, os.W_OK)
    with contextlib.suppress(OSError):
        return os.getxattr(group, "user.delegate") == b"1"
    return False


class SlotGroups:
    """The groups of one node's slots, below a base; all methods do nothing when the base is empty."""

    def __init__(self, base: str, node: str) -> None:
        self.top = f"{base}/carod-{node}" if base else ""

    def make(self, slot: str) -> str:
        """The group of a slot, made if need be; empty if there can be none."""
        if not self.top:
            return ""
        group = f"{self.top}/{slot}"
        try:
            os.makedirs(group, exist_ok=True)
        except OSError:
            return ""
        return group

    def kill(self, slot: str) -> bool:
        """End every process of a slot, its spawner included. False if groups can't do that here."""
        return bool(self.top) and _kill(f"{self.top}/{slot}")

    def sweep(self) -> None:
        """End what an earlier life of this node left in its groups, and remove them."""
        if not self.top or not os.path.isdir(self.top):
            return
        for slot in os.listdir(self.top):
            if os.path.isdir(f"{self.top}/{slot}"):
                _kill(f"{self.top}/{slot}")
                with contextlib.suppress(OSError):
                    os.rmdir(f"{self.top}/{slot}")
        with contextlib.suppress(OSError):
            os.rmdir(self.top)


def _kill(group: str) -> bool:
    try:
        with open(f"{group}/cgroup.kill", "w") as file:  # Linux 5.14
            file.write("1")
    except OSError:
        return False
    until = time.monotonic() + GONE
    while time.monotonic() < until and _populated(group):
        time.sleep(0.005)
    return True


def _populated(group: str) -> bool:
    with contextlib.suppress(OSError), open(f"{group}/cgroup.events") as file:
        return "populated 1" in file.read()
    return False
