"""What `carod.amqp.transport` promises, of every transport and broker.

A test that asks for `transport` runs once for each of PARTIES; what only some brokers can is a trait of theirs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import pytest

from carod.amqp import (
    Address,
    ConnectionLost,
    Delivery,
    Endpoint,
    Exchange,
    Message,
    Outcome,
    Queue,
    Refused,
    StaleDelivery,
    Transport,
    Unroutable,
    open_transport,
)
from tests.node.client import PATIENCE


@dataclass(frozen=True)
class Party:
    """A broker and the protocol to speak with it. `fixture` has its `url`s; `lacks` are traits, as tests name them."""

    fixture: str
    url: str = "url"
    lacks: frozenset[str] = frozenset()


PARTIES = {
    "artemis-1.0": Party(
        "artemis",
        "url10",
        lacks=frozenset(
            {
                "exclusive consumers",
                "user ids",
                "exchanges",
                "count of what an orderly end gives back",
                "passwords",
                "wildcards in queue names",
                "own ttl of parked messages",
                "deletion of empty queues",
                "ends of queues that are sent to",
            }
        ),
    ),
    "embedded-1.0": Party("embedded", lacks=frozenset({"exclusive consumers", "user ids"})),
    "rabbitmq-0-9-1": Party("rabbitmq"),
    "rabbitmq4-0-9-1": Party("rabbitmq4"),
    "rabbitmq4-1.0": Party("rabbitmq4", "url10", lacks=frozenset({"exclusive consumers"})),
    "broker-j-1.0": Party("broker_j", lacks=frozenset({"exclusive consumers", "user ids", "slashes in queue names"})),
}


@pytest.fixture(params=[pytest.param(party, id=name, marks=pytest.mark.broker) for name, party in PARTIES.items()])
def party(request: pytest.FixtureRequest) -> Party:
    chosen: Party = request.param
    return chosen


def needs(party: Party, trait: str) -> None:
    if trait in party.lacks:
        pytest.skip(f"this broker has no {trait}")


@pytest.fixture
def url(request: pytest.FixtureRequest, party: Party) -> str:
    return str(getattr(request.getfixturevalue(party.fixture), party.url))


@pytest.fixture
async def connect(url: str) -> AsyncIterator[Callable[[], Transport]]:
    """Makes transports to the broker, which are closed at the end."""
    opened: list[Transport] = []

    async def connected() -> Transport:
        transport = open_transport(Endpoint(url))
        opened.append(transport)
        await transport.connect()
        return transport

    yield connected
    for transport in opened:
        await transport.close()


Connect = Callable[[], "asyncio.Future[Transport]"]


@pytest.fixture
async def transport(connect: Connect) -> Transport:
    return await connect()


@pytest.fixture
async def queue(transport: Transport) -> str:
    """An exclusive queue of the test's own."""
    return (await transport.declare(Queue(f"t-{secrets.token_hex(6)}", durable=False, exclusive=True)))[0]


@pytest.fixture
async def shared(connect: Connect) -> AsyncIterator[str]:
    """A queue that any connection may use."""
    keeper = await connect()
    name, _ = await keeper.declare(Queue(f"t-{secrets.token_hex(6)}"))
    yield name
    await (await connect()).delete(name)


class Inbox:
    """Deliveries as they come."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def next(self) -> Delivery:
        async with asyncio.timeout(PATIENCE):
            return await self.queue.get()

    async def bodies(self, count: int) -> list[object]:
        return [(await self.next()).message.body for _ in range(count)]

    async def end(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return await self.ended


async def consume(transport: Transport, queue: str, **options: object) -> Inbox:
    inbox = Inbox()
    await transport.consume(queue, inbox.queue.put_nowait, on_end=inbox.ended.set_result, **options)  # type: ignore[arg-type]
    return inbox


# -- connections -----------------------------------------------------------------------------------------------


async def test_without_a_connection_nothing_is_done(url: str) -> None:
    transport = open_transport(Endpoint(url))
    for attempt in (
        transport.publish(Message(), Address("", "q")), transport.depth("q"), transport.declare(Queue("q")),
        transport.consume("q", print), transport.wait_closed(),
    ):  # fmt: skip
        with pytest.raises(ConnectionLost, match="not connected"):
            await attempt
    await transport.close()


async def test_a_closed_connection_is_told_and_can_be_made_anew(transport: Transport, shared: str) -> None:
    closed = asyncio.ensure_future(transport.wait_closed())
    await asyncio.sleep(0)
    await transport.close()
    async with asyncio.timeout(PATIENCE):
        assert await closed
    with pytest.raises(ConnectionLost):
        await transport.publish(Message(), Address("", shared))
    await transport.connect()
    await transport.publish(Message(b"x"), Address("", shared))
    assert await transport.depth(shared) == 1


async def test_a_broker_was_heard_when_it_answered(transport: Transport) -> None:
    before = time.monotonic()
    await transport.depth("no-such-queue")
    assert before <= transport.heard <= time.monotonic()


async def test_a_wrong_password_is_refused_without_being_shown(url: str, party: Party) -> None:
    needs(party, "passwords")
    if "@" not in url:
        pytest.skip("this broker lets everybody in")
    end = Endpoint(url.replace("guest:guest@", "guest:wr0ng@"))
    with pytest.raises(Refused, match="password") as caught:
        await open_transport(end).connect()
    assert "wr0ng" not in str(caught.value)


# -- messages --------------------------------------------------------------------------------------------------


async def test_a_message_arrives_as_it_was_sent(transport: Transport, queue: str, party: Party) -> None:
    user = None if "user ids" in party.lacks else "guest"
    sent = Message(
        b"body", {"I": 1, "F": 0.1, "S": "ä", "B": True, "N": None, "X": b"\xff", "Large": 2**40}, "id", "correlation",
        "reply", 60.0, 3, user, False, "text/plain", "kind", 1_700_000_000,
    )  # fmt: skip
    await transport.publish(sent, Address("", queue))
    delivery = await (await consume(transport, queue)).next()
    received = delivery.message
    assert received.expiration is not None
    assert 0 < received.expiration + received.timestamp - sent.timestamp <= 60.0 or received.expiration > 0
    assert dataclasses.replace(received, expiration=60.0) == sent
    assert not delivery.redelivered
    delivery.settle(Outcome.ACCEPTED)


async def test_a_message_with_nothing_in_it_arrives(transport: Transport, queue: str) -> None:
    await transport.publish(Message(), Address("", queue))
    message = (await (await consume(transport, queue)).next()).message
    assert (message.body, message.headers, message.malformed) == (b"", {}, "")


async def test_a_map_for_a_body_arrives_as_a_map_or_as_json(transport: Transport, queue: str) -> None:
    await transport.publish(Message(value={"a": [1, "x"]}), Address("", queue))
    message = (await (await consume(transport, queue)).next()).message
    assert message.value == {"a": [1, "x"]} or message.body == b'{"a": [1, "x"]}'


@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
async def test_a_large_body_is_streamed_and_arrives_whole(transport: Transport, queue: str, as_file: bool) -> None:
    content = os.urandom(13 << 20)
    inbox = await consume(transport, queue)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        body = file if as_file else content
        small = [transport.publish(Message(b"%d" % number), Address("", queue)) for number in range(3)]
        await asyncio.gather(*small)
        await transport.publish(Message(body), Address("", queue))  # type: ignore[arg-type]
    bodies = []
    for _ in range(4):
        delivery = await inbox.next()
        delivery.settle(Outcome.ACCEPTED)
        bodies.append(delivery.message.body)
    assert bodies == [b"0", b"1", b"2", content]  # in the order of the calls


async def test_a_small_body_may_be_a_file(transport: Transport, queue: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"content")
        await transport.publish(Message(file), Address("", queue))
    assert await (await consume(transport, queue)).bodies(1) == [b"content"]


async def test_small_messages_do_not_wait_for_a_large_one(transport: Transport, queue: str, shared: str) -> None:
    inbox = await consume(transport, queue)
    large = asyncio.ensure_future(transport.publish(Message(bytes(14 << 20)), Address("", shared)))
    await asyncio.sleep(0)
    await transport.publish(Message(b"small"), Address("", queue))
    assert await inbox.bodies(1) == [b"small"]
    await large


async def test_many_messages_arrive_in_the_order_of_the_calls(transport: Transport, queue: str) -> None:
    inbox = await consume(transport, queue, credit=0, settled=True)
    sizes = [10, 2 << 20, 10, 200_000, 0, 3 << 20, 1]
    for number, size in enumerate(sizes):
        await transport.publish(Message(bytes(size), message_id=str(number)), Address("", queue), confirm=False)
    assert [(await inbox.next()).message.message_id for _ in sizes] == [str(number) for number in range(len(sizes))]


async def test_thousands_of_messages_pass(transport: Transport, queue: str) -> None:
    inbox = await consume(transport, queue, credit=0, settled=True)
    count = 3000
    await asyncio.gather(*(transport.publish(Message(b"%d" % n), Address("", queue)) for n in range(count)))
    assert await inbox.bodies(count) == [b"%d" % number for number in range(count)]


@pytest.mark.parametrize(
    "address",
    [Address("", "no-such-queue"), Address("amq.direct", "no-such-key"), Address("no-such-exchange", "k")],
    ids=str,
)
async def test_a_message_to_nowhere_is_unroutable(
    transport: Transport, queue: str, address: Address, party: Party
) -> None:
    if address.exchange:
        needs(party, "exchanges")
    with pytest.raises(Unroutable, match=address.key):
        await transport.publish(Message(message_id="m"), address)
    await transport.publish(Message(b"x"), Address("", queue))  # and the next one gets through
    assert await transport.depth(queue) == 1


async def test_nobody_hears_of_an_unconfirmed_message_to_nowhere(transport: Transport, queue: str) -> None:
    await transport.publish(Message(message_id="m"), Address("", "no-such-queue"), confirm=False)
    await transport.publish(Message(b"x"), Address("", queue))
    assert await transport.depth(queue) == 1


async def test_a_large_message_to_nowhere_is_unroutable(transport: Transport, queue: str) -> None:
    with pytest.raises(Unroutable):
        await transport.publish(Message(bytes(3 << 20), message_id="m"), Address("", "no-such-queue"))
    await transport.publish(Message(b"x"), Address("", queue))
    assert await transport.depth(queue) == 1


@pytest.mark.parametrize("name", ["a b", "x" * 200, "a.b-c_d", "#", "a/b c", "/queues/q"])
async def test_a_queue_may_have_a_name_with_all_sorts_of_signs(transport: Transport, party: Party, name: str) -> None:
    if "/" in name:
        needs(party, "slashes in queue names")
    if "#" in name:
        needs(party, "wildcards in queue names")
    name = f"{name}-{secrets.token_hex(4)}"
    await transport.declare(Queue(name, durable=False, exclusive=True))
    await transport.publish(Message(b"x"), Address("", name))
    assert await transport.depth(name) == 1
    assert await (await consume(transport, name)).bodies(1) == [b"x"]


async def test_a_user_id_is_the_brokers_word(transport: Transport, queue: str, party: Party) -> None:
    needs(party, "user ids")
    with pytest.raises(Refused, match="user"):
        await transport.publish(Message(user_id="somebody"), Address("", queue))
    await transport.publish(Message(b"x", user_id="guest"), Address("", queue))
    assert (await (await consume(transport, queue)).next()).message.user_id == "guest"


async def test_a_message_is_not_delivered_past_its_expiration(transport: Transport, queue: str) -> None:
    await transport.publish(Message(b"late", expiration=0.001), Address("", queue))
    await asyncio.sleep(0.05)
    await transport.publish(Message(b"x"), Address("", queue))
    assert await (await consume(transport, queue)).bodies(1) == [b"x"]


# -- consumers -------------------------------------------------------------------------------------------------


async def test_no_more_than_credit_are_unsettled(transport: Transport, queue: str) -> None:
    for number in range(3):
        await transport.publish(Message(message_id=str(number)), Address("", queue))
    inbox = await consume(transport, queue, credit=2)
    first, second = await inbox.next(), await inbox.next()
    assert await transport.depth(queue) == 1
    assert inbox.queue.empty()
    assert first.subscription.unsettled == 2
    first.settle(Outcome.ACCEPTED)
    third = await inbox.next()
    assert [item.message.message_id for item in (first, second, third)] == ["0", "1", "2"]


async def test_without_a_limit_all_come_unsettled(transport: Transport, queue: str) -> None:
    await asyncio.gather(*(transport.publish(Message(), Address("", queue)) for _ in range(1200)))
    inbox = await consume(transport, queue, credit=0)
    deliveries = [await inbox.next() for _ in range(1200)]
    assert deliveries[0].subscription.unsettled == 1200
    assert not deliveries[0].settled


async def test_a_settled_consumer_has_nothing_to_settle(transport: Transport, queue: str) -> None:
    inbox = await consume(transport, queue, credit=0, settled=True)
    await transport.publish(Message(b"x"), Address("", queue))
    delivery = await inbox.next()
    assert delivery.settled
    assert delivery.subscription.unsettled == 0


async def test_what_is_released_comes_again_marked_as_redelivered(transport: Transport, queue: str) -> None:
    await transport.publish(Message(b"x"), Address("", queue))
    inbox = await consume(transport, queue)
    (await inbox.next()).settle(Outcome.RELEASED)
    again = await inbox.next()
    assert (again.message.body, again.redelivered) == (b"x", True)


async def test_what_is_accepted_is_gone(connect: Connect, shared: str) -> None:
    first = await connect()
    await first.publish(Message(b"x"), Address("", shared))
    (await (await consume(first, shared)).next()).settle(Outcome.ACCEPTED)
    await first.close()
    other = await connect()
    await other.publish(Message(b"y"), Address("", shared))
    assert await (await consume(other, shared)).bodies(1) == [b"y"]


async def test_a_delivery_is_settled_exactly_once(transport: Transport, queue: str) -> None:
    await transport.publish(Message(), Address("", queue))
    delivery = await (await consume(transport, queue)).next()
    delivery.settle(Outcome.ACCEPTED)
    assert delivery.settled
    with pytest.raises(AssertionError, match="settled already"):
        delivery.settle(Outcome.ACCEPTED)


async def test_a_closed_connections_deliveries_are_stale_and_go_to_others(
    connect: Connect, shared: str, party: Party
) -> None:
    first, other = await connect(), await connect()
    await first.publish(Message(b"x"), Address("", shared))
    delivery = await (await consume(first, shared)).next()
    assert not delivery.redelivered
    await first.close()
    with pytest.raises(StaleDelivery):
        delivery.settle(Outcome.ACCEPTED)
    again = await (await consume(other, shared)).next()
    assert again.message.body == b"x"
    assert again.redelivered or "count of what an orderly end gives back" in party.lacks


async def test_a_missing_queue_can_not_be_consumed_and_others_do_not_suffer(transport: Transport, queue: str) -> None:
    inbox = await consume(transport, queue)
    with pytest.raises(Refused, match="no-such-queue"):
        await consume(transport, "no-such-queue")
    await transport.publish(Message(b"x"), Address("", queue))
    assert await inbox.bodies(1) == [b"x"]


async def test_a_consumer_is_told_when_its_queue_is_deleted(transport: Transport, shared: str) -> None:
    inbox = await consume(transport, shared)
    await transport.delete(shared)
    assert await inbox.end()
    assert await transport.depth(shared) is None


async def test_a_delivery_of_a_deleted_queue_can_be_settled_or_is_stale(transport: Transport, shared: str) -> None:
    await transport.publish(Message(b"x"), Address("", shared))
    inbox = await consume(transport, shared)
    delivery = await inbox.next()
    await transport.delete(shared)
    await inbox.end()
    with suppress(StaleDelivery):
        delivery.settle(Outcome.ACCEPTED)
    assert await transport.depth(shared) is None


async def test_a_cancelled_consumer_gets_no_more_but_may_settle_what_it_has(transport: Transport, queue: str) -> None:
    inbox = Inbox()
    subscription = await transport.consume(queue, inbox.queue.put_nowait, credit=2, on_end=inbox.ended.set_result)
    await transport.publish(Message(b"1"), Address("", queue))
    delivery = await inbox.next()
    await subscription.cancel()
    await transport.publish(Message(b"2"), Address("", queue))
    assert await transport.depth(queue) == 1
    delivery.settle(Outcome.ACCEPTED)
    other = await consume(transport, queue)
    assert (await other.next()).message.body == b"2"
    assert inbox.queue.empty()
    assert not inbox.ended.done()
    await subscription.cancel()  # once more is fine


async def test_nothing_is_redelivered_for_a_consumer_that_is_cancelled(transport: Transport, queue: str) -> None:
    """What the broker had on its way to it, it gets; the others see no trace of it."""
    seen: list[Delivery] = []
    for number in range(200):
        subscription = await transport.consume(queue, seen.append, credit=1)
        sending = asyncio.ensure_future(transport.publish(Message(b"%d" % number), Address("", queue)))
        await subscription.cancel()
        await sending
        if seen and not seen[-1].settled:
            seen[-1].settle(Outcome.ACCEPTED)
    inbox = await consume(transport, queue, credit=0)
    rest = [await inbox.next() for _ in range(200 - len(seen))]
    assert not any(delivery.redelivered for delivery in (*seen, *rest))
    assert sorted(int(str(item.message.body, "ascii")) for item in (*seen, *rest)) == list(range(200))  # type: ignore[arg-type]


async def test_a_handler_that_raises_leaves_the_delivery_unsettled(transport: Transport, queue: str) -> None:
    called = asyncio.Event()

    def broken(_: Delivery) -> None:
        called.set()
        raise RuntimeError("oh")

    await transport.consume(queue, broken)
    await transport.publish(Message(b"x"), Address("", queue))
    async with asyncio.timeout(PATIENCE):
        await called.wait()
    await transport.publish(Message(b"y"), Address("", queue))
    assert await transport.depth(queue) == 1


async def test_consumers_of_a_queue_share_its_messages(connect: Connect, shared: str) -> None:
    first, second = await connect(), await connect()
    inboxes = [await consume(first, shared), await consume(second, shared)]
    for body in (b"1", b"2"):
        await first.publish(Message(body), Address("", shared))
    assert sorted([*await inboxes[0].bodies(1), *await inboxes[1].bodies(1)]) == [b"1", b"2"]  # type: ignore[type-var]


async def test_an_exclusive_consumer_is_the_only_one(connect: Connect, shared: str, party: Party) -> None:
    needs(party, "exclusive consumers")
    first, second = await connect(), await connect()
    await consume(first, shared, exclusive=True)
    with pytest.raises(Refused):
        await consume(second, shared, exclusive=True)


# -- queues and exchanges --------------------------------------------------------------------------------------


async def test_a_queue_of_the_brokers_own_name_is_declared_and_ends_with_the_connection(
    connect: Connect, party: Party
) -> None:
    first, other = await connect(), await connect()
    name, as_asked = await first.declare(Queue("", durable=False, exclusive=True, auto_delete=True))
    assert name
    assert as_asked
    inbox = await consume(first, name, credit=0, settled=True)
    await other.publish(Message(b"x"), Address("", name))
    assert await inbox.bodies(1) == [b"x"]
    needs(party, "ends of queues that are sent to")
    await first.close()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(Unroutable):
            while True:  # a broker may take a moment
                await other.publish(Message(b"y", message_id="m"), Address("", name))


async def test_a_queue_with_other_arguments_is_left_as_it_is(transport: Transport, shared: str) -> None:
    assert await transport.declare(Queue(shared, durable=True)) == (shared, True)
    assert await transport.declare(Queue(shared, message_ttl=1.0)) == (shared, False)
    await transport.publish(Message(), Address("", shared))
    assert await transport.depth(shared) == 1


async def test_an_exchange_of_another_type_is_left_as_it_is(transport: Transport, party: Party) -> None:
    needs(party, "exchanges")
    assert await transport.declare(Exchange("amq.topic", "topic")) == ("amq.topic", True)
    assert await transport.declare(Exchange("amq.direct", "fanout")) == ("amq.direct", False)


async def test_a_topic_exchange_routes_by_patterns(transport: Transport, party: Party) -> None:
    exchange = f"t-{secrets.token_hex(6)}.control"
    assert await transport.declare(Exchange(exchange, "topic")) == (exchange, True)
    assert await transport.declare(Exchange(exchange, "topic")) == (exchange, True)
    keys = ("job.#", "node.n1", "all")
    name, _ = await transport.declare(
        Queue("", durable=False, exclusive=True, auto_delete=True, bindings=tuple(Address(exchange, k) for k in keys))
    )
    inbox = await consume(transport, name, credit=0, settled=True)
    for key in ("job.a.b-c", "all", "node.n1", "job.x/y z ä"):
        await transport.publish(Message(key.encode(), message_id=key), Address(exchange, key))
    for key in ("node.n2", "other"):
        with pytest.raises(Unroutable) if "exchanges" not in party.lacks else nullcontext():
            await transport.publish(Message(key.encode(), message_id=key), Address(exchange, key))
    await transport.publish(Message(b"job.a", message_id="unconfirmed"), Address(exchange, "job.a"), confirm=False)
    expected = ["job.a.b-c", "all", "node.n1", "job.x/y z ä", "job.a"]
    assert await inbox.bodies(5) == [text.encode() for text in expected]


async def test_a_queue_may_be_bound_again_and_to_a_direct_exchange(
    transport: Transport, queue: str, party: Party
) -> None:
    needs(party, "exchanges")
    wanted = Queue(queue, durable=False, exclusive=True, bindings=(Address("amq.direct", f"{queue}_key"),))
    await transport.declare(wanted)
    assert await transport.declare(wanted) == (queue, True)
    await transport.publish(Message(b"x"), Address("amq.direct", f"{queue}_key"))
    assert await (await consume(transport, queue)).bodies(1) == [b"x"]


async def test_a_binding_to_a_missing_exchange_is_refused(transport: Transport, queue: str, party: Party) -> None:
    needs(party, "exchanges")
    wanted = Queue(queue, durable=False, exclusive=True, bindings=(Address("no-such-exchange", "k"),))
    with pytest.raises(Refused, match="no-such-exchange"):
        await transport.declare(wanted)


async def test_what_stays_too_long_goes_where_the_queue_says(transport: Transport, shared: str, party: Party) -> None:
    name = f"{shared}.parked"
    await transport.declare(Queue(name, message_ttl=0.3, dead_letter=Address("", shared)))
    inbox = await consume(transport, shared)
    own = None if "own ttl of parked messages" in party.lacks else 100.0
    before = time.monotonic()
    await transport.publish(Message(b"x", {"a": 1}, "id", reply_to="r", expiration=own), Address("", name))
    delivery = await inbox.next()
    assert time.monotonic() - before >= 0.29
    assert (delivery.message.body, delivery.message.message_id, delivery.message.headers["a"]) == (b"x", "id", 1)
    delivery.settle(Outcome.ACCEPTED)
    assert await transport.depth(name) == 0
    await transport.delete(name)


async def test_what_is_consumed_in_time_does_not_go_on(transport: Transport, shared: str) -> None:
    name = f"{shared}.own"
    await transport.declare(Queue(name, message_ttl=30.0, dead_letter=Address("", shared), expires=600.0))
    inbox = await consume(transport, name, credit=0)
    await transport.publish(Message(b"x"), Address("", name))
    (await inbox.next()).settle(Outcome.ACCEPTED)
    assert await transport.depth(shared) == 0
    await transport.delete(name)
    assert await transport.depth(name) is None


async def test_a_queue_that_is_not_there_has_no_depth_and_can_be_deleted(transport: Transport) -> None:
    assert await transport.depth("no-such-queue") is None
    await transport.delete("no-such-queue")
    await transport.delete("no-such-queue", if_empty=True)


async def test_a_queue_with_something_in_it_stays_if_only_an_empty_one_shall_go(
    transport: Transport, shared: str, party: Party
) -> None:
    await transport.publish(Message(b"x"), Address("", shared))
    await transport.delete(shared, if_empty=True)
    assert await transport.depth(shared) == 1
    needs(party, "deletion of empty queues")
    inbox = await consume(transport, shared)
    (await inbox.next()).settle(Outcome.ACCEPTED)
    async with asyncio.timeout(PATIENCE):
        while await transport.depth(shared) is not None:  # a broker may take a moment to see that it is empty
            await transport.delete(shared, if_empty=True)
    await inbox.end()


@pytest.mark.parametrize(
    ("reply_to", "address"),
    [
        ("name", Address("", "name")), ("amq.rabbitmq.reply-to.x", Address("", "amq.rabbitmq.reply-to.x")),
        ("amq.direct/my_key", Address("amq.direct", "my_key")), ("amq.direct/a/b", Address("amq.direct", "a/b")),
        ("nowhere/key", Address("", "nowhere/key")), ("/queues/a%2Fb%20c", Address("", "a/b c")),
        ("/queue/name", Address("", "name")), ("/exchanges/e%2Fx/k%20y", Address("e/x", "k y")),
        ("/exchanges/e", Address("e", "")),
        ("/exchange/e/k", Address("e", "k")), ("/", Address("", "/")), ("/other/x", Address("", "/other/x")),
        ("a b/c", Address("", "a b/c")),
    ],
)  # fmt: skip
async def test_a_reply_to_of_any_client_is_understood(
    transport: Transport, party: Party, reply_to: str, address: Address
) -> None:
    if address.exchange and not reply_to.startswith("/"):
        needs(party, "exchanges")
    assert await transport.resolve(reply_to) == address
