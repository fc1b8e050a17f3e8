"""Between the job queue and the grid: a window of jobs goes out, what nodes say comes in.

    JobQueue                        broker                            nodes
      | take: stage INTENT            |                                 |
      |---- job, durable ------------>| grid  ------------------------->| take it when a slot is free
      |<--- confirm: stage SENT ------|                                 |
      |                               |                                 |
      |<------------------------------| grid.agent.NAME <---------------| replies, durable
      | written down, then settled    |                                 |
      |---- Hold, Remove, ... ------->| grid.control ------------------>| for jobs that they run
      |<----------------------------------------------------- answers --|

**Once, whatever ends when.** A job's stage is INTENT on the disk before its message is sent, and SENT after the broker
has confirmed it. What is found at INTENT after a crash or a lost connection may or may not have arrived. First the
replies that came meanwhile are read, then the nodes are asked who has it. If nobody does it may still wait in the
broker's queue, so it is sent again under the same message id, marked as a second copy: a node that gets such a one asks
before it runs it (docs/discussion/guarantees.md), and by then the first copy, which was ahead of it in the queue, is
with a node. Nodes ask us, too: we answer that a job is done for as long as we remember it.

**Orders for a job that waits in the broker's queue.** The queue here is changed at once. The message can't be taken
back, but all nodes are told that it is not to be run, and end it when it comes. One that was not there to hear it says
that it runs the job before anything else, and is told then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import time
from collections.abc import Coroutine
from typing import Any

from carod.amqp import (
    Address,
    Body,
    Busy,
    ConnectionLost,
    Delivery,
    Endpoint,
    Exchange,
    HeaderValue,
    Message,
    Outcome,
    Queue,
    Refused,
    TooLarge,
    Transport,
    TransportError,
    Unroutable,
)
from carod.control import EVERYONE, Action, Answer, Asker, BadRequest, Request, answer, job_key
from carod.job import KEEPER, JobStatus
from carod.log import event
from qmf_agent.jobqueue import lookup, records
from qmf_agent.jobqueue.ads import Ad
from qmf_agent.jobqueue.jobs import FINAL, OVER, JobId, JobRecord, Report, Stage, read_message_id, report
from qmf_agent.jobqueue.queue import JobQueue
from qmf_agent.jobqueue.records import NODES_OWN, Reported
from qmf_agent.jobqueue.spool import INLINE
from qmf_agent.pool import Pool

log = logging.getLogger("carod.dispatch")
CREDIT = 16
"""Replies that are being written down at a time, and in memory with their results."""
TAKE_AT_ONCE = 200
PING_WAIT = 0.5
"""Seconds that nodes have to answer when nobody knows how many there are."""
ASK_WAIT = 1.0
"""Seconds to wait for who has a job when silence means that nobody has."""
ASKED_AT_ONCE = 50
CONFIRM_DELAY = 0.005
"""Seconds in which confirms are gathered for one transaction: nothing waits for them."""
BUSY_PAUSE = 1.0
SENT_ROUNDS, STARTED_ROUNDS = 2, 30
"""Times AUDIT_INTERVAL without a word after which it is asked for a job that was sent, or started: nodes send an update
every 300 s."""
SECOND_COPY: dict[str, HeaderValue] = {"x-carod-requeued": True, "x-carod-parked-for": 1e9}
"""Marks that have a node ask who has a job, and run it at once if nobody does."""


class Dispatcher:
    """Serves the queue on one connection after the other: `serve` is called for each."""

    def __init__(self, queue: JobQueue, transport: Transport, endpoint: Endpoint) -> None:
        self._queue, self._transport = queue, transport
        self._config = queue.config
        self._user = endpoint.user
        self._asker = Asker(transport, self._config.carod_broker_queue)
        self.pool = Pool()
        self.online = asyncio.Event()
        """Set while jobs can be sent and nodes be asked."""
        self._group: asyncio.TaskGroup | None = None
        self._reports = 0
        self._reports_done = asyncio.Event()
        self._ping_now = asyncio.Event()
        self._confirmed: list[tuple[JobId, int]] = []

    # -- a connection ------------------------------------------------------------------------------------------

    async def declare(self) -> None:
        """Declare what the grid needs and this agent's own queue. Raises TransportError."""
        name = self._config.carod_broker_queue
        bindings = tuple(Address("amq.direct", key) for key in (name, f"{name}_key"))
        _, as_asked = await self._transport.declare(Queue(name, bindings=bindings))
        quorum = not as_asked and (await self._transport.declare(Queue(name, bindings=bindings, quorum=True)))[1]
        await self._transport.declare(Exchange(f"{name}.control", "topic"))
        await self._transport.declare(Queue(self._config.reply_queue, quorum=quorum))

    async def serve(self) -> None:
        """Send and receive until the connection ends. Raises ConnectionLost, or Refused if a namesake is there."""
        await self.declare()
        await self._asker.open()
        closed = asyncio.ensure_future(self._transport.wait_closed())
        closed.add_done_callback(lambda _: self._asker.lost())
        try:
            async with asyncio.TaskGroup() as self._group:
                await self._listen()
                self._write_confirmed()
                uncertain = await self._queue.uncertain()  # before anything is sent over this connection
                self.online.set()
                self._queue.room, self._queue.send = self._room, self._send_all
                works = (self._settle_uncertain(uncertain), self._pump(), self._keep_pinging(), self._keep_auditing())
                loops = [self._group.create_task(work) for work in works]
                try:
                    reason = await asyncio.shield(closed)
                finally:
                    self.online.clear()
                    self._queue.room = lambda: 0
                    for loop in loops:
                        loop.cancel()
        finally:
            self.online.clear()
            self._group = None
            closed.cancel()
        raise ConnectionLost(reason)

    async def _listen(self) -> None:
        control = f"{self._config.carod_broker_queue}.control"
        wanted = Queue("", False, exclusive=True, auto_delete=True, bindings=(Address(control, job_key("#")),))
        ear, _ = await self._transport.declare(wanted)
        await self._transport.consume(ear, self._on_control, credit=0, settled=True)
        try:
            await self._transport.consume(self._config.reply_queue, self._on_reply, credit=CREDIT, exclusive=True)
        except Refused as error:
            raise Refused(
                f"{error}; another agent of the name {self._config.name!r} seems to run: each needs its own --name"
            ) from None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._group is None:
            work.close()
            return
        try:
            self._group.create_task(self._unless_lost(work))
        except RuntimeError:  # the group ends: so did the connection
            work.close()

    async def _unless_lost(self, work: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(ConnectionLost):
            await work

    # -- out ---------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """How many jobs are to wait on the grid for a node."""
        return max(self._config.job_window_min, math.ceil(self._config.job_window * self.pool.capacity))

    def _room(self) -> int:
        totals, most = self._queue.totals, self._config.max_jobs_running
        room = self.window - totals.waiting_out_there
        return min(room, most - totals.out) if most else room

    async def _pump(self) -> None:
        while True:
            self._queue.wake.clear()
            while (room := self._room()) > 0:
                jobs = await self._queue.take(min(room, TAKE_AT_ONCE))
                self._send_all(jobs)
                if not jobs:
                    break
            await self._queue.wake.wait()

    def _send_all(self, jobs: list[JobRecord]) -> None:
        for job in jobs:
            self._spawn(self._send(job))

    async def _send(self, job: JobRecord, second: bool = False) -> None:
        """Send a job until the broker has it, or says that it never will. Raises ConnectionLost."""
        while True:
            try:
                body: Body = (
                    await self._queue.file_work(lambda: self._queue.spool.open_input(job.id)) if job.input else b""
                )
            except OSError as error:
                await self._queue.not_sendable(job.id, job.life, f"its input is gone: {error}")
                return
            try:
                await self._transport.publish(
                    self._message(job, body, second), Address("", self._config.carod_broker_queue)
                )
            except Busy:
                await asyncio.sleep(BUSY_PAUSE)
                continue
            except Unroutable:
                await self.declare()
                await asyncio.sleep(BUSY_PAUSE)
                continue
            except (TooLarge, Refused) as error:
                event(log, "job not sent", logging.WARNING, job=self._queue.name_of(job.id), reason=str(error))
                await self._queue.not_sendable(job.id, job.life, f"the broker does not take it: {error}")
                return
            finally:
                if not isinstance(body, bytes):
                    body.close()
            self._note_confirmed(job.id, job.life)
            return

    def _message(self, job: JobRecord, body: Body, second: bool) -> Message:
        headers = {**job.ad, "JobStatus": int(JobStatus.IDLE), KEEPER: self._config.name}
        if second:
            headers |= SECOND_COPY
        return Message(
            body, headers, self._queue.message_id(job.id, job.life), reply_to=self._config.reply_queue, durable=True,
            user_id=self._user,
        )  # fmt: skip

    def _note_confirmed(self, job: JobId, life: int) -> None:
        if not self._confirmed:
            asyncio.get_running_loop().call_later(CONFIRM_DELAY, self._write_confirmed)
        self._confirmed.append((job, life))

    def _write_confirmed(self) -> None:
        confirmed, self._confirmed = self._confirmed, []
        if confirmed:
            self._queue.confirmed(confirmed)

    # -- what may or may not have been sent --------------------------------------------------------------------

    async def _settle_uncertain(self, uncertain: list[JobRecord]) -> None:
        """Find out about the jobs that a crash or a lost connection left at INTENT."""
        if uncertain:
            with contextlib.suppress(ConnectionLost):
                await self._read_replies()
                await self._ask_and_send(uncertain)

    async def _ask_and_send(self, jobs: list[JobRecord]) -> None:
        """Send those of these jobs again that nobody has."""
        jobs = await self._still_uncertain(jobs)
        if jobs:
            event(log, "jobs that may have been sent", jobs=len(jobs))
        for start in range(0, len(jobs), ASKED_AT_ONCE):
            group = jobs[start : start + ASKED_AT_ONCE]
            nobodys = await self._that_nobody_has(group)
            for job in group:
                if job not in nobodys:
                    self._note_confirmed(job.id, job.life)
            await self._send_again(nobodys)

    async def _send_again(self, jobs: list[JobRecord]) -> None:
        for job in await self._still_uncertain(jobs):
            event(log, "job sent again", job=self._queue.name_of(job.id))
            await self._send(job, second=True)

    async def _still_uncertain(self, jobs: list[JobRecord]) -> list[JobRecord]:
        """Those of which nothing was heard, and that nobody held or removed, meanwhile."""
        lives = {(job.id, job.life) for job in jobs}
        return [job for job in await self._queue.uncertain() if (job.id, job.life) in lives] if lives else []

    async def _that_nobody_has(self, jobs: list[JobRecord]) -> list[JobRecord]:
        owners = await asyncio.gather(*(self._who_has(job) for job in jobs))
        return [job for job, owner in zip(jobs, owners, strict=True) if owner is None]

    async def _who_has(self, job: JobRecord) -> Answer | None:
        mid = self._queue.message_id(job.id, job.life)
        answers = await self._asker.ask(Request(Action.WHO_HAS, mid, node=self._me), job_key(mid), ASK_WAIT)
        return answers[0] if answers else None

    @property
    def _me(self) -> str:
        return f"agent {self._config.name}"

    async def _read_replies(self) -> None:
        """Until what lay in the reply queue when we came is written down."""
        depth = await self._transport.depth(self._config.reply_queue)
        wanted = self._reports + (depth or 0)
        while depth and self._reports < wanted:
            self._reports_done.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._reports_done.wait()
            depth = await self._transport.depth(self._config.reply_queue)
        await self._queue.store.write(lambda _: None)  # behind what was handed to the writer before

    async def _keep_auditing(self) -> None:
        """Ask for jobs of which nothing was heard for long, when nothing waits on the broker: it may have lost them."""
        while True:
            await asyncio.sleep(self._config.audit_interval)
            with contextlib.suppress(TransportError):
                await self._audit()

    async def _audit(self) -> None:
        silent = await self._silent()
        if not silent or not await self._nothing_waits():
            return
        lost = await self._that_nobody_has(silent[:ASKED_AT_ONCE])
        if not lost or not await self._nothing_waits():
            return
        for job in lost:
            event(log, "job is lost on the grid", logging.WARNING, job=self._queue.name_of(job.id))
            await self._queue.lost(job.id, job.life)
        await self._send_again(lost)

    async def _nothing_waits(self) -> bool:
        name = self._config.carod_broker_queue
        return not await self._transport.depth(name) and not await self._transport.depth(f"{name}.parked")

    async def _silent(self) -> list[JobRecord]:
        now = time.time()
        rounds = ((Stage.SENT, SENT_ROUNDS), (Stage.STARTED, STARTED_ROUNDS), (Stage.ENDING, STARTED_ROUNDS))
        found: list[JobRecord] = []
        for stage, count in rounds:
            before = int((now - count * self._config.audit_interval) * 1e9)
            found += await self._queue.store.read(lambda db, s=stage, b=before: lookup.silent(db, s, b))  # type: ignore[misc]
        return found

    # -- in ----------------------------------------------------------------------------------------------------

    def _on_reply(self, delivery: Delivery) -> None:
        message = delivery.message
        known = read_message_id(self._queue.grid, message.correlation_id or "")
        what = _report(message.headers.get("JobStatus"), message.headers.get("JobState"))
        if known is None or what is None:
            event(log, "message dropped", logging.WARNING, correlation=message.correlation_id, reason="no node's reply")
            self._settle(delivery)
            return
        body = message.body
        size = len(body) if isinstance(body, bytes) else body.seek(0, 2)
        error = isinstance(body, bytes) and body.startswith(b"ERROR:")
        if what not in FINAL or not size or error:
            self._note(delivery, *known, what, None, None)
        elif size <= INLINE:
            self._note(delivery, *known, what, size, body if isinstance(body, bytes) else _all_of(body))
        else:
            self._spawn(self._keep(delivery, *known, what))

    async def _keep(self, delivery: Delivery, job: JobId, life: int, what: Report) -> None:
        """Write a large result to the disk, then note its job's end."""
        body = delivery.message.body
        while True:
            try:
                size = await self._queue.file_work(lambda: self._queue.spool.keep_result(job, body))
                break
            except OSError as error:  # it stays with the broker until there is room
                event(log, "result not kept", logging.ERROR, job=self._queue.name_of(job), reason=str(error))
                await asyncio.sleep(BUSY_PAUSE)
        self._note(delivery, job, life, what, size, None)

    def _note(
        self, delivery: Delivery, job: JobId, life: int, what: Report, size: int | None, body: bytes | None
    ) -> None:
        headers = delivery.message.headers

        def done(reported: Reported) -> None:
            self._settle(delivery)
            if reported.order is not None:
                self._spawn(self._tell(job, life, reported.order))
            slot = str(headers.get("RemoteHost", "")).strip('"')
            if what is Report.RUNNING and slot and not self.pool.has_node_of(slot):
                self._ping_now.set()

        def failed(error: BaseException) -> None:
            event(log, "reply not written", logging.ERROR, job=self._queue.name_of(job), reason=str(error))
            again = lambda: self._note(delivery, job, life, what, size, body)  # noqa: E731
            asyncio.get_running_loop().call_later(BUSY_PAUSE, again)

        self._queue.report(job, life, what, _said(headers), size, body, done, failed)

    def _settle(self, delivery: Delivery) -> None:
        self._reports += 1
        self._reports_done.set()
        with contextlib.suppress(ConnectionLost):  # then it comes again, and says what is known
            if not delivery.settled:
                delivery.settle(Outcome.ACCEPTED)

    # -- orders ------------------------------------------------------------------------------------------------

    async def ask(self, job: JobId, life: int, request: Action, **arguments: Any) -> Answer | None:
        """What the node that has a job says to an order; None if none answers in CONTROL_TIMEOUT."""
        if not self.online.is_set():
            return None
        mid = self._queue.message_id(job, life)
        try:
            answers = await self._asker.ask(
                Request(request, mid, sender=self._user, **arguments), job_key(mid), self._config.control_timeout
            )
        except TransportError:
            return None
        return answers[0] if answers else None

    async def _tell(self, job: JobId, life: int, action: Action) -> None:
        """Have the node that has just taken a job end it: it is held or removed here."""
        reason = f"{action.value} was ordered while it waited for a node"
        said = await self.ask(job, life, action, reason=reason)
        node = said.node if said else None
        event(log, "told to end", job=self._queue.name_of(job), action=action.value, node=node or "none answers")

    def stray(self, job: JobId, life: int, action: Action) -> None:
        """Have whoever takes a job's message end it, or has just taken it; nobody answers."""
        self._spawn(self._tell_if_any(job, life, action))

    async def _tell_if_any(self, job: JobId, life: int, action: Action) -> None:
        mid = self._queue.message_id(job, life)
        reason = f"{action.value} was ordered while it waited for a node"
        request = Request(action, mid, reason=reason, sender=self._user, ahead=True)
        with contextlib.suppress(TransportError):
            to = Address(f"{self._config.carod_broker_queue}.control", job_key(mid))
            await self._transport.publish(request.to_message(), to, confirm=False)

    # -- nodes -------------------------------------------------------------------------------------------------

    async def _keep_pinging(self) -> None:
        while True:
            self._ping_now.clear()
            with contextlib.suppress(TransportError):
                answers = await self._asker.ask(Request(Action.PING), EVERYONE, PING_WAIT, sys.maxsize)
                changed = self.pool.update(answers)
                for name in changed:
                    self._queue.tell_changed("Slot", name)
                if changed:
                    self._queue.tell_changed("Collector", self._config.carod_broker_queue)
                    self._queue.wake.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.ping_interval):
                    await self._ping_now.wait()

    def _on_control(self, delivery: Delivery) -> None:
        """Nodes ask who has a job: of one that is over, or not to be run now, we say that it is done."""
        message = delivery.message
        try:
            request = Request.from_message(message)
        except BadRequest:
            return
        known = read_message_id(self._queue.grid, request.job)
        if request.action is Action.WHO_HAS and known is not None and request.node != self._me and message.reply_to:
            self._spawn(self._say_if_done(message, *known))

    async def _say_if_done(self, message: Message, job_id: JobId, life: int) -> None:
        job = await self._queue.store.read(lambda db: records.load(db, job_id))
        held = job is not None and job.status is JobStatus.HELD and job.stage is Stage.WAITING
        if job is None or life < job.life or job.status in OVER or held:
            with contextlib.suppress(TransportError):
                said = answer(message, self._me, headers={"State": "done"})
                await self._transport.publish(
                    said, await self._transport.resolve(message.reply_to or ""), confirm=False
                )


def _report(status: HeaderValue, state: HeaderValue) -> Report | None:
    """What a reply's JobStatus and JobState say; None if they are no node's."""
    if not isinstance(status, int) or isinstance(status, bool) or not 1 <= status <= max(JobStatus):
        return None
    return report(JobStatus(status), None if state is None else str(state).strip('"'))


def _said(headers: Any) -> Ad:
    """Of a reply what is a node's to say."""
    return {
        name: value
        for name, value in headers.items()
        if isinstance(value, bool | int | float | str) and name.lower() in NODES_OWN
    }


def _all_of(body: Any) -> bytes:
    body.seek(0)
    data: bytes = body.read()
    return data
