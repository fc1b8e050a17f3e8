"""Sections 3 and 4 of the wire contract: what a job goes through, and the replies that tell of it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from urllib.parse import quote

import pytest

from tests.node.client import Client, shell
from tests.node.conftest import Node
from tests.node.wire import Wire, properties, table, text

# -- section 3 -------------------------------------------------------------------------------------------------


async def test_a_job_is_accepted_and_ends_by_itself(client: Client) -> None:
    replies = await client.all(await client.submit({"Cmd": "/bin/true"}))
    assert [(reply.status, reply.state, bool(reply.body)) for reply in replies] == [
        (2, None, False),
        (4, '"Exited"', True),
    ]


async def test_a_job_that_cannot_be_run_gets_one_reply_and_is_copied_to_dead(client: Client) -> None:
    job = await client.submit({"Cmd": "/bin/true", "JobUniverse": 9}, b"body")
    (reply,) = await client.all(job)
    assert (reply.status, reply.state, reply.body[:6]) == (5, None, b"ERROR:")
    dead = await client.buried(job)
    assert (dead.body, dead.headers["DeadReason"]) == (b"body", json.loads(reply.headers["HoldReason"]))


async def test_a_job_held_by_policy_is_copied_to_dead_with_its_body(client: Client) -> None:
    job = await client.submit({"Cmd": "/bin/sleep", "Arguments": "1000", "AllowedExecuteDuration": 0.1})
    assert [(reply.status, reply.state) for reply in await client.all(job)] == [(2, None), (5, '"Exited"')]
    assert "AllowedExecuteDuration" in (await client.buried(job)).headers["DeadReason"]


async def test_a_running_job_is_told_of_first_soon_then_every_now_and_then(
    start_node: Callable[..., Node], new_client: Client
) -> None:
    start_node("--slots", "1", STARTER_INITIAL_UPDATE_INTERVAL="0.1", STARTER_UPDATE_INTERVAL="0.2")
    job = await new_client.submit(
        shell("head -c 100000 /dev/zero >f; sleep 1000 & sleep 1000", AllowedExecuteDuration=3)
    )
    replies = [await new_client.reply(job) for _ in range(4)]
    assert [(reply.status, reply.state, reply.body) for reply in replies] == [(2, None, b"")] + [
        (2, '"Running"', b"")
    ] * 3
    last = replies[-1].headers
    assert last["NumPids"] == 3
    assert last["JobPid"] > 1
    assert last["DiskUsage"] >= 97
    assert 0 < last["ResidentSetSize"] <= last["ImageSize"]
    assert {type(last[name]) for name in ("RemoteUserCpu", "RemoteSysCpu")} == {float}
    assert (await new_client.end(job)).state == '"Exited"'


async def test_a_rejected_job_goes_to_a_node_that_takes_it_and_not_in_a_hot_loop(
    start_node: Callable[..., Node], new_client: Client
) -> None:
    red = start_node("--slots", "1", STARTD_ATTRS="Colour", COLOUR='"red"', REJECT_DELAY_MIN="0.05")
    job = await new_client.submit({"Cmd": "/bin/true", "Requirements": 'TARGET.Colour == "blue"'})
    reply = await new_client.reply(job)
    assert (reply.status, reply.state, reply.body) == (1, None, b"")
    assert "Requirements" in reply.headers["LastRejMatchReason"]
    await red.seen("job rejected", 3, job=job)
    kept = [float(event["kept"].rstrip("s")) for event in red.events("job rejected", job=job)][:3]
    assert kept == [0.05, 0.1, 0.2]
    start_node("--slots", "1", STARTD_ATTRS="Colour", COLOUR='"blue"')
    assert (await new_client.end(job)).status == 4
    assert len(red.events("job rejected", job=job)) < 12  # doubled each time: twelve would be seven minutes


async def test_two_nodes_that_reject_a_job_each_give_them_to_each_other(
    start_node: Callable[..., Node], new_client: Client
) -> None:
    for colour in ("red", "blue"):
        start_node("--slots", "1", STARTD_ATTRS="Colour", COLOUR=f'"{colour}"', REJECT_DELAY_MAX="0.2")
    jobs = []
    for colour in ("red", "blue", "red", "blue", "blue", "blue", "red"):
        requirements = f'TARGET.Colour == "{colour}"'
        jobs.append(await new_client.submit({"Cmd": "/bin/true", "Requirements": requirements}))
    assert [(await new_client.end(job)).status for job in jobs] == [4] * 7


async def test_start_may_refuse_a_job(start_node: Callable[..., Node], new_client: Client) -> None:
    node = start_node(
        "--slots",
        "1",
        START='TARGET.Owner =!= "mallory" && TARGET.JobPrio >= MY.Least',
        STARTD_ATTRS="Least",
        LEAST="3",
    )
    job = await new_client.submit({"Cmd": "/bin/true", "Owner": "mallory", "JobPrio": 5})
    reply = await new_client.reply(job)
    assert (reply.status, "START" in reply.headers["LastRejMatchReason"]) == (1, True)
    assert (await new_client.run({"Cmd": "/bin/true", "Owner": "alice", "JobPrio": 3})).status == 4
    await node.seen("job rejected", job=job)


@pytest.mark.parametrize(
    ("name", "value", "unit"),
    [("RequestCpus", 1000, "has"), ("RequestMemory", 1 << 40, "MiB"), ("RequestDisk", 1 << 50, "KiB")],
)
async def test_a_request_that_does_not_fit_is_rejected_by_name(
    start_node: Callable[..., Node], new_client: Client, name: str, value: int, unit: str
) -> None:
    start_node("--slots", "1")
    reply = await new_client.reply(await new_client.submit({"Cmd": "/bin/true", name: value}))
    assert reply.status == 1
    assert f"{name} = {value}" in reply.headers["LastRejMatchReason"]
    assert unit in reply.headers["LastRejMatchReason"]
    assert (await new_client.run({"Cmd": "/bin/true"})).status == 4


@pytest.mark.parametrize("rank", ["TARGET.Memory", "-1", "undefined", '"x"'])
async def test_a_rank_keeps_no_job_from_running(client: Client, rank: str) -> None:
    assert (await client.run({"Cmd": "/bin/true", "Rank": rank})).status == 4


@pytest.mark.parametrize("requirements", ["TRUE", 1, "TARGET.Memory > 0 && MY.Want == 1", "TotalSlots == 2", 0.5])
async def test_requirements_are_evaluated_against_the_slot(client: Client, requirements: object) -> None:
    assert (await client.run({"Cmd": "/bin/true", "Requirements": requirements, "Want": 1})).status == 4


@pytest.mark.parametrize("requirements", ["FALSE", "undefined", "error", '"yes"', 0, "NoSuchAttribute > 1"])
async def test_requirements_that_are_not_true_reject(
    start_node: Callable[..., Node], new_client: Client, requirements: object
) -> None:
    start_node("--slots", "1")
    assert (
        await new_client.reply(await new_client.submit({"Cmd": "/bin/true", "Requirements": requirements}))
    ).status == 1


# -- section 4 -------------------------------------------------------------------------------------------------


async def test_correlation_id_is_the_jobs_id_and_message_id_is_new_for_each(client: Client) -> None:
    job = await client.submit({"Cmd": "/bin/true"})
    replies = await client.all(job)
    assert {reply.properties.correlation_id for reply in replies} == {job}
    ids = {reply.properties.message_id for reply in replies}
    assert len(ids) == len(replies)
    assert job not in ids


async def test_the_first_reply_has_the_slots_attributes_and_the_last_has_not(client: Client, node: Node) -> None:
    first, *_, last = await client.all(await client.submit({"Cmd": "/bin/true"}))
    slot = first.headers
    assert slot["MyType"] == '"Machine"'
    assert slot["Name"].startswith('"slot')
    assert slot["Name"] == slot["RemoteHost"] == slot["WF_REQ_SLOT"]
    assert (slot["TotalSlots"], slot["State"], slot["Activity"]) == (2, '"Claimed"', '"Busy"')
    assert {"Machine", "Cpus", "Memory", "Disk", "Arch", "OpSys", "LoadAvg", "Start"} <= set(slot)
    assert not {"MyType", "Name", "Cpus", "LoadAvg", "Start"} & set(last.headers)


async def test_strings_travel_with_their_quotes_numbers_as_numbers_expressions_as_text(client: Client) -> None:
    job = await client.submit(
        {"Cmd": "/bin/true", "S": '"a \\"quoted\\" \\\\ string"', "N": 7, "B": True, "E": "A + 1"}
    )
    reply = await client.end(job)
    assert reply.headers["JobState"] == '"Exited"'
    assert len(reply.headers["JobState"]) == 8
    assert [reply.headers[name] for name in "SNBE"] == ['"a \\"quoted\\" \\\\ string"', 7, True, "A + 1"]


async def test_the_last_reply_has_what_is_added_at_the_end(client: Client) -> None:
    before = int(time.time())
    job = await client.submit({"Cmd": "/bin/true"})
    reply = await client.end(job)
    added = reply.headers
    types = {
        "JobStatus": int, "JobPid": int, "JobStartDate": int, "NumJobStarts": int, "RemoteUserCpu": float,
        "RemoteSysCpu": float, "RemoteHost": str, "WF_REQ_SLOT": str, "AMQPID": str,
        "ExitBySignal": bool, "ExitCode": int, "ExitReason": str, "JobDuration": float, "CompletionDate": int,
    }  # fmt: skip
    assert {name: type(added[name]) for name in types} == types
    assert (added["NumJobStarts"], added["AMQPID"]) == (1, f'"{job}"')
    assert before <= added["JobStartDate"] <= added["CompletionDate"]
    assert 0 < added["JobDuration"] < 60


# -- reply_to --------------------------------------------------------------------------------------------------


async def test_a_reply_to_may_be_a_queue_of_any_name(client: Client) -> None:
    for name in (f"re:ply/{uuid.uuid4()}", f"@r#.{uuid.uuid4()}"):
        await client.listen(name)
        assert (await client.run({"Cmd": "/bin/true"}, reply_to=name)).status == 4


async def test_a_reply_to_may_be_direct_reply_to(client: Client) -> None:
    channel = await client.connection.channel()
    replies: asyncio.Queue[str | None] = asyncio.Queue()

    async def on_message(raw) -> None:
        await replies.put(raw.header.properties.headers.get("JobState"))

    await channel.basic_consume("amq.rabbitmq.reply-to", on_message, no_ack=True)
    from pamqp.commands import Basic

    job = Basic.Properties(headers={"Cmd": "/bin/true"}, message_id=str(uuid.uuid4()), reply_to="amq.rabbitmq.reply-to")
    await channel.basic_publish(b"", routing_key=client.job_queue, properties=job)
    async with asyncio.timeout(60):
        assert [await replies.get(), await replies.get()] == [None, '"Exited"']
    await channel.close()


@pytest.mark.parametrize(
    "form", ["amq.direct/{key}", "amq.topic/{key}", "/exchanges/amq.direct/{key}", "/exchange/amq.direct/{key}"]
)
@pytest.mark.parametrize("key", ["my_key", "a.b", "with/slash"])
async def test_a_reply_to_may_be_an_exchange_and_a_key(client: Client, form: str, key: str) -> None:
    key = f"{key}-{uuid.uuid4()}"
    await client.listen("", "amq.topic" if "topic" in form else "amq.direct", key)
    address = form.format(key=quote(key, safe="") if form.startswith("/exchanges") else key)
    assert (await client.run({"Cmd": "/bin/true"}, reply_to=address)).status == 4


@pytest.mark.parametrize("form", ["/queues/{}", "/queue/{}"])
async def test_a_reply_to_may_be_an_address_of_rabbitmqs_amqp_1_0(client: Client, form: str) -> None:
    name = f"a:b/#{uuid.uuid4()}"
    await client.listen(name)
    assert (await client.run({"Cmd": "/bin/true"}, reply_to=form.format(quote(name, safe="")))).status == 4


async def test_an_exchange_declared_after_it_was_missed_is_found(client: Client) -> None:
    exchange = f"late-{uuid.uuid4()}"
    job = await client.submit({"Cmd": "/bin/true"}, reply_to=f"{exchange}/key")
    await client.buried(lambda message: message.properties.correlation_id == job)
    await client.channel.exchange_declare(exchange, auto_delete=True)
    await client.listen("", exchange, "key")
    assert (await client.run({"Cmd": "/bin/true"}, reply_to=f"{exchange}/key")).status == 4


@pytest.mark.parametrize(
    "address",
    [
        "no-such-queue", "no-such-exchange/key", "/queues/no-such-queue", "/exchanges/no-such-exchange/key",
        "/exchanges/amq.direct/nokey", "amq.direct/nokey", "amq.rabbitmq.reply-to.forged", "/", "//",
        "a b/c", "/exchanges/a b/c", "/exchanges//key", "/queues/",
        "x" * 255, "/exchanges/" + "x" * 200 + "/key", "é" * 127, "/exchanges/x" + "é" * 117 + "/k",
        "amq.direct/" + "k" * 240, "/exchanges/amq.direct",
    ],
)  # fmt: skip
async def test_a_reply_that_cannot_be_routed_is_kept_as_dead_once_with_the_reason(
    client: Client, node: Node, address: str
) -> None:
    job = await client.submit({"Cmd": "/bin/echo", "Arguments": "hello"}, reply_to=address)
    dead = await client.buried(lambda message: message.properties.correlation_id == job)
    assert (dead.status, dead.out, dead.properties.reply_to) == (4, "hello\n", address)
    assert "reply_to" in dead.headers["DeadReason"]
    assert (await client.run({"Cmd": "/bin/true"})).status == 4
    assert len(await client.all_buried(lambda message: message.properties.correlation_id == job, 1)) == 1
    await node.seen("to the dead-letter queue", reason=dead.headers["DeadReason"])


@pytest.mark.parametrize("address", ["/exchanges/no-such-exchange/key", "a b/c", "no-such-queue"])
async def test_a_message_without_id_that_cannot_be_answered_is_kept_as_dead(
    client: Client, wire: Wire, address: str
) -> None:
    mark = f'"{uuid.uuid4()}"'
    await wire.publish(client.job_queue, properties(headers=table(Mark=text(mark)), reply_to=address.encode()))
    dead = await client.buried(lambda message: message.headers.get("Mark") == mark or message.body[:6] == b"ERROR:")
    assert dead.headers["DeadReason"]


async def test_an_address_that_is_not_utf8_costs_no_slot(
    start_node: Callable[..., Node], new_client: Client, wire: Wire, queue_name: str
) -> None:
    """On a node of its own, for no client library reads what is kept as dead of these."""
    node = start_node("--slots", "1")
    for address in (b"\xff\xfe", b"amq.direct/\xff", b"\xff/key", b"/queues/%FF", b"/exchanges/%FF/x", b"/queue/\xff"):
        job = str(uuid.uuid4())
        headers = table(Cmd=text("/bin/true"))
        await wire.publish(queue_name, properties(headers=headers, reply_to=address, message_id=job.encode()))
        await node.seen("job exited", job=job)
    assert (await new_client.run({"Cmd": "/bin/true"})).status == 4
    assert not node.events("broker away")


# -- ads of any size -------------------------------------------------------------------------------------------

FRAME = 131064
"""Bytes that a frame's payload may have, where the broker's frame_max is as it comes."""
PAD = '"' + "x" * (FRAME - 450) + '"'
"""An attribute that leaves room for the client's own properties, and none for what a node adds."""


async def test_an_ad_that_leaves_no_room_for_the_nodes_own_is_answered_without_it(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/echo", "Arguments": "hello", "Pad": PAD})
    assert (reply.status, reply.headers["AdTooLarge"], reply.out) == (4, True, "hello\n")
    assert (reply.headers["ExitCode"], "Pad" in reply.headers) == (0, False)


async def test_a_large_ad_that_is_held_is_kept_as_dead_without_its_headers(client: Client) -> None:
    job = await client.submit({"JobUniverse": 9, "Pad": '"' + "x" * (FRAME - 160) + '"'}, b"body")
    reply = await client.end(job)
    assert (reply.status, reply.headers["AdTooLarge"]) == (5, True)
    assert "JobUniverse" in reply.headers["HoldReason"]
    assert (await client.buried(job)).body == b"body"


async def test_a_large_ad_that_is_rejected_goes_back_to_the_queue(
    start_node: Callable[..., Node], new_client: Client
) -> None:
    node = start_node("--slots", "1", STARTD_ATTRS="Colour", COLOUR='"red"')
    pad = '"' + "x" * (FRAME - 260) + '"'
    job = await new_client.submit({"Cmd": "/bin/true", "Requirements": 'Colour == "blue"', "Pad": pad})
    await node.seen("job rejected", job=job)
    assert (await new_client.run({"Cmd": "/bin/true"})).status == 4
    start_node("--slots", "1", STARTD_ATTRS="Colour", COLOUR='"blue"')
    assert (await new_client.end(job)).status == 4


async def test_an_ad_of_a_thousand_attributes_comes_back_whole(client: Client) -> None:
    many = {f"A{number}": number for number in range(3000)}
    reply = await client.run({"Cmd": "/bin/true", **many})
    assert many.items() <= reply.headers.items()


@pytest.mark.parametrize("room", range(450, 2500, 205))
async def test_an_ad_near_the_frames_end_is_answered(client: Client, room: int) -> None:
    """Somewhere there the first reply, the last, or neither fits."""
    pad = '"' + "x" * (FRAME - room) + '"'
    reply = await client.run({"Cmd": "/bin/echo", "Arguments": "hello", "Pad": pad})
    assert (reply.status, reply.out) == (4, "hello\n")
