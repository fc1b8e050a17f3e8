"""The private broker itself: what the other tests, the demo and the benchmark rely on."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiormq
import psutil
import pytest

from tests.brokers.containers import ContainerBroker
from tests.brokers.handshake import answers_amqp, answers_amqp10, lets_in
from tests.brokers.process import free_ports
from tests.brokers.rabbitmq import TLS_USER, PrivateRabbitMQ

COMMAND = [sys.executable, str(Path(__file__).with_name("rabbitmq.py"))]
ROOT = Path(__file__).resolve().parents[2]

NewRabbitMQ = Callable[..., PrivateRabbitMQ]


def processes_of(broker: PrivateRabbitMQ) -> list[psutil.Process]:
    """Every process that runs on its behalf, helpers of helpers too."""
    own = [psutil.Process(pid) for pid in broker.pids]
    return own + [child for process in own for child in process.children(recursive=True)]


def assert_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []


async def publish(url: str, queue: str, body: bytes) -> None:
    connection = await aiormq.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True)
        persistent = aiormq.spec.Basic.Properties(delivery_mode=2)
        await channel.basic_publish(body, routing_key=queue, properties=persistent)


async def first_message(url: str, queue: str) -> bytes:
    connection = await aiormq.connect(url)
    async with connection:
        channel = await connection.channel()
        return (await channel.basic_get(queue, no_ack=True)).body


async def test_a_message_published_to_the_session_broker_can_be_read_back(broker_url: str, queue_name: str) -> None:
    await publish(broker_url, queue_name, b"hello")
    assert await first_message(broker_url, queue_name) == b"hello"


def test_tests_that_use_a_broker_are_marked(request: pytest.FixtureRequest, broker_url: str) -> None:
    assert request.node.get_closest_marker("broker")


async def test_a_restart_keeps_persistent_messages(rabbitmq: PrivateRabbitMQ, queue_name: str) -> None:
    await publish(rabbitmq.url, queue_name, b"kept")
    before = rabbitmq.pid
    rabbitmq.restart()
    assert rabbitmq.pid != before
    assert await first_message(rabbitmq.url, queue_name) == b"kept"


async def test_a_killed_broker_starts_again_with_its_confirmed_messages(
    rabbitmq: PrivateRabbitMQ, queue_name: str
) -> None:
    await publish(rabbitmq.url, queue_name, b"kept")
    rabbitmq.kill()
    assert not answers_amqp("127.0.0.1", rabbitmq.port)
    rabbitmq.start()
    assert await first_message(rabbitmq.url, queue_name) == b"kept"


def test_two_brokers_do_not_meet_and_a_stopped_one_leaves_nothing(
    rabbitmq: PrivateRabbitMQ, new_rabbitmq: NewRabbitMQ
) -> None:
    other = new_rabbitmq()
    assert other.url != rabbitmq.url
    assert len(other.ctl("list_users").splitlines()) == len(rabbitmq.ctl("list_users").splitlines())
    assert rabbitmq.node not in other.ctl("cluster_status")
    processes, directory = processes_of(other), other.directory
    assert len(processes) > 3
    other.stop()
    assert_all_end(processes)
    assert directory is not None
    assert not directory.exists()
    assert answers_amqp("127.0.0.1", rabbitmq.port)


def test_only_loopback_is_listened_on(rabbitmq: PrivateRabbitMQ) -> None:
    listening = [
        connection.laddr.ip
        for process in processes_of(rabbitmq)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert rabbitmq.port
    assert set(listening) <= {"127.0.0.1", "::1"}
    assert len(listening) >= 3


def test_a_broker_that_refuses_the_user_is_told_from_one_that_accepts(rabbitmq: PrivateRabbitMQ) -> None:
    assert lets_in("127.0.0.1", rabbitmq.port, "guest", "guest")
    assert not lets_in("127.0.0.1", rabbitmq.port, "guest", "wrong")


def test_extra_configuration_reaches_the_broker(new_rabbitmq: NewRabbitMQ) -> None:
    broker = new_rabbitmq(config=["consumer_timeout = 20000"])
    assert "20000" in broker.ctl("eval", "application:get_env(rabbit, consumer_timeout).")


async def test_a_client_certificate_is_a_login(new_rabbitmq: NewRabbitMQ) -> None:
    broker = new_rabbitmq(tls=True)
    certificates = broker.certificates
    assert certificates is not None
    context = ssl.create_default_context(cafile=certificates.ca)
    context.load_cert_chain(certificates.client, certificates.client_key)
    connection = await aiormq.connect(f"{broker.tls_url}?auth=external", context=context)
    async with connection:
        assert TLS_USER in broker.ctl("list_connections", "user")


async def test_three_nodes_make_a_cluster_that_survives_one(new_rabbitmq: NewRabbitMQ, queue_name: str) -> None:
    first = new_rabbitmq()
    second, third = new_rabbitmq(peer=first), new_rabbitmq(peer=first)
    status = third.ctl("cluster_status")
    assert all(broker.node in status for broker in (first, second, third))
    connection = await aiormq.connect(first.url)
    async with connection:
        channel = await connection.channel()
        await channel.queue_declare(queue_name, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.basic_publish(b"kept", routing_key=queue_name)
    third.kill()
    assert await first_message(second.url, queue_name) == b"kept"


async def test_rabbitmq_4_speaks_both_protocols_and_keeps_what_it_confirmed(
    rabbitmq4: PrivateRabbitMQ | ContainerBroker,
) -> None:
    if isinstance(rabbitmq4, PrivateRabbitMQ):
        assert rabbitmq4.ctl("version").startswith("4.")
    assert rabbitmq4.url10.startswith("amqp10://")
    assert answers_amqp10("127.0.0.1", rabbitmq4.port)
    await publish(rabbitmq4.url, "kept", b"kept")
    rabbitmq4.kill()
    rabbitmq4.start()
    assert await first_message(rabbitmq4.url, "kept") == b"kept"


def test_qpidd_answers_again_after_it_was_killed(qpidd: ContainerBroker) -> None:
    qpidd.kill()
    assert not answers_amqp10("127.0.0.1", qpidd.port)
    qpidd.start()
    assert answers_amqp10("127.0.0.1", qpidd.port)


def test_a_broker_dies_with_its_parent(rabbitmq: PrivateRabbitMQ) -> None:
    parent = subprocess.Popen(
        [*COMMAND, "--fresh", "--", "sh", "-c", "echo up; read -r forever"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        started = psutil.Process(parent.pid).children(recursive=True)
        assert any(process.name().startswith("beam") for process in started)
        directories = {Path(process.cwd()) for process in started if process.name().startswith("beam")}
        parent.kill()
    assert_all_end(started)
    assert not any(directory.exists() for directory in directories)


def test_the_command_passes_broker_arguments_and_exit_code(rabbitmq: PrivateRabbitMQ) -> None:
    done = subprocess.run(
        [*COMMAND, "--", "sh", "-c", 'echo "$CAROD_BROKER" "$1"; exit 7', "sh", "a b"],
        env={**os.environ, "CAROD_BROKER": rabbitmq.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, f"{rabbitmq.url} a b\n")
    assert "using the broker at amqp://127.0.0.1:" in done.stderr


def test_the_command_starts_a_broker_where_none_answers_and_stops_it_on_sigterm(rabbitmq: PrivateRabbitMQ) -> None:
    (nobody_listens,) = free_ports(1)
    wrapper = subprocess.Popen(
        [*COMMAND, "--", "sh", "-c", "trap 'echo told; exit 5' TERM; echo $CAROD_BROKER; while :; do read -r x; done"],
        env={**os.environ, "CAROD_BROKER": f"amqp://127.0.0.1:{nobody_listens}/"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with wrapper:
        assert wrapper.stdout is not None
        url = wrapper.stdout.readline().strip()
        assert url.startswith("amqp://guest:guest@127.0.0.1:")
        started = psutil.Process(wrapper.pid).children(recursive=True)
        wrapper.send_signal(signal.SIGTERM)
        assert wrapper.stdout.readline() == "told\n"
    assert wrapper.returncode == 5
    assert_all_end(started)
