"""The daemon: it is connected or about to be, takes jobs from the queue, hands each to a slot, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import logging
import os
import pwd
import random
import shutil
import signal
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import BinaryIO

from carod.amqp import (
    Address,
    ConnectionLost,
    Delivery,
    Endpoint,
    Message,
    Outcome,
    Queue,
    Refused,
    TooLarge,
    TransportError,
    Unroutable,
    open_transport,
)
from carod.config import Config, ConfigError
from carod.job import Job, JobError, JobStatus, NoMessageId, discarded
from carod.log import event
from carod.node import systemd
from carod.node.intake import Credits, Refusals
from carod.node.metrics import Metrics
from carod.node.process import Nursery, Spawner, SpawnerError
from carod.node.slot import REFRESH, Slot
from carod.node.starter import End, Starter

log = logging.getLogger("carod.node")
REMEMBERED = 10_000
"""Jobs whose reply was confirmed after their delivery had gone stale: the broker brings those again."""
BACKOFF_FIRST = 0.5


class Node:
    """An execute node; `run` is its whole life. Raises ConfigError or Refused for what only a person can mend."""

    def __init__(self, config: Config, macros: Mapping[str, str]) -> None:
        self._lock, name = _claim_name(config)
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
        self.queue, self.dead = config.carod_broker_queue, f"{config.carod_broker_queue}.dead"
        self.directory = f"{config.execute_directory}/{name}"
        _empty(self.directory)
        self.slots = [Slot(number, config, macros, self.directory) for number in range(1, config.slots + 1)]
        self.metrics = Metrics(config.slots)
        self.running: dict[str, Starter] = {}
        self._free = list(reversed(self.slots))
        self._done: OrderedDict[str, None] = OrderedDict()
        self._spawners: dict[tuple[str, str], Spawner] = {}
        self._online = asyncio.Event()
        self._stopping = asyncio.Event()
        self._fast = asyncio.Event()
        self._idle = asyncio.Event()
        self._credits = Credits(self.transport, self.queue, self._on_delivery)
        self._refusals = Refusals(config.reject_delay_min, config.reject_delay_max, 2 * config.slots)

    # -- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the queue until a signal says to stop."""
        self._nursery = Nursery()
        try:
            await self._start_spawners()
            if self.config.metrics_address:
                port = self.metrics.serve(self.config.metrics_address, self.running)
                event(log, "metrics", port=port)
            async with asyncio.TaskGroup() as self._tasks:
                self._handle_signals()
                keepers = [self._tasks.create_task(task) for task in (self._keep_connected(), self._keep_fresh())]
                await self._stopping.wait()
                await self._wind_down()
                for keeper in keepers:
                    keeper.cancel()
        finally:
            await self.transport.close()
            for spawner in self._spawners.values():
                spawner.close()
            self._nursery.close()
            self.metrics.close()
            _empty(self.directory)
            self._lock.close()
        event(log, "stopped", node=self.config.node_name)

    async def _start_spawners(self) -> None:
        """One for each slot before the first job comes: forking costs what a short job takes."""
        for slot in self.slots:
            await self.spawner(slot, self.config.slot_user)

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
        with contextlib.suppress(TransportError):
            await self._credits.adjust(0)
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
            self._online.clear()
            self._credits.lost()
            pause = random.uniform(delay / 2, delay)
            event(log, "broker away", logging.WARNING, reason=why, retry_in=f"{pause:.1f}s")
            await asyncio.sleep(pause)
            delay = min(delay * 2, self.config.reconnect_delay_max)

    async def _go_online(self) -> None:
        await self.transport.connect()
        queue = self.queue
        bindings = (Address("amq.direct", queue), Address("amq.direct", f"{queue}_key"))
        for wanted in (Queue(queue, bindings=bindings), Queue(self.dead)):
            _, as_asked = await self.transport.declare(wanted)
            if not as_asked:
                event(
                    log,
                    "queue exists with other arguments and is used as it is",
                    logging.WARNING,
                    queue=wanted.name,
                )
        self._online.set()
        await self._credits.adjust(len(self.slots))
        event(
            log, "ready", node=self.config.node_name, broker=self.transport_url, queue=queue, slots=len(self.slots),
            running=len(self.running),
        )  # fmt: skip
        systemd.notify("READY=1", f"STATUS=serving {queue} with {len(self.slots)} slots")

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
        await self.transport.declare(Queue(self.queue))
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
            job = Job.from_message(message)
        except JobError as error:
            self._tasks.create_task(self._turn_away(delivery, error))
            return
        known = self.running.get(job.id)
        if known is not None:
            self._on_known(delivery, known)
        elif delivery.redelivered and job.id in self._done:
            delivery.settle(Outcome.ACCEPTED)
        elif self._stopping.is_set():
            delivery.settle(Outcome.RELEASED)
        else:
            self._offer(delivery, job)

    def _on_known(self, delivery: Delivery, known: Starter) -> None:
        """A job that runs here already: the broker brings it again, or a client used a message id twice."""
        if delivery.redelivered:
            known.adopt(delivery)
            return
        reason = f"message id {known.job.id!r} is in use by a running job; each job needs one of its own"
        self._tasks.create_task(self._bury_and_settle(delivery, reason))

    def _offer(self, delivery: Delivery, job: Job) -> None:
        """Start the job on the first free slot that takes it."""
        refusal = ""
        for slot in reversed(self._free):
            refusal = "" if job.problem else slot.refusal(job.ad)
            if not refusal:
                self._free.remove(slot)
                self._tasks.create_task(self._run(slot, delivery, job))
                return
        if self._free:
            self._tasks.create_task(self._refuse(delivery, job, refusal))
        else:  # a credit too many, as after a reconnect while jobs run
            delivery.settle(Outcome.RELEASED)
            self._tasks.create_task(self._adjust())

    async def _run(self, slot: Slot, delivery: Delivery, job: Job) -> None:
        starter = Starter(self, slot, delivery, job)
        self.running[job.id] = starter
        try:
            await starter.run()
        except Exception:  # a defect here must not take the other jobs with it
            log.exception("job %s failed inside the node", job.id)
            await self._bury_and_settle(starter.delivery, "the node failed while it ran this job; its log says how")
        finally:
            if starter.stale:
                self._done[job.id] = None
                if len(self._done) > REMEMBERED:
                    self._done.popitem(last=False)
            del self.running[job.id]
            self._free.append(slot)
            self._idle.set()
        if self._credits.wanted < len(self.slots):
            await self._adjust()

    async def _refuse(self, delivery: Delivery, job: Job, reason: str) -> None:
        job.ad["LastRejMatchReason"] = reason
        delay = self._refusals.delay(job.id)
        event(log, "job rejected", job=job.id, node=self.config.node_name, reason=reason, kept=f"{delay:g}s")
        await self.post(job.reply(JobStatus.IDLE), job.reply_to)
        keeping = asyncio.ensure_future(self._refusals.keep(delivery, job, delay))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.sleep(0)
        await self._adjust()
        await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        self._idle.set()
        await self._adjust()

    async def _adjust(self) -> None:
        """As many consumers as slots without a live delivery need, and one for each refused job that is kept."""
        if self._stopping.is_set():
            return
        wanted = len(self.slots) + (0 if self._refusals.full else self._refusals.kept)
        with contextlib.suppress(TransportError):
            await self._credits.adjust(wanted)

    async def _turn_away(self, delivery: Delivery, error: JobError) -> None:
        """A message that is no job: answered once, or kept where an operator finds it."""
        message = delivery.message
        event(log, "message refused", logging.ERROR, reason=str(error), node=self.config.node_name)
        if isinstance(error, NoMessageId) and message.reply_to:
            await self.deliver(discarded(message, error), message.reply_to)
            self._settle(delivery)
        else:
            await self._bury_and_settle(delivery, str(error))

    async def _bury_and_settle(self, delivery: Delivery, reason: str) -> None:
        await self.bury(delivery.message, reason)
        self._settle(delivery)

    def _settle(self, delivery: Delivery) -> None:
        with contextlib.suppress(ConnectionLost):
            delivery.settle(Outcome.ACCEPTED)

    # -- what starters need (`starter.Office`) -----------------------------------------------------------------

    async def post(self, message: Message, reply_to: str) -> None:
        try:
            await self.transport.publish(message, await self.transport.resolve(reply_to), confirm=False)
        except TooLarge as error:
            event(log, "status message dropped", logging.WARNING, job=message.correlation_id, reason=str(error))
        except TransportError as error:
            event(log, "status message dropped", logging.DEBUG, job=message.correlation_id, reason=str(error))

    async def deliver(self, message: Message, reply_to: str) -> None:
        while True:
            try:
                await self.transport.publish(message, await self.transport.resolve(reply_to))
                return
            except ConnectionLost:
                await self._back_online()
            except Unroutable as error:
                kept = dataclasses.replace(message, reply_to=reply_to)
                await self.bury(kept, f"reply_to {reply_to[:200]!r} can't be routed, the client is gone: {error}")
                return

    async def bury(self, message: Message, reason: str) -> None:
        event(
            log,
            "to the dead-letter queue",
            logging.WARNING,
            job=message.message_id,
            queue=self.dead,
            reason=reason,
        )
        headers = {**message.headers, "DeadReason": reason[:4096]}
        copy = dataclasses.replace(message, headers=headers, user_id=None, expiration=None, durable=True)
        while True:
            try:
                await self.transport.publish(copy, Address("", self.dead))
                return
            except ConnectionLost:
                await self._back_online()
            except TooLarge:
                copy = dataclasses.replace(copy, headers={"DeadReason": reason[:4096], "AdTooLarge": True})
            except Unroutable:
                await self.transport.declare(Queue(self.dead))
            except Refused as error:
                event(
                    log,
                    "lost",
                    logging.ERROR,
                    job=message.message_id,
                    reason=f"{self.dead} refused it: {error}",
                )
                return

    async def _back_online(self) -> None:
        await asyncio.sleep(0.05)  # whoever watches the connection may not know yet
        await self._online.wait()

    async def spawner(self, slot: Slot, user: str) -> Spawner:
        user = user if os.geteuid() == 0 else ""
        key = (slot.name, user)
        spawner = self._spawners.get(key)
        if spawner is None or not spawner.alive:
            directory = _user_directory(f"{self.directory}/slot{slot.ad['SlotID']}", user)
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


# -- names and directories ---------------------------------------------------------------------------------------


def _claim_name(config: Config) -> tuple[BinaryIO, str]:
    """The node's name, locked on this machine: two nodes must not share one, nor its directories.

    A name that nobody chose gets a number behind it when it is taken, so that starting a second node just works.
    """
    base = config.node_name
    for name in _names(base, chosen=bool(config.startd_name)):
        directory = f"{config.execute_directory}/{name}"
        try:
            os.makedirs(directory, 0o755, exist_ok=True)
            lock = open(f"{config.execute_directory}/{name}.lock", "wb")  # noqa: SIM115 - held for life
        except OSError as error:
            raise ConfigError(
                f"EXECUTE = {config.execute_directory!r}: {error.strerror}; name a directory that can be written"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return lock, name
    raise ConfigError(f"STARTD_NAME: a node named {base!r} runs on this machine already; choose another --name")


def _names(base: str, chosen: bool) -> Iterator[str]:
    yield base
    if not chosen:
        yield from (f"{base}-{number}" for number in range(2, 100))


def _empty(directory: str) -> None:
    """Remove what an earlier life of this node left in its directory."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            shutil.rmtree(f"{directory}/{name}", ignore_errors=True)


def _user_directory(base: str, user: str) -> str:
    """A slot's directory for one user's jobs; nobody else may look into it."""
    directory = f"{base}-{user}" if user else base
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        if user:
            account = pwd.getpwnam(user)
            os.chown(directory, account.pw_uid, account.pw_gid)
    except KeyError:
        raise SpawnerError(f"user {user!r} does not exist on this node") from None
    except OSError as error:
        raise SpawnerError(f"EXECUTE: {directory!r}: {error.strerror}") from None
    return directory
