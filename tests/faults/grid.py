"""A grid to break: nodes as processes, jobs that mark each of their starts, and a client that outlives brokers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import aiormq
import psutil
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from tests.brokers.rabbitmq import PrivateRabbitMQ
from tests.node.client import Received, shell
from tests.node.conftest import Node

Empty = Basic.GetEmpty
PATIENCE = 120.0
"""Seconds after which a test that waits for what does not come fails; a machine busy with other tests is slow."""


class Replies:
    """What has come back so far, over whichever protocol."""

    def __init__(self) -> None:
        self.replies: defaultdict[str, list[Received]] = defaultdict(list)
        self.finals: defaultdict[str, dict[str, Received]] = defaultdict(dict)
        """By job, then by message id: a final reply that a node had to send again is the same message."""
        self.repeated = 0
        self._seen: set[str] = set()
        self._changed = asyncio.Condition()

    async def note(self, reply: Received, *, redelivered: bool) -> None:
        """A reply has come; `redelivered` when it is the broker that may bring it again."""
        properties = reply.properties
        job, message_id = properties.correlation_id or "", properties.message_id or ""
        again = message_id in self._seen
        self._seen.add(message_id)
        async with self._changed:
            if not again:
                self.replies[job].append(reply)
            if reply.final:
                self.repeated += again and not redelivered
                self.finals[job][message_id] = reply
            self._changed.notify_all()

    async def all_final(self, jobs: Iterable[str], patience: float = PATIENCE) -> None:
        """Wait until each job has a final reply."""
        wanted = set(jobs)
        try:
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(lambda: wanted <= self.finals.keys())
        except TimeoutError:
            missing = sorted(wanted - self.finals.keys())
            raise AssertionError(f"no final reply for {len(missing)} of {len(wanted)} jobs: {missing[:20]}") from None

    async def seen(self, job: str, wanted: Callable[[Received], bool]) -> Received:
        """The first reply to a job that is as wanted."""
        found: list[Received] = []
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: bool(found.extend(filter(wanted, self.replies[job])) or found))
        return found[0]

    def final(self, job: str) -> Received:
        """The job's only final reply."""
        (reply,) = self.finals[job].values()
        return reply


class Client(Replies):
    """Submits durable jobs, and reads the replies from a durable queue, connecting again whenever it has to."""

    def __init__(self, url: str, queue: str) -> None:
        super().__init__()
        self.url, self.queue = url, queue
        self.reply_to = f"{queue}.replies"
        self._connection: aiormq.abc.AbstractConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        ready = asyncio.Event()
        self._reader = asyncio.create_task(self._read(ready))
        await asyncio.wait_for(ready.wait(), PATIENCE)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._reader is not None
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def submit(self, headers: dict[str, Any], body: bytes = b"", **properties: Any) -> str:
        """Publish a job; its message id comes back once the broker has confirmed it."""
        assert self._connection is not None
        job = str(properties.pop("message_id", uuid.uuid4()))
        channel = await self._connection.channel()
        await self._publish(channel, job, headers, body, properties)
        await channel.close()
        return job

    async def submit_all(self, jobs: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
        """Publish many jobs, each with an id of the caller's; confirmed as a whole."""
        assert self._connection is not None
        channel = await self._connection.channel()
        jobs = list(jobs)
        for first in range(0, len(jobs), 200):
            part = jobs[first : first + 200]
            await asyncio.gather(*(self._publish(channel, job, headers, b"", {}) for job, headers in part))
        await channel.close()
        return [job for job, _ in jobs]

    async def _publish(
        self, channel: aiormq.abc.AbstractChannel, job: str, headers: dict[str, Any], body: bytes, more: dict[str, Any]
    ) -> None:
        wanted = {"message_id": job, "reply_to": self.reply_to, "delivery_mode": 2, **more}
        await channel.basic_publish(
            body, routing_key=self.queue, properties=Basic.Properties(headers=headers, **wanted)
        )

    async def _read(self, ready: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(aiormq.exceptions.AMQPError, OSError, asyncio.InvalidStateError):
                self._connection = await aiormq.connect(self.url)
                try:
                    for name in (self.queue, self.reply_to):
                        with contextlib.suppress(aiormq.exceptions.ChannelPreconditionFailed):  # a quorum queue
                            await (await self._connection.channel()).queue_declare(name, durable=True)
                    channel = await self._connection.channel()
                    await channel.basic_consume(self.reply_to, self._take)
                    ready.set()
                    await asyncio.shield(self._connection.closing)
                finally:
                    await self._connection.close()
            await asyncio.sleep(0.1)

    async def _take(self, raw: DeliveredMessage) -> None:
        properties = raw.header.properties
        reply = Received(dict(properties.headers or {}), properties, raw.body)
        await self.note(reply, redelivered=bool(raw.redelivered))
        with contextlib.suppress(aiormq.exceptions.AMQPError, OSError):
            await raw.channel.basic_ack(raw.delivery.delivery_tag)


class Grid:
    """Nodes on one job queue, their directory, and the marks that jobs leave."""

    def __init__(self, broker: PrivateRabbitMQ, queue: str) -> None:
        self.broker, self.queue = broker, queue
        self.directory = Path(tempfile.mkdtemp(prefix="carod-faults-", dir="/var/tmp"))
        self.directory.chmod(0o755)
        self.execute, self.marks = self.directory / "execute", self.directory / "marks"
        self.execute.mkdir(mode=0o755)
        self.marks.mkdir()
        self.marks.chmod(0o777)
        self.nodes: list[Node] = []

    def client(self, url: str = "") -> Client:
        return Client(url or self.broker.url, self.queue)

    def start(
        self,
        name: str,
        slots: int = 4,
        *,
        url: str = "",
        ready: bool = True,
        variables: dict[str, str] | None = None,
        **environ: Any,
    ) -> Node:
        """A node by that name; knobs as keywords, other environment as `variables`. Waits until it is `ready`."""
        knobs = {"ADOPTION_WAIT": 2, "RECONNECT_DELAY_MAX": 1, "EXECUTE": self.execute, **environ}
        settings = {f"_CAROD_{key}": str(value) for key, value in knobs.items()}
        node = Node(
            "--broker", url or self.broker.url, "--queue", self.queue, "--name", name, "--slots", str(slots),
            "--log-format", "json", environ={**(variables or {}), **settings},
        )  # fmt: skip
        self.nodes.append(node)
        if ready:
            node.wait_for("ready")
        return node

    def job(self, script: str, **headers: Any) -> tuple[str, dict[str, Any]]:
        """An id and the headers of a shell job that leaves a mark at each start, then does what `script` says."""
        job = f"job-{secrets.token_hex(8)}"
        return job, shell(f": > {self.marks}/{job}.$$; {script}", **headers)

    def starts(self) -> Counter[str]:
        """How often each job was started, by its marks."""
        return Counter(name.partition(".")[0] for name in os.listdir(self.marks))

    async def started(self, jobs: Iterable[str], times: int = 1) -> None:
        """Wait until each job has been started so often."""
        wanted = set(jobs)
        await until(lambda: all(self.starts()[job] >= times for job in wanted), f"{times} starts of each job")

    async def settled(self) -> None:
        """Wait until no job is on its way any more: neither in a queue nor unacknowledged."""
        end = time.monotonic() + PATIENCE
        while waiting := await self.waiting():
            assert time.monotonic() < end, f"still in the queues after {PATIENCE} s: {waiting}"
            await asyncio.sleep(0.2)

    async def waiting(self) -> dict[str, int]:
        """Messages in the queues that jobs pass through, unacknowledged ones too."""
        listed = await asyncio.to_thread(self.broker.ctl, "list_queues", "name", "messages", "--no-table-headers")
        counts = dict(line.rsplit(None, 1) for line in listed.splitlines() if line.strip())
        own = {name: int(count) for name, count in counts.items() if name.startswith(self.queue)}
        through = re.compile(rf"{re.escape(self.queue)}(\.parked|\.node\..*)?")
        return {name: count for name, count in own.items() if count and through.fullmatch(name)}

    async def each_ran_once(self, client: Replies, jobs: Iterable[str], uncertain: Iterable[str] = ()) -> None:
        """Wait until all is over: one start for each job, and one final reply, which says the same.

        Those `uncertain` may say that they were started twice.
        """
        jobs = list(jobs)
        await client.all_final(jobs)
        await self.settled()
        assert {job: len(client.finals[job]) for job in jobs} == dict.fromkeys(jobs, 1)
        starts = self.starts()
        assert {job: starts[job] for job in jobs} == dict.fromkeys(jobs, 1)
        assert {client.final(job).ad["NumJobStarts"] for job in set(jobs) - set(uncertain)} <= {1}
        assert {client.final(job).status for job in jobs} == {4}

    async def dead_reasons(self, job: str) -> list[str]:
        """Why a job is in the dead-letter queue, once for each time that it is. Empties the queue."""
        reasons = []
        async with await aiormq.connect(self.broker.url) as connection:
            channel = await connection.channel()
            while not isinstance((found := await channel.basic_get(f"{self.queue}.dead", no_ack=True)).delivery, Empty):
                if found.header.properties.message_id == job:
                    reasons.append(str((found.header.properties.headers or {})["DeadReason"]))
        return reasons

    async def close_connections(self, name: str) -> None:
        """Have the broker close a node's connections."""
        listed = await asyncio.to_thread(
            self.broker.ctl, "list_connections", "pid", "client_properties", "--no-table-headers"
        )
        for line in listed.splitlines():
            if f'"carod {name}"' in line:
                pid = line.split(None, 1)[0]
                await asyncio.to_thread(self.broker.ctl, "close_connection", pid, "a fault of the test's")

    def processes(self, name: str) -> set[int]:
        """Pids of the processes of a node's jobs, however far they have wandered."""
        return {pid for pid in psutil.pids() if _belongs(pid, f"{self.execute}/{name}/")}

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # one that does not end keeps none of the others
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for node in self.nodes:
                stack.callback(node.stop)


def _belongs(pid: int, directory: str) -> bool:
    try:
        return f"_CONDOR_SCRATCH_DIR={directory}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def kill(node: Node) -> None:
    """SIGKILL to a node, and to it alone."""
    node.process.kill()
    node.process.wait()


async def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll for what no event tells of, within bounds."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"not within {patience:g} s: {what}"
        await asyncio.sleep(0.05)
