"""The floor: the least that running a job from a queue costs in Python, for the node to be measured against.

It consumes, spawns Cmd in a fresh directory, says "running", waits, zips the directory, replies, acknowledges. It
has no ClassAds, no checks, no other user, no recovery and no confirms: whatever the node takes longer, it should
take for one of these.

    floor.py URL QUEUE SLOTS
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import sys
import tempfile
import zipfile
from typing import cast

import aiormq
from aiormq import spec
from aiormq.abc import AbstractChannel, DeliveredMessage

MEMORY = "/dev/shm"
OUTPUTS = ("job.out", "job.err")


class Floor:
    """All of it; one instance a process."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.base = MEMORY if os.path.isdir(MEMORY) else None

    async def on_job(self, message: DeliveredMessage) -> None:
        properties, delivery = message.header.properties, cast(spec.Basic.Deliver, message.delivery)
        cmd = str((properties.headers or {})["Cmd"]).strip('"')
        directory = tempfile.mkdtemp(prefix="floor-", dir=self.base)
        try:
            pid = spawn(cmd, directory)
            ended = end_of(pid)
            await self.reply(properties, b"", {"JobStatus": 2})
            await ended
            status = os.wait4(pid, 0)[1]  # noqa: ASYNC222 - it has ended
            result = zipped(directory)
        finally:
            shutil.rmtree(directory)
        code = os.waitstatus_to_exitcode(status)
        await self.reply(properties, result, {"JobStatus": 4, "JobState": '"Exited"', "ExitCode": code})
        await self.channel.basic_ack(cast(int, delivery.delivery_tag))

    async def reply(self, job: spec.Basic.Properties, body: bytes, headers: dict[str, object]) -> None:
        properties = spec.Basic.Properties(headers=headers, correlation_id=job.message_id)  # type: ignore[arg-type]
        await self.channel.basic_publish(body, routing_key=job.reply_to or "", properties=properties)


def spawn(cmd: str, directory: str) -> int:
    files = [os.open(f"{directory}/{name}", os.O_CREAT | os.O_WRONLY, 0o600) for name in OUTPUTS]
    try:
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files, 1)]
        return os.posix_spawn(cmd, [cmd], {}, file_actions=actions)
    finally:
        for file in files:
            os.close(file)


def end_of(pid: int) -> asyncio.Future[None]:
    """Done as soon as the process can be waited for."""
    loop = asyncio.get_running_loop()
    future, descriptor = loop.create_future(), os.pidfd_open(pid)

    def readable() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        future.set_result(None)

    loop.add_reader(descriptor, readable)
    return future


def zipped(directory: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive, os.scandir(directory) as found:
        for entry in found:
            archive.write(entry.path, entry.name)
    return target.getvalue()


async def serve(url: str, queue: str, slots: int) -> None:
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    await channel.queue_declare(queue, durable=True)
    await channel.basic_qos(prefetch_count=slots)
    await channel.basic_consume(queue, Floor(channel).on_job)
    await connection.closing


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
