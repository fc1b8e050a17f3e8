"""The daemon: it is connected or about to be, takes jobs from the queue, hands each to a slot, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from carod.amqp import (
    ConnectionLost,
    Delivery,
    Endpoint,
    Outcome,
    Refused,
    Subscription,
    TransportError,
    open_transport,
)
from carod.config import Config, ConfigError
from carod.control import Asker
from carod.job import Job, JobError, JobStatus, NoMessageId, discarded
from carod.log import event
from carod.node import systemd
from carod.node.claims import Claims
from carod.node.control import Control
from carod.node.custody import ASK, LAST_ASK, Custody, declare, is_second, node_queue
from carod.node.grounds import claim_name, empty, user_directory
from carod.node.intake import Credits, Refusals
from carod.node.journal import Journal, sweep
from carod.node.metrics import Metrics
from carod.node.post import Post
from carod.node.reunion import Reunion
from carod.starter import cgroup
from carod.starter.cgroup import SlotGroups
from carod.starter.process import Nursery, Spawner, SpawnerError
from carod.starter.slot import REFRESH, Slot, State
from carod.starter.starter import End, Starter

log = logging.getLogger("carod.node")
BACKOFF_FIRST = 0.5
ACKS_UNDER_WAY = 16
"""Jobs of a slot that were done and settled last, of which a broker may have missed that when its connection broke."""
BUSY_PAUSE = 1.0
"""Seconds before a broker that could not do something is asked for it again."""


class Node:
    """An execute node; `run` is its whole life. Raises ConfigError or Refused for what only a person can mend."""

    def __init__(self, config: Config, macros: Mapping[str, str]) -> None:
        self._lock, name = claim_name(config)
        self.config = config = dataclasses.replace(config, startd_name=name)
        self.transport = open_transport(
            Endpoint(
                config.carod_broker_url,
                name=f"carod {name}",
                heartbeat=config.carod_broker_heartbeat,
                ca_file=config.carod_broker_ca_file,
                cert_file=config.carod_broker_cert_file,
                key_file=config.carod_broker_key_file,
            )
        )
        self._user = Endpoint(config.carod_broker_url, cert_file=config.carod_broker_cert_file).user
        self.queue = config.carod_broker_queue
        self.directory = f"{config.execute_directory}/{name}"
        self.slots = [Slot(number, config, macros, self.directory) for number in range(1, config.slots + 1)]
        self._groups = SlotGroups(cgroup.find(config.base_cgroup), name)
        self.metrics = Metrics(config.slots)
        self.running: dict[str, Starter] = {}
        self._free = list(reversed(self.slots))
        self._judging = self._connections = 0
        self.draining = False
        self._offline_since = time.monotonic()
        self._own: Subscription | None = None
        self._listening = True
        self._spawners: dict[tuple[str, str], Spawner] = {}
        self._online = asyncio.Event()
        self._stopping = asyncio.Event()
        self._fast = asyncio.Event()
        self._idle = asyncio.Event()
        self.journal = Journal(f"{self.directory}.journal")
        self.post = Post(self.transport, self.queue, name, self.journal, self._online)
        self._asker = Asker(self.transport, self.queue)
        self._custody = Custody(self.transport, config, self._asker, self.journal.holds)
        self._reunion = Reunion(self._custody, self._asker, self.post, self.journal, self._online, name, self._user)
        self._control = Control(self.transport, self)
        self._credits = Credits(self.transport, self.queue, self._on_delivery, self._wanted)
        self._refusals = Refusals(config.reject_delay_min, config.reject_delay_max, 2 * config.slots)

    # -- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the queue until a signal says to stop."""
        self._groups.sweep()
        self._nursery = Nursery(self._groups)
        try:
            if killed := sweep(self.journal.left_running, self.directory):
                event(log, "killed what an earlier life left running", logging.WARNING, processes=killed)
            empty(self.directory)
            await self._start_spawners()
            if self.config.metrics_address:
                port = self.metrics.serve(self.config.metrics_address, self.running)
                event(log, "metrics", port=port)
            async with asyncio.TaskGroup() as keeping:
                left = self._reunion.send_what_is_left(self.running)
                keepers = [keeping.create_task(task) for task in (self._keep_connected(), self._keep_fresh(), left)]
                async with asyncio.TaskGroup() as self._tasks:  # ends before what it needs: the connection
                    self._handle_signals()
                    await self._stopping.wait()
                    await self._wind_down()
                    await self._stop_listening()
                self._tasks = keeping
                await _end(keepers)
        finally:
            await self._leave_broker()
            for spawner in self._spawners.values():
                spawner.close()
            self._nursery.close()
            self._groups.sweep()
            self.metrics.close()
            empty(self.directory)
            self.journal.close()
            self._lock.close()
        event(log, "stopped", node=self.config.node_name)

    async def _start_spawners(self) -> None:
        """One for each slot before the first job comes: forking costs what a short job takes."""
        for slot in self.slots:
            try:
                await self.spawner(slot, self.config.slot_user)
            except SpawnerError as error:
                raise ConfigError(str(error)) from None

    async def _stop_listening(self) -> None:
        """Take nothing more from the node's own queue, which goes if nothing of it is with us or waits in it."""
        self._listening = False
        own, self._own = self._own, None
        if own is None:
            return
        await own.cancel()
        if not own.unsettled:  # a queue is empty for RabbitMQ when all of it is unacknowledged
            with contextlib.suppress(TransportError):
                await self.transport.delete(node_queue(self.queue, self.config.node_name), if_empty=True)

    async def _leave_broker(self) -> None:
        await self.transport.close()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGQUIT, self._on_stop, signal.SIGQUIT)

    def _on_stop(self, number: int) -> None:
        if number == signal.SIGQUIT or self._stopping.is_set():
            self._fast.set()
        event(
            log,
            "stopping",
            signal=signal.Signals(number).name,
            running=len(self.running),
            fast=self._fast.is_set(),
        )
        self._stopping.set()

    async def _wind_down(self) -> None:
        """Take no more; let the running jobs end, then evict them."""
        systemd.notify("STOPPING=1")
        await self._adjust()
        if self.running and not self._fast.is_set():
            waits = [asyncio.ensure_future(self._until_idle()), asyncio.ensure_future(self._fast.wait())]
            await asyncio.wait(
                waits, timeout=self.config.shutdown_graceful_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            for wait in waits:
                wait.cancel()
        for starter in list(self.running.values()):
            starter.end(End.EVICTED, "the node stops", fast=self._fast.is_set())
        await self._until_idle()

    async def _until_idle(self) -> None:
        while self.running or self._refusals.kept:
            self._idle.clear()
            await self._idle.wait()

    def _wanted(self) -> int:
        """How many further jobs may come: one for each free slot, none while a bound or an order says so."""
        if self._stopping.is_set() or self.draining or self._refusals.full or not self._online.is_set():
            return 0
        return max(0, len(self._free) - self._judging)

    # -- the broker --------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        """Connect, again and again, with growing and jittered pauses. Refused at the very first try is final."""
        delay, first = BACKOFF_FIRST, True
        while True:
            try:
                await self._go_online()
                delay, first = BACKOFF_FIRST, False
                why = await self._watch_connection()
            except Refused:
                if first:
                    raise
                why = "refused"
            except TransportError as error:
                why = str(error)
            if self._online.is_set():
                self._offline_since = self.transport.heard
            self._online.clear()
            self._credits.lost()
            self._asker.lost()
            self._own = None
            await self.transport.close()  # what is left of it, or its consumers would go on
            if self.running or self.journal.left:  # started elsewhere if we are not back within ADOPTION_WAIT
                delay = min(delay, max(BACKOFF_FIRST, self.config.adoption_wait / 3))
            pause = random.uniform(delay / 2, delay)
            event(log, "broker away", logging.WARNING, reason=why, retry_in=f"{pause:.1f}s")
            await asyncio.sleep(pause)
            delay = min(delay * 2, self.config.reconnect_delay_max)

    async def _go_online(self) -> None:
        await self.transport.connect()
        if self._connections:
            self._custody.connected(time.monotonic() - self._offline_since)
        self._connections += 1
        asyncio.ensure_future(self.transport.wait_closed()).add_done_callback(lambda _: self._asker.lost())
        await declare(self.transport, self.config)
        await self._control.open()
        await self._asker.open()
        await self._reunion.introduce(ACKS_UNDER_WAY * len(self.slots))
        await self._listen()
        await self._reunion.compare_starts(list(self.running.values()))
        self._online.set()
        await self._credits.adjust()
        event(
            log, "ready", node=self.config.node_name, broker=self.transport_url, queue=self.queue,
            slots=len(self.slots), running=len(self.running),
        )  # fmt: skip
        systemd.notify("READY=1", f"STATUS=serving {self.queue} with {len(self.slots)} slots")

    async def _listen(self) -> None:
        """Consume the node's own queue: deliveries that other nodes hand over, and renewed ones."""

        def ended(_: str) -> None:
            self._own = None
            self._credits.ended.set()

        if not self._listening:  # it has stopped, and waits only for what is on its way
            return
        own = node_queue(self.queue, self.config.node_name)
        self._own = await self.transport.consume(own, self._on_delivery, credit=0, on_end=ended)

    @property
    def transport_url(self) -> str:
        return Endpoint(self.config.carod_broker_url).safe_url

    async def _watch_connection(self) -> str:
        """Until the connection ends; meanwhile replace consumers that the broker ended."""
        closed = asyncio.ensure_future(self.transport.wait_closed())
        try:
            while True:
                self._credits.ended.clear()
                ended = asyncio.ensure_future(self._credits.ended.wait())
                await asyncio.wait({closed, ended}, return_when=asyncio.FIRST_COMPLETED)
                ended.cancel()
                if closed.done():
                    return closed.result()
                await self._restore_consumers()
        finally:
            closed.cancel()

    async def _restore_consumers(self) -> None:
        await asyncio.sleep(BACKOFF_FIRST)
        await declare(self.transport, self.config)
        if self._own is None:
            await self._listen()
        await self._adjust()

    async def _keep_fresh(self) -> None:
        """Slot ads that change by themselves, and systemd's watchdog."""
        period = systemd.watchdog_period()
        while True:
            await asyncio.sleep(min(REFRESH, period or REFRESH))
            systemd.notify("WATCHDOG=1")
            for slot in self.slots:
                slot.refresh()

    # -- deliveries --------------------------------------------------------------------------------------------

    def _on_delivery(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            job = Job.from_message(message, self._user)
        except JobError as error:
            self._tasks.create_task(self._turn_away(delivery, error))
            return
        known = self.running.get(job.id)
        second = is_second(delivery)
        if second and (self.journal.is_done(job.key) if known is None else known.job.incarnation > job.incarnation):
            event(log, "job is done already", job=job.id)
            delivery.settle(Outcome.ACCEPTED)
        elif known is not None:
            self._on_known(delivery, known, second)
        elif second:
            self._tasks.create_task(self._judge(delivery, job))
        else:
            self._offer(delivery, job)

    def _on_known(self, delivery: Delivery, known: Starter, second: bool) -> None:
        """A job that runs here already: the broker brings it again, or a client used a message id twice."""
        if second:
            self._adopt(known, delivery)
            return
        reason = f"message id {known.job.id!r} is in use by a running job; each job needs one of its own"
        self._tasks.create_task(self._bury_and_settle(delivery, reason))

    def _adopt(self, starter: Starter, delivery: Delivery) -> None:
        """A new delivery of a job that runs here: the old one is settled, if its connection is still there."""
        earlier = starter.delivery
        starter.adopt(delivery)
        self._tasks.create_task(self._let_go_of(earlier))

    async def _let_go_of(self, delivery: Delivery) -> None:
        await self._credits.close_bearer(delivery)  # first, or it would bring a job for a slot that is taken
        self._settle(delivery)
        await self._adjust()

    async def _judge(self, delivery: Delivery, job: Job) -> None:
        """A delivery that comes a second time: run it only if nobody else has the job."""
        self._judging += 1
        try:
            may_run = await self._ask_for(delivery, job)
        finally:
            self._judging -= 1
        known = self.running.get(job.id)
        if known is not None and may_run:
            self._adopt(known, delivery)
        elif may_run and self.journal.is_done(job.key):  # we were told while we asked
            self._settle(delivery)
        elif may_run:
            self._offer(delivery, job)
        await self._adjust()

    async def _ask_for(self, delivery: Delivery, job: Job) -> bool:
        """Whether to run it; asked again while the broker is busy, and left to it when its connection is gone."""
        connection = self._connections
        while connection == self._connections:
            try:
                return await self._custody.may_run(delivery, job) and connection == self._connections
            except TransportError as error:
                event(log, "whose job it is stays open", logging.WARNING, job=job.id, reason=str(error))
                if self._stopping.is_set() or not self._online.is_set():
                    return False
            await asyncio.sleep(BUSY_PAUSE)
        return False

    def _offer(self, delivery: Delivery, job: Job) -> None:
        """Start the job on the first free slot that takes it."""
        refusal = "" if self._free and not self._stopping.is_set() else "no slot is free"
        for slot in reversed(self._free if not refusal else ()):
            refusal = "" if job.problem else slot.refusal(job.ad)
            if not refusal:
                self._free.remove(slot)
                starter = self.running[job.id] = Starter(self, slot, delivery, job)
                if (order := self._control.ordered_ahead(job)) is not None:
                    starter.end(*order)
                self._tasks.create_task(self._run(starter))
                return
        if self._free and not self._stopping.is_set():
            self._tasks.create_task(self._refuse(delivery, job, refusal))
        else:  # it came while the last slot was taken, or while we stop
            self._tasks.create_task(self._hand_back(delivery, job))

    async def _run(self, starter: Starter) -> None:
        job, slot = starter.job, starter.slot
        try:
            await starter.run()
        except Exception:  # a defect here must not take the other jobs with it
            log.exception("job %s failed inside the node", job.id)
            await self._bury_and_settle(starter.delivery, "the node failed while it ran this job; its log says how")
        finally:
            if self.draining:
                slot.enter(State.DRAINED)
            self.let_go(starter)
            self._free.append(slot)
            self._idle.set()
        if not self._credits.balanced:
            await self._adjust()

    async def _refuse(self, delivery: Delivery, job: Job, reason: str) -> None:
        """Tell the owner, keep the job for a while, and hand it back."""
        job.ad["LastRejMatchReason"] = reason
        delay = self._refusals.delay(job.id)
        event(log, "job rejected", job=job.id, node=self.config.node_name, reason=reason, kept=f"{delay:g}s")
        self._refusals.kept += 1
        try:
            await self.post.say(job.reply(JobStatus.IDLE), job.reply_to)
            await self._adjust()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
        finally:
            self._refusals.kept -= 1
            self._idle.set()
        await self._hand_back(delivery, job, ASK)

    async def _hand_back(self, delivery: Delivery, job: Job, patience: float = LAST_ASK) -> None:
        await self._credits.close_bearer(delivery)  # first, or the same job comes back through it
        await self._credits.step_back()
        try:
            await self.post.requeue(delivery, job, patience)
            self._settle(delivery)
        except ConnectionLost:
            pass  # the broker has it back
        except TransportError as error:  # as with headers that leave no room for what a node adds
            event(log, "job handed back as it is", logging.WARNING, job=job.id, reason=str(error))
            with contextlib.suppress(ConnectionLost):
                delivery.settle(Outcome.RELEASED)
        await self._adjust()

    async def _adjust(self) -> None:
        """Have as many idle consumers as there are free slots."""
        if self._online.is_set():
            try:
                await self._credits.adjust()
            except TransportError as error:
                event(log, "consumers not adjusted", logging.WARNING, reason=str(error))

    def _adjust_soon(self) -> None:
        self._tasks.create_task(self._adjust())

    async def _turn_away(self, delivery: Delivery, error: JobError) -> None:
        """A message that is no job: answered once, or kept where an operator finds it."""
        message = delivery.message
        event(log, "message refused", logging.ERROR, reason=str(error), node=self.config.node_name)
        if isinstance(error, NoMessageId) and message.reply_to:
            try:
                await self.post.deliver(discarded(message, error), message.reply_to)
                self._settle(delivery)
                return
            except TransportError as refused:
                error = JobError(f"{error}; nor can it be answered: {refused}")
        await self._bury_and_settle(delivery, str(error))

    async def _bury_and_settle(self, delivery: Delivery, reason: str) -> None:
        await self.post.bury(delivery.message, reason)
        self._settle(delivery)

    def _settle(self, delivery: Delivery) -> None:
        with contextlib.suppress(ConnectionLost):
            if not delivery.settled:
                delivery.settle(Outcome.ACCEPTED)

    # -- what control needs (`control.Governed`) ---------------------------------------------------------------

    def is_done(self, key: str) -> bool:
        return self.journal.is_done(key)

    @property
    def claims(self) -> Claims:
        return self._custody.claims

    def note_done(self, key: str, *, again: bool) -> None:
        self.journal.told(key)
        if again:
            self.journal.doubt(key)

    async def meet(self, node: str) -> None:
        """Another node has connected."""
        await self._reunion.answer_introduction(node)

    def holds(self, key: str) -> bool:
        return self.journal.holds(key)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    async def drain(self) -> None:
        """Take no more jobs; those that run go on."""
        await self._set_draining(True)

    async def resume(self) -> None:
        """Take jobs again."""
        await self._set_draining(False)

    async def _set_draining(self, draining: bool) -> None:
        self.draining = draining
        for slot in self._free:
            slot.enter(State.DRAINED if draining else State.UNCLAIMED)
        await self._adjust()

    # -- what starters need (`starter.Office`) -----------------------------------------------------------------

    def announce(self, job: Job) -> None:
        self._tasks.create_task(self._reunion.tell_done(job.key))

    async def hand_over(self, delivery: Delivery, job: Job, node: str) -> None:
        await self._custody.hand_over(delivery, job, node)

    async def renew(self, starter: Starter) -> None:
        # Shielded: a job that ends meanwhile must not leave half of it undone.
        await asyncio.shield(self._tasks.create_task(self._renew(starter.delivery, starter.job)))

    async def _renew(self, delivery: Delivery, job: Job) -> None:
        try:
            await self._custody.renew(delivery, job, lambda: self._credits.close_bearer(delivery))
            event(log, "delivery renewed", job=job.id)
        except TransportError as error:  # the next try is early enough
            event(log, "delivery not renewed", logging.WARNING, job=job.id, reason=str(error))
        await self._adjust()

    def let_go(self, starter: Starter) -> None:
        if self.running.get(starter.job.id) is starter:
            del self.running[starter.job.id]

    def seconds_offline(self) -> float:
        return 0.0 if self._online.is_set() else time.monotonic() - self._offline_since

    async def spawner(self, slot: Slot, user: str) -> Spawner:
        user = user if os.geteuid() == 0 else ""
        key = (slot.name, user)
        spawner = self._spawners.get(key)
        if spawner is None or not spawner.alive:
            directory = user_directory(f"{self.directory}/slot{slot.ad['SlotID']}", user)
            spawner = Spawner(self._nursery, f"slot{slot.ad['SlotID']}", user, directory)
            await spawner.ready()
            self._spawners[key] = spawner
        return spawner

    def observe(self, starter: Starter, end: End) -> None:
        self.metrics.observe(starter, end)

    def later(self, coroutine: Callable[[], Awaitable[None]], delay: float) -> Callable[[], None]:
        task: asyncio.Task[None] | None = None

        async def run() -> None:
            await coroutine()

        def start() -> None:
            nonlocal task
            task = self._tasks.create_task(run())

        timer = asyncio.get_running_loop().call_later(delay, start)

        def cancel() -> None:
            timer.cancel()
            if task is not None:
                task.cancel()

        return cancel


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: what they wait for in a library may swallow a cancellation."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)
