"""A submitter of the tests' own, on aiormq: what goes over the wire is spelt out in the tests."""

from __future__ import annotations

import asyncio
import io
import os
import uuid
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

PATIENCE = float(os.environ.get("CAROD_TEST_PATIENCE", "60"))
"""Seconds after which a test that waits for what does not come fails."""
FINAL = (3, 4, 5)
"""JobStatus removed, completed, held."""


class Ad(dict[str, Any]):
    """Headers as they came, found without regard to case."""

    def __init__(self, headers: Mapping[str, Any]) -> None:
        super().__init__({name.lower(): value for name, value in headers.items()})

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


@dataclass(slots=True)
class Received:
    """One message as it came: headers, properties, body."""

    headers: dict[str, Any]
    properties: Basic.Properties
    body: bytes

    @property
    def ad(self) -> Ad:
        return Ad(self.headers)

    @property
    def status(self) -> int | None:
        return self.headers.get("JobStatus")

    @property
    def state(self) -> str | None:
        return self.headers.get("JobState")

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def files(self) -> dict[str, bytes]:
        """What the zip in the body holds."""
        with zipfile.ZipFile(io.BytesIO(self.body)) as zipped:
            assert zipped.testzip() is None
            return {info.filename: zipped.read(info) for info in zipped.infolist()}

    @property
    def out(self) -> str:
        return self.files["_condor_stdout"].decode()

    @property
    def err(self) -> str:
        return self.files["_condor_stderr"].decode()


class Client:
    """Submits to one job queue, and has a reply queue of its own."""

    def __init__(self, connection: aiormq.abc.AbstractConnection, channel: aiormq.abc.AbstractChannel) -> None:
        self.connection, self.channel = connection, channel
        self.job_queue = self.reply_to = ""
        self._replies: defaultdict[str | None, asyncio.Queue[Received]] = defaultdict(asyncio.Queue)
        self._dead: list[Received] = []
        self._changed = asyncio.Condition()
        self._dead_wanted = False

    @classmethod
    async def connect(cls, url: str, job_queue: str) -> Self:
        connection = await aiormq.connect(url)
        client = cls(connection, await connection.channel())
        client.job_queue = job_queue
        client.reply_to = await client.listen()
        return client

    async def close(self) -> None:
        await self.connection.close()

    async def listen(self, name: str = "", exchange: str = "", key: str = "") -> str:
        """Declare a queue whose messages count as replies; bound to `exchange` with `key` if they are given."""
        declared = await self.channel.queue_declare(name, exclusive=True, auto_delete=True)
        assert declared.queue
        if exchange:
            await self.channel.queue_bind(declared.queue, exchange, routing_key=key)

        async def on_message(raw: DeliveredMessage) -> None:
            message = _received(raw)
            self._replies[message.properties.correlation_id].put_nowait(message)

        await self.channel.basic_consume(declared.queue, on_message, no_ack=True)
        return declared.queue

    async def submit(
        self,
        headers: Mapping[str, Any] | None = None,
        body: bytes = b"",
        *,
        exchange: str = "",
        key: str | None = None,
        **properties: Any,
    ) -> str:
        """Publish a job as it is; its message id comes back once the broker has it."""
        properties = {"message_id": str(uuid.uuid4()), "reply_to": self.reply_to, **properties}
        await self.channel.basic_publish(
            body,
            exchange=exchange,
            routing_key=self.job_queue if key is None else key,
            mandatory=True,
            properties=Basic.Properties(headers=dict(headers or {}), **properties),
        )
        return str(properties["message_id"])

    async def reply(self, job: str | None) -> Received:
        """The next reply to a job."""
        async with asyncio.timeout(PATIENCE):
            return await self._replies[job].get()

    async def until(self, job: str | None, wanted: Callable[[Received], bool]) -> Received:
        """The first reply to a job that is as wanted; those before it are passed over."""
        while True:
            reply = await self.reply(job)
            if wanted(reply):
                return reply

    async def end(self, job: str | None) -> Received:
        """A job's final reply."""
        return await self.until(job, lambda reply: reply.final)

    async def all(self, job: str) -> list[Received]:
        """All replies to a job, up to its final one."""
        replies = [await self.reply(job)]
        while not replies[-1].final:
            replies.append(await self.reply(job))
        return replies

    async def run(self, headers: Mapping[str, Any] | None = None, body: bytes = b"", **properties: Any) -> Received:
        """Submit, and wait for the final reply."""
        return await self.end(await self.submit(headers, body, **properties))

    async def shell(self, script: str, body: bytes = b"", /, **headers: Any) -> Received:
        """Run a shell script as a job, to its final reply."""
        return await self.run(shell(script, **headers), body)

    def waiting(self, job: str | None) -> int:
        """Replies that have come and were not asked for."""
        return self._replies[job].qsize()

    async def depth(self, queue: str) -> int:
        """Messages ready in a queue."""
        channel = await self.connection.channel()
        try:
            return int((await channel.queue_declare(queue, passive=True)).message_count or 0)
        finally:
            await channel.close()

    async def take(self, queue: str) -> Received:
        """The next message of a queue, awaited."""
        channel = await self.connection.channel()
        future: asyncio.Future[Received] = asyncio.get_running_loop().create_future()

        async def on_message(raw: DeliveredMessage) -> None:
            if not future.done():
                future.set_result(_received(raw))
                await channel.basic_ack(raw.delivery.delivery_tag)

        await channel.basic_qos(prefetch_count=1)
        await channel.basic_consume(queue, on_message)
        try:
            async with asyncio.timeout(PATIENCE):
                return await future
        finally:
            await channel.close()

    async def buried(self, wanted: str | Callable[[Received], bool]) -> Received:
        """The message in the dead-letter queue with this message id, or that is as wanted."""
        return (await self.all_buried(wanted, 1))[0]

    async def all_buried(self, wanted: str | Callable[[Received], bool], count: int) -> list[Received]:
        """At least `count` such messages, and whatever else of them is there by then."""
        if not self._dead_wanted:
            self._dead_wanted = True
            await self._consume_dead()
        matches = wanted if callable(wanted) else lambda message: message.properties.message_id == wanted

        def found() -> list[Received]:
            return [message for message in self._dead if matches(message)]

        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(found()) >= count)
            return found()

    async def _consume_dead(self) -> None:
        async def on_message(raw: DeliveredMessage) -> None:
            async with self._changed:
                self._dead.append(_received(raw))
                self._changed.notify_all()

        await self.channel.basic_consume(f"{self.job_queue}.dead", on_message, no_ack=True)


def shell(script: str, **headers: Any) -> dict[str, Any]:
    """Headers of a job that runs a shell script."""
    quoted = script.replace("'", "''")
    return {"Cmd": "/bin/sh", "Arguments": f"-c '{quoted}'", **headers}


def zipped(files: Mapping[str, bytes | str], modes: Mapping[str, int] | None = None) -> bytes:
    """A zip of files; `modes` are permission bits, none without."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            # 0x20 is DOS's "archive" bit: with no bit at all, zipfile would make permissions up.
            info.external_attr = (0o100000 | modes.get(name, 0o644)) << 16 if modes else 0x20
            archive.writestr(info, content)
    return target.getvalue()


def _received(raw: DeliveredMessage) -> Received:
    properties = raw.header.properties
    return Received(dict(properties.headers or {}), properties, raw.body)
