"""The embedded broker and clients that are broken, greedy, slow or hostile."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from proton import Connection, Delivery, Message, Transport
from proton.utils import LinkDetached

from carod.amqp.embedded import connection as connections
from carod.amqp.embedded import greeting
from tests.amqp.embedded_client import TIMEOUT, Broker, Client, checked_broker

MIB = 1 << 20
AMQP, SASL = b"AMQP\x00\x01\x00\x00", b"AMQP\x03\x01\x00\x00"


@pytest.fixture
def broker() -> Iterator[Broker]:
    with checked_broker(memory=64 * MIB) as broker:
        yield broker


@pytest.fixture
def client(broker: Broker) -> Iterator[Client]:
    with Client(broker) as client:
        yield client


class Raw:
    """Proton's engine on a blocking socket, which reads and writes only when it is told to."""

    def __init__(self, broker: Broker) -> None:
        self.socket = socket.create_connection(("127.0.0.1", broker.port), timeout=TIMEOUT)
        self.transport, self.connection = Transport(), Connection()
        self.connection.container = "raw"
        self.transport.bind(self.connection)
        self.connection.open()
        self.session = self.connection.session()
        self.session.open()

    def close(self) -> None:
        self.socket.close()

    def write(self) -> None:
        while (size := self.transport.pending()) > 0:
            data = self.transport.peek(size)
            self.socket.sendall(data)
            self.transport.pop(len(data))

    def read_until(self, condition: Callable[[], bool]) -> None:
        self.write()
        while not condition():
            data = self.socket.recv(self.transport.capacity())
            assert data, "the broker has closed the connection"
            self.transport.push(data)
            self.write()

    def sender(self, address: str) -> Any:
        link = self.session.sender(address)
        link.target.address = address
        link.open()
        self.read_until(lambda: link.credit > 0)
        return link

    def receiver(self, address: str, credit: int) -> Any:
        link = self.session.receiver(address)
        link.source.address = address
        link.open()
        link.flow(credit)
        self.write()
        return link


def answer_to(broker: Broker, data: bytes) -> bytes:
    """All that the broker says to these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=TIMEOUT) as connection:
        connection.sendall(data)
        said = b""
        try:
            while more := connection.recv(1 << 16):
                said += more
        except ConnectionResetError:
            pass
        return said


def works(client: Client) -> bool:
    """Whether the broker still does what it is for."""
    if client.manage("READ", "Queue", key="check")[0] == 404:
        client.declare("check")
    client.send("check", "fine")
    return client.take("check") == ["fine"]


# -- how a connection begins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "answer", "logged"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", SASL, "it speaks no AMQP"),
        (b"AMQP\x00\x00\x09\x01", SASL, "it speaks AMQP 0.9.1, here is AMQP 1.0; URLs begin with amqp10://"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", b"", "it speaks TLS, which this broker does not"),
        (bytes(range(256)) * 100, SASL, "it speaks no AMQP"),
    ],
)
def test_what_is_no_amqp_is_told_what_is_spoken_here(
    broker: Broker, client: Client, caplog: pytest.LogCaptureFixture, data: bytes, answer: bytes, logged: str
) -> None:
    assert answer_to(broker, data) == answer
    assert logged in caplog.text
    assert works(client)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff\x02\x01\x00\x00",
        b"\x00\x00\x00\x04\x02\x01\x00\x00",
        b"\x00\x00\x00\x10\x02\x00\x00\x00" + bytes(8),
        b"\x00\x00\x00\x10\xff\x01\x00\x00" + bytes(8),
        b"\x00\x00\x00\x10\x02\x01\x00\x00" + b"\xd0\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x00\x00\x0c\x02\x01\x00\x00" + b"\x00\x53\x41\x45",
        b"\x00\x00\x01\x00\x02\x01\x00\x00" + bytes(248),
    ],
)
def test_a_broken_sasl_frame_ends_the_connection(broker: Broker, client: Client, frame: bytes) -> None:
    assert answer_to(broker, SASL + frame).startswith(SASL)
    assert works(client)


@pytest.mark.parametrize(("user", "mechanism"), [("", "ANONYMOUS"), ("me:secret@", "PLAIN")])
def test_everybody_is_let_in_with_and_without_a_password(broker: Broker, user: str, mechanism: str) -> None:
    with Client(broker, user, allowed_mechs=mechanism) as client:
        assert works(client)


def test_a_client_without_sasl_is_let_in(broker: Broker) -> None:
    with closing(Raw(broker)) as raw:
        assert raw.sender("amq.fanout").credit > 0


@pytest.mark.parametrize("begin", [b"", b"AMQP", SASL, AMQP])
def test_who_does_not_go_on_is_disconnected(broker: Broker, monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr(greeting, "PATIENCE", 0.05)
    monkeypatch.setattr(connections, "PATIENCE", 0.05)
    answer_to(broker, begin)


def test_a_client_that_falls_silent_is_disconnected(
    broker: Broker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.declare("grid")
    client.send("grid", "job")
    monkeypatch.setattr(connections, "IDLE_TIMEOUT", 0.2)
    with closing(Raw(broker)) as raw:
        link = raw.receiver("grid", 1)
        raw.read_until(lambda: link.queued > 0)
        receiver = client.receiver("grid")
        message = receiver.next()  # the silent one had it
        assert (message.body, message.delivery_count) == ("job", 1)
        receiver.accept()


# -- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        b"\x7f\xff\xff\xff\x02\x00\x00\x00",
        b"\x00\x00\x00\x00\x02\x00\x00\x00",
        b"\x00\x00\x00\x10\x02\x00\x00\x00" + b"\x00\x53\x10\xd0\xff\xff\xff\xff",
        b"\x00\x00\x00\x10\x02\x00\xff\xff" + b"\x00\x53\x14\xc0\x03\x01\x43\x00",
        bytes(range(256)) * 64,
    ],
)
def test_a_broken_frame_ends_its_connection_only(
    broker: Broker, client: Client, monkeypatch: pytest.MonkeyPatch, frame: bytes
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.05)  # Proton may take it for an open frame without a word in it
    answer_to(broker, AMQP + frame)
    assert works(client)


@pytest.mark.parametrize("seed", range(4))
def test_frames_with_mistakes_in_them_do_not_hurt_the_broker(
    broker: Broker, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.05)
    monkeypatch.setattr(connections, "IDLE_TIMEOUT", 0.05)
    client.declare("grid")
    chance = random.Random(seed)
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", broker.port), timeout=TIMEOUT) as connection:
            connection.sendall(with_mistakes(good_frames(chance), chance))
    broker.wait_until(lambda it: len(it.connections) == 1)
    assert "Traceback" not in caplog.text
    assert works(client)
    client.manage("DELETE", "Queue", key="grid")


def good_frames(chance: random.Random) -> bytes:
    """A whole conversation's worth: open, begin, attach both ways, flow, and a few messages."""
    transport, connection = Transport(), Connection()
    connection.container = "raw"
    transport.bind(connection)
    connection.open()
    session = connection.session()
    session.open()
    sender, receiver = session.sender("out"), session.receiver("in")
    sender.target.address = chance.choice(["amq.fanout", "$management", "grid", None])
    receiver.source.address = chance.choice(["amq.topic/#", "grid"])
    receiver.source.dynamic = chance.random() < 0.3
    sender.open()
    receiver.open()
    receiver.flow(10)
    data = b""
    while (size := transport.pending()) > 0:
        data += transport.peek(size)
        transport.pop(size)
    for number in range(3):
        operation = chance.choice(["CREATE", "READ", "QUERY", "bind"])
        headers = {"operation": operation, "type": "org.apache.qpid.Queue", "key": "grid"}
        message = Message(address="grid", reply_to="grid", properties=headers, body={"name": f"q{number}"}).encode()
        transfer = b"\x00\x53\x14\xc0\x0b\x05\x43\x52" + bytes((number,)) + b"\xa0\x01a\x43\x42"
        data += struct.pack(">IBBH", len(transfer) + len(message) + 8, 2, 0, 0) + transfer + message
    return data


def with_mistakes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, lost or added, behind the protocol's name."""
    damaged = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 2, 5, 20])):
        place = chance.randrange(len(AMQP), len(damaged))
        match chance.randrange(4):
            case 0:
                damaged[place] = chance.randrange(256)
            case 1:
                damaged[place] = chance.choice(b"\x00\x7f\x80\xff\x40\x45\xd0\xc0")
            case 2:
                del damaged[place]
            case _:
                damaged[place:place] = chance.randbytes(chance.randrange(1, 9))
    return bytes(damaged)


def test_an_address_that_is_no_text_is_refused(broker: Broker) -> None:
    with closing(Raw(broker)) as raw:
        link = raw.session.sender("out")
        link.target.address = "nonsense"
        link.open()
        attach = raw.transport.peek(raw.transport.pending())
        raw.transport.pop(len(attach))
        raw.socket.sendall(attach.replace(b"nonsense", b"\xff\xfensense"))
        raw.read_until(lambda: link.remote_condition is not None)
        assert link.remote_condition.name == "amqp:decode-error"


def test_a_connection_cut_off_within_a_frame_leaves_nothing_behind(broker: Broker, client: Client) -> None:
    with closing(Raw(broker)) as raw:
        raw.sender("amq.fanout")
        raw.socket.sendall(struct.pack(">IBBH", 5000, 2, 0, 0) + b"\x00\x53\x14")
    assert works(client)


# -- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"nonsense", b"\x00\x53\x70\xd0\xff\xff\xff\xff", b"\x00\x53\x73\xc0\x02\x03\x40", b"\x00" * 5000,
     b"\x00\x53\x70\xa1\x01a", b"\x00\x53\x73\x40", b"\x00\x53\x72" + b"\xc1" * 3],
)  # fmt: skip
def test_a_message_that_can_not_be_read_is_rejected_or_handed_on_as_it_is(
    broker: Broker, client: Client, data: bytes
) -> None:
    client.declare("grid")
    with closing(Raw(broker)) as raw:
        link = raw.sender("grid")
        delivery = link.delivery("1")
        link.stream(data)
        link.advance()
        raw.read_until(lambda: delivery.settled)
        assert delivery.remote_state in (Delivery.ACCEPTED, Delivery.REJECTED)
    assert works(client)
    client.manage("DELETE", "Queue", key="grid")


def test_a_message_that_comes_byte_by_byte_is_put_together(broker: Broker, client: Client) -> None:
    client.declare("grid")
    sent = Message(id="x" * 50, body=bytes(range(256)), properties={"Cmd": "/bin/true"}, durable=True, ttl=60)
    with closing(Raw(broker)) as raw:
        link = raw.sender("grid")
        delivery = link.delivery("1")
        for byte in sent.encode():
            link.stream(bytes((byte,)))
            raw.write()
        link.advance()
        raw.read_until(lambda: delivery.settled)
    receiver = client.receiver("grid")
    got = receiver.next()
    assert (got.id, bytes(got.body), got.properties, got.durable) == (sent.id, sent.body, sent.properties, True)
    receiver.accept()


def test_an_aborted_message_is_not_delivered(broker: Broker, client: Client) -> None:
    client.declare("grid")
    with closing(Raw(broker)) as raw:
        link = raw.sender("grid")
        aborted = link.delivery("1")
        link.stream(Message(body=bytes(200_000)).encode()[:150_000])
        raw.write()
        broker.wait_until(lambda it: it.memory.held > 100_000)
        aborted.abort()
        whole = link.delivery("2")
        link.stream(Message(body="whole").encode())
        link.advance()
        raw.read_until(lambda: whole.settled)
        assert client.take("grid") == ["whole"]
        assert broker.ask(lambda it: it.memory.held) < 100_000


def test_a_message_that_never_ends_takes_no_more_memory_than_one_may(broker: Broker, client: Client) -> None:
    client.declare("grid")
    with closing(Raw(broker)) as raw:
        link = raw.sender("grid")
        assert link.remote_max_message_size == 16 * MIB
        endless = link.delivery("1")
        for _ in range(40):
            link.stream(bytes(MIB))
            raw.read_until(lambda: raw.session.outgoing_bytes == 0)
        assert broker.ask(lambda it: it.memory.held) < MIB
        link.advance()
        raw.read_until(lambda: endless.settled)
        assert endless.remote_state == Delivery.REJECTED
        assert endless.remote.condition.name == "amqp:link:message-size-exceeded"
        small = link.delivery("2")
        link.stream(Message(body="small").encode())
        link.advance()
        raw.read_until(lambda: small.settled)
    assert client.take("grid") == ["small"]


def test_many_messages_that_never_end_do_not_fill_the_memory(broker: Broker, client: Client) -> None:
    client.declare("grid")
    with closing(Raw(broker)) as raw:
        links = []
        for number in range(8):
            link = raw.session.sender(f"{number}")
            link.target.address = "grid"
            link.open()
            raw.read_until(lambda link=link: link.credit > 0)  # type: ignore[misc]
            links.append((link, link.delivery("1")))
        for _ in range(15):
            for link, _ in links:
                link.stream(bytes(MIB))
                raw.read_until(lambda: raw.session.outgoing_bytes == 0)
            assert broker.ask(lambda it: it.memory.held) <= 80 * MIB
        for link, _ in links:
            link.advance()
        raw.read_until(lambda: all(delivery.settled for _, delivery in links))
        refused = [delivery for _, delivery in links if delivery.remote_state == Delivery.REJECTED]
        conditions = {delivery.remote.condition.name for delivery in refused}
        assert "amqp:resource-limit-exceeded" in conditions
    client.manage("DELETE", "Queue", key="grid")
    assert works(client)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_sender_waits_when_the_memory_is_full_and_goes_on_when_there_is_room(broker: Broker, client: Client) -> None:
    client.declare("grid")
    body = bytes(MIB)
    with closing(Raw(broker)) as raw:
        link = raw.sender("grid")
        deliveries = []
        for number in range(80):
            deliveries.append(link.delivery(f"{number}"))
            link.stream(Message(body=body).encode())
            link.advance()
        raw.socket.setblocking(False)
        while not broker.ask(lambda it: it.stalled):
            _push_some(raw)
        held = broker.ask(lambda it: it.memory.held)
        assert 48 * MIB <= held <= 50 * MIB  # three quarters: the rest is for those who have jobs
        assert not all(delivery.settled for delivery in deliveries)
        with Client(broker) as other:
            receiver = other.receiver("grid", 1)
            for _ in range(80):
                receiver.next()
                receiver.accept()
                receiver.link.flow(1)
                other.connection.container.process()
                _push_some(raw)
        raw.socket.settimeout(TIMEOUT)
        raw.read_until(lambda: all(delivery.settled for delivery in deliveries))
        assert broker.ask(lambda it: it.queues["grid"].size) == 0


def _push_some(raw: Raw) -> None:
    """What can be written and read without waiting."""
    with suppress(BlockingIOError):
        while (size := raw.transport.pending()) > 0:
            raw.transport.pop(raw.socket.send(raw.transport.peek(size)))
    with suppress(BlockingIOError):
        raw.transport.push(raw.socket.recv(raw.transport.capacity()))


def test_who_has_a_delivery_to_settle_may_send_when_others_may_not(broker: Broker, client: Client) -> None:
    client.declare("grid")
    client.declare("replies")
    with Client(broker) as node:
        client.send("grid", "job")
        receiver = node.receiver("grid", 1)
        assert receiver.next().body == "job"
        client.send("replies", *[bytes(6 * MIB)] * 8)
        assert broker.ask(lambda it: it.memory.held) >= 48 * MIB
        node.send("replies", b"the result")
        receiver.accept()
    client.manage("DELETE", "Queue", key="replies")


def test_a_flood_of_empty_messages_is_bounded_too(client: Client, broker: Broker) -> None:
    client.declare("grid")
    client.send("grid", *[None] * 100)
    assert broker.ask(lambda it: it.memory.held) >= 100 * 1024


def test_a_consumer_that_does_not_read_gets_no_more_than_is_on_the_way(broker: Broker, client: Client) -> None:
    client.declare("grid")
    with closing(Raw(broker)) as slow:
        slow.receiver("grid", 1_000_000_000)
        client.send("grid", *[bytes(200_000)] * 100)
        queue = broker.ask(lambda it: it.queues["grid"])
        assert queue.waiting + queue.unsettled == 100
        assert queue.waiting > 50
        assert len(client.take("grid")[0]) == 200_000  # others are served meanwhile
    client.manage("DELETE", "Queue", key="grid")


def test_a_large_message_goes_through_a_piece_at_a_time(broker: Broker, client: Client) -> None:
    client.declare("grid")
    body = bytes(range(256)) * (40 * 1024)
    with closing(Raw(broker)) as raw:
        link = raw.sender("grid")
        delivery = link.delivery("1")
        data = Message(body=body, properties={"a": "b"}).encode()
        for start in range(0, len(data), MIB):
            link.stream(data[start : start + MIB])
            raw.read_until(lambda: raw.session.outgoing_bytes == 0)
        link.advance()
        raw.read_until(lambda: delivery.settled)
    receiver = client.receiver("grid")
    message = receiver.next()
    assert bytes(message.body) == body
    receiver.settle(Delivery.MODIFIED, failed=True)
    client.depth("grid")
    receiver.link.flow(1)
    again = receiver.next()
    assert (bytes(again.body) == body, again.delivery_count, again.properties) == (True, 1, {"a": "b"})
    receiver.accept()


def test_a_consumer_that_goes_in_the_middle_of_a_large_message_leaves_it_to_the_next(
    broker: Broker, client: Client
) -> None:
    client.declare("grid")
    client.send("grid", bytes(8 * MIB))
    with closing(Raw(broker)) as raw:
        link = raw.receiver("grid", 1)
        raw.read_until(lambda: link.queued > 0)
    receiver = client.receiver("grid")
    message = receiver.next()
    assert (len(message.body), message.delivery_count) == (8 * MIB, 1)
    receiver.accept()


# -- many ------------------------------------------------------------------------------------------------------------


def test_a_connection_has_a_bounded_number_of_links(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_LINKS", 3)
    for number in range(3):
        client.connection.create_sender("amq.fanout", name=f"{number}")
    with pytest.raises(LinkDetached, match="amqp:resource-limit-exceeded"):
        client.connection.create_sender("amq.fanout", name="one too many")


def test_queues_and_bindings_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.declare("grid")
    monkeypatch.setattr("carod.amqp.embedded.broker.MAX_NAMES", 12)
    statuses = [
        client.manage("bind", "Exchange", key="amq.direct", destination="grid", bindingKey=f"{n}")[0] for n in range(8)
    ]
    assert set(statuses) == {200, 507}
    assert client.manage("CREATE", "Queue", {"name": "another"})[0] == 507
    with pytest.raises(LinkDetached, match="amqp:resource-limit-exceeded"):
        client.receiver(None, dynamic=True)


def test_hundreds_of_connections_are_served(broker: Broker, client: Client) -> None:
    client.declare("grid")
    raws = [Raw(broker) for _ in range(300)]
    links = [raw.receiver("grid", 1) for raw in raws]
    broker.wait_until(lambda it: len(it.queues["grid"].consumers) == 300)
    client.send("grid", *range(300))
    for raw, link in zip(raws, links, strict=True):
        raw.read_until(lambda link=link: link.queued > 0)  # type: ignore[misc]
    for raw in raws:
        raw.close()
    broker.wait_until(lambda it: it.queues["grid"].waiting == 300)


def test_one_that_sends_without_pause_does_not_keep_others_from_being_served(broker: Broker, client: Client) -> None:
    client.declare("flooded")
    with closing(Raw(broker)) as raw:
        link = raw.sender("flooded")
        raw.socket.setblocking(False)
        for number in range(2000):
            if link.credit > 0:
                link.delivery(f"{number}")
                link.stream(Message(body=bytes(1000)).encode())
                link.advance()
            _push_some(raw)
            if number % 500 == 0:
                assert works(client)
    client.manage("DELETE", "Queue", key="flooded")
