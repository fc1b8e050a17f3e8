"""The nodes that answer, and their slots: asked for every now and then, so that jobs come to them in time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from carod.control import Answer

MISSED = 2
"""Rounds without an answer after which a node is taken to be gone."""


@dataclass(slots=True)
class Slot:
    """A slot as its node described it last; `created` and `updated` in ns, `state_since` in s since the epoch."""

    name: str
    node: str
    said: dict[str, Any]
    created: int
    updated: int
    state_since: int
    missed: int = 0


@dataclass(slots=True)
class Pool:
    """All slots that are known, by name."""

    slots: dict[str, Slot] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def capacity(self) -> int:
        """How many jobs may run at a time: slots that take jobs or have one."""
        return sum(slot.said.get("State") != "Drained" for slot in self.slots.values())

    def has_node_of(self, slot: str) -> bool:
        return slot in self.slots

    def update(self, answers: Iterable[Answer]) -> list[str]:
        """Take note of a round of answers to Ping: the names of slots that are new, gone, or changed."""
        changed = []
        heard = set()
        for answer in answers:
            for said in _slots_in(answer):
                name = said["Name"]
                heard.add(name)
                if self._note(name, answer.node, said):
                    changed.append(name)
        for name in [name for name in self.slots if name not in heard]:
            self.slots[name].missed += 1
            if self.slots[name].missed >= MISSED:
                del self.slots[name]
                changed.append(name)
        return changed

    def _note(self, name: str, node: str, said: dict[str, Any]) -> bool:
        now = time.time_ns()
        slot = self.slots.get(name)
        if slot is None:
            self.slots[name] = Slot(name, node, said, now, now, now // 1_000_000_000)
            return True
        slot.missed = 0
        if slot.said == said:
            return False
        if slot.said.get("State") != said.get("State"):
            slot.state_since = now // 1_000_000_000
        slot.said, slot.node, slot.updated = said, node, now
        return True


def _slots_in(answer: Answer) -> list[dict[str, Any]]:
    """What a node says of its slots; one of another version may say less, or something else."""
    try:
        said = json.loads(answer.body)
    except ValueError:
        return []
    slots = said.get("Slots") if isinstance(said, dict) else None
    if not isinstance(slots, list):
        return []
    return [slot for slot in slots if isinstance(slot, dict) and isinstance(slot.get("Name"), str) and slot["Name"]]
