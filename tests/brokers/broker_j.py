"""An Apache Qpid Broker-J of one's own, on loopback, that leaves nothing behind.

As a library, `PrivateBrokerJ`. As a command, it runs another command with CAROD_BROKER in its environment:

    python tests/brokers/broker_j.py -- carod start

Only the standard library, Java 11 or newer, and (the first time) Maven.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Self

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.brokers.command import main_of
from tests.brokers.handshake import answers_amqp10
from tests.brokers.maven import fetch_artifacts, find_java, java_environment
from tests.brokers.process import START_TIMEOUT, BrokerProcess, free_ports

POM = Path(__file__).with_name("broker-j.pom.xml")
OLDEST_JAVA = 11
READY = "BRK-1004"  # "Qpid Broker Ready": the ports listen before that, and close what comes too early

USER, PASSWORD = "guest", "guest"
VIRTUAL_HOST = "default"

JAVA_OPTIONS = (
    # The start is two thirds as long with the quick compiler, and one collector thread is enough for this heap.
    *("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"),
    # A queue without consumers is looked through for expired messages this often, in ms. As shipped: 30 s.
    "-Dvirtualhost.housekeepingCheckPeriod=200",
    # How long an orderly shutdown waits for clients that don't answer, in s. As shipped: 30.
    "-Dbroker.shutdownTimeout=5",
)


class PrivateBrokerJ:
    """A Broker-J with its own ports and directory, which dies with its parent.

    One port for AMQP 0-9-1, 0-10 and 1.0, where USER logs in (PLAIN), and one for ANONYMOUS logins. Durable queues and
    messages survive a restart and a SIGKILL.

    Raises BrokerUnavailable where none can be had.
    """

    def __init__(self) -> None:
        self._java = find_java(OLDEST_JAVA)
        self._jars = fetch_artifacts("broker-j", POM)
        self._process = BrokerProcess("Broker-J")
        self._started_at = 0
        self.port, self.anonymous_port = free_ports(2)

    @property
    def url(self) -> str:
        return f"amqp10://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def anonymous_url(self) -> str:
        """Without a user: SASL ANONYMOUS."""
        return f"amqp10://127.0.0.1:{self.anonymous_port}"

    @property
    def url091(self) -> str:
        """The same port and queues, for AMQP 0-9-1."""
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/"

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
            config = directory / "config.json"
            config.write_text(json.dumps(self._config(), indent=2))
            self._started_at = len(self.log())
            classes = ("-cp", f"{self._jars}/*", f"-Dqpid.work_dir={directory}", "org.apache.qpid.server.Main")
            # The broker's own configuration is read anew each time; a virtual host keeps its queues by itself.
            store = ("-st", "Memory", "-icp", str(config))
            self._process.launch([self._java, *JAVA_OPTIONS, *classes, *store], java_environment())
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
        return READY in self.log()[self._started_at :] and answers_amqp10("127.0.0.1", self.port)

    def _config(self) -> dict[str, Any]:
        # Without TLS, Broker-J keeps PLAIN to itself unless told.
        users = [{"name": USER, "type": "managed", "password": PASSWORD}]
        plain = {"name": "plain", "type": "Plain", "secureOnlyMechanisms": [], "users": users}
        # Derby starts within 0.3 s of the memory store, which refuses durable messages over AMQP 1.0.
        host = {"type": "DERBY"}
        return {
            "name": "carod",
            "modelVersion": "9.0",
            "authenticationproviders": [plain, {"name": "anonymous", "type": "Anonymous"}],
            "ports": [_port("plain", self.port), _port("anonymous", self.anonymous_port)],
            "virtualhostnodes": [
                {
                    "name": VIRTUAL_HOST,
                    "type": "JSON",
                    "defaultVirtualHostNode": True,
                    "virtualHostInitialConfiguration": json.dumps(host),
                }
            ],
        }


def _port(provider: str, port: int) -> dict[str, Any]:
    return {
        "name": provider,
        "port": port,
        "bindingAddress": "127.0.0.1",
        "authenticationProvider": provider,
        "protocols": ["AMQP_0_9_1", "AMQP_0_10", "AMQP_1_0"],
        # Whatever virtual host a client names, it gets the only one.
        "virtualhostaliases": [
            {"name": "default", "type": "defaultAlias"},
            {"name": "any", "type": "patternMatchingAlias", "pattern": ".*", "virtualHostNode": VIRTUAL_HOST},
        ],
    }


if __name__ == "__main__":
    sys.exit(main_of("Broker-J", PrivateBrokerJ, __file__))
