"""The private Broker-J itself: what the tests of AMQP 1.0 rely on."""

from __future__ import annotations

from collections.abc import Callable

import psutil
from proton import Message
from proton.utils import BlockingConnection

from tests.brokers.broker_j import PrivateBrokerJ
from tests.brokers.handshake import answers_amqp, answers_amqp10, lets_in
from tests.brokers.test_rabbitmq import assert_all_end

NewBrokerJ = Callable[..., PrivateBrokerJ]


def connect(url: str) -> BlockingConnection:
    return BlockingConnection(url.replace("amqp10://", "amqp://"), allowed_mechs="PLAIN ANONYMOUS", timeout=30)


def publish(url: str, queue: str, body: bytes) -> None:
    connection = connect(url)
    create = {"operation": "CREATE", "type": "org.apache.qpid.Queue"}
    attributes = {"name": queue, "object-path": queue, "durable": True}
    replies = connection.create_receiver(None, dynamic=True)
    reply_to = replies.link.remote_source.address
    connection.create_sender("$management").send(Message(properties=create, body=attributes, reply_to=reply_to))
    assert "201" in str(replies.receive().properties), "statusCode: created"
    connection.create_sender(queue).send(Message(body=body, durable=True))
    connection.close()


def first_message(url: str, queue: str) -> bytes:
    connection = connect(url)
    receiver = connection.create_receiver(queue, credit=1)
    message = receiver.receive()
    receiver.accept()
    connection.close()
    assert isinstance(message.body, memoryview)  # of what `message` holds
    return bytes(message.body)


def test_it_speaks_both_protocols_on_one_port_and_anonymous_on_another(broker_j: PrivateBrokerJ) -> None:
    assert answers_amqp10("127.0.0.1", broker_j.port)
    assert answers_amqp("127.0.0.1", broker_j.port)
    assert lets_in("127.0.0.1", broker_j.port, "guest", "guest")
    assert not lets_in("127.0.0.1", broker_j.port, "guest", "wrong")
    publish(broker_j.anonymous_url, "hello", b"from nobody")
    assert first_message(broker_j.url, "hello") == b"from nobody"


def test_a_restart_and_a_kill_keep_persistent_messages(broker_j: PrivateBrokerJ) -> None:
    publish(broker_j.url, "restarted", b"kept")
    publish(broker_j.url, "killed", b"kept")
    before = broker_j.pid
    broker_j.restart()
    assert broker_j.pid != before
    assert first_message(broker_j.url, "restarted") == b"kept"
    broker_j.kill()
    assert not answers_amqp10("127.0.0.1", broker_j.port)
    broker_j.start()
    assert first_message(broker_j.url, "killed") == b"kept"


def test_two_do_not_meet_listen_on_loopback_only_and_a_stopped_one_leaves_nothing(
    broker_j: PrivateBrokerJ, new_broker_j: NewBrokerJ
) -> None:
    other = new_broker_j()
    assert other.url != broker_j.url
    listening = [
        connection.laddr
        for connection in psutil.Process(other.pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {(address.ip.removeprefix("::ffff:"), address.port) for address in listening} == {
        ("127.0.0.1", other.port),
        ("127.0.0.1", other.anonymous_port),
    }
    processes, directory = [psutil.Process(pid) for pid in other.pids], other.directory
    other.stop()
    assert_all_end(processes)
    assert directory is not None
    assert not directory.exists()
    assert answers_amqp10("127.0.0.1", broker_j.port)
