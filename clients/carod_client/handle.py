"""A submitted job: the updates on it as they come, and its result once it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING

from carod.classad import ClassAd
from carod.control import Action
from carod.job import JobStatus, Reply
from carod_client.errors import (
    BadArchive,
    GridError,
    JobExpired,
    JobFailed,
    JobHeld,
    JobRejected,
    JobRemoved,
    JobTimeout,
)
from carod_client.results import Result, Results

if TYPE_CHECKING:
    from carod_client.grid import Grid

EXPIRY_GRACE = 2.0
"""Seconds past a job's expiry until it is given up: a node that took it in its last moment must be heard."""


class Handle:
    """One job, from its submission to its last reply. `Grid.submit` makes it.

    `await handle` gives the `Result` or raises what became of the job; it can be awaited again, by several
    tasks, and cancelling one of them changes nothing for the job or the others. `async for reply in handle`
    gives each `carod.job.Reply`, from the first one on, up to and including the last.
    """

    def __init__(
        self,
        grid: Grid,
        job_id: str,
        *,
        timeout: float | None = None,
        expires: float | None = None,
        check: bool = False,
        on_update: Callable[[Reply], None] | None = None,
        on_done: Callable[[Handle], None] | None = None,
    ) -> None:
        self.id = job_id
        self.replies: list[Reply] = []
        """All replies so far, oldest first."""
        self._grid = grid
        self._check = check
        self._timeout, self._expires = timeout, expires
        self._on_update, self._on_done = on_update, on_done
        self._outcome: Result | Exception | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._submitted = self._loop.time()
        self._running_since: float | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        if timeout is not None:
            self._timers["timeout"] = self._loop.call_later(timeout, self._timed_out)
        self._watch_expiry()

    @classmethod
    def failed(cls, grid: Grid, error: GridError) -> Handle:
        """A handle for a job that could not even be described: it is done, and raises `error`."""
        handle = cls(grid, "")
        handle._outcome = error
        return handle

    def __repr__(self) -> str:
        said = self.replies[-1].status.name.lower() if self.replies else "no word yet"
        return f"<Handle {self.id}: {said}>"

    def __await__(self) -> Generator[None, None, Result]:
        return self._wait().__await__()

    async def __aiter__(self) -> AsyncIterator[Reply]:
        """Each reply, from the first. Raises only where no last one comes (JobTimeout, JobExpired,
        BrokerLost).
        """
        seen = 0
        while True:
            while seen < len(self.replies):
                seen += 1
                yield self.replies[seen - 1]
            if self._outcome is not None:
                if isinstance(self._outcome, Exception) and not (self.replies and self.replies[-1].final):
                    raise self._outcome
                return
            await self._changed.wait()

    @property
    def done(self) -> bool:
        """Whether its result, or what became of it, is known."""
        return self._outcome is not None

    @property
    def status(self) -> JobStatus:
        """The last status heard of; IDLE while there was no word."""
        return self.replies[-1].status if self.replies else JobStatus.IDLE

    @property
    def ad(self) -> ClassAd | None:
        """The job's ClassAd as last heard of; None while there was no word."""
        return self.replies[-1].ad if self.replies else None

    @property
    def result(self) -> Result:
        """The result of a job that is done. Raises what `await` raises, and GridError when it is not done
        yet.
        """
        if self._outcome is None:
            raise GridError(f"job {self.id} is not done: await the handle")
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    @property
    def results(self) -> Results:
        """The files of a job that is done, also of one that was held or removed."""
        if isinstance(self._outcome, JobHeld | JobRemoved):
            return self._outcome.results
        if isinstance(self._outcome, JobFailed):
            return self._outcome.result.results
        return self.result.results

    async def remove(self, reason: str = "") -> None:
        """Have the node that runs the job stop and remove it; whoever awaits it gets JobRemoved.

        Raises what `Grid.control` raises: a job that waits in the queue can't be called back.
        """
        await self._grid.control(Action.REMOVE, self.id, reason=reason)

    def forget(self) -> None:
        """Wait for nothing more. The job goes on, its replies are dropped; whoever waits gets a GridError."""
        if self._outcome is None:
            self.fail(GridError(f"job {self.id} was forgotten: its replies are no longer awaited"))

    # -- for the grid ----------------------------------------------------------------------------------------

    def take(self, reply: Reply) -> None:
        """A reply came. Does nothing once the job is done."""
        if self._outcome is not None:
            return
        self.replies.append(reply)
        if self._on_update is not None:
            try:
                self._on_update(reply)
            except Exception as error:  # it concerns who awaits the job, not who reads the messages
                self._finish(error)
                return
        if reply.status is JobStatus.RUNNING and self._running_since is None:
            self._running_since = self._loop.time()
        if reply.final:
            self._finish(self._judged(reply))
            return
        self._watch_expiry()
        self._notify()

    def fail(self, error: GridError) -> None:
        """No more replies will come, and this is why."""
        if self._outcome is None:
            self._finish(self._told(error))

    def drop(self) -> None:
        """The job was never sent: stop all timers, tell nobody."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # -- inside ----------------------------------------------------------------------------------------------

    async def _wait(self) -> Result:
        while self._outcome is None:
            await self._changed.wait()
        return self.result

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _finish(self, outcome: Result | Exception) -> None:
        self._outcome = outcome
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._notify()
        if self._on_done is not None:
            self._on_done(self)

    def _judged(self, reply: Reply) -> Result | GridError:
        """What a last reply means."""
        ad = reply.ad
        error_text = reply.body.decode("utf-8", "replace") if reply.body.startswith(b"ERROR:") else ""
        try:
            results = Results(b"" if error_text else reply.body)
        except BadArchive as error:
            return self._told(BadArchive(f"job {self.id}: {error}"))
        if reply.status is JobStatus.COMPLETED and not error_text:
            result = self._result(ad, results)
            return JobFailed(result) if self._check and not result.ok else result
        reason = _text(ad, "HoldReason") or error_text or _text(ad, "RemoveReason") or "no reason given"
        if reply.status is JobStatus.REMOVED:
            return JobRemoved(self.id, reason, ad, results)
        kind = JobRejected if error_text else JobHeld
        return kind(self.id, reason, _integer(ad, "HoldReasonCode") or 0, ad, results)

    def _result(self, ad: ClassAd, results: Results) -> Result:
        by_signal = ad.get("ExitBySignal") is True
        waited = self._running_since
        return Result(
            self.id,
            None if by_signal else _integer(ad, "ExitCode"),
            _integer(ad, "ExitSignal") if by_signal else None,
            ad,
            results,
            duration=_real(ad, "JobDuration"),
            queued_seconds=None if waited is None else waited - self._submitted,
            elapsed_seconds=self._loop.time() - self._submitted,
        )

    def _timed_out(self) -> None:
        where = {JobStatus.IDLE: "still waits in the queue", JobStatus.SUSPENDED: "is suspended"}.get(
            self.status, "is still running"
        )
        self._finish(
            JobTimeout(
                f"job {self.id}: no result within {self._timeout:g} s; it {where} and is not stopped",
                self.id,
                self.ad,
            )
        )

    def _watch_expiry(self) -> None:
        """The broker drops an expired job without a word: one that waits past its time is given up here."""
        if self._expires is None:
            return
        timer = self._timers.pop("expiry", None)
        if timer is not None:
            timer.cancel()
        if self.status is JobStatus.IDLE:
            left = max(0.0, self._submitted + self._expires - self._loop.time()) + EXPIRY_GRACE
            self._timers["expiry"] = self._loop.call_later(left, self._expired)

    def _expired(self) -> None:
        self._finish(
            JobExpired(
                f"job {self.id} expired: no node took it within {self._expires:g} s; "
                "give it longer, or see whether nodes are running and its Requirements fit one",
                self.id,
                self.ad,
            )
        )

    def _told(self, error: GridError) -> GridError:
        error.job_id = self.id
        return error


def _text(ad: ClassAd, name: str) -> str:
    value = ad.get(name)
    return value if isinstance(value, str) else ""


def _integer(ad: ClassAd, name: str) -> int | None:
    value = ad.get(name)
    return value if isinstance(value, int) else None


def _real(ad: ClassAd, name: str) -> float:
    value = ad.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
