"""The embedded broker, with Proton's own blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from proton import Condition, Delivery, Link, Message, symbol
from proton.utils import LinkDetached, SendException

from tests.amqp.embedded_client import TIMEOUT, Broker, Client, checked_broker


@pytest.fixture
def broker() -> Iterator[Broker]:
    with checked_broker() as broker:
        yield broker


@pytest.fixture
def client(broker: Broker) -> Iterator[Client]:
    with Client(broker) as client:
        yield client


# -- where messages go -----------------------------------------------------------------------------------------------


def test_a_message_sent_to_a_queue_is_delivered_as_it_was_sent(client: Client) -> None:
    client.declare("grid")
    sent = Message(
        body=b"\0\1\2", id=UUID(int=7), correlation_id=12, user_id=b"me", reply_to="there", subject="key", durable=True,
        priority=7, properties={"Cmd": "/bin/echo", "N": 3, "Flag": True}, annotations={symbol("x-opt-a"): "b"},
        content_type=symbol("application/zip"), creation_time=1.5, group_id="g",
    )  # fmt: skip
    sender = client.connection.create_sender("grid")
    sender.send(sent)
    receiver = client.receiver("grid")
    assert receiver.next().encode() == sent.encode()
    receiver.accept()


def test_messages_of_one_queue_come_in_their_order(client: Client) -> None:
    client.declare("grid")
    client.send("grid", *range(50))
    assert client.take("grid", 50) == list(range(50))


def test_messages_of_higher_priority_come_first(client: Client) -> None:
    client.declare("grid")
    for priority in (4, 9, 0, 5):
        client.send("grid", priority, priority=priority)
    client.send("grid", "default")
    assert client.take("grid", 5) == [9, 5, 4, "default", 0]


def test_a_link_to_a_queue_that_does_not_exist_is_refused_with_not_found(client: Client) -> None:
    for attach in (client.connection.create_sender, client.connection.create_receiver):
        with pytest.raises(LinkDetached, match=r"amqp:not-found.*no queue or exchange 'nosuch'"):
            attach("nosuch")
    client.declare("grid")  # the connection is none the worse


def test_a_direct_exchange_takes_messages_to_the_queues_bound_with_their_key(client: Client) -> None:
    client.declare("grid")
    client.bind("grid", "amq.direct", "grid_key")
    client.send("amq.direct/grid_key", "by address")
    client.send("amq.direct", "by subject", subject="grid_key")
    client.send(None, "by to", address="amq.direct/grid_key")
    client.send(None, "by to and subject", address="amq.direct", subject="grid_key")
    assert client.take("grid", 4) == ["by address", "by subject", "by to", "by to and subject"]


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("job.*", ["job.1", "job."], ["job", "job.1.2", "jobs.1"]),
        ("job.#", ["job", "job.1", "job.1.2"], ["jobs", "a.job"]),
        ("#.end", ["end", "a.end", "a.b.end"], ["ends", "end.a"]),
        ("a.*.#.z", ["a.b.z", "a.b.c.z"], ["a.z", "a.b.c"]),
        ("#", ["", "a", "a.b"], []),
        ("a.b", ["a.b"], ["a", "a.c", "a.b.c"]),
        ("a+.[b]", ["a+.[b]"], ["aa.b"]),
    ],
)
def test_a_topic_exchange_matches_keys_by_words(
    client: Client, pattern: str, fitting: list[str], others: list[str]
) -> None:
    client.declare("control")
    client.manage("CREATE", "Exchange", {"name": "grid.control", "qpid-type": "topic"})
    client.bind("control", "grid.control", pattern)
    sender = client.connection.create_sender("grid.control")
    for key in fitting:
        sender.send(Message(subject=key, body=key))
    for key in others:
        with pytest.raises(SendException):
            sender.send(Message(subject=key))
    assert client.take("control", len(fitting)) == fitting


def test_a_pattern_of_many_wildcards_is_matched_in_no_time(client: Client) -> None:
    client.declare("control")
    client.bind("control", "amq.topic", ".".join(["#", "a"] * 60))
    sender = client.connection.create_sender("amq.topic")
    with pytest.raises(SendException):
        sender.send(Message(subject=".".join(["a"] * 300 + ["b"])))


def test_a_fanout_exchange_takes_a_message_to_each_queue_once(client: Client) -> None:
    for queue in ("one", "two"):
        client.declare(queue)
        client.bind(queue, "amq.fanout", "a")
        client.bind(queue, "amq.fanout", "b")
    client.send("amq.fanout", "all")
    assert (client.depth("one"), client.depth("two")) == (1, 1)


def test_a_receiver_on_an_exchange_has_a_queue_of_its_own(client: Client) -> None:
    events = client.receiver("qmf.default.topic/agent.#", 10)
    everything = client.receiver("qmf.default.topic", 10)
    client.send("qmf.default.topic/agent.ind.1", "an event")
    client.send("qmf.default.topic/console", "another")
    assert events.next().body == "an event"
    assert [everything.next().body for _ in range(2)] == ["an event", "another"]


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("nosuch", "there is no queue or exchange 'nosuch'"),
        ("nosuch/key", "there is no queue or exchange 'nosuch/key'"),
        ("amq.direct/nokey", "no queue is bound to exchange 'amq.direct/nokey' for this message"),
        ("amq.direct", "no queue is bound to exchange 'amq.direct' for this message, whose subject is None"),
        (None, "neither the link nor the message's `to` says where it goes"),
    ],
)
def test_a_message_that_can_go_nowhere_is_rejected_with_the_reason(client: Client, to: str, reason: str) -> None:
    sender = client.connection.create_sender(None)
    delivery = sender.link.send(Message(address=to))
    client.connection.wait(lambda: delivery.settled, timeout=TIMEOUT)
    assert delivery.remote_state == Delivery.REJECTED
    condition: Condition = delivery.remote.condition
    assert condition.name == ("amqp:not-found" if to else "amqp:precondition-failed")
    assert condition.description == reason


# -- private queues --------------------------------------------------------------------------------------------------


def test_a_private_queue_is_gone_with_its_link(client: Client) -> None:
    replies = client.receiver(None, dynamic=True)
    name = replies.address
    client.send(name, "by address")
    assert replies.next().body == "by address"
    replies.accept()
    replies.close()
    with pytest.raises(LinkDetached, match="not-found"):
        client.send(name, "late")


def test_a_private_queue_takes_messages_from_others_and_is_gone_with_its_connection(
    broker: Broker, client: Client
) -> None:
    with Client(broker) as other:
        replies = other.receiver(None, dynamic=True)
        name = replies.address
        client.send(None, "by to", address=name)
        assert replies.next().body == "by to"
        with pytest.raises(LinkDetached, match=r"amqp:resource-locked.*belongs to another connection"):
            client.receiver(name)
    broker.wait_until(lambda it: name not in it.queues)


def test_a_sender_can_ask_for_a_private_queue_too(client: Client) -> None:
    sender = client.connection.create_sender(None, options=_DynamicTarget())
    name = sender.link.remote_target.address
    sender.send(Message(body="to myself"))
    assert client.take(name) == ["to myself"]


class _DynamicTarget:
    """As JMS clients make temporary queues."""

    def apply(self, link: Link) -> None:
        link.target.dynamic = True

    def test(self, _: Link) -> bool:
        return True


def test_an_exclusive_queue_ends_with_the_connection_that_declared_it(broker: Broker, client: Client) -> None:
    with Client(broker) as owner:
        owner.declare("mine", exclusive="CONNECTION", lifetimePolicy="DELETE_ON_CONNECTION_CLOSE")
        with pytest.raises(LinkDetached, match="resource-locked"):
            client.receiver("mine")
        assert client.manage("DELETE", "Queue", key="mine")[0] == 403
    broker.wait_until(lambda it: "mine" not in it.queues)


def test_an_auto_delete_queue_ends_with_its_last_consumer(broker: Broker, client: Client) -> None:
    client.declare("brief", lifetimePolicy="DELETE_ON_NO_OUTBOUND_LINKS")
    one, two = client.receiver("brief"), client.receiver("brief")
    one.close()
    client.send("brief", "still there")
    two.close()
    broker.wait_until(lambda it: "brief" not in it.queues)


# -- settlement ------------------------------------------------------------------------------------------------------


def test_an_accepted_message_is_forgotten(client: Client) -> None:
    client.declare("grid")
    client.send("grid", "once")
    client.take("grid")
    assert client.read("grid")["queueDepthMessages"] == 0


@pytest.mark.parametrize(
    ("settle", "count"),
    [
        pytest.param(lambda receiver: receiver.settle(Delivery.RELEASED), 0, id="released"),
        pytest.param(lambda receiver: receiver.settle(Delivery.MODIFIED, failed=True), 1, id="modified-failed"),
        pytest.param(lambda receiver: receiver.settle(Delivery.MODIFIED), 0, id="modified"),
    ],
)
def test_a_message_that_is_given_back_goes_to_its_old_place(
    client: Client, settle: Callable[[Any], None], count: int
) -> None:
    client.declare("grid")
    client.send("grid", "first", "second")
    receiver = client.receiver("grid")
    assert receiver.next().body == "first"
    settle(receiver)
    client.depth("grid")  # Proton may send a request before what was said earlier, but not two
    assert client.depth("grid") == 2
    receiver.link.flow(1)
    again = receiver.next()
    assert (again.body, again.delivery_count) == ("first", count)
    receiver.accept()


def test_what_a_lost_connection_had_is_delivered_again_in_order_and_says_so(broker: Broker, client: Client) -> None:
    client.declare("grid")
    client.send("grid", *range(5))
    lost = Client(broker)
    taken = lost.receiver("grid", 3)
    assert [taken.next().body for _ in range(3)] == [0, 1, 2]
    broker.ask(lambda it: [each.abort() for each in list(it.connections) if each.unsettled])
    receiver = client.receiver("grid", 5)
    got = [receiver.next() for _ in range(5)]
    assert [(message.body, message.delivery_count) for message in got] == [(0, 1), (1, 1), (2, 1), (3, 0), (4, 0)]
    for _ in got:
        receiver.accept()


def test_what_a_closed_link_had_goes_to_another_consumer_of_the_connection(client: Client) -> None:
    client.declare("grid")
    client.send("grid", "job")
    one, two = client.receiver("grid"), client.receiver("grid")
    one.next()
    one.close()
    message = two.next()
    assert (message.body, message.delivery_count) == ("job", 1)
    two.accept()


def test_a_message_undeliverable_to_one_consumer_goes_to_another(client: Client) -> None:
    client.declare("grid")
    client.send("grid", "picky")
    one = client.receiver("grid", 2)
    one.next()
    one.settle(Delivery.MODIFIED, undeliverable=True)
    client.send("grid", "any")
    assert one.next().body == "any"
    one.accept()
    two = client.receiver("grid")
    message = two.next()
    assert (message.body, message.delivery_count) == ("picky", 0)
    two.accept()


def test_a_rejected_message_goes_to_the_alternate_binding_or_is_gone(client: Client) -> None:
    client.declare("dead")
    client.declare("grid", alternateBinding={"destination": "dead", "attributes": {}})
    client.send("grid", "poison")
    for queue in ("grid", "dead"):
        receiver = client.receiver(queue)
        assert receiver.next().body == "poison"
        receiver.settle(Delivery.REJECTED)
        receiver.close()
    assert client.read("grid")["queueDepthMessages"] == client.read("dead")["queueDepthMessages"] == 0


def test_a_consumer_that_wants_messages_settled_gets_them_once(broker: Broker, client: Client) -> None:
    client.declare("grid")
    client.send("grid", "gone")
    with Client(broker) as other:
        receiver = other.receiver("grid", options=_Settled())
        assert receiver.next().body == "gone"
    assert client.read("grid")["queueDepthMessages"] == 0


class _Settled:
    def apply(self, link: Link) -> None:
        link.snd_settle_mode = Link.SND_SETTLED

    def test(self, _: Link) -> bool:
        return True


def test_consumers_take_turns(client: Client) -> None:
    client.declare("grid")
    receivers = [client.receiver("grid", 10) for _ in range(3)]
    client.send("grid", *range(9))
    for number, receiver in enumerate(receivers):
        assert [receiver.next().body for _ in range(3)] == [number, number + 3, number + 6]
        for _ in range(3):
            receiver.accept()


def test_no_consumer_gets_more_than_its_credit(broker: Broker, client: Client) -> None:
    client.declare("grid")
    receiver = client.receiver("grid", 2)
    client.send("grid", *range(5))
    assert (client.read("grid")["unacknowledgedMessages"], client.depth("grid")) == (2, 3)
    receiver.close()


def test_a_drained_consumer_has_its_credit_taken_back(client: Client) -> None:
    client.declare("grid")
    client.send("grid", "only")
    receiver = client.receiver("grid", 0)
    receiver.link.drain(5)
    client.connection.wait(lambda: receiver.link.credit == 0, timeout=TIMEOUT)
    assert receiver.next().body == "only"
    receiver.accept()


# -- time ------------------------------------------------------------------------------------------------------------


def test_a_message_past_its_ttl_is_gone(broker: Broker, client: Client) -> None:
    client.declare("grid")
    client.send("grid", "brief", ttl=0.05)
    client.send("grid", "late", expiry_time=time.time() - 10)
    client.send("grid", "lasting", ttl=60)
    broker.wait_until(lambda it: it.queues["grid"].waiting == 1)
    receiver = client.receiver("grid")
    message = receiver.next()
    assert message.body == "lasting"
    assert 50 < message.ttl <= 60
    receiver.accept()


def test_a_message_past_its_ttl_is_not_delivered_even_before_it_is_swept(broker: Broker, client: Client) -> None:
    client.declare("grid")
    client.send("grid", "late", expiry_time=time.time() - 10)
    client.send("grid", "good")
    assert client.take("grid") == ["good"]


def test_a_message_past_its_queues_ttl_goes_to_the_alternate_binding(client: Client) -> None:
    client.declare("grid")
    client.declare(
        "parked", maximumMessageTtl=50, expiryPolicy="ROUTE_TO_ALTERNATE", alternateBinding={"destination": "grid"}
    )
    receiver = client.receiver("grid", 2)
    client.send("parked", "without end")
    client.send("parked", "with one", ttl=60)
    got = [receiver.next() for _ in range(2)]
    assert [message.body for message in got] == ["without end", "with one"]
    assert 50 < got[1].ttl < 60
    for _ in got:
        receiver.accept()


def test_a_queue_that_is_its_own_alternate_does_not_go_round_in_circles(broker: Broker, client: Client) -> None:
    client.declare("grid")
    client.declare("loop", maximumMessageTtl=1, alternateBinding={"destination": "grid"})
    status, _ = client.manage(
        "CREATE", "Queue", {"name": "self", "maximumMessageTtl": 1, "alternateBinding": {"destination": "self"}}
    )
    assert status == 400
    client.send("loop", "round")
    assert client.take("grid") == ["round"]


# -- management ------------------------------------------------------------------------------------------------------


def test_a_queue_says_how_it_was_declared_and_what_is_in_it(client: Client) -> None:
    client.declare("dead")
    client.declare(
        "grid", durable=True, maximumMessageTtl=60_000, alternateBinding={"destination": "dead", "attributes": {}}
    )
    client.send("grid", "one", "two")
    receiver = client.receiver("grid")
    receiver.next()
    found = client.read("grid")
    expected = {
        "name": "grid", "durable": True, "exclusive": "NONE", "lifetimePolicy": "PERMANENT",
        "maximumMessageTtl": 60_000, "alternateBinding": {"destination": "dead", "attributes": {}},
        "queueDepthMessages": 2, "availableMessages": 1, "unacknowledgedMessages": 1, "consumerCount": 1,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    receiver.accept()


def test_what_exists_already_is_not_declared_again(client: Client) -> None:
    client.declare("grid")
    assert client.manage("CREATE", "Queue", {"name": "grid"}) == (409, "there is 'grid' already")
    assert client.manage("CREATE", "Exchange", {"name": "amq.direct"})[0] == 409


@pytest.mark.parametrize(
    ("operation", "kind", "body", "headers", "status", "text"),
    [
        ("CREATE", "Queue", {}, {}, 400, "an object can't have the name ''"),
        ("CREATE", "Queue", {"name": "q", "exclusive": "x"}, {}, 400, "exclusive 'x' is none of NONE"),
        ("CREATE", "Queue", {"name": "q", "lifetimePolicy": "x"}, {}, 400, "lifetimePolicy 'x' is none of"),
        ("CREATE", "Queue", {"name": "q", "maximumMessageTtl": -1}, {}, 400, "maximumMessageTtl -1 is no number"),
        ("CREATE", "Queue", {"name": "q", "alternateBinding": {"destination": "x"}}, {}, 400, "'x' does not exist"),
        ("CREATE", "Exchange", {"name": "e", "qpid-type": "headers"}, {}, 501, "exchange type 'headers' is none of"),
        ("CREATE", "Broker", {"name": "b"}, {}, 400, "type 'org.apache.qpid.Broker' is not known here"),
        ("READ", "Queue", {}, {"key": "nosuch"}, 404, "there is no queue 'nosuch'"),
        ("UPDATE", "Queue", {}, {"key": "grid"}, 501, "operation 'UPDATE' is not known here"),
        ("DELETE", "Exchange", {}, {"key": "amq.topic"}, 403, "exchange 'amq.topic' is always there"),
        ("bind", "Exchange", {}, {"key": "amq.topic", "destination": "nosuch"}, 400, "no queue 'nosuch' to bind"),
    ],
)  # fmt: skip
def test_a_request_that_can_not_be_granted_says_why(
    client: Client, operation: str, kind: str, body: Any, headers: dict[str, str], status: int, text: str
) -> None:
    client.declare("grid")
    answered, said = client.manage(operation, kind, body, **headers)
    assert (answered, text in said) == (status, True), said


def test_a_deleted_queue_takes_its_bindings_its_consumers_and_its_messages_with_it(
    broker: Broker, client: Client
) -> None:
    client.declare("grid")
    client.bind("grid", "amq.direct", "key")
    client.send("grid", "one", "two")
    with Client(broker) as other:
        receiver = other.receiver("grid")
        receiver.next()
        sender = client.connection.create_sender("grid")
        assert client.manage("DELETE", "Queue", key="grid")[0] == 204
        with pytest.raises(LinkDetached, match=r"amqp:resource-deleted.*queue 'grid' was deleted"):
            receiver.next()
        with pytest.raises(SendException):
            sender.send(Message(body="late"))
    assert broker.ask(lambda it: it.exchanges["amq.direct"].bindings) == {}
    client.declare("grid")
    sender.send(Message(body="anew"))
    assert client.take("grid") == ["anew"]


def test_a_queue_that_others_need_is_not_deleted(client: Client) -> None:
    client.declare("grid")
    client.declare("parked", alternateBinding={"destination": "grid"})
    assert client.manage("DELETE", "Queue", key="grid") == (
        403,
        "queue 'grid' is the alternate of parked; delete that first",
    )
    for queue in ("parked", "grid"):
        assert client.manage("DELETE", "Queue", key=queue)[0] == 204


def test_names_with_slashes_and_backslashes_are_told_apart(client: Client) -> None:
    client.declare("a/b")
    client.declare("a\\b")
    client.send("a/b", "slash")
    assert client.manage("READ", "Queue", key="a\\/b")[1]["availableMessages"] == 1
    assert client.manage("READ", "Queue", key="a\\\\b")[1]["availableMessages"] == 0
    assert client.take("a/b") == ["slash"]


@pytest.mark.parametrize("number", [UUID(int=5), 7, 2**40, b"\xff\x00", "text"])
def test_an_answer_carries_the_requests_id_as_it_was(client: Client, number: Any) -> None:
    answers = client.receiver(None, dynamic=True)
    requests = client.connection.create_sender("$management")
    headers = {"operation": "QUERY", "entityType": "org.apache.qpid.Exchange"}
    requests.send(Message(properties=headers, reply_to=answers.address, correlation_id=number))
    answer = answers.next()
    assert answer.correlation_id == number
    assert ["amq.direct", "org.apache.qpid.Exchange"] in answer.body["results"]
    answers.accept()
