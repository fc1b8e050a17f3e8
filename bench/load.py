"""The load: submits jobs and takes their replies, over plain aiormq, as a client in any language would.

`Load10` is the same over AMQP 1.0, on plain Proton.

All contenders but Celery get the same load from the same code. Times are in seconds.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiormq
from aiormq import spec
from aiormq.abc import AbstractChannel, DeliveredMessage
from bare import Bare, accept
from proton import Delivery, Message

PATIENCE = 60.0
"""Seconds without any final reply after which something is broken."""
CREDIT = 1000
RUNNING, COMPLETED = 2, 4
TRUE = {"Cmd": '"/bin/true"', "Out": '"job.out"', "Err": '"job.err"', "Requirements": "TRUE"}


class LoadError(Exception):
    """A job was not completed, or no reply came."""


@dataclass(slots=True)
class Load:
    """One client. `finals` and `arrivals` are all final replies so far: their number of bytes, when they came."""

    channel: AbstractChannel
    queue: str
    replies: str
    submitted: dict[str, float] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    duplicates: int = 0
    body_size: int = 0
    _failure: LoadError | None = None
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, queue: str) -> AsyncIterator[Load]:
        connection = await aiormq.connect(url)
        try:
            channel = await connection.channel(publisher_confirms=False)
            replies = (await channel.queue_declare("", exclusive=True)).queue or ""
            load = cls(channel, queue, replies)
            await channel.basic_consume(replies, load._on_reply, no_ack=True)
            yield load
        finally:
            await connection.close()

    async def _on_reply(self, message: DeliveredMessage) -> None:
        properties = message.header.properties
        self._take(properties.correlation_id or "", properties.headers or {}, message.body)

    def _take(self, job_id: str, headers: Mapping[str, Any], body: bytes) -> None:
        """A reply."""
        status = headers.get("JobStatus")
        if status == RUNNING:
            return
        now = time.perf_counter()
        began = self.submitted.pop(job_id, None)
        if status != COMPLETED:
            why = headers.get("HoldReason") or body[:200].decode(errors="replace")
            self._failure = LoadError(f"a job ended with JobStatus {status!r}: {why!r}")
        elif began is None:
            self.duplicates += 1
        else:
            self.latencies.append(now - began)
            self.arrivals.append(now)
            self.body_size = len(body)
        self._arrived.set()

    async def submit(self, headers: Mapping[str, str | int] = TRUE) -> None:
        job_id = str(uuid.uuid4())
        properties = spec.Basic.Properties(headers=dict(headers), reply_to=self.replies, message_id=job_id)
        self.submitted[job_id] = time.perf_counter()
        await self.channel.basic_publish(b"", routing_key=self.queue, properties=properties)

    async def wait(self, outstanding: int = 0, until: float | None = None) -> bool:
        """Until no more than so many jobs are outstanding: True; False if `until` (perf_counter) comes first."""
        while len(self.submitted) > outstanding:
            if self._failure is not None:
                raise self._failure
            left = PATIENCE if until is None else min(PATIENCE, until - time.perf_counter())
            if left <= 0:
                return False
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                if left == PATIENCE:
                    raise LoadError(f"no final reply for {PATIENCE:g} s, {len(self.submitted)} jobs are out") from None
        return True

    async def sequential(self, jobs: int, headers: Mapping[str, str | int] = TRUE) -> list[float]:
        """Latency of each job, one after the other: from before its publish to its final reply."""
        self.latencies.clear()
        for _ in range(jobs):
            await self.submit(headers)
            await self.wait()
        return list(self.latencies)

    async def burst(self, jobs: int, headers: Mapping[str, str | int] = TRUE) -> float:
        """Seconds from the first submission to the last final reply."""
        began = time.perf_counter()
        for _ in range(jobs):
            await self.submit(headers)
        await self.wait()
        return time.perf_counter() - began


class Load10(Load):
    """The same, over AMQP 1.0."""

    bare: Bare
    jobs: Any
    answers: Any

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, queue: str) -> AsyncIterator[Load10]:
        load = cls(None, queue, "")  # type: ignore[arg-type]
        load.bare = await Bare.connect(url)
        try:
            load.answers = await load.bare.receiver(None, CREDIT, load._on_message)
            load.replies = load.answers.remote_source.address
            load.jobs = await load.bare.sender(queue)
            yield load
        finally:
            await load.bare.close()

    def _on_message(self, message: Message, delivery: Delivery) -> None:
        self._take(str(message.correlation_id), message.properties or {}, bytes(message.body or b""))
        accept(self.answers, delivery)

    async def submit(self, headers: Mapping[str, str | int] = TRUE) -> None:
        job_id = str(uuid.uuid4())
        self.submitted[job_id] = time.perf_counter()
        message = Message(body=b"", id=job_id, reply_to=self.replies, properties=dict(headers), durable=True)
        self.bare.send(self.jobs, message)
