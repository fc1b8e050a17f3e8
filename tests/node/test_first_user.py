"""The first user: the C++ client of Red Hat's carod (2009), with AMQP 0-9-1's properties in the place of 0-10's."""

from __future__ import annotations

import asyncio
import io
import secrets
import uuid
import zipfile
from collections.abc import Callable

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from tests.node.client import PATIENCE
from tests.node.conftest import Node


async def test_the_first_client_sees_two_messages_and_two_zip_entries(
    broker_url: str, queue_name: str, start_node: Callable[..., Node]
) -> None:
    start_node("--slots", "1")
    results, key = f"my_grid_results-{secrets.token_hex(4)}", "my_grid_results_key"
    connection = await aiormq.connect(broker_url)
    channel = await connection.channel()
    await channel.queue_declare(results, exclusive=True, auto_delete=True)
    await channel.queue_bind(results, "amq.direct", routing_key=key)
    received: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    await channel.basic_consume(results, received.put, no_ack=True)
    headers = {
        "Cmd": '"/bin/echo"',
        "Arguments": '"Hello Grid!"',
        "Out": '"job.out"',
        "Err": '"job.err"',
        "Requirements": "TRUE",
    }
    properties = Basic.Properties(headers=headers, message_id=str(uuid.uuid4()), reply_to=f"amq.direct/{key}")
    await channel.basic_publish(b"", exchange="amq.direct", routing_key=f"{queue_name}_key", properties=properties)
    async with asyncio.timeout(PATIENCE):
        first, second = await received.get(), await received.get()
    told = [message.header.properties.headers for message in (first, second)]
    assert (told[0]["JobStatus"], "JobState" in told[0], first.body) == (2, False, b"")
    assert (told[1]["JobStatus"], told[1]["JobState"], told[1]["ExitCode"]) == (4, '"Exited"', 0)
    with zipfile.ZipFile(io.BytesIO(second.body)) as zipped:
        assert {(entry.filename, entry.file_size) for entry in zipped.infolist()} == {("job.err", 0), ("job.out", 12)}
        assert zipped.read("job.out") == b"Hello Grid!\n"
    assert received.empty()
    await connection.close()
