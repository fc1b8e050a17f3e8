"""Where brokers that were fetched are kept, so that they are fetched once."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.brokers.process import BrokerUnavailable, say

CACHE_VARIABLE = "CAROD_BROKER_CACHE"


def cached(name: str, version: str, fetch: Callable[[Path], Path]) -> Path:
    """The directory `version` in the cache called `name`; `fetch` makes it, in a scratch directory, if it is missing.

    Whoever comes first fetches it, the others wait for them. Raises what `fetch` does.
    """
    cache = cache_directory(name)
    root = cache / version
    if root.exists():
        return root
    with _locked(cache / "lock", name):
        if not root.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
                # A rename, so that a tree in the cache is a whole one, whenever this process dies.
                fetch(Path(scratch)).rename(root)
            say(f"{name} is in {root}")
    return root


def cache_directory(name: str) -> Path:
    """`name` in CAROD_BROKER_CACHE, else in ~/.cache/carod, else (no home) in a directory of this user's in /tmp."""
    if named := os.environ.get(CACHE_VARIABLE):
        cache = Path(named, name).absolute()
        cache.mkdir(parents=True, exist_ok=True)
        return cache
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        cache = Path(base, "carod", name).absolute()
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return cache
    except OSError:
        pass
    cache = Path(tempfile.gettempdir(), f"carod-{name}-{os.getuid()}")
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.is_symlink() or cache.stat().st_uid != os.getuid():
        raise BrokerUnavailable(f"{cache} belongs to somebody else: set {CACHE_VARIABLE} to a directory of yours")
    return cache


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is fetching {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
