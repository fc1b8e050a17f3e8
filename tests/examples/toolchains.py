"""From the examples' sources to commands that run, with whatever they need fetched: nothing gets installed.

What was built is kept for one session, what was fetched (modules, jars, packages) in the usual caches.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.brokers.cache import cached
from tests.brokers.debian import AptFailed, platform_name, unpack_packages
from tests.brokers.java import fetch_artifacts, find_java, java_environment
from tests.brokers.process import BrokerUnavailable

EXAMPLES = Path(__file__).resolve().parents[2] / "clients" / "examples"
BUILD_TIMEOUT = 300.0
OLDEST_JAVA = 17

DEBIAN_PACKAGES = ("libqpid-proton-cpp12-dev", "libzip-dev", "libsasl2-modules", "amqp-tools", "zip", "unzip")
# A library here and the rest of it in /usr would not link. SASL's modules are looked for in /usr first.
DEBIAN_WHOLE = "libqpid-proton|libzip|librabbitmq|amqp-tools|zip$|unzip$"
DEBIAN_COMMANDS = ("amqp-publish", "zip", "unzip")
DEBIAN_HEADERS = ("/usr/include/proton/container.hpp", "/usr/include/zip.h")


class Missing(Exception):
    """A toolchain is not here, or what the example needs cannot be fetched. The text says what would mend it."""


@dataclass(frozen=True)
class Command:
    """How to run an example; its arguments follow."""

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)


def build_python(directory: Path) -> dict[str, Command]:
    scripts = {f"python-{path.stem.removeprefix('hello_')}": path for path in (EXAMPLES / "python").glob("*.py")}
    return {name: Command((sys.executable, str(path))) for name, path in scripts.items()}


def build_go(directory: Path) -> dict[str, Command]:
    go = _tool("go", "install Go: https://go.dev/dl")
    _fetch([go, "mod", "download"], EXAMPLES / "go")
    _run([go, "build", "-mod=readonly", "-buildvcs=false", "-o", f"{directory}/", "./..."], EXAMPLES / "go")
    return {f"go-{name}": Command((str(directory / f"hello{name}"),)) for name in ("091", "10")}


def build_nodejs(directory: Path) -> dict[str, Command]:
    node = _tool("node", "install Node.js 20 or newer")
    npm = _tool("npm", "install npm, which comes with Node.js")
    place = directory / "nodejs"
    shutil.copytree(EXAMPLES / "nodejs", place, ignore=shutil.ignore_patterns("node_modules"))
    _fetch([npm, "ci", "--no-audit", "--no-fund", "--no-update-notifier"], place)
    return {f"nodejs-{name}": Command((node, str(place / f"hello_{name}.js"))) for name in ("amqplib", "rhea")}


def build_java(directory: Path) -> dict[str, Command]:
    try:
        java = find_java(OLDEST_JAVA)
        jars = fetch_artifacts("examples-java", EXAMPLES / "java" / "pom.xml")
    except BrokerUnavailable as reason:
        raise Missing(str(reason)) from None
    javac = shutil.which("javac", path=str(Path(java).parent)) or _tool("javac", "install a JDK, not only a JRE")
    sources = {"rabbitmq": "HelloRabbitMQ", "qpid-jms": "HelloQpidJMS"}
    files = [str(EXAMPLES / "java" / f"{name}.java") for name in sources.values()]
    _run([javac, "-Xlint:all", "-cp", f"{jars}/*", "-d", str(directory), *files], directory)
    # Each runs for a second: the compiler that makes programs fast would take more of it than it gives.
    quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
    path = ("-cp", f"{directory}:{jars}/*")
    return {f"java-{name}": Command((java, *quick, *path, main), java_environment()) for name, main in sources.items()}


def build_cpp(directory: Path) -> dict[str, Command]:
    compiler = _tool("g++", "install a C++ compiler: `apt-get install g++` as root")
    environ = {} if all(map(os.path.exists, DEBIAN_HEADERS)) else _debian()
    binary = str(directory / "LL")
    source = str(EXAMPLES / "cpp" / "LL.cpp")
    warnings = ("-Wall", "-Wextra")
    _run([compiler, "-std=c++17", *warnings, "-o", binary, source, "-lqpid-proton-cpp", "-lzip"], directory, environ)
    return {"cpp-proton": Command((binary,), environ)}


def build_shell(directory: Path) -> dict[str, Command]:
    environ = {} if all(map(shutil.which, DEBIAN_COMMANDS)) else _debian()
    return {"shell": Command(("/bin/sh", str(EXAMPLES / "shell" / "hello_grid.sh")), environ)}


TOOLCHAINS: dict[str, Callable[[Path], dict[str, Command]]] = {
    "go": build_go,  # the slowest first
    "java": build_java,
    "nodejs": build_nodejs,
    "cpp": build_cpp,
    "shell": build_shell,
    "python": build_python,
}


def _debian() -> dict[str, str]:
    """An environment in which headers, libraries and programs of DEBIAN_PACKAGES are found."""

    def fetch(scratch: Path) -> Path:
        return unpack_packages(scratch, DEBIAN_PACKAGES, hidden=DEBIAN_WHOLE)

    try:
        root = cached("examples-debian", platform_name(), fetch)
    except (AptFailed, BrokerUnavailable) as reason:
        mend = f"as root, `apt-get install {' '.join(DEBIAN_PACKAGES)}`"
        raise Missing(f"not all of {', '.join(DEBIAN_PACKAGES)} is installed, and {reason}; {mend}") from None
    libraries = ":".join(sorted({str(found.parent) for found in root.glob("usr/lib/*/lib*.so.*")}))
    modules = [str(found) for found in root.glob("usr/lib/*/sasl2")]
    return {
        "PATH": f"{root}/usr/bin:{os.environ['PATH']}",
        "CPATH": f"{root}/usr/include",
        "LIBRARY_PATH": libraries,
        "LD_LIBRARY_PATH": libraries,
        **({"SASL_PATH": modules[0]} if modules else {}),
    }


def _tool(name: str, mend: str) -> str:
    if found := shutil.which(name):
        return found
    raise Missing(f"there is no `{name}`: {mend}")


def _fetch(command: list[str], directory: Path) -> None:
    """Raises Missing with what it said."""
    try:
        _run(command, directory)
    except AssertionError as failed:
        raise Missing(str(failed)) from None


def _run(command: list[str], directory: Path, environ: Mapping[str, str] | None = None) -> None:
    """Raises AssertionError with what it said."""
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}"
