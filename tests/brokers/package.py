"""Where a RabbitMQ to run comes from: the system's own, or a distribution's packages unpacked into a cache.

Unpacking needs no root and changes nothing on the system. Installing the package would also start a system-wide
broker on port 5672, which somebody who only types `make test` did not ask for.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.brokers.cache import cached
from tests.brokers.debian import AptFailed, platform_name, unpack_packages
from tests.brokers.process import BrokerUnavailable, say

# Debian's /usr/sbin/rabbitmq-server insists on root; the scripts it wraps, here, run as anybody.
SYSTEM_SCRIPTS = (Path("/usr/lib/rabbitmq/bin"), Path("/usr/local/lib/rabbitmq/bin"))

# The release of Debian whose RabbitMQ is a 4, and what of it the broker needs: its C library too, for an older
# system's does not do.
RELEASE_4 = "trixie"
NEEDED_4 = re.compile(r"erlang-|rabbitmq-server$|lib(c6|gcc-s1|ssl3t64|stdc\+\+6|tinfo6|ncursesw6|zstd1)$|zlib1g$")

# Debian's erl has /usr/lib/erlang built in and ignores ERL_ROOTDIR, so the unpacked one gets its own.
ERL_SCRIPT = """#!/bin/sh
top=$(cd "$(dirname "$0")/.." && pwd -P)
for ROOTDIR in "$top"/usr/lib/erlang "$top"/usr/lib/*/erlang; do [ -d "$ROOTDIR" ] && break; done
for BINDIR in "$ROOTDIR"/erts-*/bin; do :; done
EMU=beam PROGNAME=erl
export ROOTDIR BINDIR EMU PROGNAME
exec "$BINDIR/erlexec" "$@"
"""

# In place of Erlang's own, which rabbitmqctl finds first.
ERTS_ERL_SCRIPT = """#!/bin/sh
exec "${0%%/usr/lib/erlang/*}/bin/erl" "$@"
"""

# In place of each program of Erlang's. The loader is the tree's, and only this program gets its libraries: what it
# starts, /bin/sh for one, is the system's and needs the system's.
LOADER_SCRIPT = """#!/bin/sh
lib=${{0%%/usr/lib/erlang/*}}/{libraries}
exec "$lib/{loader}" --argv0 "$0" --library-path "$lib" "${{0%/*}}/.{name}" "$@"
"""


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

    Raises BrokerUnavailable.
    """
    return next(_installed(), None) or _unpacked(cached("rabbitmq", platform_name(), _fetch))


def find_package_4() -> Package:
    """A RabbitMQ 4: the system's, else Debian's, which runs on an older Debian too. Raises BrokerUnavailable."""
    for package in _installed():
        if package.scripts.resolve().parent.name.startswith("rabbitmq_server-4"):
            return package
    return _unpacked(cached("rabbitmq4", f"{RELEASE_4}-{os.uname().machine}", _fetch_4))


def _installed() -> Iterator[Package]:
    epmd = _system_epmd()
    on_path = shutil.which("rabbitmq-server")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    for scripts in (*candidates, *SYSTEM_SCRIPTS):
        if epmd and (scripts / "rabbitmq-env").exists() and os.access(scripts / "rabbitmq-server", os.X_OK):
            yield Package(scripts=scripts, epmd=epmd)


def _system_epmd() -> Path | None:
    if found := shutil.which("epmd"):
        return Path(found)
    return next(iter(sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))), None)


def _unpacked(root: Path) -> Package:
    epmd = next(iter(root.glob("usr/lib/**/erts-*/bin/epmd")), None)
    scripts = next(iter(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")), None)
    if epmd is None or scripts is None:
        raise BrokerUnavailable(f"{root} holds no usable RabbitMQ: remove that directory and try again")
    shared = {found.parent for pattern in ("usr/lib/*/lib*.so.*", "lib/*/lib*.so.*") for found in root.glob(pattern)}
    # Where the C library was unpacked too, scripts see to it that Erlang, and only Erlang, gets it.
    libraries = () if _loader(root) else tuple(sorted(shared))
    return Package(scripts=scripts, epmd=epmd, path=(root / "bin", epmd.parent), libraries=libraries)


def _fetch(scratch: Path) -> Path:
    say("no RabbitMQ here: the distribution's is 35 MB")
    try:
        # The rest (logrotate, adduser, socat) serves the system-wide service only.
        tree = unpack_packages(
            scratch,
            ["rabbitmq-server"],
            hidden="erlang-|rabbitmq",
            wanted=lambda name: name.startswith(("erlang-", "rabbitmq-server", "lib")),
        )
    except AptFailed as failed:
        raise BrokerUnavailable(
            f"no RabbitMQ to be had: none is installed, and downloading it failed: {failed}.\n"
            "Any one of these mends it:\n"
            "  - install it: `apt-get install rabbitmq-server` as root (or your distribution's package of that name)\n"
            "  - name a running one: CAROD_BROKER=amqp://user:password@host:5672/ (for tests CAROD_TEST_BROKER)\n"
            "  - start one in Docker: `docker compose up -d rabbitmq` (docs/how-to/brokers.md)"
        ) from None
    _write_script(tree / "bin" / "erl", ERL_SCRIPT)
    return tree


def _fetch_4(scratch: Path) -> Path:
    say(f"no RabbitMQ 4 here: Debian {RELEASE_4}'s is 43 MB, and its package list 10 MB")
    try:
        tree = unpack_packages(
            scratch,
            ["rabbitmq-server"],
            wanted=lambda name: NEEDED_4.match(name) is not None,
            release=RELEASE_4,
        )
    except AptFailed as failed:
        raise BrokerUnavailable(
            f"no RabbitMQ 4 to be had: none is installed, and downloading it failed: {failed}"
        ) from None
    _write_script(tree / "bin" / "erl", ERL_SCRIPT)
    for erl in tree.glob("usr/lib/erlang/erts-*/bin/erl"):
        _write_script(erl, ERTS_ERL_SCRIPT)
    _give_loader(tree)
    return tree


def _loader(tree: Path) -> Path | None:
    return next(iter(tree.glob("usr/lib/*/ld-linux-*.so.*")), None)


def _give_loader(tree: Path) -> None:
    """Erlang's programs run with the tree's own loader and libraries."""
    loader = _loader(tree)
    if loader is None:
        raise BrokerUnavailable(f"{RELEASE_4}'s C library has no loader where it is expected; install a RabbitMQ 4")
    for program in [found for found in tree.glob("usr/lib/erlang/**/bin/*") if _is_program(found)]:
        program.rename(program.with_name(f".{program.name}"))
        libraries = loader.parent.relative_to(tree)
        _write_script(program, LOADER_SCRIPT.format(libraries=libraries, loader=loader.name, name=program.name))


def _is_program(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _write_script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755)
