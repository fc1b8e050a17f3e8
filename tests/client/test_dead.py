"""The dead-letter queue as operators see it: without a node, so that what is in it stays as it was put there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from carod_client.commands.tables import dead_table, plain
from carod_client.control import Control, NotReleasable
from carod_client.dead import DEAD_DATE, DEAD_REASON, DeadMessage, Kind
from carod_client.errors import NoQueue

from carod.amqp import Address, Delivery, Endpoint, HeaderValue, Message, Queue, Transport, open_transport
from carod.job import INCARNATION

PATIENCE = 60.0


@pytest.fixture
async def transport(broker_url: str, queue_name: str) -> AsyncIterator[Transport]:
    """A connection, and the queues that a node would have declared."""
    transport = open_transport(Endpoint(broker_url))
    await transport.connect()
    for name in (queue_name, f"{queue_name}.dead"):
        await transport.declare(Queue(name))
    yield transport
    await transport.close()


@pytest.fixture
async def control(transport: Transport, broker_url: str, queue_name: str) -> AsyncIterator[Control]:
    async with Control(broker_url, queue_name, patience=0.1) as control:
        yield control


def held(job: str, reason: str = "held", **headers: HeaderValue) -> Message:
    """A held job's message as a node buries it."""
    ad: dict[str, HeaderValue] = {"Cmd": "/bin/sleep", "Arguments": '"60"', DEAD_REASON: reason, **headers}
    return Message(b"inputs", ad, job, reply_to="client", priority=3, durable=True)


def result(job: str) -> Message:
    """A result that could not be delivered, as a node buries it."""
    headers: dict[str, HeaderValue] = {
        "Cmd": '"/bin/true"', "AMQPID": f'"{job}"', "JobStatus": 4, "JobState": '"Exited"', "ExitReason": '"exited"',
        "CompletionDate": 1_700_000_000, DEAD_REASON: "the client is gone",
    }  # fmt: skip
    return Message(b"zip", headers, "an-id-of-its-own", job, reply_to="client", durable=True)


async def bury(transport: Transport, queue: str, *messages: Message) -> None:
    for message in messages:
        await transport.publish(message, Address("", f"{queue}.dead"))


async def taken(transport: Transport, queue: str, count: int) -> list[Message]:
    """The next messages of a queue."""
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    subscription = await transport.consume(queue, arrived.put_nowait, credit=0, settled=True)
    async with asyncio.timeout(PATIENCE):
        messages = [(await arrived.get()).message for _ in range(count)]
    await subscription.cancel()
    return messages


async def test_listing_takes_nothing_away(transport: Transport, control: Control) -> None:
    await bury(transport, control.queue, held("one", "why", Owner="ann", DeadDate=1_700_000_001), result("two"))
    first, second = await control.dead_letters()
    assert first == DeadMessage("one", Kind.JOB, "why", 1_700_000_001.0, "ann", "/bin/sleep", 6)
    assert (second.id, second.kind, second.when) == ("two", Kind.RESULT, 1_700_000_000.0)
    assert await control.dead_letters() == [first, second]
    assert await control.held() == 2


async def test_two_who_list_at_a_time_both_see_all(transport: Transport, control: Control) -> None:
    await bury(transport, control.queue, *(held(str(number)) for number in range(50)))
    lists = await asyncio.gather(*(control.dead_letters() for _ in range(3)))
    assert [[message.id for message in found] for found in lists] == [[str(number) for number in range(50)]] * 3


async def test_a_released_job_is_what_it_was_but_for_a_new_incarnation(transport: Transport, control: Control) -> None:
    marks: dict[str, HeaderValue] = {
        "x-death": [],
        "x-carod-handed-over": "node",
        "x-carod-expires-at": 1.0,
        "CC": ["x"],
    }
    await bury(transport, control.queue, held("job", NumJobStarts=3, DeadDate=1, **{INCARNATION: 4}, **marks))
    await control.release("job")
    (message,) = await taken(transport, control.queue, 1)
    assert message.headers == {"Cmd": "/bin/sleep", "Arguments": '"60"', "NumJobStarts": 3, INCARNATION: 5}
    assert (message.message_id, message.reply_to, message.priority) == ("job", "client", 3)
    assert (message.durable, message.body, message.expiration) == (True, b"inputs", None)
    assert await control.dead_letters() == []


async def test_only_what_was_asked_for_is_released_and_the_rest_keeps_its_order(
    transport: Transport, control: Control
) -> None:
    await bury(transport, control.queue, *(held(name) for name in "abcde"))
    assert [outcome async for outcome in control.release_all(["d", "b"])] == [("b", None), ("d", None)]
    assert [message.message_id for message in await taken(transport, control.queue, 2)] == ["b", "d"]
    assert [message.id for message in await control.dead_letters()] == ["a", "c", "e"]


async def test_of_all_only_jobs_are_released(transport: Transport, control: Control) -> None:
    nobody = held("nobody")
    nobody.reply_to = None
    nameless = held("")
    nameless.message_id = None
    await bury(transport, control.queue, result("one"), held("two"), nobody, nameless, held("three"))
    assert [outcome async for outcome in control.release_all()] == [("two", None), ("three", None)]
    left = await control.dead_letters()
    assert [(message.id, message.kind) for message in left] == [
        ("one", Kind.RESULT),
        ("nobody", Kind.UNUSABLE),
        ("", Kind.UNUSABLE),
    ]
    assert await control.waiting() == 2


async def test_what_is_no_job_is_not_released_and_says_why(transport: Transport, control: Control) -> None:
    lost = held("lost", AdTooLarge=True)
    await bury(transport, control.queue, result("one"), lost)
    with pytest.raises(NotReleasable, match=r"job one .*its result, .*the client is gone"):
        await control.release("one")
    with pytest.raises(NotReleasable, match=r"job lost .*can't be run"):
        await control.release("lost")
    assert await control.held() == 2


async def test_a_job_is_released_though_its_result_lies_there_too(transport: Transport, control: Control) -> None:
    await bury(transport, control.queue, result("job"), held("job"))
    await control.release("job")
    assert [(message.id, message.kind) for message in await control.dead_letters()] == [("job", Kind.RESULT)]


async def test_an_ad_that_a_client_sent_again_is_a_job(transport: Transport, control: Control) -> None:
    old = {"AMQPID": '"an-older-one"', "JobStatus": 4, "ExitReason": '"exited"'}
    again, correlated = held("again", **old), held("correlated", **old)
    correlated.correlation_id = "the client's own"
    await bury(transport, control.queue, again, correlated)
    assert [message.kind for message in await control.dead_letters()] == [Kind.JOB, Kind.JOB]


async def test_a_job_stays_dead_if_its_queue_is_gone(transport: Transport, control: Control) -> None:
    await bury(transport, control.queue, held("job"))
    await transport.delete(control.queue)
    with pytest.raises(NoQueue):
        await control.release("job")
    assert [message.id for message in await control.dead_letters()] == ["job"]


async def test_a_queue_that_no_node_ever_served_is_named(broker_url: str) -> None:
    async with Control(broker_url, "test-nobody") as control:
        with pytest.raises(NoQueue, match=r"no queue 'test-nobody\.dead'"):
            await control.dead_letters()


def test_text_from_the_wire_cannot_command_the_terminal() -> None:
    message = held("\x1b[2Jid", "line\nbreak \x07bell \x9b0m [bold]x[/bold]", Cmd="/bin/\x1b]0;title\x07")
    text = plain(dead_table([DeadMessage.from_message(message)]))
    assert "line break ?bell ?0m [bold]x[/bold]" in text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.splitlines()) == 2


def test_the_date_of_burial_is_a_header() -> None:
    assert DeadMessage.from_message(held("job", **{DEAD_DATE: 5})).when == 5.0
    assert DeadMessage.from_message(held("job")).when is None
