"""Counts of the queue's jobs, kept with every change: nobody has to look through the jobs for them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from carod.job import JobStatus
from qmf_agent.jobqueue.jobs import OUT, OVER, Change, Stage

WINDOW = 300.0
"""Seconds that the statistics without Cum in their names look back (HTCondor's WINDOWED_STAT_WIDTH)."""
STEPS = 30


@dataclass(slots=True)
class Tally:
    """How often something happened and what it came to, ever and in the last WINDOW seconds."""

    count: int = 0
    total: float = 0.0
    _recent: deque[list[float]] = field(default_factory=deque)  # [time, count, total] of each WINDOW / STEPS

    def add(self, value: float = 0.0, count: int = 1) -> None:
        now = time.monotonic()
        self.count += count
        self.total += value
        if not self._recent or now - self._recent[-1][0] > WINDOW / STEPS:
            self._recent.append([now, 0, 0.0])
            self._forget(now)
        self._recent[-1][1] += count
        self._recent[-1][2] += value

    def recent(self) -> tuple[int, float]:
        """Count and total of the window."""
        self._forget(time.monotonic())
        return int(sum(entry[1] for entry in self._recent)), sum(entry[2] for entry in self._recent)

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > WINDOW:
            self._recent.popleft()


class Totals:
    """Jobs by status, by stage and by owner, and how many came, began and ended."""

    def __init__(self, counted: Iterable[tuple[str, int, int, int]]) -> None:
        self.started_at = time.monotonic()
        self.by_status: Counter[JobStatus] = Counter()
        self.by_stage: Counter[Stage] = Counter()
        self.by_owner: dict[str, Counter[JobStatus]] = {}
        self.submitted, self.begun, self.completed = Tally(), Tally(), Tally()
        for owner, status, stage, count in counted:
            self.by_status[JobStatus(status)] += count
            self.by_stage[Stage(stage)] += count
            self.by_owner.setdefault(owner, Counter())[JobStatus(status)] += count

    @property
    def in_queue(self) -> int:
        """Jobs that are not over."""
        return sum(count for status, count in self.by_status.items() if status not in OVER)

    def owned(self, owner: str) -> int:
        """Jobs of an owner that are not over."""
        return sum(count for status, count in self.by_owner.get(owner, {}).items() if status not in OVER)

    @property
    def waiting_out_there(self) -> int:
        """Jobs that have been sent and that no node has started."""
        return self.by_stage[Stage.INTENT] + self.by_stage[Stage.SENT]

    @property
    def out(self) -> int:
        return sum(self.by_stage[stage] for stage in OUT)

    def apply(self, change: Change) -> bool:
        """Count a change; True if it is the first or the last of an owner."""
        before, after, owner = change.before, change.after, change.owner
        if change.stage_before is not None:
            self.by_stage[change.stage_before] -= 1
        if change.stage_after is not None:
            self.by_stage[change.stage_after] += 1
        if before is after:
            return False
        mine = self.by_owner.get(owner)
        new = mine is None
        if mine is None:
            mine = self.by_owner[owner] = Counter()
        if before is not None:
            self.by_status[before] -= 1
            mine[before] -= 1
        if after is not None:
            self.by_status[after] += 1
            mine[after] += 1
        gone = after is None and not any(mine.values())
        if gone:
            del self.by_owner[owner]
        return new or gone
