"""A queue: messages that wait in the order in which they go, and consumers that take turns."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from carod.amqp.embedded.message import OVERHEAD, PRIORITIES, Stored

_numbers = itertools.count()


class TooMany(Exception):
    """No more queues, exchanges or bindings: no client may fill the memory by declaring."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a queue was declared to be. `ttl` in seconds; `alternate` is (exchange or queue, key)."""

    durable: bool = False
    exclusive: str = "NONE"
    lifetime: str = "PERMANENT"
    ttl: float | None = None
    alternate: tuple[str, str] | None = None


class Entry:
    """A message's place in one queue. `count` is how many of its deliveries have failed."""

    __slots__ = ("barred", "count", "expires", "message", "number", "size")

    def __init__(self, message: Stored, ttl: float | None) -> None:
        self.message, self.count, self.number = message, message.count, next(_numbers)
        self.size = message.size + OVERHEAD
        self.expires = message.expires
        if ttl is not None:
            ends = time.monotonic() + ttl
            self.expires = ends if self.expires is None else min(self.expires, ends)
        self.barred: set[Consumer] | None = None
        """Consumers that said it could not be delivered to them."""


class Consumer(Protocol):
    """Who takes messages from a queue."""

    turn: bool
    """Whether it stands in line at its queue, which alone sets this."""

    @property
    def ready(self) -> bool:
        """Whether it can take a message now."""

    def send(self, entry: Entry) -> None: ...

    def end(self, condition: str, text: str) -> None:
        """The queue is no more."""


class Memory:
    """How many bytes all messages take, and may take."""

    def __init__(self, limit: int, on_room: Callable[[], None]) -> None:
        self.limit, self.held = limit, 0
        self.wanted = False
        """Whether somebody waits for room."""
        self._on_room = on_room

    def take(self, size: int) -> None:
        self.held += size

    def give(self, size: int) -> None:
        self.held -= size
        if self.wanted:
            self._on_room()


class Queue:
    """One queue. What leaves it unwanted goes to `dead_letter(alternate, message)`, if it has an alternate.

    `on_expiring(when)` is called when a message comes that expires before all others (time.monotonic).
    """

    def __init__(
        self,
        name: str,
        traits: Traits,
        memory: Memory,
        dead_letter: Callable[[tuple[str, str], Stored], None],
        on_expiring: Callable[[float], None],
    ) -> None:
        self.name, self.traits = name, traits
        self.owner: object = None
        """The connection or link that alone may consume, if the queue is exclusive."""
        self.consumers: dict[Consumer, None] = {}
        self.waiting = 0
        self.unsettled = 0
        self.size = 0
        """Bytes of both."""
        self.next_expiry = float("inf")
        self._memory, self._dead_letter, self._on_expiring = memory, dead_letter, on_expiring
        self._levels: list[deque[Entry]] = [deque() for _ in range(PRIORITIES)]
        self._line: deque[Consumer] = deque()
        self._deleted = False

    # -- messages ----------------------------------------------------------------------------------------------

    def put(self, message: Stored) -> None:
        entry = Entry(message, self.traits.ttl)
        self.size += entry.size
        self._memory.take(entry.size)
        self._levels[PRIORITIES - 1 - message.priority].append(entry)
        self.waiting += 1
        self.pump()
        if entry.expires is not None:
            self._note_expiry(entry.expires)

    def _note_expiry(self, when: float) -> None:
        if self.waiting and when < self.next_expiry:
            self.next_expiry = when
            self._on_expiring(when)

    def pump(self) -> None:
        """Give what waits to those who can take it, one each in turn."""
        aside: list[Consumer] = []
        while self._line and self.waiting:
            consumer = self._line.popleft()
            if not consumer.ready:
                consumer.turn = False
            elif (entry := self._next(consumer)) is None:
                aside.append(consumer)
            else:
                self.unsettled += 1
                self._line.append(consumer)
                consumer.send(entry)
        self._line.extend(aside)

    def _next(self, consumer: Consumer) -> Entry | None:
        now = time.monotonic()
        for level in self._levels:
            place = 0
            while place < len(level):
                entry = level[place]
                if entry.expires is not None and entry.expires <= now:
                    del level[place]
                    self.waiting -= 1
                    self._expired(entry, now)
                elif entry.barred is not None and consumer in entry.barred:
                    place += 1
                else:
                    del level[place]
                    self.waiting -= 1
                    return entry
        return None

    def expire(self) -> None:
        """Take out what has expired."""
        now, self.next_expiry = time.monotonic(), float("inf")
        for level in self._levels:
            late = [entry for entry in level if entry.expires is not None and entry.expires <= now]
            if late:
                gone = set(map(id, late))
                kept = [entry for entry in level if id(entry) not in gone]
                level.clear()
                level.extend(kept)
                self.waiting -= len(late)
                for entry in late:
                    self._expired(entry, now)
            ends = (entry.expires for entry in level if entry.expires is not None)
            self.next_expiry = min(self.next_expiry, min(ends, default=float("inf")))

    def _expired(self, entry: Entry, now: float) -> None:
        """A message that is past its own time is gone; one past the queue's goes where the queue says."""
        over = entry.message.expires is not None and entry.message.expires <= now
        self._drop(entry, None if over else self.traits.alternate)

    def _drop(self, entry: Entry, alternate: tuple[str, str] | None = None) -> None:
        if alternate is not None:
            self._dead_letter(alternate, entry.message)
        self.size -= entry.size
        self._memory.give(entry.size)

    # -- deliveries that have an end ---------------------------------------------------------------------------

    def accept(self, entry: Entry) -> None:
        self.unsettled -= 1
        self._drop(entry)

    def reject(self, entry: Entry) -> None:
        self.unsettled -= 1
        self._drop(entry, self.traits.alternate)

    def put_back(self, entry: Entry, *, failed: bool, barred: Consumer | None = None) -> None:
        """To where it was, as far as can be; the caller pumps. `barred` does not get it again."""
        self.unsettled -= 1
        if self._deleted:
            self._drop(entry, self.traits.alternate)
            return
        entry.count += failed
        if barred is not None:
            entry.barred = (entry.barred or set()) | {barred}
        level = self._levels[PRIORITIES - 1 - entry.message.priority]
        place = 0
        while place < len(level) and level[place].number < entry.number:
            place += 1
        level.insert(place, entry)
        self.waiting += 1
        if entry.expires is not None:
            self._note_expiry(entry.expires)

    # -- consumers ---------------------------------------------------------------------------------------------

    def add(self, consumer: Consumer) -> None:
        self.consumers[consumer] = None

    def line_up(self, consumer: Consumer) -> None:
        """A consumer may be ready for more."""
        if not consumer.turn and consumer in self.consumers and consumer.ready:
            consumer.turn = True
            self._line.append(consumer)
            self.pump()

    def remove(self, consumer: Consumer) -> None:
        if self.consumers.pop(consumer, self) is None and consumer.turn:
            consumer.turn = False
            self._line.remove(consumer)

    def delete(self) -> None:
        """Drop all, and tell the consumers."""
        self._deleted = True
        for level in self._levels:
            while level:
                self._drop(level.popleft(), self.traits.alternate)
        self.waiting = 0
        for consumer in list(self.consumers):
            self.remove(consumer)
            consumer.end("amqp:resource-deleted", f"queue {self.name!r} was deleted")
