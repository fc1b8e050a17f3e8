"""Section 2 of the wire contract, "Properties": who is answered, what is discarded, what is kept as dead."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.node.client import Client, Received
from tests.node.conftest import Node, until
from tests.node.wire import Wire, properties, table, text

# -- message id ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["one", "a b/c", "é" * 100, "urn:uuid:" + str(uuid.UUID(int=5)), "x" * 255])
async def test_the_message_id_is_the_jobs_id_as_it_is(client: Client, form: str) -> None:
    job = f"{form}{uuid.uuid4()}" if len(form) < 100 else form
    replies = await client.all(await client.submit({"Cmd": "/bin/true"}, message_id=job))
    assert {reply.properties.correlation_id for reply in replies} == {job}
    assert replies[-1].headers["AMQPID"] == f'"{job}"'


async def test_the_message_id_may_come_as_header_message_id(client: Client, wire: Wire) -> None:
    job = str(uuid.uuid4())
    headers = table(Cmd=text("/bin/true"), MessageId=text(job))
    await wire.publish(client.job_queue, properties(headers=headers, reply_to=client.reply_to.encode()))
    reply = await client.end(job)
    assert (reply.status, reply.headers["AMQPID"]) == (4, f'"{job}"')


async def test_a_quoted_header_message_id_is_the_id_without_its_quotes(client: Client, wire: Wire) -> None:
    job = str(uuid.uuid4())
    headers = table(Cmd=text("/bin/true"), messageid=text(f'"{job}"'))
    await wire.publish(client.job_queue, properties(headers=headers, reply_to=client.reply_to.encode()))
    assert (await client.end(job)).status == 4


async def test_the_property_message_id_wins_over_the_header(client: Client) -> None:
    job = await client.submit({"Cmd": "/bin/true", "MessageId": "another"})
    assert (await client.end(job)).headers["MessageId"] == '"another"'


async def test_a_header_message_id_too_long_for_the_wire_is_cut(client: Client, wire: Wire) -> None:
    headers = table(Cmd=text("/bin/true"), MessageId=text("é" * 250))
    await wire.publish(client.job_queue, properties(headers=headers, reply_to=client.reply_to.encode()))
    assert (await client.end("é" * 127)).status == 4


async def test_a_job_without_message_id_is_answered_and_discarded(client: Client, wire: Wire, node: Node) -> None:
    headers = table(Cmd=text("/bin/touch"), Arguments=text("/tmp/never"))
    await wire.publish(client.job_queue, properties(headers=headers, reply_to=client.reply_to.encode()))
    reply = await client.reply(None)
    assert reply.body.startswith(b"ERROR:")
    assert reply.body.endswith(b"Discarding")
    assert reply.status == 5
    assert (await client.run({"Cmd": "/bin/true"})).status == 4
    assert client.waiting(None) == 0  # one reply, and no run
    await until(
        lambda: any("no unique message id" in event["reason"] for event in node.events("message refused")),
        "a line in the node's log",
    )


async def test_a_job_without_message_id_is_answered_with_its_correlation_id(client: Client, wire: Wire) -> None:
    await wire.publish(client.job_queue, properties(reply_to=client.reply_to.encode(), correlation_id=b"mine"))
    assert (await client.reply("mine")).body.startswith(b"ERROR:")


async def test_a_message_id_in_use_by_a_running_job_is_kept_as_dead(client: Client) -> None:
    job = await client.submit({"Cmd": "/bin/sleep", "Arguments": "1000", "AllowedExecuteDuration": 1})
    await client.reply(job)
    await client.submit({"Cmd": "/bin/true", "Second": True}, message_id=job)
    dead = await client.buried(lambda message: message.headers.get("Second") is True)
    assert "in use" in dead.headers["DeadReason"]
    assert (await client.end(job)).status == 5


# -- reply to --------------------------------------------------------------------------------------------------


async def test_a_job_without_reply_to_is_kept_as_dead_with_an_error_in_the_log(client: Client, node: Node) -> None:
    job = await client.submit({"Cmd": "/bin/touch", "Arguments": "/tmp/never"}, b"body", reply_to=None)
    dead = await client.buried(job)
    assert dead.body == b"body"
    assert "reply_to" in dead.headers["DeadReason"]
    assert (dead.headers["Cmd"], dead.headers["Arguments"]) == ("/bin/touch", "/tmp/never")
    await until(
        lambda: any(job in event["reason"] for event in node.events("message refused", level="error")),
        "an error in the node's log",
    )


async def test_a_message_with_neither_id_nor_reply_to_is_kept_as_dead(client: Client, wire: Wire) -> None:
    await wire.publish(client.job_queue, properties(headers=table(Mark=text('"neither"'))))
    dead = await client.buried(lambda message: message.headers.get("Mark") == '"neither"')
    assert "reply_to" in dead.headers["DeadReason"]


async def test_a_message_without_any_property_is_kept_as_dead(client: Client, wire: Wire) -> None:
    await wire.publish(client.job_queue, properties(), b"nothing but this")
    dead = await client.buried(lambda message: message.body == b"nothing but this")
    assert "reply_to" in dead.headers["DeadReason"]


# -- expiry ----------------------------------------------------------------------------------------------------


async def test_a_job_past_its_expiry_is_not_started(
    start_node: Callable[..., Node], new_client: Client, queue_name: str
) -> None:
    """Its broker's clock has it live on; by the message's own timestamp its time is up: the node looks for itself."""
    import datetime

    start_node()
    written = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    job = await new_client.submit({"Cmd": "/bin/true"}, expiration="60000", timestamp=written)
    (reply,) = await new_client.all(job)
    assert (reply.status, reply.body) == (3, b"")
    assert "expiry" in reply.headers["RemoveReason"]


async def test_a_job_that_expires_in_the_queue_is_dropped_by_the_broker(
    start_node: Callable[..., Node], new_client: Client, queue_name: str
) -> None:
    await new_client.channel.queue_declare(queue_name, durable=True)
    late = await new_client.submit({"Cmd": "/bin/true"}, expiration="0")
    job = await new_client.submit({"Cmd": "/bin/true"}, expiration="600000")
    node = start_node()
    assert (await new_client.end(job)).status == 4
    assert new_client.waiting(late) == 0
    assert not node.events("job running", job=late)


async def test_a_job_within_its_expiry_is_run(client: Client) -> None:
    assert (await client.run({"Cmd": "/bin/true"}, expiration="600000")).status == 4


# -- durable, user id, priority --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [1, 2])
async def test_replies_are_as_durable_as_the_job(client: Client, mode: int) -> None:
    replies = await client.all(await client.submit({"Cmd": "/bin/true"}, delivery_mode=mode))
    assert {reply.properties.delivery_mode for reply in replies} == {mode}


async def test_the_user_id_is_copied_to_authenticated_identity(client: Client) -> None:
    replies = await client.all(await client.submit({"Cmd": "/bin/cat", "Arguments": ".job.ad"}, user_id="guest"))
    assert {reply.headers["AuthenticatedIdentity"] for reply in replies} == {'"guest"'}
    assert 'AuthenticatedIdentity = "guest"\n' in replies[-1].out


@pytest.mark.parametrize("name", ["AuthenticatedIdentity", "authenticatedidentity"])
async def test_an_authenticated_identity_in_a_header_is_not_believed(client: Client, name: str) -> None:
    reply = await client.run({"Cmd": "/bin/true", name: '"root"'})
    assert reply.status == 4
    assert "AuthenticatedIdentity" not in reply.ad
    reply = await client.run({"Cmd": "/bin/true", name: '"root"'}, user_id="guest")
    assert reply.ad["AuthenticatedIdentity"] == '"guest"'


async def test_priority_is_the_queues_own_ordering(
    start_node: Callable[..., Node], new_client: Client, queue_name: str
) -> None:
    await new_client.channel.queue_declare(queue_name, durable=True, arguments={"x-max-priority": 5})
    low = await new_client.submit({"Cmd": "/bin/true"}, priority=1)
    high = await new_client.submit({"Cmd": "/bin/true"}, priority=5)
    node = start_node("--slots", "1")
    assert [(await new_client.end(job)).status for job in (low, high)] == [4, 4]
    await node.seen("job running", 2)
    assert [event["job"] for event in node.events("job running")] == [high, low]


# -- where jobs come from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "_key"])
async def test_a_job_reaches_the_node_through_amq_direct_as_well(client: Client, suffix: str) -> None:
    job = await client.submit({"Cmd": "/bin/true"}, exchange="amq.direct", key=f"{client.job_queue}{suffix}")
    assert (await client.end(job)).status == 4


# -- the body --------------------------------------------------------------------------------------------------


async def test_a_body_from_an_amqp_1_0_producer_is_decoded(client: Client, amqp10: Callable[[bytes], bytes]) -> None:
    from tests.node.client import zipped

    archive = zipped({"a.txt": "from 1.0"})
    reply = await client.run({"Cmd": "/bin/cat", "Arguments": "a.txt"}, amqp10(archive), message_type="amqp-1.0")
    assert (reply.status, reply.out) == (4, "from 1.0"), reply.body


@pytest.fixture(params=["binary8", "binary32", "data8", "data32", "two data sections", "long descriptor"])
def amqp10(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    """Encodes a body as AMQP 1.0 does (part 1, 1.6.19 binary; part 3, 3.2.6 data, 3.2.8 amqp-value)."""

    def binary8(data: bytes) -> bytes:
        return b"\xa0" + bytes((len(data),)) + data

    def binary32(data: bytes) -> bytes:
        return b"\xb0" + len(data).to_bytes(4, "big") + data

    forms: dict[str, Callable[[bytes], bytes]] = {
        "binary8": lambda data: b"\x00\x53\x77" + binary8(data),
        "binary32": lambda data: b"\x00\x53\x77" + binary32(data),
        "data8": lambda data: b"\x00\x53\x75" + binary8(data),
        "data32": lambda data: b"\x00\x53\x75" + binary32(data),
        "two data sections": lambda data: b"\x00\x53\x75" + binary8(data[:9]) + b"\x00\x53\x75" + binary32(data[9:]),
        "long descriptor": lambda data: b"\x00\x80" + (0x77).to_bytes(8, "big") + binary8(data),
    }
    return forms[request.param]


@pytest.mark.parametrize("body", [b"\x00\x53\x77\x40", b"\x00\x53\x77\xa1\x00", b"\x00\x53\x75\xa0\x00", b""])
async def test_an_empty_body_from_an_amqp_1_0_producer_is_empty(client: Client, body: bytes) -> None:
    assert (await client.run({"Cmd": "/bin/true"}, body, message_type="amqp-1.0")).status == 4


async def test_a_body_that_only_claims_to_be_amqp_1_0_is_answered(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true"}, b"\x00\x53\x77\xb0\xff\xff\xff\xff", message_type="amqp-1.0")
    assert (reply.status, reply.body[:6]) == (5, b"ERROR:")


async def test_a_dead_job_keeps_the_body_that_its_type_says(client: Client) -> None:
    job = await client.submit({"JobUniverse": 9}, b"\x00\x53\x77\xa0\x03zip", message_type="amqp-1.0")
    assert (await client.end(job)).status == 5
    dead: Received = await client.buried(job)
    assert (dead.properties.message_type, dead.body) in [("amqp-1.0", b"\x00\x53\x77\xa0\x03zip"), (None, b"zip")]
