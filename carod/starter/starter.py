"""One job's life, from accept to settle.

                     a delivery, and a slot that takes it (intake.py)
                                |
                           [ accepted ] -- the ad can't be read, or not be done --> UNFIT ---> settled, to grid.dead
                                |      `-- its expiry has passed -----------------> EXPIRED -> settled
                                |
                     "JobStatus 2" to reply_to
                                |
      Suspend, Continue -- [ running ] -- updates, every now and then
                                |
          +---------------------+----------------------+-----------------------+
          | ends by itself      | removed              | held: policy, memory, | evicted: node stops,
          v                     v                      v time, can't start     v Vacate
        EXITED               REMOVED                  HELD                   EVICTED
          |                     |                      |                       |
          +--------- the final reply, a zip in it, confirmed by the broker ----+
          |                     |                      |                       |
       settled               settled          settled, to grid.dead     back to grid, settled

A node that was cut off may find that its job was started elsewhere meanwhile: the first start wins, the other one is
YIELDED, without a reply.

ENDINGS is that drawing's lower half as a table. The starter that accepted a delivery settles it, exactly once, after
the confirm; nothing else does. Sections named below are those of docs/reference/wire-contract.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from carod.amqp import Body, ConnectionLost, Delivery, Message, Outcome, Refused, TooLarge, TransportError, Unroutable
from carod.config import Config
from carod.job import HoldReasonCode, Job, JobError, JobStatus
from carod.log import event
from carod.starter.launch import CLEAN_PATH, Launch, read_launch
from carod.starter.process import Ended, Execution, JobFiles, Spawner, SpawnerError, Usage
from carod.starter.slot import Slot, State
from carod.starter.watch import Watch

log = logging.getLogger("carod.starter")


class End(Enum):
    """Ways in which a job's life on this node ends."""

    UNFIT = "unfit"
    EXPIRED = "expired"
    EXITED = "exited"
    REMOVED = "removed"
    HELD = "held"
    EVICTED = "evicted"
    YIELDED = "yielded"


@dataclass(frozen=True, slots=True)
class Ending:
    """What an end means (section 3): the final reply's JobStatus and JobState, and what becomes of the message."""

    status: JobStatus
    state: str | None
    buried: bool = False
    requeued: bool = False


ENDINGS = {
    End.UNFIT: Ending(JobStatus.HELD, None, buried=True),
    End.EXPIRED: Ending(JobStatus.REMOVED, None),
    End.EXITED: Ending(JobStatus.COMPLETED, "Exited"),
    End.REMOVED: Ending(JobStatus.REMOVED, "Exited"),
    End.HELD: Ending(JobStatus.HELD, "Exited", buried=True),
    End.EVICTED: Ending(JobStatus.IDLE, "Exited", requeued=True),
}


ORDERS = (End.EVICTED, End.HELD, End.REMOVED, End.YIELDED)
"""What a job can be told to end as; of two orders the one further right counts."""


class Post(Protocol):
    """How a starter's messages leave the node."""

    async def say(self, message: Message, reply_to: str) -> None:
        """Send a status message; one that can't be sent now is dropped, the next says more."""

    async def deliver(self, message: Message, reply_to: str, key: str = "", wanted: Callable[[], bool] = ...) -> bool:
        """Send a final reply until the broker has confirmed it, or has it in the dead-letter queue.

        With a job's `key` it is journaled until the job has `finished`. False if it is not `wanted` any more.
        Raises TooLarge or Refused when the broker won't have this one.
        """

    async def bury(self, message: Message, reason: str) -> None:
        """Keep a message in the dead-letter queue."""

    async def requeue(self, delivery: Delivery, job: Job) -> None:
        """Put a job back into the job queue, with its count of starts."""


class Journal(Protocol):
    """What a starter has written down."""

    def started(self, job: str, pid: int) -> None: ...
    def ended(self, job: str) -> None: ...
    def finished(self, job: str, key: str) -> None: ...


class Office(Protocol):
    """What a starter needs of its node."""

    config: Config

    @property
    def journal(self) -> Journal: ...

    @property
    def post(self) -> Post: ...

    def hand_over(self, delivery: Delivery, job: Job, node: str) -> Awaitable[None]:
        """Give the delivery to the node that has the job."""

    def renew(self, starter: Starter) -> Awaitable[None]:
        """Trade a running job's delivery for a fresh one."""

    def announce(self, job: Job) -> None:
        """Tell the other nodes that a job is done whose delivery could not be settled."""

    def let_go(self, starter: Starter) -> None:
        """From here on the job may come again, from anywhere."""

    def seconds_offline(self) -> float:
        """How long the node has been without its broker."""

    def spawner(self, slot: Slot, user: str) -> Awaitable[Spawner]:
        """The spawner that runs this user's jobs on this slot. Raises SpawnerError."""

    def observe(self, starter: Starter, end: End) -> None:
        """Count an end and its times."""

    def later(self, coroutine: Callable[[], Awaitable[None]], delay: float) -> Callable[[], None]:
        """Run a coroutine after `delay` seconds, as a task of the node's; what comes back cancels it."""


class Starter:
    """Runs one job on one slot; see the drawing above. `run` is its whole life."""

    def __init__(self, office: Office, slot: Slot, delivery: Delivery, job: Job) -> None:
        self.office, self.slot, self.delivery, self.job = office, slot, delivery, job
        self.accepted_at = time.time()
        self.started_at = self.ended_at = 0.0
        self.launch: Launch | None = None
        self.execution: Execution | None = None
        self._order: tuple[End, str, int] | None = None
        self._winner: str | None = None
        self._ended = False
        self._begun = time.monotonic()

    # -- the life ----------------------------------------------------------------------------------------------

    async def run(self) -> End:
        """From accept to the final reply's confirm; the delivery is settled when this comes back."""
        self.slot.enter(State.CLAIMED)
        try:
            end, body = await self._execute()
        finally:
            self.slot.enter(State.UNCLAIMED)
        self._ended = True
        if end is End.YIELDED or not await self._conclude(end, body):
            end = End.YIELDED
            await self._leave_to(self._winner or "")
        self.office.observe(self, end)
        return end

    async def _execute(self) -> tuple[End, Body]:
        job = self.job
        if job.expired:
            return self._because(End.EXPIRED, "the message's expiry had passed before a slot was free"), b""
        if self._winner is not None:
            return End.YIELDED, b""
        if self._order is not None:
            return self._because(*self._order), b""
        limit = _max_starts(job, self.office.config)
        if job.starts >= limit:
            reason = f"the job was started {job.starts} times without coming to an end, MaxJobStarts is {limit}"
            return self._because(End.UNFIT, reason, HoldReasonCode.JOB_POLICY), _error_body(reason)
        try:
            self.launch = launch = read_launch(job, self.slot.ad, self.office.config)
            spawner = await self.office.spawner(self.slot, launch.user)
        except JobError as error:
            return self._because(End.UNFIT, str(error), error.code), _error_body(str(error))
        except SpawnerError as error:
            code = HoldReasonCode.FAILED_TO_ACCESS_USER_ACCOUNT
            return self._because(End.UNFIT, str(error), code), _error_body(str(error))
        self._mark_started()
        headers = dict(self.slot.headers)
        self.execution = execution = spawner.run(self._files(launch, spawner), job.body)
        job.body = b""  # the spawner has it; the delivery keeps the message for the dead-letter queue
        await self.office.post.say(job.reply(JobStatus.RUNNING, slot=headers), job.reply_to)
        self._log("running", user=launch.user)
        if self._order is not None:
            self.end(self._order[0], self._order[1])
        execution.on_started = lambda pid: self.office.journal.started(job.id, pid)
        watch = Watch(self, launch, self.office.config, self._begun)
        cancel_watch = self.office.later(watch.keep, watch.first_look)
        cancel_renewal = self.office.later(self._renew, self.office.config.ack_timeout / 2)
        try:
            ended = await execution.ended
        except SpawnerError as error:
            return self._lost_spawner(error), b""
        finally:
            cancel_watch()
            cancel_renewal()
        self._mark_ended(ended)
        end = self._judge(ended)
        return end, _error_body(ended.failure) if end is End.UNFIT else ended.result

    def _mark_started(self) -> None:
        ad = self.job.ad
        self.started_at, self._begun = time.time(), time.monotonic()
        ad["NumJobStarts"] = self.job.starts + 1
        ad["JobStartDate"] = int(self.started_at)
        ad["RemoteHost"] = ad["WF_REQ_SLOT"] = self.slot.name
        ad["AMQPID"] = self.job.id
        ad["JobStatus"] = int(JobStatus.RUNNING)

    def _files(self, launch: Launch, spawner: Spawner) -> JobFiles:
        config, directory = self.office.config, spawner.job_directory
        env = {
            "PATH": CLEAN_PATH,
            "HOME": directory,
            "TMPDIR": directory,
            **launch.env,
            "_CONDOR_SCRATCH_DIR": directory,
            "_CONDOR_SLOT": self.slot.name,
            "_CONDOR_JOB_AD": f"{directory}/.job.ad",
            "_CONDOR_MACHINE_AD": f"{directory}/.machine.ad",
        }
        return JobFiles(
            directory, launch.cmd, launch.args, env, launch.iwd, launch.stdin, launch.stdout, launch.stderr,
            self.slot.cpus(launch.cpus) if launch.cpus else None, launch.outputs,
            self.job.ad.to_text(), self.slot.text,
            config.max_unpacked_size, config.max_unpacked_files, config.max_result_size,
        )  # fmt: skip

    def _mark_ended(self, ended: Ended) -> None:
        ad, now = self.job.ad, time.time()
        self.ended_at = now
        ad["CompletionDate"] = int(now)
        ad["JobDuration"] = round((ended.at or time.monotonic()) - self._begun, 6)
        ad["RemoteUserCpu"], ad["RemoteSysCpu"] = round(ended.user_cpu, 6), round(ended.system_cpu, 6)
        if self.execution is not None and self.execution.pid:
            ad["JobPid"] = self.execution.pid
        if ended.max_rss:
            ad["ResidentSetSize"] = ended.max_rss
        if ended.status is not None:
            code = os.waitstatus_to_exitcode(ended.status)
            ad["ExitBySignal"] = code < 0
            ad["ExitSignal" if code < 0 else "ExitCode"] = abs(code)
            ad["ExitReason"] = f"died on signal {-code} ({_signal_name(-code)})" if code < 0 else f"exited with {code}"
        if ended.refused:
            ad["TransferOutputRefused"] = ",".join(ended.refused)

    def _judge(self, ended: Ended) -> End:
        """Why it ended: an order given to the job outweighs how the process went."""
        if self._winner is not None:
            return End.YIELDED
        if self._order is not None and ended.status is not None:
            end, reason, code = self._order
            return self._because(end, reason, code)
        if ended.status is None:
            return self._because(End.UNFIT, ended.failure, ended.code)
        if ended.failure:
            return self._because(End.HELD, ended.failure, ended.code)
        if ended.left_out:
            limit = self.office.config.max_result_size
            reason = (
                f"the results are larger than MAX_RESULT_SIZE = {limit} bytes; left out: {', '.join(ended.left_out)}"
            )
            return self._because(End.HELD, reason, HoldReasonCode.MAX_TRANSFER_OUTPUT_SIZE_EXCEEDED)
        return End.EXITED

    def _lost_spawner(self, error: SpawnerError) -> End:
        """The slot's process died under the job: its own doing, most likely, so it is not run again."""
        self.ended_at = time.time()
        return self._because(End.HELD, f"{error}, and the job with it; a job must not kill what it did not start", 0)

    def _because(self, end: End, reason: str, code: int = HoldReasonCode.STARTD_HELD_JOB) -> End:
        ad = self.job.ad
        if ENDINGS[end].status is JobStatus.HELD:
            ad["HoldReason"] = reason
            ad["HoldReasonCode"] = int(code) or int(HoldReasonCode.STARTD_HELD_JOB)
        elif ENDINGS[end].status is JobStatus.REMOVED:
            ad["RemoveReason"] = reason
        else:
            ad["ExitReason"] = reason
        return end

    # -- its end -----------------------------------------------------------------------------------------------

    async def _leave_to(self, node: str) -> None:
        """The job runs elsewhere, and was first there: no reply, and the delivery goes where the job is."""
        self._log("yielded", node=node)
        self.office.journal.ended(self.job.id)
        if node and not self.delivery.settled:
            with contextlib.suppress(ConnectionLost, Unroutable):
                await self.office.hand_over(self.delivery, self.job, node)

    async def _conclude(self, end: End, body: Body) -> bool:
        """Final reply, confirmed; a copy to the dead-letter queue where the ending says so; settle.

        False if another node has answered: its reply is the final one.
        """
        ending, job, office = ENDINGS[end], self.job, self.office
        self._log(end.value, status=int(ending.status), **self._outcome())
        key = "" if ending.requeued else job.key
        reply = job.reply(ending.status, ending.state, body=body)
        try:
            if not await office.post.deliver(reply, job.reply_to, key, self._still_ours):
                return False
        except TooLarge:
            await self._deliver_less(job.short_reply(ending.status, ending.state, body=body))
        except Refused as error:
            ending = ENDINGS[End.HELD]
            self._because(
                End.HELD,
                f"{error}; a smaller MAX_RESULT_SIZE, or TransferOutput, keeps results below its limit",
            )
            await self._deliver_less(job.reply(ending.status, ending.state))
        finally:
            if not isinstance(body, bytes):
                body.close()
        if ending.buried and not job.keeper:
            message = self.delivery.message
            held = dataclasses.replace(message, headers={**message.headers, "NumJobStarts": job.starts})
            await office.post.bury(held, str(job.ad.get("HoldReason", end.value)))
        if ending.requeued:
            await self._requeue()
        else:
            office.journal.finished(job.id, job.key)
            if not self._settle():
                office.announce(job)
        return True

    def _still_ours(self) -> bool:
        return self._winner is None

    async def _requeue(self) -> None:
        """Back to the job queue. The job is no longer ours before it is there: it may come to us again at once."""
        self.office.journal.ended(self.job.id)
        self.office.let_go(self)
        try:
            await self.office.post.requeue(self.delivery, self.job)
        except ConnectionLost:
            return  # the broker has the delivery back, and offers it again
        except TransportError as error:  # as with headers that leave no room for what a node adds
            self._log("handed back as it is", level=logging.WARNING, reason=str(error))
            with contextlib.suppress(ConnectionLost):
                self.delivery.settle(Outcome.RELEASED)
            return
        with contextlib.suppress(ConnectionLost):  # then it comes again, too, as one of two copies; it is not done
            if not self.delivery.settled:
                self.delivery.settle(Outcome.ACCEPTED)

    async def _deliver_less(self, message: Message) -> None:
        try:
            await self.office.post.deliver(message, self.job.reply_to)
        except (TooLarge, Refused) as error:  # not even this: the address itself can't be one
            await self.office.post.bury(message, f"reply_to {self.job.reply_to[:200]!r}: {error}")

    def _settle(self) -> bool:
        """Settle the delivery. False if its connection is gone: then it comes again."""
        if self.delivery.settled:
            return True  # renewed a moment ago: the fresh one is on its way, and finds the job done
        try:
            self.delivery.settle(Outcome.ACCEPTED)
        except ConnectionLost:
            self._log("is settled when the broker brings it again", level=logging.WARNING)
            return False
        return True

    def adopt(self, delivery: Delivery) -> None:
        """Take a redelivery in the place of the delivery whose connection is gone."""
        self.delivery = delivery
        self._log("adopted")

    # -- while it runs -----------------------------------------------------------------------------------------

    def end(self, end: End, reason: str, *, code: int = HoldReasonCode.USER_REQUEST, fast: bool = False) -> bool:
        """Have the job end as `end`: its signal now, SIGKILL after its KillSigTimeout, or at once if `fast`.

        False if an order that weighs more has been given before.
        """
        if self._order is not None and ORDERS.index(end) < ORDERS.index(self._order[0]):
            return False
        self._order = (end, reason, int(code))
        launch, execution = self.launch, self.execution
        if launch is None or execution is None:
            return True  # `_execute` looks at the order as soon as there is something to end
        number = {End.REMOVED: launch.remove_signal, End.HELD: launch.hold_signal}.get(end, launch.kill_signal)
        execution.kill(number, 0.0 if fast else launch.kill_timeout)
        return True

    def give_way(self, node: str, *, unsent: bool = False) -> bool:
        """End the job here, at once and without a reply: `node` runs it, and started it first.

        False if it has ended here and its reply is on its way, unless we know that it is still `unsent`.
        """
        if self._ended and not unsent:
            return False
        self._winner = node
        self.end(End.YIELDED, f"{node or 'another node'} started it first", fast=True)
        return True

    async def suspend(self) -> None:
        """Stop all of the job's processes, and say so. Nothing to a job that is suspended."""
        if self.execution is not None and self.slot.state is State.CLAIMED:
            self.execution.signal(signal.SIGSTOP)
            self.slot.enter(State.SUSPENDED)
            self._log("suspended")
            await self.update()

    async def resume(self) -> None:
        """Let a suspended job go on, and say so."""
        if self.execution is not None and self.slot.state is State.SUSPENDED:
            self.execution.signal(signal.SIGCONT)
            self.slot.enter(State.CLAIMED)
            self._log("continued")
            await self.update()

    async def update(self) -> None:
        """Tell the owner how the job is (section 3, "while it runs")."""
        if self.execution is None or self.execution.ended.done():
            return
        await self.measure()
        if self.execution.ended.done():
            return
        state = "Suspended" if self.slot.state is State.SUSPENDED else "Running"
        await self.office.post.say(self.job.reply(JobStatus.RUNNING, state), self.job.reply_to)

    async def measure(self) -> Usage:
        """What the job uses now, noted in its ad as long as it runs."""
        assert self.execution is not None
        usage = await asyncio.to_thread(self.execution.usage)
        if not self.execution.ended.done():
            ad = self.job.ad
            ad["JobPid"], ad["NumPids"] = self.execution.pid, usage.processes
            ad["RemoteUserCpu"], ad["RemoteSysCpu"] = round(usage.user_cpu, 3), round(usage.system_cpu, 3)
            ad["ImageSize"], ad["ResidentSetSize"] = usage.image_size, usage.resident
            ad["DiskUsage"] = usage.disk
        return usage

    def hold(self, reason: str, code: HoldReasonCode, *, fast: bool = False) -> None:
        """Have the job held: it broke a limit."""
        self.end(End.HELD, reason, code=code, fast=fast)

    def lose_lease(self) -> None:
        """End the job, cut off from its broker for longer than its JobLeaseDuration: it may be elsewhere by now."""
        self._log("lost its lease", level=logging.WARNING)
        self.give_way("")

    def seconds_offline(self) -> float:
        return self.office.seconds_offline()

    async def _renew(self) -> None:
        """Keep the delivery younger than the broker's ACK_TIMEOUT, for as long as the job runs."""
        while True:
            try:
                await self.office.renew(self)
            except TransportError as error:
                self._log("not renewed", level=logging.WARNING, reason=str(error))
            await asyncio.sleep(self.office.config.ack_timeout / 2)

    # -- saying so ---------------------------------------------------------------------------------------------

    def _outcome(self) -> dict[str, Any]:
        ad = self.job.ad
        names = ("ExitCode", "ExitSignal", "JobDuration", "HoldReason", "RemoveReason")
        return {name: ad[name] for name in names if name in ad}

    def _log(self, what: str, level: int = logging.INFO, **fields: Any) -> None:
        event(log, f"job {what}", level, job=self.job.id, slot=self.slot.name, **fields)


def _max_starts(job: Job, config: Config) -> int:
    limit = job.ad.get("MaxJobStarts")
    return limit if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0 else config.max_job_starts


def _error_body(reason: str) -> bytes:
    return (reason if reason.startswith("ERROR:") else f"ERROR: {reason}").encode("utf-8", "replace")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
