"""What a node takes from the job queue, and what it does not.

Each free slot is one credit: a consumer with a prefetch of one. So the broker never hands over a job that could not
start at once, and the queue itself is the scheduler. A job that no free slot takes goes back to the queue, but not in
a hot loop: the node keeps it for a while, and longer each time it sees it again. What is kept costs a credit, so a
further one is opened for the slot meanwhile, up to a bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from carod.amqp import ConnectionLost, Delivery, Outcome, Subscription, Transport, TransportError
from carod.job import Job
from carod.log import event

log = logging.getLogger("carod.intake")
REMEMBERED = 10_000
"""Refused jobs whose delays are remembered."""


class Credits:
    """The node's consumers on its job queue: as many as `wanted`, each with a prefetch of one."""

    def __init__(self, transport: Transport, queue: str, on_delivery: Callable[[Delivery], None]) -> None:
        self._transport, self._queue, self._on_delivery = transport, queue, on_delivery
        self._open: list[Subscription] = []
        self._adjusting = asyncio.Lock()
        self.wanted = 0
        self.ended = asyncio.Event()
        """Set when the broker ended a consumer: `adjust` opens another."""

    async def adjust(self, wanted: int | None = None) -> None:
        """Open or cancel consumers until there are as many as wanted. Raises TransportError."""
        if wanted is not None:
            self.wanted = wanted
        async with self._adjusting:
            while len(self._open) > self.wanted:
                await self._open.pop().cancel()
            while len(self._open) < self.wanted:
                await self._add()

    async def _add(self) -> None:
        holder: list[Subscription] = []

        def ended(why: str) -> None:
            event(log, "consumer ended", logging.WARNING, queue=self._queue, reason=why)
            if holder and holder[0] in self._open:
                self._open.remove(holder[0])
            self.ended.set()

        holder.append(await self._transport.consume(self._queue, self._on_delivery, credit=1, on_end=ended))
        self._open.append(holder[0])

    def lost(self) -> None:
        """The connection is gone, and all consumers with it."""
        self._open.clear()


class Refusals:
    """Jobs that this node does not take, kept back before the queue has them again."""

    def __init__(self, delay_min: float, delay_max: float, bound: int) -> None:
        self._delay_min, self._delay_max, self._bound = delay_min, delay_max, bound
        self._times: OrderedDict[str, int] = OrderedDict()
        self.kept = 0

    def delay(self, job_id: str) -> float:
        """Seconds to keep a job this time: doubled with every time it was refused before."""
        times = self._times.pop(job_id, 0)
        self._times[job_id] = times + 1
        if len(self._times) > REMEMBERED:
            self._times.popitem(last=False)
        return float(min(self._delay_max, self._delay_min * 2 ** min(times, 30)))

    @property
    def full(self) -> bool:
        """Whether so many are kept that no further credit may be opened for the slots."""
        return self.kept >= self._bound

    async def keep(self, delivery: Delivery, job: Job, delay: float) -> None:
        """Keep a refused job for `delay` seconds, then release it."""
        self.kept += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self.kept -= 1
            try:
                delivery.settle(Outcome.RELEASED)
            except ConnectionLost:
                pass  # the broker has put it back already
            except TransportError as error:
                event(log, "release failed", logging.WARNING, job=job.id, reason=str(error))
