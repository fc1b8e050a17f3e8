"""What a process and all below it use, from /proc, and what machine this is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

LIBRARIES = ("aiormq", "pamqp", "aio-pika", "celery", "kombu", "billiard", "psutil")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `main` is the process itself, `tree` it and all its descendants.

    Pages that processes share count in each one's RSS, so that a sum of RSS overstates, the more the more slots; in
    PSS each counts for its share, so that a sum of PSS is what the machine would have free without them. Peaks are
    each process's own (VmHWM), and need not have been at the same time: their sum is an upper bound.
    """

    main_rss: int
    main_peak: int
    tree_rss: int
    tree_pss: int
    tree_peak: int
    processes: int


def memory(pid: int) -> Memory:
    """The memory of a process and its descendants now, and their peaks since start or `reset_peak`."""
    main = _memory(pid)
    rest = [_memory(below.pid) for below in psutil.Process(pid).children(recursive=True)]
    rss, pss, peak = (sum(column) for column in zip(main, *rest, strict=True))
    return Memory(main[0], main[2], rss, pss, peak, 1 + len(rest))


def _memory(pid: int) -> tuple[int, int, int]:
    """RSS, PSS and peak RSS of one process; zeros if it is gone. PSS is the RSS where the kernel won't tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0, 0
    rss, peak = _kilobytes(status, "VmRSS"), _kilobytes(status, "VmHWM")
    try:
        pss = _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss")
    except OSError:
        pss = rss
    return rss, pss, peak


def _kilobytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def reset_peak(pid: int) -> bool:
    """Begin the peaks of a process and its descendants anew (proc(5), clear_refs); whether that could be done."""
    try:
        for each in (pid, *(below.pid for below in psutil.Process(pid).children(recursive=True))):
            Path(f"/proc/{each}/clear_refs").write_text("5")
    except (OSError, psutil.Error):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds since each began: the process itself, its descendants, and theirs that ended (the jobs)."""

    main: float
    below: float
    ended: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.main - other.main, self.below - other.below, self.ended - other.ended)


def cpu(pid: int) -> Cpu:
    """What a node and its spawners have used."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    below = [each.cpu_times() for each in process.children(recursive=True)]
    return Cpu(
        own.user + own.system,
        sum(each.user + each.system for each in below),
        sum(each.children_user + each.children_system for each in below),
    )


def machine(broker: str) -> dict[str, str]:
    """What a reader needs to know to compare figures."""
    versions = ", ".join(f"{name} {version}" for name in LIBRARIES if (version := _version(name)))
    return {
        "CPU": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "Kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Broker": broker,
        "Libraries": versions,
        "carod": _version("carod"),
        "Run as": "root (jobs as SLOT_USER)" if os.geteuid() == 0 else "an ordinary user (jobs as the same)",
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
