"""The daemon: a job queue, served to consoles and to the grid on one broker connection after the other."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import signal
from typing import BinaryIO

from carod.amqp import ConnectionLost, Endpoint, Refused, TransportError, open_transport, with_protocol
from carod.config import ConfigError
from carod.log import event
from carod.qmf import AgentName
from qmf_agent.bus import Bus
from qmf_agent.config import AgentConfig
from qmf_agent.dispatch import Dispatcher
from qmf_agent.jobqueue.queue import JobQueue
from qmf_agent.jobqueue.store import StoreError
from qmf_agent.methods import Grid
from qmf_agent.objects import Objects
from qmf_agent.userlogs import UserLogs

log = logging.getLogger("carod.agent")
BACKOFF_FIRST = 0.5
HOUSE_KEEPING = 60.0
"""Seconds between two looks for what can be forgotten."""
VENDOR, PRODUCT = "com.redhat.grid", "scheduler"


class Agent:
    """A management agent; `run` is its whole life. Raises ConfigError or Refused for what only a person can mend."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._endpoint = Endpoint(
            with_protocol(config.carod_broker_url, config.carod_broker_protocol),
            name=f"qmf-agent {config.name}",
            heartbeat=config.carod_broker_heartbeat,
            ca_file=config.carod_broker_ca_file,
            cert_file=config.carod_broker_cert_file,
            key_file=config.carod_broker_key_file,
        )
        self._transport = open_transport(self._endpoint)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal says to stop."""
        lock = claim_spool(self._config)
        try:
            queue = await JobQueue.open(self._config)
        except (StoreError, OSError) as error:
            lock.close()
            raise ConfigError(f"SPOOL: {error}") from None
        self._queue = queue
        self._user_logs = UserLogs(queue)
        self._dispatcher = Dispatcher(queue, self._transport, self._endpoint)
        grid = Grid(queue, self._dispatcher, Objects(queue, self._dispatcher, self._endpoint.safe_url))
        self._bus = Bus(
            grid,
            AgentName(VENDOR, PRODUCT, self._config.name),
            queue=self._config.carod_broker_queue,
            private=(self._config.reply_queue,),
            heartbeat=self._config.qmf_heartbeat_interval,
            publish_interval=self._config.qmf_publish_interval,
        )
        self._say_who_may()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._handle_signals()
                work = (self._keep_connected(), self._keep_house(), self._user_logs.run())
                keepers = [tasks.create_task(task) for task in work]
                await self._stopping.wait()
                for keeper in keepers:
                    keeper.cancel()
        finally:
            await self._transport.close()
            await self._user_logs.close()
            await queue.close()
            lock.close()
        event(log, "stopped", agent=self._config.name)

    def _say_who_may(self) -> None:
        """Whose word counts for which jobs, as nobody can see from outside."""
        event(
            log, "owners", validated="jobs whose submitter the broker names are that user's",
            others="jobs without a user id are one owner's: anybody's", super_users=self._config.queue_super_users,
            all_users_trusted=self._config.queue_all_users_trusted,
        )  # fmt: skip

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._on_stop, number)

    def _on_stop(self, number: int) -> None:
        event(log, "stopping", signal=signal.Signals(number).name)
        self._stopping.set()

    async def _keep_connected(self) -> None:
        """Connect, again and again, with growing and jittered pauses. Refused at the very first try is final."""
        delay, first = BACKOFF_FIRST, True
        while True:
            try:
                await self._transport.connect()
                delay = BACKOFF_FIRST
                why = await self._serve()
                first = False
            except Refused as error:
                if first:
                    raise
                why = str(error)
            except TransportError as error:
                why = str(error)
            await self._transport.close()
            pause = random.uniform(delay / 2, delay)
            event(log, "broker away", logging.WARNING, reason=why, retry_in=f"{pause:.1f}s")
            await asyncio.sleep(pause)
            delay = min(delay * 2, self._config.reconnect_delay_max)

    async def _serve(self) -> str:
        """Until the connection ends: why it did. Raises Refused."""
        why: list[str] = []
        refused: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._dispatcher.serve())
                tasks.create_task(self._bus.run(self._transport))
                tasks.create_task(self._say_ready())
        except* ConnectionLost as lost:
            why = [str(error) for error in lost.exceptions]
        except* Refused as group:
            refused = list(group.exceptions)
        if refused:
            raise Refused(str(refused[0]))
        return why[0] if why else "the connection ended"

    async def _say_ready(self) -> None:
        await self._dispatcher.online.wait()
        await self._bus.serving.wait()
        totals = self._queue.totals
        event(
            log, "ready", agent=str(self._bus.name), broker=self._endpoint.safe_url,
            queue=self._config.carod_broker_queue, spool=self._config.directory, jobs=totals.in_queue,
        )  # fmt: skip

    async def _keep_house(self) -> None:
        await self._queue.remove_strays()
        while True:
            try:
                await self._queue.forget()
            except Exception as error:  # a full disk, say: the queue goes on without
                event(log, "nothing forgotten", logging.ERROR, reason=str(error))
            await asyncio.sleep(HOUSE_KEEPING)


def claim_spool(config: AgentConfig) -> BinaryIO:
    """The agent's directory, made and locked: two agents must not share one. Raises ConfigError."""
    directory = config.directory
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        lock = open(f"{directory}/lock", "wb")
    except OSError as error:
        raise ConfigError(f"SPOOL = {directory!r}: {error.strerror}; name a directory that can be written") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"SCHEDD_NAME: an agent named {config.name!r} runs on this machine already; choose another --name"
        ) from None
    return lock
