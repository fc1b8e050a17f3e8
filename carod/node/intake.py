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

from carod.amqp import Delivery, Subscription, Transport
from carod.log import event

log = logging.getLogger("carod.intake")
REMEMBERED = 10_000
"""Refused jobs whose delays are remembered."""


class Credits:
    """The node's consumers on its job queue, each with a prefetch of one: as many idle ones as slots are free."""

    def __init__(
        self, transport: Transport, queue: str, on_delivery: Callable[[Delivery], None], free: Callable[[], int]
    ) -> None:
        self._transport, self._queue, self._on_delivery, self._free = transport, queue, on_delivery, free
        self._open: list[Subscription] = []
        self._adjusting = asyncio.Lock()
        self.ended = asyncio.Event()
        """Set when the broker ended a consumer: `adjust` opens another."""

    @property
    def balanced(self) -> bool:
        """Whether there is nothing to adjust."""
        return self._idle() == self._free()

    def _idle(self) -> int:
        return sum(not subscription.unsettled for subscription in self._open)

    async def adjust(self) -> None:
        """Open or cancel consumers until as many are idle as slots are free. Raises TransportError."""
        async with self._adjusting:
            while not self.balanced:
                if self._idle() < self._free():
                    await self._add()
                else:
                    await self._cancel(next(item for item in self._open if not item.unsettled))

    async def close_bearer(self, delivery: Delivery) -> None:
        """Cancel the consumer that brought a delivery, which stays as it is."""
        if delivery.subscription in self._open:
            await self._cancel(delivery.subscription)

    async def step_back(self) -> None:
        """Cancel the idle consumers; `adjust` opens others, behind those of further nodes.

        A broker serves the consumer that has waited longest. That may be this node's own: two nodes which refuse
        a job each would get their own back for ever.
        """
        async with self._adjusting:
            for subscription in [item for item in self._open if not item.unsettled]:
                await self._cancel(subscription)

    def lost(self) -> None:
        """The connection is gone, and all consumers with it."""
        self._open.clear()

    async def _cancel(self, subscription: Subscription) -> None:
        self._open.remove(subscription)
        await subscription.cancel()

    async def _add(self) -> None:
        holder: list[Subscription] = []

        def ended(why: str) -> None:
            event(log, "consumer ended", logging.WARNING, queue=self._queue, reason=why)
            if holder and holder[0] in self._open:
                self._open.remove(holder[0])
                self.ended.set()

        holder.append(await self._transport.consume(self._queue, self._on_delivery, credit=1, on_end=ended))
        self._open.append(holder[0])


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
