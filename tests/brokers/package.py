"""Where a RabbitMQ to run comes from: the system's own, or the distribution's packages unpacked into a cache.

Unpacking needs no root and changes nothing on the system. Installing the package would also start a system-wide
broker on port 5672, which somebody who only types `make test` did not ask for.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.brokers.debian import AptFailed, platform_name, unpack_packages
from tests.brokers.process import say

CACHE_VARIABLE = "CAROD_BROKER_CACHE"

# Debian's /usr/sbin/rabbitmq-server insists on root; the scripts it wraps, here, run as anybody.
SYSTEM_SCRIPTS = (Path("/usr/lib/rabbitmq/bin"), Path("/usr/local/lib/rabbitmq/bin"))

# Debian's erl has /usr/lib/erlang built in and ignores ERL_ROOTDIR, so the unpacked one gets its own.
ERL_SCRIPT = """#!/bin/sh
top=$(cd "$(dirname "$0")/.." && pwd -P)
for ROOTDIR in "$top"/usr/lib/erlang "$top"/usr/lib/*/erlang; do [ -d "$ROOTDIR" ] && break; done
for BINDIR in "$ROOTDIR"/erts-*/bin; do :; done
EMU=beam PROGNAME=erl
export ROOTDIR BINDIR EMU PROGNAME
exec "$BINDIR/erlexec" "$@"
"""


class RabbitMQUnavailable(Exception):
    """No RabbitMQ can be had here. The text says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """RabbitMQ's scripts and the Erlang they run on.

    `scripts` holds `rabbitmq-server`, `rabbitmqctl` and `rabbitmq-env`; `path` goes in front of PATH;
    `libraries` goes to LD_LIBRARY_PATH, for shared libraries that were unpacked too.
    """

    scripts: Path
    epmd: Path
    path: tuple[Path, ...] = ()
    libraries: tuple[Path, ...] = ()


def find_package() -> Package:
    """The system's RabbitMQ, else one unpacked from the distribution's packages, downloading it the first time.

    Raises RabbitMQUnavailable.
    """
    return _installed() or _unpacked(_fetch_once())


def _installed() -> Package | None:
    epmd = _system_epmd()
    on_path = shutil.which("rabbitmq-server")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    for scripts in (*candidates, *SYSTEM_SCRIPTS):
        if epmd and (scripts / "rabbitmq-env").exists() and os.access(scripts / "rabbitmq-server", os.X_OK):
            return Package(scripts=scripts, epmd=epmd)
    return None


def _system_epmd() -> Path | None:
    if found := shutil.which("epmd"):
        return Path(found)
    return next(iter(sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))), None)


def _unpacked(root: Path) -> Package:
    epmd = next(iter(root.glob("usr/lib/**/erts-*/bin/epmd")), None)
    scripts = next(iter(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")), None)
    if epmd is None or scripts is None:
        raise RabbitMQUnavailable(f"{root} holds no usable RabbitMQ: remove that directory and try again")
    shared = {found.parent for pattern in ("usr/lib/*/lib*.so.*", "lib/*/lib*.so.*") for found in root.glob(pattern)}
    return Package(scripts=scripts, epmd=epmd, path=(root / "bin", epmd.parent), libraries=tuple(sorted(shared)))


def cache_directory() -> Path:
    """CAROD_BROKER_CACHE, else ~/.cache/carod/rabbitmq, else (no home) a directory of this user's in /tmp."""
    if named := os.environ.get(CACHE_VARIABLE):
        cache = Path(named).absolute()
        cache.mkdir(parents=True, exist_ok=True)
        return cache
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        cache = Path(base, "carod", "rabbitmq").absolute()
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return cache
    except OSError:
        pass
    cache = Path(tempfile.gettempdir(), f"carod-rabbitmq-{os.getuid()}")
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.is_symlink() or cache.stat().st_uid != os.getuid():
        raise RabbitMQUnavailable(f"{cache} belongs to somebody else: set {CACHE_VARIABLE} to a directory of yours")
    return cache


def _fetch_once() -> Path:
    """The unpacked tree in the cache; whoever comes first downloads it, the others wait for them."""
    cache = cache_directory()
    root = cache / platform_name()
    if root.exists():
        return root
    with _locked(cache / "lock"):
        if not root.exists():
            _fetch(cache, root)
    return root


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is fetching RabbitMQ; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(cache: Path, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as scratch:
        say("no RabbitMQ here: the distribution's is 35 MB")
        try:
            # The rest (logrotate, adduser, socat) serves the system-wide service only.
            tree = unpack_packages(
                Path(scratch),
                ["rabbitmq-server"],
                hidden="erlang-|rabbitmq",
                wanted=lambda name: name.startswith(("erlang-", "rabbitmq-server", "lib")),
            )
        except AptFailed as failed:
            raise _unavailable(f"no rabbitmq-server is installed, and downloading it failed: {failed}") from None
        erl = tree / "bin" / "erl"
        erl.parent.mkdir(exist_ok=True)
        erl.write_text(ERL_SCRIPT)
        erl.chmod(0o755)
        # A rename, so that a tree in the cache is a whole one, whenever this process dies.
        tree.rename(root)
    say(f"RabbitMQ unpacked in {root}")


def _unavailable(tried: str) -> RabbitMQUnavailable:
    return RabbitMQUnavailable(
        f"no RabbitMQ to be had: {tried}.\n"
        "Any one of these mends it:\n"
        "  - install it: `apt-get install rabbitmq-server` as root (or your distribution's package of that name)\n"
        "  - name a running one: CAROD_BROKER=amqp://user:password@host:5672/ (for tests CAROD_TEST_BROKER)\n"
        "  - start one in Docker: `docker compose up -d rabbitmq` (docs/how-to/brokers.md)"
    )
