"""Objects and events of the model as QMF's maps, and the agent's messages around them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from carod.amqp import Message
from carod.qmf import SchemaClass, TooLong, object_id, object_name, schema_id, sendable
from carod.qmf.names import AGENT, CONTENT, OPCODE, PARTIAL, Content, Opcode
from qmf_agent.model import Event, ManagedObject, Reference

MAX_PART_OBJECTS = 100
MAX_PART_SIZE = 128 << 10
"""The most in one part of a long answer, in objects and about so many bytes: a locate must not wait long behind one."""


def agent_message(
    agent: str,
    opcode: Opcode,
    body: list[Any] | dict[str, Any],
    content: Content | None = None,
    *,
    correlation_id: str | None = None,
    partial: bool = False,
) -> Message:
    """A message of the agent: without the header `qmf.agent` consoles would not see it."""
    headers: dict[str, Any] = {OPCODE: str(opcode), AGENT: agent}
    if content is not None:
        headers[CONTENT] = str(content)
    if partial:
        headers[PARTIAL] = True
    return Message(headers=headers, message_id=str(uuid.uuid4()), correlation_id=correlation_id, value=body)


class Mapper:
    """Makes maps of objects, for one agent and one package."""

    def __init__(self, agent: str, package: str) -> None:
        self.agent, self.package = agent, package

    def object(self, schema: SchemaClass, each: ManagedObject) -> dict[str, Any]:
        """An object's map. A value too long for QMF is left out; methods such as GetAd say what became of it."""
        values = {}
        for name, value in each.values.items():
            if value is not None:
                try:
                    values[name] = self.value(value)
                except TooLong:
                    continue
        return {
            "_schema_id": schema_id(self.package, schema.name, _type="_data", _hash=schema.hash),
            "_object_id": self.id(each.class_name, each.name),
            "_values": values,
            "_create_ts": each.created,
            "_update_ts": each.updated,
            "_delete_ts": each.deleted,
        }

    def id(self, class_name: str, name: str) -> dict[str, Any]:
        return object_id(self.agent, object_name(self.package, class_name, name))

    def value(self, value: Any) -> Any:
        """A value, references as object ids. Raises TooLong."""
        if value.__class__ is str:
            return sendable(value)
        if isinstance(value, Reference):
            return self.id(value.class_name, value.name)
        if isinstance(value, Mapping):
            return {sendable(name): self.value(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return sendable(value)

    def event(self, schema: SchemaClass | None, event: Event) -> dict[str, Any]:
        more = {} if schema is None else {"_hash": schema.hash}
        return {
            "_schema_id": schema_id(self.package, event.name, _type="_event", **more),
            "_values": {name: self.value(value) for name, value in event.values.items() if value is not None},
            "_timestamp": event.timestamp,
            "_severity": event.severity,
        }


def parts(maps: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Lists of objects' maps that one message holds each."""
    part: list[dict[str, Any]] = []
    size = 0
    for each in maps:
        weight = _weight(each["_values"])
        if part and (size + weight > MAX_PART_SIZE or len(part) >= MAX_PART_OBJECTS):
            yield part
            part, size = [], 0
        part.append(each)
        size += weight
    if part:
        yield part


def _weight(values: Mapping[str, Any]) -> int:
    """About how many bytes a map takes."""
    total = 200
    for value in values.values():
        total += 30
        if value.__class__ is str:
            total += len(value)
        elif value.__class__ is int:
            continue
        elif isinstance(value, bytes):
            total += len(value)
        elif isinstance(value, Mapping):
            total += _weight(value)
        elif isinstance(value, Sequence):
            total += sum(len(item) + 30 if isinstance(item, str | bytes) else 200 for item in value)
    return total
