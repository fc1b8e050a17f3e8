"""What a node says of itself when it is asked (`Ping`): its slots, and the jobs that run on them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from carod.classad import ClassAd
from carod.control import Answer


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job on a slot. `started_at` is in seconds since the epoch by the node's clock, None while it starts."""

    id: str
    owner: str
    cmd: str
    arguments: str
    started_at: float | None

    @property
    def seconds(self) -> float | None:
        """How long it has been running; never less than 0, whatever the two clocks say."""
        return None if self.started_at is None else max(0.0, time.time() - self.started_at)


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """A slot; `state` and `activity` are HTCondor's, `memory` is in MiB."""

    name: str
    state: str
    activity: str
    memory: int | None
    job: RunningJob | None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node. `load` is its load average of one minute."""

    name: str
    draining: bool
    load: float | None
    slots: tuple[SlotStatus, ...]
    said: tuple[dict[str, Any], ...] = ()
    """Of each slot all that the node said."""

    @classmethod
    def from_answer(cls, answer: Answer) -> NodeStatus:
        """What could be read of a node's answer to `Ping`; a node of another version may say less."""
        try:
            said = json.loads(answer.body)
        except ValueError:
            said = None
        said = said if isinstance(said, dict) else {}
        slots = [slot for slot in _list(said.get("Slots")) if isinstance(slot, dict)]
        loads = [load for slot in slots if (load := _number(slot.get("LoadAvg"))) is not None]
        return cls(
            answer.node, said.get("Draining") is True, max(loads, default=None), tuple(map(_slot, slots)), tuple(slots)
        )

    @property
    def total(self) -> int:
        return len(self.slots)

    @property
    def busy(self) -> int:
        """How many slots have a job."""
        return sum(slot.job is not None for slot in self.slots)

    @property
    def state(self) -> str:
        """`serving`; `draining` while the last jobs of a node that takes no more still run, then `drained`."""
        if not self.draining:
            return "serving"
        return "draining" if self.busy else "drained"


def slot_ads(node: NodeStatus) -> list[ClassAd]:
    """A node's slots as ads."""
    ads = []
    for said in node.said:
        plain = {name: value for name, value in said.items() if isinstance(value, str | int | float)}
        ad = ClassAd(plain)
        ad.setdefault("Machine", node.name)
        if "Owner" in ad:
            ad["RemoteOwner"] = ad.pop("Owner")
        ads.append(ad)
    return ads


def _slot(said: dict[str, Any]) -> SlotStatus:
    memory, job_id, started = _number(said.get("Memory")), _text(said.get("JobId")), _number(said.get("JobStartDate"))
    owner, cmd, arguments = (_text(said.get(name)) for name in ("Owner", "Cmd", "Arguments"))
    job = RunningJob(job_id, owner, cmd, arguments, started or None) if job_id else None
    return SlotStatus(
        _text(said.get("Name")), _text(said.get("State")), _text(said.get("Activity")),
        None if memory is None else int(memory), job,
    )  # fmt: skip


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
