"""What nodes say of jobs in their questions: who claims one, and who else is about to run it.

A node that asks who has a job says what it does with it itself. So those who ask hear of each other, also when one
of them was not there yet to answer the other's question.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator

RUNNING, DECIDING, DONE = "running", "deciding", "done"
"""States of a job on a node: it runs, or its result is about to be sent; it runs if nobody else has it; it is over."""


class Claims:
    """What this node, called `name`, has heard of others' jobs. A claim counts for `wait` seconds."""

    def __init__(self, name: str, wait: float) -> None:
        self._name, self._wait = name, wait
        self._claimed: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._deciding: Counter[str] = Counter()
        self._beaten: set[str] = set()

    def hear(self, key: str, node: str, state: object) -> None:
        """Another node asks who has a job (`Job.key`), and is in this `state` about it."""
        if state == RUNNING:
            now = time.monotonic()
            self._claimed[key] = node, now
            self._claimed.move_to_end(key)
            while next(iter(self._claimed.values()))[1] < now - self._wait:
                self._claimed.popitem(last=False)
        elif state == DECIDING and self.is_deciding(key) and node < self._name:
            self._beaten.add(key)

    @contextlib.contextmanager
    def deciding(self, key: str) -> Iterator[None]:
        """While we are about to run a job, unless somebody has it."""
        self._deciding[key] += 1
        try:
            yield
        finally:
            self._deciding[key] -= 1
            if not self._deciding[key]:
                del self._deciding[key]
                self._beaten.discard(key)

    def is_deciding(self, key: str) -> bool:
        return key in self._deciding

    def keeps_from(self, key: str, node: str) -> bool:
        """Whether we are about to run this job, and `node`, which is, too, has to wait for what becomes of it.

        Of two that decide at once the one goes first whose name does; each hears the other's question, and both know.
        """
        return self.is_deciding(key) and self._name < node

    def is_beaten(self, key: str) -> bool:
        """Whether another node goes first with a job that we are deciding about."""
        return key in self._beaten

    def is_claimed(self, key: str, giver: str = "") -> bool:
        """Whether a node has said lately that it has this job: if it does not answer now, it is about to come back.

        Not the node that gave it away since, `giver`.
        """
        node, when = self._claimed.get(key, (giver, 0.0))
        return node != giver and time.monotonic() - when < self._wait
