"""What `carod submit` does: one job, or a sweep, from the first message to the exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from carod.control import Action
from carod.job import JobStatus, Reply
from carod_client.commands.report import OWN_FAILURE, Report
from carod_client.description import CommonOptions
from carod_client.errors import GridError, JobHeld, JobRemoved, JobTimeout
from carod_client.grid import Grid
from carod_client.results import Result, Results

TIMED_OUT = 124
"""As timeout(1) has it."""
REMOVAL_PATIENCE = 3.0
"""Seconds that somebody who pressed Ctrl-C waits for nodes to confirm that they stop."""


def exit_code_of(error: Exception) -> int:
    """The exit code for a job without a result."""
    return TIMED_OUT if isinstance(error, JobTimeout) else OWN_FAILURE


@dataclass(slots=True)
class LeftBehind:
    """What an interruption left: jobs that were `removed`, that go on `running`, that still wait `queued`."""

    removed: int = 0
    running: int = 0
    queued: int = 0


@dataclass(slots=True)
class Submission:
    """One call of `carod submit`."""

    report: Report
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    output: Path | None
    attributes: dict[str, Any]
    env: dict[str, str]
    stdin: BinaryIO | None
    count: int | None
    in_flight: int
    timeout: float | None
    expires: float | None
    priority: int | None
    left_behind: LeftBehind = field(default_factory=LeftBehind)
    _grid: Grid = field(init=False)
    _sent: int = 0
    _over: int = 0
    _running: set[str] = field(default_factory=set)

    async def run(self, grid: Grid) -> int:
        """Run it all and return the exit code. Cancelled, it removes what runs and fills in `left_behind`."""
        self._grid = grid
        try:
            with self.report:
                return await (self._one(grid) if self.count is None else self._sweep(grid, self.count))
        except asyncio.CancelledError:
            await self._remove_all()
            raise

    async def _one(self, grid: Grid) -> int:
        cmd, *args = self.command
        self._sent = 1  # it may run before the broker has confirmed it to us
        handle = await grid.submit(
            cmd, *args, inputs=self.inputs, attributes=self.attributes, env=self.env,
            stdin=self.stdin.read() if self.stdin else None, **self._common(),
        )  # fmt: skip
        self.report.sent(handle.id, grid.queue)
        try:
            result = await handle
        except GridError as error:
            return await self._failed(error, 0)
        return await self._ended(result, 0)

    async def _sweep(self, grid: Grid, count: int) -> int:
        codes: list[int] = []
        errors: list[GridError] = []
        results = grid.map(
            self.command[0], range(count),
            args=lambda n: [_numbered(word, n) for word in self.command[1:]],
            inputs=self._for_each(any("{n}" in path for path in self.inputs), self._inputs),
            env=self._for_each(True, lambda n: {name: _numbered(value, n) for name, value in
            self.env.items()}), attributes=self._attributes, stdin=self.stdin.read() if self.stdin else None,
            in_flight=self.in_flight, on_error=errors.append, **self._common(),
        )  # fmt: skip
        async with aclosing(results):
            async for result in results:
                codes += [await self._failed(error, error.index) for error in errors]
                errors.clear()
                codes.append(await self._ended(result, result.index))
        codes += [await self._failed(error, error.index) for error in errors]
        self.report.summary()
        return max(codes)

    def _for_each(self, differs: bool, function: Callable[[int], Any]) -> Any:
        """The function, or its one value where all are the same: then the inputs are packed only once."""
        return function if differs else function(0)

    def _inputs(self, n: int) -> list[str]:
        return [_numbered(path, n) for path in self.inputs]

    def _attributes(self, n: int) -> Mapping[str, Any]:
        self._sent += 1
        return {**self.attributes, "ProcId": n}

    def _common(self) -> CommonOptions:
        return {
            "timeout": self.timeout,
            "expires": self.expires,
            "priority": self.priority,
            "on_update": self._update,
        }

    def _update(self, reply: Reply) -> None:
        if reply.status in (JobStatus.RUNNING, JobStatus.SUSPENDED, JobStatus.TRANSFERRING_OUTPUT):
            self._running.add(reply.job_id)
        else:
            self._running.discard(reply.job_id)
        self.report.update(reply)

    async def _ended(self, result: Result, n: int) -> int:
        where = await self._unpack(result.results, n)
        self._over += 1
        self.report.result(result, n, where)
        return result.returncode

    async def _failed(self, error: GridError, n: int) -> int:
        where = await self._unpack(error.results, n) if isinstance(error, JobHeld | JobRemoved) else None
        if isinstance(error, JobTimeout) and error.job_id in self._running:
            await self._remove(error)
        self._over += 1
        self.report.failed(error, n, where)
        return exit_code_of(error)

    async def _unpack(self, results: Results, n: int) -> Path | None:
        """Unpack into the output directory, if there is one, and say where."""
        if self.output is None or not len(results):
            return None
        where = self.output if self.count is None else self.output / str(n)
        try:
            await asyncio.to_thread(results.extract, where)
        except OSError as error:
            raise GridError(
                f"results can't be unpacked to {str(where)!r}: {error.strerror}; give another --output"
            ) from None
        return where

    async def _remove(self, error: GridError) -> None:
        """A job that took too long is stopped, as timeout(1) would."""
        self._running.discard(error.job_id)
        with suppress(GridError):  # then the error says rightly that it still runs
            await self._grid.control(Action.REMOVE, error.job_id, reason="timeout", timeout=REMOVAL_PATIENCE)
            error.args = (f"job {error.job_id}: no result within {self.timeout:g} s; it was removed",)

    async def _remove_all(self) -> None:
        left = self.left_behind
        left.queued = self._sent - self._over - len(self._running)

        async def remove(job_id: str) -> None:
            try:
                await self._grid.control(Action.REMOVE, job_id, reason="interrupted", timeout=REMOVAL_PATIENCE)
                left.removed += 1
            except GridError:
                left.running += 1

        async with asyncio.TaskGroup() as group:
            for job_id in self._running:
                group.create_task(remove(job_id))


def _numbered(text: str, n: int) -> str:
    return text.replace("{n}", str(n))
