"""Packages of Debian and its kin, unpacked into a directory by anybody; nothing gets installed.

Only the standard library: it runs before there is a virtual environment.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.brokers.process import say


class AptFailed(Exception):
    """The packages cannot be had. The text says why."""


def platform_name() -> str:
    """What packages are for, such as `debian-12-x86_64`."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return f"{release.get('ID', 'linux')}-{release.get('VERSION_ID', 'rolling')}-{platform.machine()}"


def unpack_packages(
    scratch: Path, packages: Sequence[str], hidden: str, wanted: Callable[[str], bool] = lambda _: True
) -> Path:
    """A tree with these packages and what they need that is not installed, made in `scratch`.

    `hidden` is a pattern of package names that count as not installed, because half of something here and half of it
    in /usr would not work; `wanted` chooses among what apt would install. Raises AptFailed.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise AptFailed(f"without {tool} none can be downloaded")
    apt = _Apt(scratch, hidden)
    try:
        apt.download(packages, wanted)
    except AptFailed as stale:
        say(f"{stale}; refreshing the package lists, for this download only")
        apt.refresh()
        apt.download(packages, wanted)
    return apt.unpack()


class _Apt:
    """apt-get as an ordinary user: it reads the system's package lists, or lists of its own once refreshed."""

    def __init__(self, scratch: Path, hidden: str) -> None:
        self._debs = scratch / "debs"
        self._tree = scratch / "tree"
        self._state = scratch / "state"
        status = scratch / "status"
        status.write_text(_status_without(hidden))
        self._options = ["-o", "APT::Sandbox::User=root", "-o", f"Dir::State::status={status}"]
        self._debs.mkdir()

    def refresh(self) -> None:
        """`apt-get update`, into directories of ours."""
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self._state.parent / name).mkdir(parents=True, exist_ok=True)
        self._options += [
            *("-o", f"Dir::State={self._state}"),
            *("-o", f"Dir::Cache={self._state.parent / 'cache'}"),
            *("-o", "Acquire::Languages=none"),
        ]
        self._run("update", "-qq")

    def download(self, packages: Sequence[str], wanted: Callable[[str], bool]) -> None:
        plan = self._run("install", "--simulate", "--no-install-recommends", *packages)
        names = [name for name in re.findall(r"^Inst (\S+)", plan, re.MULTILINE) if wanted(name)]
        say(f"downloading {len(names)} packages for {' '.join(packages)}; nothing gets installed")
        self._run("download", "-q", *names, show=True)

    def unpack(self) -> Path:
        for deb in sorted(self._debs.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", deb, self._tree], check=True)
        return self._tree

    def _run(self, command: str, *arguments: str, show: bool = False) -> str:
        done = subprocess.run(
            ["apt-get", command, *self._options, *arguments],
            cwd=self._debs,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if show else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            complaint = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr.strip()]
            raise AptFailed(f"apt-get {command}: {' '.join(complaint)}")
        return done.stdout or ""


def _status_without(hidden: str) -> str:
    """What apt shall believe is installed: all but packages of these names, and what depends on them."""
    stanzas = Path("/var/lib/dpkg/status").read_text(errors="replace").split("\n\n")
    match = re.compile(rf"^Package: ({hidden})|^(Pre-)?Depends:.*\b({hidden})", re.MULTILINE)
    return "\n\n".join(stanza for stanza in stanzas if not match.search(stanza))
