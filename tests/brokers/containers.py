"""Brokers from container images, where CAROD_TEST_CONTAINERS asks for them and a Docker engine answers.

Started by testcontainers, which is installed for this only: `pip install testcontainers`.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import Any, Self

from tests.brokers.handshake import answers_amqp10
from tests.brokers.process import POLL_INTERVAL, START_TIMEOUT, BrokerFailed, BrokerUnavailable, free_ports

SWITCH = "CAROD_TEST_CONTAINERS"
AMQP_PORT = 5672
USER, PASSWORD = "guest", "guest"

# Image, and how it is told the one user that it lets in.
RABBITMQ = ("rabbitmq:4", {"RABBITMQ_DEFAULT_USER": USER, "RABBITMQ_DEFAULT_PASS": PASSWORD})
ARTEMIS = ("apache/activemq-artemis:2.40.0", {"ARTEMIS_USER": USER, "ARTEMIS_PASSWORD": PASSWORD})
QPIDD = ("scholzj/qpid-cpp:latest", {"QPIDD_ADMIN_USERNAME": USER, "QPIDD_ADMIN_PASSWORD": PASSWORD})


def wanted() -> bool:
    return bool(os.environ.get(SWITCH))


class ContainerBroker:
    """A broker in a container, on a loopback port of its own, which ends with our process.

    It has no process id here. Raises BrokerUnavailable without testcontainers, an engine, or the image.
    """

    def __init__(self, image: tuple[str, dict[str, str]]) -> None:
        self._name, self._variables = image
        self._container: Any = None
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        """AMQP 0-9-1's on RabbitMQ; the others have none."""
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/"

    @property
    def url10(self) -> str:
        return f"amqp10://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Returns once it answers clients; after a `kill`, with all that it had on disk."""
        if self._container is None:
            self._container = self._create()
        else:
            self._container.get_wrapped_container().start()
        deadline = time.monotonic() + timeout
        while not answers_amqp10("127.0.0.1", self.port):
            if time.monotonic() > deadline:
                raise BrokerFailed(f"{self._name} not up after {timeout:.0f} s:\n{self.log()[-2000:]}")
            time.sleep(POLL_INTERVAL)
        return self

    def stop(self) -> None:
        """The container goes, with all that was in it."""
        if self._container is not None:
            self._container.stop()
            self._container = None

    def kill(self) -> None:
        """SIGKILL. What is on its disk stays, for a `start` later."""
        self._container.get_wrapped_container().kill()

    def restart(self) -> Self:
        self._container.get_wrapped_container().stop()
        return self.start()

    def log(self) -> str:
        return b"".join(self._container.get_logs()).decode(errors="replace") if self._container else ""

    def _create(self) -> Any:
        try:
            errors: Any = import_module("docker.errors")
            library: Any = import_module("testcontainers.core.container")
        except ImportError as missing:
            raise BrokerUnavailable(f"{SWITCH} needs testcontainers: pip install testcontainers ({missing})") from None
        try:
            container = library.DockerContainer(self._name).with_envs(**self._variables)
            # On loopback, which `with_bind_ports` cannot say; and the same port after a restart.
            container.ports[str(AMQP_PORT)] = ("127.0.0.1", self.port)
            return container.start()
        except errors.DockerException as problem:
            raise BrokerUnavailable(f"no container of {self._name}: {problem}") from None
