"""What a node sends: status messages, final replies, what nobody can be told, and jobs that go back to the queue."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable

from carod.amqp import (
    Address,
    Busy,
    ConnectionLost,
    Delivery,
    HeaderValue,
    Message,
    Queue,
    Refused,
    TooLarge,
    Transport,
    TransportError,
    Unroutable,
)
from carod.job import Job
from carod.log import event
from carod.node.custody import HANDED_OVER, LAST_ASK, REQUEUED, copy, own_headers
from carod.node.journal import Journal

log = logging.getLogger("carod.post")
BUSY_PAUSE = 1.0
"""Seconds before a broker that could not take a message is asked again."""


class Post:
    """Sends a node's messages. What has to arrive is sent until the broker confirms it, however long it is away."""

    def __init__(self, transport: Transport, queue: str, node: str, journal: Journal, online: asyncio.Event) -> None:
        self._transport, self._queue, self.dead = transport, queue, f"{queue}.dead"
        self._node = node
        self._journal, self._online = journal, online

    async def say(self, message: Message, reply_to: str) -> None:
        """Send a status message; one that can't be sent now is dropped, the next says more."""
        try:
            await self._transport.publish(message, await self._transport.resolve(reply_to), confirm=False)
        except TooLarge as error:
            event(log, "status message dropped", logging.WARNING, job=message.correlation_id, reason=str(error))
        except TransportError as error:
            event(log, "status message dropped", logging.DEBUG, job=message.correlation_id, reason=str(error))

    async def deliver(
        self, message: Message, reply_to: str, key: str = "", wanted: Callable[[], bool] = lambda: True
    ) -> bool:
        """Send a final reply until the broker has confirmed it, or has it in the dead-letter queue.

        With `key` (`Job.key`) the journal has it before the broker, until the caller says that the job is finished.
        False if it is not `wanted` any more when the broker is back: another node has answered. Raises TooLarge or
        Refused when the broker won't have this one.
        """
        if key:
            await self._write_down(message, reply_to, key)
        while wanted():
            try:
                if not self._online.is_set():  # until it is known what became of the job meanwhile
                    raise ConnectionLost("not connected")
                await self._transport.publish(message, await self._transport.resolve(reply_to))
                return True
            except ConnectionLost:
                await self._back_online()
            except Busy:
                await asyncio.sleep(BUSY_PAUSE)
            except Unroutable as error:
                lost = dataclasses.replace(message, reply_to=reply_to)
                await self.bury(lost, f"reply_to {reply_to[:200]!r} can't be routed, the client is gone: {error}")
                return True
        return False

    async def _write_down(self, message: Message, reply_to: str, key: str) -> None:
        try:
            if not self._journal.sending(message, reply_to, key):
                await asyncio.to_thread(self._journal.keep, message, reply_to, key)
        except OSError as error:
            event(log, "result not journaled", logging.ERROR, job=message.correlation_id, reason=str(error))

    async def bury(self, message: Message, reason: str) -> None:
        """Keep a message in the dead-letter queue, the reason in its header DeadReason."""
        event(
            log,
            "to the dead-letter queue",
            logging.WARNING,
            job=message.message_id,
            queue=self.dead,
            reason=reason,
        )
        headers = {**own_headers(message), "DeadReason": reason[:4096], "DeadDate": int(time.time())}
        buried = dataclasses.replace(message, headers=headers, user_id=None, expiration=None, durable=True)
        while True:
            try:
                await self._transport.publish(buried, Address("", self.dead))
                return
            except ConnectionLost:
                await self._back_online()
            except TooLarge:
                buried = dataclasses.replace(buried, headers={"DeadReason": reason[:4096], "AdTooLarge": True})
            except Busy:
                await asyncio.sleep(BUSY_PAUSE)
            except Unroutable:
                with contextlib.suppress(TransportError):
                    await self._transport.declare(Queue(self.dead))
                await asyncio.sleep(BUSY_PAUSE)
            except Refused as error:
                event(
                    log,
                    "lost",
                    logging.ERROR,
                    job=message.message_id,
                    reason=f"{self.dead} refused it: {error}",
                )
                return

    async def requeue(self, delivery: Delivery, job: Job, patience: float = LAST_ASK) -> None:
        """Publish a job anew: the broker's own requeue would look like a node's death (custody.py).

        Whoever gets it asks for so long whether somebody has another copy of it.
        """
        marks: dict[str, HeaderValue] = {REQUEUED: patience, HANDED_OVER: self._node, "NumJobStarts": job.starts}
        await self._transport.publish(copy(delivery.message, job, **marks), Address("", self._queue))

    async def _back_online(self) -> None:
        await asyncio.sleep(0.05)  # whoever watches the connection may not know yet
        await self._online.wait()
