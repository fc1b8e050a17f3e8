"""The private Broker-J and Artemis themselves: what the tests of AMQP 1.0 rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from proton import Data, Link, Message, symbol
from proton.reactor import LinkOption
from proton.utils import BlockingConnection

from tests.brokers.artemis import PrivateArtemis
from tests.brokers.broker_j import PrivateBrokerJ
from tests.brokers.handshake import answers_amqp, answers_amqp10, lets_in
from tests.brokers.java import PrivateJavaBroker
from tests.brokers.test_rabbitmq import assert_all_end

HERE = Path(__file__).parent


@pytest.fixture(params=["broker_j", "artemis"])
def broker(request: pytest.FixtureRequest) -> PrivateJavaBroker:
    started = request.getfixturevalue(request.param)
    if not isinstance(started, PrivateJavaBroker):
        pytest.skip("it runs in a container")
    return started


class OfQueue(LinkOption):
    """Says that the address is a queue's, for Artemis."""

    def apply(self, link: Link) -> None:
        capabilities: Data = (link.target if link.is_sender else link.source).capabilities
        capabilities.put_array(False, Data.SYMBOL)
        capabilities.enter()
        capabilities.put_symbol(symbol("queue"))
        capabilities.exit()


def connect(url: str) -> BlockingConnection:
    return BlockingConnection(url.replace("amqp10://", "amqp://"), allowed_mechs="PLAIN ANONYMOUS", timeout=30)


def create_on_broker_j(connection: BlockingConnection, queue: str) -> None:
    create = {"operation": "CREATE", "type": "org.apache.qpid.Queue"}
    attributes = {"name": queue, "object-path": queue, "durable": True}
    replies = connection.create_receiver(None, dynamic=True)
    reply_to = replies.link.remote_source.address
    connection.create_sender("$management").send(Message(properties=create, body=attributes, reply_to=reply_to))
    assert "201" in str(replies.receive().properties), "statusCode: created"


def publish(url: str, broker: PrivateJavaBroker, queue: str, body: bytes) -> None:
    connection = connect(url)
    if isinstance(broker, PrivateBrokerJ):
        create_on_broker_j(connection, queue)
    connection.create_sender(queue, options=OfQueue()).send(Message(body=body, durable=True))
    connection.close()


def first_message(url: str, queue: str) -> bytes:
    connection = connect(url)
    receiver = connection.create_receiver(queue, credit=1, options=OfQueue())
    message = receiver.receive()
    receiver.accept()
    connection.close()
    assert isinstance(message.body, memoryview)  # of what `message` holds
    return bytes(message.body)


def test_a_message_from_an_anonymous_client_reaches_one_that_logged_in(broker: PrivateJavaBroker) -> None:
    publish(broker.anonymous_url, broker, "hello", b"from nobody")
    assert first_message(broker.url, "hello") == b"from nobody"


def test_broker_j_speaks_both_protocols_on_one_port(broker_j: PrivateBrokerJ) -> None:
    assert answers_amqp10("127.0.0.1", broker_j.port)
    assert answers_amqp("127.0.0.1", broker_j.port)
    assert lets_in("127.0.0.1", broker_j.port, "guest", "guest")
    assert not lets_in("127.0.0.1", broker_j.port, "guest", "wrong")


def test_a_restart_and_a_kill_keep_durable_messages(broker: PrivateJavaBroker) -> None:
    publish(broker.url, broker, "restarted", b"kept")
    publish(broker.url, broker, "killed", b"kept")
    before = broker.pid
    broker.restart()
    assert broker.pid != before
    assert first_message(broker.url, "restarted") == b"kept"
    broker.kill()
    assert not answers_amqp10("127.0.0.1", broker.port)
    broker.start()
    assert first_message(broker.url, "killed") == b"kept"


def test_two_do_not_meet_listen_on_loopback_only_and_a_stopped_one_leaves_nothing(broker: PrivateJavaBroker) -> None:
    other = PrivateBrokerJ() if isinstance(broker, PrivateBrokerJ) else PrivateArtemis()
    with other:
        assert other.url != broker.url
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
    assert_all_end(processes)
    assert directory is not None
    assert not directory.exists()
    assert answers_amqp10("127.0.0.1", broker.port)


def test_a_broker_of_the_command_dies_with_its_parent(broker: PrivateJavaBroker) -> None:
    script = "broker_j.py" if isinstance(broker, PrivateBrokerJ) else "artemis.py"
    command = [sys.executable, str(HERE / script), "--", "sh", "-c", "echo $CAROD_BROKER; read -r forever"]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("amqp10://guest:guest@127.0.0.1:")
        started = psutil.Process(parent.pid).children(recursive=True)
        directories = {Path(process.cwd()) for process in started if process.name() == "java"}
        assert len(directories) == 1
        parent.kill()
    assert_all_end(started)
    assert not any(directory.exists() for directory in directories)
