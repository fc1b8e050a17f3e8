"""Java programs from Maven artifacts: which java runs them, and Maven to fetch them into the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.brokers.cache import cached
from tests.brokers.process import BrokerUnavailable, say

# Named with its version, or Maven takes whichever its own release prefers.
DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"
FETCH_TIMEOUT = 600.0

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
