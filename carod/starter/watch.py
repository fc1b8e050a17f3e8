"""What a job is watched for while it runs: time for an update, its limits of time and memory, its lease."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from carod.config import Config
from carod.job import HoldReasonCode
from carod.starter.launch import Launch
from carod.starter.process import Usage


class Watched(Protocol):
    """What the watch needs of a starter."""

    def seconds_offline(self) -> float: ...
    async def measure(self) -> Usage: ...
    async def update(self) -> None: ...
    def hold(self, reason: str, code: HoldReasonCode, *, fast: bool = False) -> None: ...
    def lose_lease(self) -> None: ...


class Watch:
    """The watch over one job, from `begun` (monotonic seconds) on."""

    def __init__(self, watched: Watched, launch: Launch, config: Config, begun: float) -> None:
        self._watched, self._launch, self._config, self._begun = watched, launch, config, begun
        self._next_update = config.starter_initial_update_interval

    @property
    def first_look(self) -> float:
        """Seconds from the start until there is something to do; most jobs are over by then."""
        launch, dues = self._launch, [self._next_update]
        dues += [due for due in (launch.duration, launch.lease) if due is not None]
        if launch.memory is not None:
            dues.append(self._config.starter_memory_interval)
        return min(dues)

    async def keep(self) -> None:
        """Watch until the job is told to end, or this is cancelled."""
        launch, watched = self._launch, self._watched
        while True:
            elapsed = time.monotonic() - self._begun
            if launch.duration is not None and elapsed >= launch.duration:
                reason = f"the job ran for its AllowedExecuteDuration of {launch.duration:g} s"
                watched.hold(reason, HoldReasonCode.JOB_EXECUTION_TIME_EXCEEDED)
                return
            if launch.lease is not None and watched.seconds_offline() >= launch.lease:
                watched.lose_lease()
                return
            if elapsed >= self._next_update:
                await watched.update()
                self._next_update += self._config.starter_update_interval
            if launch.memory is not None and await self._over_memory(launch.memory):
                return
            await asyncio.sleep(max(0.01, self._next_look(elapsed)))

    def _next_look(self, elapsed: float) -> float:
        launch, dues = self._launch, [self._next_update - elapsed]
        if launch.duration is not None:
            dues.append(launch.duration - elapsed)
        if launch.memory is not None:
            dues.append(self._config.starter_memory_interval)
        if launch.lease is not None:
            dues.append(max(0.1, launch.lease - self._watched.seconds_offline()))
        return min(dues)

    async def _over_memory(self, limit: int) -> bool:
        usage = await self._watched.measure()
        if usage.resident <= limit << 10:
            return False
        reason = f"the job uses {usage.resident >> 10} MiB of memory, its RequestMemory is {limit} MiB"
        self._watched.hold(reason, HoldReasonCode.JOB_OUT_OF_RESOURCES, fast=True)
        return True
