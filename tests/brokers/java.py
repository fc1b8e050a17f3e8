"""Brokers in Java: which java runs them, Maven to fetch them into the cache, and how they start and end.

Only the standard library.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from tests.brokers.cache import cached
from tests.brokers.handshake import answers_amqp10
from tests.brokers.process import START_TIMEOUT, BrokerProcess, BrokerUnavailable, free_ports, say

# Named with its version, or Maven takes whichever its own release prefers.
DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"
FETCH_TIMEOUT = 600.0

# The start is two thirds as long with the quick compiler, and one collector thread is enough for this heap.
JAVA_OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
USER, PASSWORD = "guest", "guest"

# Set in somebody's shell for programs of their own.
FOREIGN = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH")


def find_java(oldest: int) -> str:
    """The `java` of JAVA_HOME or PATH. Raises BrokerUnavailable if there is none, or it is older than `oldest`."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=os.path.join(home, "bin")) if home else shutil.which("java")
    mend = f"install Java {oldest} or newer: `apt-get install default-jre-headless` as root"
    if java is None:
        raise BrokerUnavailable(f"there is no `java` {f'in JAVA_HOME={home}' if home else 'on PATH'}; {mend}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, env=java_environment())
    version = re.search(r'version "(\d+)', said.stderr)
    if version is None or int(version[1]) < oldest:
        raise BrokerUnavailable(f"{java} is {said.stderr.splitlines()[:1] or 'no Java'}; {mend}")
    return java


def java_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in FOREIGN}


def fetch_artifacts(name: str, pom: Path) -> Path:
    """A directory with the artifacts that the dependencies in `pom` come to, from the cache or from Maven.

    A changed pom is another directory. Raises BrokerUnavailable.
    """

    def fetch(scratch: Path) -> Path:
        if shutil.which("mvn") is None:
            raise BrokerUnavailable(f"{name} is fetched by Maven, and there is no `mvn`: `apt-get install maven`")
        say(f"fetching {name} with Maven, once; nothing gets installed")
        lib = scratch / "lib"
        goal = [f"{DEPENDENCY_PLUGIN}:copy-dependencies", f"-DoutputDirectory={lib}", "-DincludeScope=runtime"]
        try:
            done = subprocess.run(
                ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", pom, *goal],
                cwd=scratch,
                env=java_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FETCH_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BrokerUnavailable(f"{name}: Maven had not fetched it after {FETCH_TIMEOUT:.0f} s") from None
        if done.returncode != 0 or not lib.is_dir():
            complaint = [line for line in done.stdout.splitlines() if "ERROR" in line] or [done.stderr.strip()]
            raise BrokerUnavailable(f"{name}: Maven cannot fetch it: {complaint[0]}")
        return lib

    return cached(name, hashlib.sha256(pom.read_bytes()).hexdigest()[:12], fetch)


class PrivateJavaBroker(ABC):
    """A broker with ports and a directory of its own, which dies with its parent.

    `port` is where USER logs in (PLAIN), `anonymous_port` where nobody has to (ANONYMOUS). Durable queues and messages
    survive a restart and a SIGKILL. Raises BrokerUnavailable where none can be had.
    """

    def __init__(self, name: str, pom: Path, oldest_java: int, ready: str) -> None:
        """`ready` is what it says on its output once clients may come."""
        self._java = find_java(oldest_java)
        self._jars = fetch_artifacts(name.lower(), pom)
        self._ready = ready
        self._process = BrokerProcess(name)
        self._started_at = 0
        self.port, self.anonymous_port = free_ports(2)

    @abstractmethod
    def _arguments(self, directory: Path) -> list[str]:
        """What java gets: properties, the main class and its arguments. Writes the configuration that they name."""

    @property
    def url(self) -> str:
        return f"amqp10://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def url10(self) -> str:
        """The same, by the name that it has on brokers whose first protocol is another."""
        return self.url

    @property
    def anonymous_url(self) -> str:
        """Without a user: SASL ANONYMOUS."""
        return f"amqp10://127.0.0.1:{self.anonymous_port}"

    @property
    def directory(self) -> Path | None:
        return self._process.directory

    @property
    def pid(self) -> int | None:
        """The broker's process (java), None while it is stopped."""
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """Every process started for this broker, each a child of this one."""
        return self._process.pids

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Returns once it answers clients. Raises BrokerFailed, with the end of its log."""
        if self.pid is not None:
            return self
        try:
            directory = self.directory or self._process.open()
            self._started_at = len(self.log())
            command = [self._java, *JAVA_OPTIONS, "-cp", f"{self._jars}/*", *self._arguments(directory)]
            self._process.launch(command, java_environment())
            self._process.wait_until(self._is_ready, timeout)
        except BaseException:
            self._process.close()
            raise
        return self

    def stop(self) -> None:
        """The directory and all that was in it goes, so there is nothing to shut down in good order."""
        self._process.close()

    def shut_down(self) -> None:
        """An orderly shutdown that keeps the directory, for a `start` later."""
        self._process.shut_down()

    def kill(self) -> None:
        """SIGKILL. The directory stays, for a `start` later."""
        self._process.kill()

    def restart(self) -> Self:
        """An orderly restart on the same ports and directory."""
        self.shut_down()
        return self.start()

    def log(self) -> str:
        """All that the broker has said so far."""
        return self._process.log()

    def _is_ready(self) -> bool:
        return self._ready in self.log()[self._started_at :] and answers_amqp10("127.0.0.1", self.port)
