"""An Apache Qpid Broker-J of one's own, on loopback, that leaves nothing behind.

As a library, `PrivateBrokerJ`. As a command, it runs another command with CAROD_BROKER in its environment:

    python tests/brokers/broker_j.py -- carod start

Only the standard library, Java 11 or newer, and (the first time) Maven.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.brokers.command import main_of
from tests.brokers.java import PASSWORD, USER, PrivateJavaBroker

POM = Path(__file__).with_name("broker-j.pom.xml")
OLDEST_JAVA = 11
READY = "BRK-1004"  # "Qpid Broker Ready": the ports listen before that, and close what comes too early

VIRTUAL_HOST = "default"

PROPERTIES = (
    # A queue without consumers is looked through for expired messages this often, in ms. As shipped: 30 s.
    "-Dvirtualhost.housekeepingCheckPeriod=200",
    # How long an orderly shutdown waits for clients that don't answer, in s. As shipped: 30.
    "-Dbroker.shutdownTimeout=5",
)


class PrivateBrokerJ(PrivateJavaBroker):
    """A Broker-J of one's own: AMQP 0-9-1, 0-10 and 1.0 on one port. Raises BrokerUnavailable where none can be had."""

    def __init__(self) -> None:
        super().__init__("Broker-J", POM, OLDEST_JAVA, READY)

    @property
    def url091(self) -> str:
        """The same port and queues, for AMQP 0-9-1."""
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/"

    def _arguments(self, directory: Path) -> list[str]:
        config = directory / "config.json"
        config.write_text(json.dumps(self._config(), indent=2))
        # The broker's own configuration is read anew each time; a virtual host keeps its queues by itself.
        store = ["-st", "Memory", "-icp", str(config)]
        return [*PROPERTIES, f"-Dqpid.work_dir={directory}", "org.apache.qpid.server.Main", *store]

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
