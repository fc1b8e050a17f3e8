"""The dead-letter queue (docs/reference/wire-contract.md, section 1): what is in it, and how a held job leaves it.

Whoever reads it takes every message without settling it and ends the connection: the broker then has all of them
again, where they were. One reads at a time, or each would see a part and take it for the whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum

from carod.amqp import Address, Delivery, Endpoint, Message, Outcome, Refused, Transport, open_transport
from carod.job import INCARNATION, Job, NoMessageId
from carod_client.errors import BrokerRefused, NoQueue

DEAD_REASON, DEAD_DATE = "DeadReason", "DeadDate"
"""Headers that a node adds: why the message is here, and since when (seconds since the epoch)."""
TURN = 10.0
"""Seconds to wait for another reader to be done."""
QUIET = 0.1
"""Seconds without a message after which the broker is asked whether there are more."""
STRAGGLERS = 1.0
"""Seconds that messages may still come once those that were there at first have all been seen."""


class Kind(Enum):
    """What a dead message is."""

    JOB = "job"
    """A held job: it can be released."""
    RESULT = "result"
    """A node's last word on a job, for a client that was gone: nothing to run again."""
    UNUSABLE = "unusable"
    """A message that no node can run: nobody to answer, no id, or its ad was too large to keep."""


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """One message in the dead-letter queue. `id` is its job's message id, empty if it has none.

    `when` is the time of its burial in seconds since the epoch, None where the node did not note it; `size` is
    that of its body in bytes.
    """

    id: str
    kind: Kind
    reason: str
    when: float | None
    owner: str
    cmd: str
    size: int

    @classmethod
    def from_message(cls, message: Message) -> DeadMessage:
        job = _job(message)
        result = _is_result(message)
        usable = message.reply_to and job.id and "AdTooLarge" not in message.headers
        return cls(
            (message.correlation_id or "") if result else job.id,
            Kind.RESULT if result else Kind.JOB if usable else Kind.UNUSABLE,
            str(message.headers.get(DEAD_REASON) or "no reason given"),
            _when(message),
            _string(job, "Owner"),
            _string(job, "Cmd"),
            len(message.body) if isinstance(message.body, bytes) else message.body.seek(0, 2),
        )


class DeadLetters:
    """`<queue>.dead` of a grid."""

    def __init__(self, endpoint: Endpoint, queue: str) -> None:
        self.name = f"{queue}.dead"
        self._endpoint, self._queue = endpoint, queue

    async def messages(self) -> list[DeadMessage]:
        """All that is in it, oldest first; nothing is taken out. Raises TransportError."""
        async with self._reading() as (_, deliveries), aclosing(deliveries):
            return [DeadMessage.from_message(delivery.message) async for delivery in deliveries]

    async def release(self, jobs: Collection[str] | None = None) -> AsyncGenerator[tuple[DeadMessage, bool], None]:
        """Send held jobs back to their queue, the given ones or all: each message met, and whether it was released.

        Of other messages, those that concern the given jobs are told of. All else stays as it is. A job leaves the
        dead-letter queue only once the job queue has it: at worst it is in both. Raises TransportError.
        """
        wanted = None if jobs is None else set(jobs)
        async with self._reading() as (transport, deliveries), aclosing(deliveries):
            async for delivery in deliveries:
                dead = DeadMessage.from_message(delivery.message)
                if wanted is not None and dead.id not in wanted:
                    continue
                if dead.kind is Kind.JOB:
                    await transport.publish(released(delivery.message), Address("", self._queue))
                    delivery.settle(Outcome.ACCEPTED)
                    if wanted is not None:
                        wanted.discard(dead.id)
                yield dead, dead.kind is Kind.JOB
                if wanted is not None and not wanted:
                    return

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[tuple[Transport, AsyncGenerator[Delivery, None]]]:
        """A connection of its own, whose end gives back all that was not settled."""
        transport = open_transport(self._endpoint)
        await transport.connect()
        try:
            yield transport, self._walk(transport)
        finally:
            await transport.close()

    async def _walk(self, transport: Transport) -> AsyncGenerator[Delivery, None]:
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        there = await self._subscribe(transport, arrived)
        seen, last_call = 0, 0.0
        while not last_call or time.monotonic() < last_call:
            if seen >= there and not last_call:
                last_call = time.monotonic() + STRAGGLERS
            try:
                async with asyncio.timeout(QUIET):
                    delivery = await arrived.get()
            except TimeoutError:
                if not await transport.depth(self.name) and arrived.empty():
                    return
                continue
            seen += 1
            yield delivery

    async def _subscribe(self, transport: Transport, arrived: asyncio.Queue[Delivery]) -> int:
        """Be the only reader, as soon as nobody else is; how many messages there were. Raises NoQueue."""
        give_up = time.monotonic() + TURN
        while True:
            there = await transport.depth(self.name)
            if there is None:
                raise NoQueue(
                    f"no queue {self.name!r} on broker {self._endpoint.safe_url}: no node ever served queue "
                    f"{self._queue!r} there (--queue names the job queue)"
                )
            try:
                await transport.consume(self.name, arrived.put_nowait, credit=0, exclusive=True)
                return there
            except Refused as error:
                if time.monotonic() >= give_up:
                    raise BrokerRefused(f"{self.name} can't be read: {error}; does somebody else read it?") from None
                await asyncio.sleep(QUIET)


def released(message: Message) -> Message:
    """A held job's message as it goes back to the job queue: a new life, of which its old ones' marks say nothing.

    Its expiry, if it had one, does not count any more: somebody wants it run.
    """
    dropped = (DEAD_REASON, DEAD_DATE, "CC", "BCC")  # the last two would have RabbitMQ send copies, with our rights
    headers = {
        name: value for name, value in message.headers.items() if not name.startswith("x-") and name not in dropped
    }
    headers[INCARNATION] = _job(message).incarnation + 1
    return replace(message, headers=headers, user_id=None, expiration=None)


def _job(message: Message) -> Job:
    """The job in a message, as a node would read it, but also if it has no id or nobody to answer."""
    message = replace(message, reply_to=message.reply_to or "nobody")
    try:
        return Job.from_message(message)
    except NoMessageId:
        job = Job.from_message(replace(message, message_id="none"))
        job.id = ""
        return job


def _is_result(message: Message) -> bool:
    """Replies have a correlation id and say how it went; a client's own ad may say so too, but is nobody's answer."""
    headers = message.headers
    if "AdTooLarge" in headers and message.correlation_id:
        return True
    said = any(name in headers for name in ("HoldReason", "RemoveReason", "ExitReason"))
    about = headers.get("AMQPID")
    if message.correlation_id is None:
        return said and not message.reply_to and "JobStatus" in headers and "Cmd" not in headers
    return "JobStatus" in headers and (said or about is not None) and about in (None, f'"{message.correlation_id}"')


def _when(message: Message) -> float | None:
    for value in (message.headers.get(DEAD_DATE), message.headers.get("CompletionDate")):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _string(job: Job, name: str) -> str:
    value = job.ad.get(name)
    return value if isinstance(value, str) else ""
