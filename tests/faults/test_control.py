"""The control exchange, over the wire: every action, to a job, a node or all, and what is refused."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any, Self

import aiormq
import pytest
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from tests.faults.grid import PATIENCE, Client, Grid
from tests.node.client import Received

Answer = Received


class Console:
    """Sends control messages and waits for their answers, on a connection of its own."""

    def __init__(self, grid: Grid, url: str = "") -> None:
        self._grid, self._url = grid, url or grid.broker.url
        self._answers: asyncio.Queue[Answer] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self._connection = await aiormq.connect(self._url)
        self._channel = await self._connection.channel()
        declared = await self._channel.queue_declare("", exclusive=True)
        self._reply_to = declared.queue

        async def on_message(raw: DeliveredMessage) -> None:
            properties = raw.header.properties
            self._answers.put_nowait(Received(dict(properties.headers or {}), properties, raw.body))

        await self._channel.basic_consume(declared.queue, on_message, no_ack=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def tell(self, key: str, headers: dict[str, Any], user_id: str | None = None) -> str:
        """Publish a request, and say by which id its answers are known."""
        request = str(uuid.uuid4())
        properties = Basic.Properties(headers=headers, message_id=request, reply_to=self._reply_to, user_id=user_id)
        await self._channel.basic_publish(
            b"", exchange=f"{self._grid.queue}.control", routing_key=key, properties=properties
        )
        return request

    async def ask(self, key: str, action: str, job: str = "", *, user_id: str | None = None, **headers: Any) -> Answer:
        """Publish a request and wait for its first answer."""
        request = await self.tell(key, {"Action": action, **({"JobId": job} if job else {}), **headers}, user_id)
        async with asyncio.timeout(PATIENCE):
            answer = await self._answers.get()
        assert answer.properties.correlation_id == request
        return answer

    async def job(self, job: str, action: str, **headers: Any) -> Answer:
        """An order for a job that has to be obeyed."""
        answer = await self.ask(f"job.{job}", action, job, **headers)
        assert answer.headers["Status"] == 0, answer.headers
        return answer

    async def silence(self, key: str, headers: dict[str, Any], nodes: int) -> None:
        """Nobody answers this: answers come in order, and those to a Ping sent after it come alone."""
        await self.tell(key, headers)
        ping = await self.tell("all", {"Action": "Ping"})
        async with asyncio.timeout(PATIENCE):
            answers = [await self._answers.get() for _ in range(nodes)]
        assert {answer.properties.correlation_id for answer in answers} == {ping}


@pytest.fixture
async def client(grid: Grid) -> AsyncIterator[Client]:
    async with grid.client() as client:
        yield client


@pytest.fixture
async def console(grid: Grid, client: Client) -> AsyncIterator[Console]:
    """A console of a grid of two nodes with two slots each."""
    await asyncio.gather(*(asyncio.to_thread(grid.start, name, 2, KILLING_TIMEOUT=1) for name in ("one", "two")))
    async with Console(grid) as console:
        yield console


async def running(grid: Grid, client: Client, script: str = "sleep 600", **headers: Any) -> str:
    """A job that runs."""
    job, ad = grid.job(script, **headers)
    await client.submit(ad, message_id=job)
    await grid.started([job])
    return job


async def test_a_removed_job_ends_with_one_reply(grid: Grid, client: Client, console: Console) -> None:
    job = await running(grid, client)
    answer = await console.job(job, "Remove", Reason="not needed")
    assert answer.headers["Node"] in ("one", "two")
    await client.all_final([job])
    await grid.settled()
    reply = client.final(job)
    assert (reply.status, reply.state) == (3, '"Exited"')
    assert reply.ad["RemoveReason"] == '"not needed"'
    assert reply.files == {"_condor_stdout": b"", "_condor_stderr": b""}
    assert await grid.dead_reasons(job) == []


async def test_a_held_job_is_in_the_dead_letter_queue_with_the_reason(
    grid: Grid, client: Client, console: Console
) -> None:
    job = await running(grid, client)
    await console.job(job, "Hold", Reason="look at it first")
    await client.all_final([job])
    await grid.settled()
    assert client.final(job).status == 5
    assert client.final(job).ad["HoldReason"] == '"look at it first"'
    assert client.final(job).ad["HoldReasonCode"] == 1
    assert await grid.dead_reasons(job) == ["look at it first"]


async def test_a_suspended_job_stands_still_until_it_is_continued(grid: Grid, client: Client, console: Console) -> None:
    job = await running(grid, client, "while [ ! -e $_CONDOR_SCRATCH_DIR/go ]; do sleep 0.05; touch go; done; sleep 1")
    await console.job(job, "Suspend")
    suspended = await client.seen(job, lambda reply: reply.state == '"Suspended"')
    assert suspended.status == 2
    await console.job(job, "Continue")
    await client.seen(job, lambda reply: reply.state == '"Running"')
    await grid.each_ran_once(client, [job])


async def test_a_vacated_job_is_started_again(grid: Grid, client: Client, console: Console) -> None:
    job = await running(grid, client, f"[ -e {grid.marks}/go ] || sleep 600")
    (grid.marks / "go").touch()
    await console.job(job, "Vacate")
    await client.all_final([job])
    await grid.settled()
    assert client.final(job).ad["NumJobStarts"] == 2
    assert grid.starts()[job] == 2
    assert any(reply.status == 1 for reply in client.replies[job])
    assert await grid.dead_reasons(job) == []


async def test_attributes_can_be_set_and_queried_while_a_job_runs(grid: Grid, client: Client, console: Console) -> None:
    job = await running(grid, client)
    await console.job(job, "SetAttribute", Name="Colour", Value='"blue"')
    await console.job(job, "SetAttribute", Name="Weight", Value=7)
    ad = (await console.job(job, "Query")).ad
    assert (ad["Colour"], ad["Weight"], ad["JobStatus"]) == ('"blue"', 7, 2)
    for name, value, complaint in (
        ("JobStatus", "4", "the node's to set"),
        ("AuthenticatedIdentity", '"root"', "the node's to set"),
        ("Colour", "dark blue", "quotes"),
    ):
        answer = await console.ask(f"job.{job}", "SetAttribute", job, Name=name, Value=value)
        assert answer.headers["Status"] != 0
        assert complaint in answer.headers["Error"]
    await console.job(job, "Remove")
    await client.all_final([job])
    assert client.final(job).ad["Colour"] == '"blue"'


async def test_only_the_node_that_has_a_job_says_so(grid: Grid, client: Client, console: Console) -> None:
    job = await running(grid, client, f"while [ ! -e {grid.marks}/go ]; do sleep 0.05; done")
    answer = await console.job(job, "WhoHas")
    assert answer.headers["State"] == "running"
    (grid.marks / "go").touch()
    await grid.each_ran_once(client, [job])
    done = await console.job(job, "WhoHas")
    assert (done.headers["State"], done.headers["Node"]) == ("done", answer.headers["Node"])
    await console.silence("job.unheard-of", {"Action": "WhoHas", "JobId": "unheard-of"}, nodes=2)


async def test_an_order_reaches_a_job_by_its_nodes_name_and_by_all(
    grid: Grid, client: Client, console: Console
) -> None:
    for key in ("all", "node"):
        job = await running(grid, client)
        node = (await console.job(job, "WhoHas")).headers["Node"]
        answer = await console.ask("all" if key == "all" else f"node.{node}", "Remove", job)
        assert (answer.headers["Status"], answer.headers["Node"]) == (0, node)
        await client.all_final([job])
        assert client.final(job).status == 3


async def test_a_drained_node_takes_no_jobs_until_it_is_resumed(grid: Grid, client: Client, console: Console) -> None:
    assert (await console.ask("node.one", "Drain")).headers["Status"] == 0
    jobs = await client.submit_all(grid.job("true") for _ in range(8))
    await grid.each_ran_once(client, jobs)
    assert {client.final(job).ad["RemoteHost"].partition("@")[2] for job in jobs} == {'two"'}
    described = json.loads((await console.ask("node.one", "Ping")).body)
    assert described["Draining"] is True
    assert {slot["State"] for slot in described["Slots"]} == {"Drained"}
    await console.ask("node.two", "Drain")
    assert (await console.ask("node.one", "Resume")).headers["Status"] == 0
    jobs = await client.submit_all(grid.job("true") for _ in range(8))
    await grid.each_ran_once(client, jobs)
    assert {client.final(job).ad["RemoteHost"].partition("@")[2] for job in jobs} == {'one"'}


async def test_a_ping_to_all_is_answered_by_every_node_with_its_slots(
    grid: Grid, client: Client, console: Console
) -> None:
    job = await running(grid, client)
    request = await console.tell("all", {"Action": "Ping"})
    answers = [await asyncio.wait_for(console._answers.get(), PATIENCE) for _ in range(2)]
    assert {answer.properties.correlation_id for answer in answers} == {request}
    nodes = {node["Node"]: node for node in (json.loads(answer.body) for answer in answers)}
    assert set(nodes) == {"one", "two"}
    slots = [slot for node in nodes.values() for slot in node["Slots"]]
    assert len(slots) == 4
    assert [slot["JobId"] for slot in slots if "JobId" in slot] == [job]


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ({"Action": "Explode", "JobId": "x"}, "Action: 'Explode' is unknown"),
        ({}, "Action: '' is unknown"),
        ({"Action": "Remove"}, "Remove needs the header JobId"),
        ({"Action": "SetAttribute", "JobId": "x", "Name": "A"}, "Name and Value"),
    ],
)
async def test_a_request_that_can_not_be_obeyed_is_answered_with_what_is_wrong(
    grid: Grid, console: Console, headers: dict[str, Any], complaint: str
) -> None:
    await console.tell("node.one", headers)
    answer = await asyncio.wait_for(console._answers.get(), PATIENCE)
    assert answer.headers["Status"] != 0
    assert complaint in answer.headers["Error"]


async def test_another_users_job_is_out_of_reach_where_the_broker_knows_users(
    grid: Grid, client: Client, console: Console
) -> None:
    """Also when the job has been moved, and is published anew by a node."""
    user = f"mallory-{grid.queue}"
    await asyncio.to_thread(grid.broker.ctl, "add_user", user, "secret")
    try:
        await asyncio.to_thread(grid.broker.ctl, "set_permissions", user, ".*", ".*", ".*")
        job, ad = grid.job(f"[ -e {grid.marks}/go ] || sleep 600")
        await client.submit(ad, message_id=job, user_id="guest")
        await grid.started([job])
        async with Console(grid, grid.broker.url.replace("guest:guest", f"{user}:secret")) as stranger:
            for action in ("Remove", "Hold", "Suspend", "Vacate", "Yield"):
                for user_id in (user, None):
                    answer = await stranger.ask(f"job.{job}", action, job, user_id=user_id)
                    assert answer.headers["Status"] != 0, action
                    assert "guest's" in answer.headers["Error"]
            (await console.job(job, "Vacate", user_id="guest"))
            await grid.started([job], 2)
            refused = await stranger.ask(f"job.{job}", "Remove", job, user_id=user)
            assert "guest's" in refused.headers["Error"]
        await console.job(job, "Remove", user_id="guest")
        await client.all_final([job])
        assert client.final(job).status == 3
    finally:
        await asyncio.to_thread(grid.broker.ctl, "delete_user", user)
