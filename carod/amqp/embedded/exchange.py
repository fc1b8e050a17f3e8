"""Exchanges: which queues a message goes to, by its key."""

from __future__ import annotations

from carod.amqp.embedded.queue import Queue

KINDS = ("direct", "topic", "fanout")
PREDEFINED = {
    "amq.direct": "direct",
    "amq.topic": "topic",
    "amq.fanout": "fanout",
    "qmf.default.direct": "direct",
    "qmf.default.topic": "topic",
}


class Exchange:
    """Bindings of keys to queues. `kind` is one of KINDS."""

    def __init__(self, name: str, kind: str, *, durable: bool) -> None:
        self.name, self.kind, self.durable = name, kind, durable
        self.bindings: dict[str, dict[Queue, None]] = {}
        self._patterns: dict[str, list[str]] = {}
        """A topic's bindings that hold wildcards, and their words."""

    def bind(self, queue: Queue, key: str) -> bool:
        """Whether the binding is new."""
        queues = self.bindings.setdefault(key, {})
        words = key.split(".")
        if self.kind == "topic" and ("*" in words or "#" in words):
            self._patterns[key] = words
        new = queue not in queues
        queues[queue] = None
        return new

    def unbind(self, queue: Queue, key: str) -> bool:
        """Whether there was such a binding."""
        queues = self.bindings.get(key, {})
        there = queue in queues
        queues.pop(queue, None)
        if not queues:
            self.bindings.pop(key, None)
            self._patterns.pop(key, None)
        return there

    def forget(self, queue: Queue) -> int:
        """Undo a queue's bindings: how many it had."""
        keys = [key for key, queues in self.bindings.items() if queue in queues]
        for key in keys:
            self.unbind(queue, key)
        return len(keys)

    def route(self, key: str) -> list[Queue]:
        """The queues for a key, each once."""
        keys = list(self.bindings) if self.kind == "fanout" else [key, *self._fitting(key)]
        return list({queue: None for bound in keys for queue in self.bindings.get(bound, ())})

    def _fitting(self, key: str) -> list[str]:
        if not self._patterns:
            return []
        words = key.split(".")
        return [pattern for pattern, parts in self._patterns.items() if _fits(words, parts)]


def _fits(words: list[str], pattern: list[str]) -> bool:
    """Whether a key's words fit a pattern's, of which `*` is any one and `#` are any, or none.

    Follows all ways to read the pattern at once: trying one after the other can take for ever.
    """
    places = _past_any({0}, pattern)
    for word in words:
        reached = set()
        for place in places:
            if place < len(pattern):
                part = pattern[place]
                if part == "#":
                    reached.add(place)
                elif part in ("*", word):
                    reached.add(place + 1)
        places = _past_any(reached, pattern)
    return len(pattern) in places


def _past_any(places: set[int], pattern: list[str]) -> set[int]:
    for place in sorted(places):
        while place < len(pattern) and pattern[place] == "#":
            place += 1
            places.add(place)
    return places
