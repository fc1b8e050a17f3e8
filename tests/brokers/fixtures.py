"""Fixtures for tests that need a real broker. Whoever uses one gets the marker `broker`.

Where none can be had, such a test is skipped on a developer's machine and fails in CI.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import aiormq
import pytest

from tests.brokers import containers
from tests.brokers.artemis import PrivateArtemis
from tests.brokers.broker_j import PrivateBrokerJ
from tests.brokers.containers import ContainerBroker
from tests.brokers.package import find_package_4
from tests.brokers.process import BrokerUnavailable
from tests.brokers.rabbitmq import PrivateRabbitMQ

TEST_BROKER_VARIABLE = "CAROD_TEST_BROKER"
BROKER_FIXTURES = {
    *("rabbitmq", "new_rabbitmq", "broker_url", "queue_name", "rabbitmq4"),
    *("broker_j", "new_broker_j", "artemis", "qpidd"),
}


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if BROKER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[PrivateRabbitMQ]:
    """The session's own RabbitMQ. Always private, so a test may restart it, kill it, and use `ctl`."""
    with _started() as private:
        yield private


@pytest.fixture
def new_rabbitmq() -> Iterator[Callable[..., PrivateRabbitMQ]]:
    """Makes further ones, for this test only: `new_rabbitmq(tls=True, config=["consumer_timeout = 20000"])`."""
    with ExitStack() as stack:

        def start(**options: Any) -> PrivateRabbitMQ:
            return stack.enter_context(_started(**options))

        yield start


@pytest.fixture(scope="session")
def rabbitmq4() -> Iterator[PrivateRabbitMQ | ContainerBroker]:
    """The session's own RabbitMQ 4: AMQP 0-9-1 at `url`, 1.0 at `url10`. A test may restart and kill it."""
    if containers.wanted():
        with _in_container(containers.RABBITMQ) as container:
            yield container
        return
    with _or_skipped():
        package = find_package_4()
    with _started(package=package) as private:
        yield private


@pytest.fixture(scope="session")
def broker_j() -> Iterator[PrivateBrokerJ]:
    """The session's own Broker-J: AMQP 1.0, 0-10 and 0-9-1. A test may restart and kill it."""
    with _started_broker_j() as private:
        yield private


@pytest.fixture
def new_broker_j() -> Iterator[Callable[..., PrivateBrokerJ]]:
    """Makes further ones, for this test only: `new_broker_j()`."""
    with ExitStack() as stack:

        def start(**options: Any) -> PrivateBrokerJ:
            return stack.enter_context(_started_broker_j(**options))

        yield start


@pytest.fixture(scope="session")
def artemis() -> Iterator[PrivateArtemis | ContainerBroker]:
    """The session's own ActiveMQ Artemis: AMQP 1.0 at `url10`. A test may restart and kill it."""
    if containers.wanted():
        with _in_container(containers.ARTEMIS) as container:
            yield container
        return
    with _or_skipped():
        private = PrivateArtemis().start()
    with private:
        yield private


@pytest.fixture(scope="session")
def qpidd() -> Iterator[ContainerBroker]:
    """The session's own Qpid C++ broker: AMQP 1.0 at `url10`, and 0-10. From a container, or not at all."""
    if not containers.wanted():
        pytest.skip(f"qpidd is to be had as a container only: with a Docker engine, set {containers.SWITCH}=1")
    with _in_container(containers.QPIDD) as private:
        yield private


def _in_container(image: tuple[str, dict[str, str]]) -> ContainerBroker:
    with _or_skipped():
        return ContainerBroker(image).start()


def _started_broker_j(**options: Any) -> PrivateBrokerJ:
    with _or_skipped():
        return PrivateBrokerJ(**options).start()


def _started(**options: Any) -> PrivateRabbitMQ:
    with _or_skipped():
        return PrivateRabbitMQ(**options).start()


@contextmanager
def _or_skipped() -> Iterator[None]:
    try:
        yield
    except BrokerUnavailable as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def broker_url(request: pytest.FixtureRequest) -> str:
    """The broker that CAROD_TEST_BROKER names, else `rabbitmq`'s. For tests that need nothing but a broker."""
    named = os.environ.get(TEST_BROKER_VARIABLE)
    return named or str(request.getfixturevalue("rabbitmq").url)


@pytest.fixture
def queue_name(broker_url: str) -> Iterator[str]:
    """A job queue's name that no other test has. It is declared by the test, deleted with what derives from it."""
    name = f"test-{secrets.token_hex(6)}"
    yield name
    # A thread of its own: the test's event loop, if it had one, is not ours to use or replace.
    with ThreadPoolExecutor(1) as pool, suppress(ConnectionError):
        pool.submit(asyncio.run, _delete(broker_url, name)).result()


async def _delete(url: str, name: str) -> None:
    hosts = {socket.gethostname(), socket.gethostname().partition(".")[0], socket.getfqdn()}
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        for queue in (name, f"{name}.parked", f"{name}.dead", *(f"{name}.node.{host}" for host in hosts)):
            await channel.queue_delete(queue)
        await channel.exchange_delete(f"{name}.control")
    finally:
        await connection.close()
