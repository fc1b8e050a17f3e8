"""Cluster numbers for jobs that no agent numbers: one after the other, for each user of this machine."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


def state_directory() -> Path:
    """Where a user's programs keep what must survive them (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(home) / "carod"


def next_cluster() -> int:
    """The next number; where it can't be written down, the time makes one that was hardly used before."""
    try:
        directory = state_directory()
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "cluster").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read().strip()
            number = int(text) + 1 if text.isdecimal() else 1
            file.truncate(0)
            file.write(f"{number}\n")
            return number
    except OSError:
        return int(time.time())
