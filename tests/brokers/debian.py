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

KEYRINGS = [Path(f"/usr/share/keyrings/debian-archive-keyring.{suffix}") for suffix in ("gpg", "pgp")]


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
    scratch: Path,
    packages: Sequence[str],
    hidden: str = "",
    wanted: Callable[[str], bool] = lambda _: True,
    release: str = "",
) -> Path:
    """A tree with these packages and what they need that is not installed, made in `scratch`.

    `hidden` is a pattern of package names that count as not installed, because half of something here and half of it
    in /usr would not work; `wanted` chooses among what apt would install. With `release`, they come from that one of
    Debian, and nothing counts as installed. Raises AptFailed.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise AptFailed(f"without {tool} none can be downloaded")
    apt = _Apt(scratch, hidden)
    if release:
        apt.use_release(release)
        apt.refresh()
        apt.download(packages, wanted)
        return apt.unpack()
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
        self._status = scratch / "status"
        self._status.write_text(_status_without(hidden))
        self._options = ["-o", "APT::Sandbox::User=root", "-o", f"Dir::State::status={self._status}"]
        self._debs.mkdir()

    def use_release(self, release: str) -> None:
        """Another release of the Debian that the system has its packages from; all of it, as if nothing was here."""
        targets = self._run("indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
        debian = re.search(r"^\S+/debian/?$", targets, re.MULTILINE)
        if debian is None:
            raise AptFailed(f"this system's package sources name no Debian archive to have {release} from")
        sources = self._state.with_name(f"{release}.list")
        keys = next((f"[signed-by={keyring}] " for keyring in KEYRINGS if keyring.exists()), "")
        sources.write_text(f"deb {keys}{debian[0]} {release} main\n")
        self._status.write_text("")
        self._options += ["-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=/dev/null"]

    def refresh(self) -> None:
        """`apt-get update`, into directories of ours."""
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self._state.parent / name).mkdir(parents=True, exist_ok=True)
        self._options += [
            *("-o", f"Dir::State={self._state}"),
            *("-o", f"Dir::Cache={self._state.parent / 'cache'}"),
            *("-o", "Acquire::Languages=none"),
            *("-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"),
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
    """What apt shall believe is installed: all but packages of these names, if any, and what depends on them."""
    status = Path("/var/lib/dpkg/status").read_text(errors="replace")
    if not hidden:
        return status
    match = re.compile(rf"^Package: ({hidden})|^(Pre-)?Depends:.*\b({hidden})", re.MULTILINE)
    return "\n\n".join(stanza for stanza in status.split("\n\n") if not match.search(stanza))
