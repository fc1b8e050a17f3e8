"""Whose is this job? A delivery that comes a second time is never just run.

The broker brings a job again when it has lost the connection, or the patience, of the node that had it: which may run
it still. So the node that gets it asks on the control exchange who has the job:

    running here            the new delivery takes the old one's place               (`node.py`)
    done here               it is settled                                            (`node.py`)
    running on node X       it is handed to X's own queue, where X adopts it
    done on node X          it is settled
    nobody answers          its node may be about to come back: it is parked, and asked for again after a while
    nobody, once more       its node is dead: it is run, and NumJobStarts says so

A job that a node hands back by itself (refused, evicted) is published anew, with a mark: it is asked for, too, as it
may be one of two copies if the connection was lost just then, but it need not wait for anybody. Of two nodes that are
about to run a copy each, one parks it (`claims.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from carod.amqp import Address, Delivery, HeaderValue, Message, Outcome, Queue, Transport, TransportError, Unroutable
from carod.config import Config
from carod.control import EVERYONE, Action, Answer, Asker, Request, job_key
from carod.job import EXPIRES_AT, INCARNATION, KEEPER, ON_BEHALF, Job
from carod.log import event
from carod.node.claims import DECIDING, DONE, Claims

log = logging.getLogger("carod.custody")
ASK = 0.2
"""Seconds to wait for an answer to WhoHas; nodes answer from memory."""
LAST_ASK = 1.0
"""The same when silence means that the job is started again: a busy node may take its time."""
PARKED_FOR, HANDED_OVER, REQUEUED = "x-carod-parked-for", "x-carod-handed-over", "x-carod-requeued"
"""Marks of a job that a node published anew: seconds it was parked; which node it comes from; that it is nobody's."""
HELLO, AGAIN = "hello", "again"
"""Names of announcements: of a node that has just connected; of jobs that come again for certain."""
ANNOUNCED_AT_ONCE = 100
"""Jobs in one announcement: all of a message's headers have to fit into one frame."""
MARGIN = 0.5
"""Seconds by which a job may have been parked for less: rounding, and other nodes' ADOPTION_WAIT."""
NODE_QUEUE_EXPIRES = 86_400.0
"""Seconds after which the broker forgets the queue of a node that did not come back; its messages are long gone."""


def is_second(delivery: Delivery) -> bool:
    """Whether this job may have been started before, here or elsewhere."""
    headers = delivery.message.headers
    return came_back(delivery) or any(mark in headers for mark in ("x-death", PARKED_FOR, HANDED_OVER, REQUEUED))


def came_back(delivery: Delivery) -> bool:
    """Whether this very message has been with a node before, and came back; quorum queues count how often."""
    return delivery.redelivered or bool(delivery.message.headers.get("x-delivery-count"))


def _requeued(delivery: Delivery) -> bool:
    """Whether a node handed this job back by itself, and no other has had it since."""
    return REQUEUED in delivery.message.headers and not came_back(delivery)


def _patience(delivery: Delivery) -> float:
    """Seconds to ask for a job that was handed back: the mark says how sure it is that there is one copy of it."""
    patience = delivery.message.headers.get(REQUEUED)
    return min(patience, LAST_ASK) if isinstance(patience, float) else LAST_ASK


def queues(config: Config) -> tuple[Queue, Queue]:
    """The queue for parked jobs and the node's own; both give back to the job queue what stays in them."""
    name, back = config.carod_broker_queue, Address("", config.carod_broker_queue)
    parked = Queue(f"{name}.parked", message_ttl=config.adoption_wait, dead_letter=back)
    own = Queue(
        node_queue(name, config.node_name), message_ttl=config.lease_time, dead_letter=back, expires=NODE_QUEUE_EXPIRES
    )
    return parked, own


async def declare(transport: Transport, config: Config) -> None:
    """Declare a node's queues, those beside the job queue of its kind: as safe as that is, and there when that is.

    Raises TransportError.
    """
    queue = config.carod_broker_queue
    bindings = (Address("amq.direct", queue), Address("amq.direct", f"{queue}_key"))
    job_queue = Queue(queue, bindings=bindings)
    _, as_asked = await transport.declare(job_queue)
    quorum = not as_asked and (await transport.declare(dataclasses.replace(job_queue, quorum=True)))[1]
    if not as_asked and not quorum:
        _say_used_as_it_is(queue)
    for wanted in (Queue(f"{queue}.dead"), *queues(config)):
        if not (await transport.declare(dataclasses.replace(wanted, quorum=quorum)))[1]:
            _say_used_as_it_is(wanted.name)


def _say_used_as_it_is(queue: str) -> None:
    event(log, "queue exists with other arguments and is used as it is", logging.WARNING, queue=queue)


def node_queue(queue: str, node: str) -> str:
    return f"{queue}.node.{node}"


def own_headers(message: Message) -> dict[str, HeaderValue]:
    """A message's headers without those that have RabbitMQ send a copy to further queues, with the node's rights."""
    return {name: value for name, value in message.headers.items() if name not in ("CC", "BCC")}


def copy(message: Message, job: Job, **marks: HeaderValue) -> Message:
    """A message to publish anew: without the broker's own marks, and no longer to be lived than before."""
    headers = {name: value for name, value in own_headers(message).items() if not name.startswith("x-")}
    if job.expires_at is not None:
        headers[EXPIRES_AT] = job.expires_at
    if job.incarnation:
        headers[INCARNATION] = job.incarnation
    if job.keeper:
        headers[KEEPER] = job.keeper
    identity = job.ad.get("AuthenticatedIdentity")
    if isinstance(identity, str):
        headers[ON_BEHALF] = identity
    headers |= marks
    user = job.courier if ON_BEHALF in headers else None
    return dataclasses.replace(message, headers=headers, user_id=user, expiration=None)


class Custody:
    """Decides on second deliveries, and hands deliveries over between nodes."""

    def __init__(self, transport: Transport, config: Config, asker: Asker, holds: Callable[[str], bool]) -> None:
        self._transport, self._config, self._asker, self._holds = transport, config, asker, holds
        self._queue = config.carod_broker_queue
        self._all_back_at = 0.0
        # A node whose claim we heard may have gone as late as the job came back to it from where it was parked.
        self.claims = Claims(config.node_name, 2 * config.adoption_wait)

    def connected(self, away: float) -> None:
        """A connection has begun after so many seconds without one.

        If it is the broker that was away, and for most of the time that a job is parked, others have yet to come back.
        """
        if away > self._config.adoption_wait / 2:
            self._all_back_at = time.monotonic() + self._config.adoption_wait / 2

    async def who_has(self, job: Job, patience: float, ours: str | None = None) -> Answer | None:
        """The node that runs a job or has done it; None if none of those connected does.

        `ours` is what it is to us, for others to hear (`claims.py`). Raises ConnectionLost if the question did not come
        back to us: then silence says nothing.
        """
        request = Request(Action.WHO_HAS, job.id, name=job.key, value=ours, node=self._config.node_name)
        answers = await self._asker.ask(request, job_key(job.id), patience, echoed=True)
        return answers[0] if answers else None

    async def may_run(self, delivery: Delivery, job: Job) -> bool:
        """Whether a second delivery is to be run here; if not, it is in the right hands and settled."""
        waited = self._waited(delivery)
        free = waited is not None and waited >= self._wait(job) - MARGIN
        if free or _requeued(delivery):
            with self.claims.deciding(job.key):
                owner = await self.who_has(job, LAST_ASK if free else _patience(delivery), DECIDING)
                spoken_for = self._spoken_for(delivery, job.key, free)
            if owner is None and not spoken_for:
                if free:
                    event(log, "job has lost its node", logging.WARNING, job=job.id, starts=job.starts)
                return True
            wait = 0.0
        else:
            owner, spoken_for, wait = await self.who_has(job, ASK), "", self._config.adoption_wait
        if owner is None:
            await self._park(delivery, job, waited, wait, spoken_for)
        else:
            await self._leave_to(owner, delivery, job, waited)
        return False

    def _spoken_for(self, delivery: Delivery, key: str, free: bool) -> str:
        """Why a job is not to be run although nobody has answered for it; empty if there is no reason."""
        if self._holds(key):
            return "its result is here"
        if self.claims.is_beaten(key):
            return "another node decides"
        giver = str(delivery.message.headers.get(HANDED_OVER)) if _requeued(delivery) else ""
        if self.claims.is_claimed(key, giver):
            return "its node is about to come back"
        if free and time.monotonic() < self._all_back_at:
            return "its node may be as late as we are"
        return ""

    async def _leave_to(self, owner: Answer, delivery: Delivery, job: Job, waited: float | None) -> None:
        state = str(owner.headers.get("State", ""))
        event(log, "job has an owner", job=job.id, owner=owner.node, state=state)
        if state == DONE:
            delivery.settle(Outcome.ACCEPTED)
        elif state == DECIDING:
            await self._park(delivery, job, waited, 0.0, "another node decides")
        else:
            try:
                await self.hand_over(delivery, job, owner.node)
            except Unroutable:  # its queue is not there yet: it has just connected
                await self._park(delivery, job, waited, 0.0, "its node has just come back")

    def _waited(self, delivery: Delivery) -> float | None:
        """Seconds that a job has been parked since it was last with a node; None if it has not been."""
        waited = delivery.message.headers.get(PARKED_FOR)
        if came_back(delivery) or isinstance(waited, bool) or not isinstance(waited, int | float):
            return None
        return float(waited)

    def _wait(self, job: Job) -> float:
        """How long a job's owner may stay away: its JobLeaseDuration, else ADOPTION_WAIT; seconds."""
        lease = job.ad.get("JobLeaseDuration")
        if isinstance(lease, int | float) and not isinstance(lease, bool) and lease > 0:
            return float(lease)
        return self._config.adoption_wait

    async def _park(self, delivery: Delivery, job: Job, waited: float | None, wait: float, reason: str = "") -> None:
        """Leave a job in the queue from which it returns after ADOPTION_WAIT; no clock of ours has a part in it.

        Whoever lost it had most likely started it: the first to park it counts that start.
        """
        requeued = _requeued(delivery)
        starts = job.starts + (1 if waited is None and not requeued else 0)
        marks: dict[str, HeaderValue] = {PARKED_FOR: (waited or 0.0) + wait, "NumJobStarts": starts}
        if requeued:
            marks |= {REQUEUED: LAST_ASK, HANDED_OVER: delivery.message.headers.get(HANDED_OVER)}
        await self._transport.publish(copy(delivery.message, job, **marks), Address("", f"{self._queue}.parked"))
        left = round(max(0.0, self._wait(job) - (waited or 0.0)), 1)
        event(log, "job parked", job=job.id, wait=left, reason=reason or "its node may be about to come back")
        delivery.settle(Outcome.ACCEPTED)

    async def announce(self, keys: Sequence[str], user: str | None, to: str = EVERYONE, name: str = AGAIN) -> None:
        """Tell all nodes, or one, of jobs (`Job.key`) that are done, whose deliveries the broker may bring again.

        Should this node be away then, another one knows. Not confirmed: it is one safety of two. The others pass on
        those that come AGAIN; to HELLO they answer with what they have of that kind, also if it names no job.
        """
        node = self._config.node_name
        for first in range(0, max(len(keys), name == HELLO), ANNOUNCED_AT_ONCE):
            part: list[HeaderValue] = list(keys[first : first + ANNOUNCED_AT_ONCE])
            called = "" if first and name == HELLO else name  # one answer is enough
            request = Request(Action.DONE, str(part[0]) if part else "none", called, part, node=node, sender=user)
            with contextlib.suppress(TransportError):
                await self._transport.publish(
                    request.to_message(), Address(f"{self._queue}.control", to), confirm=False
                )

    async def hand_over(self, delivery: Delivery, job: Job, node: str) -> None:
        """Give a delivery to the node that has its job. Raises Unroutable."""
        marks: dict[str, HeaderValue] = {HANDED_OVER: self._config.node_name}
        parked = self._waited(delivery) is not None and REQUEUED not in delivery.message.headers
        if parked:  # its node is there: it was no start that was counted at parking
            marks["NumJobStarts"] = max(0, job.starts - 1)
        await self._transport.publish(copy(delivery.message, job, **marks), self._node_address(node))
        if not delivery.settled:
            delivery.settle(Outcome.ACCEPTED)

    async def renew(self, delivery: Delivery, job: Job, release_credit: Callable[[], Awaitable[None]]) -> None:
        """Trade a running job's delivery for a fresh one on the node's own queue, before the broker loses patience.

        The consumer that brought the old one goes first, or it would be offered a job for a slot that is taken.
        """
        marks: dict[str, HeaderValue] = {HANDED_OVER: self._config.node_name}
        await self._transport.publish(copy(delivery.message, job, **marks), self._node_address(self._config.node_name))
        await release_credit()
        if not delivery.settled:
            delivery.settle(Outcome.ACCEPTED)

    def _node_address(self, node: str) -> Address:
        return Address("", node_queue(self._queue, node))
