"""The seam between the agent's protocol side (bus.py) and its job queue: objects, methods, changes.

The bus knows consoles and messages, the model knows jobs; neither knows how the other does it. Everything here is
called in the event loop. The same classes are served under each of PACKAGES; class names are spelt as in the schema
("Job"), on the wire they are in lower case.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

PACKAGES = ("mrg.grid", "com.redhat.grid")
MAX_DATA = 48_000
"""The most bytes that one Fetch or one spooled `send` carries: a string on the wire has 65,535, in base64, too."""


class Code(IntEnum):
    """Why a method failed: QMF's own codes below 65,536, ours from there on."""

    UNKNOWN_OBJECT = 1
    UNKNOWN_METHOD = 2
    BAD_VALUE = 4
    FORBIDDEN = 6
    FAILED = 7
    UNKNOWN_JOB = 65_537
    WRONG_STATE = 65_538
    PROTECTED = 65_539
    QUOTA = 65_540
    NOT_REACHED = 65_541
    NOT_KEPT = 65_542


class MethodError(Exception):
    """A method that was not done: `code` and `text` are the `status` and `text` that its caller sees."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(frozen=True, slots=True)
class Reference:
    """A property that names another object, such as schedulerRef."""

    class_name: str
    name: str


@dataclass(slots=True)
class ManagedObject:
    """An object as it is now. Values are None, bool, int, float, str, bytes, Reference, lists and maps of these.

    `created`, `updated` and `deleted` (0: it is there) are nanoseconds since the epoch. `name` is unique in its class.
    """

    class_name: str
    name: str
    values: dict[str, Any]
    created: int
    updated: int
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `severity` as syslog's (5 notice, 6 informational), `timestamp` in ns."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    severity: int = 6
    timestamp: int = 0


class Listener(Protocol):
    """Who is told what changes. Called in the event loop, must return at once and not raise."""

    def changed(self, class_name: str, name: str) -> None:
        """An object was made, changed or deleted; `find` has it as it is now, None once it is gone."""

    def happened(self, event: Event) -> None:
        """A job has changed its state."""


class Model(Protocol):
    """The agent's objects and what can be done with them."""

    def objects(
        self, class_name: str, where: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> AsyncGenerator[list[ManagedObject], None]:
        """All objects of a class whose properties have these values, in pages of some hundred; never an empty page.

        CustomId, GlobalJobId, Owner, JobStatus, Submission and ClusterId of Job are looked up in an index, all else is
        compared. A class or property that is unknown has no objects. A page is read when it is asked for.
        """

    async def find(self, class_name: str, name: str) -> ManagedObject | None:
        """One object; None if there is none of that name (any more)."""

    async def call(
        self, class_name: str, name: str, method: str, arguments: Mapping[str, Any], user: str | None
    ) -> dict[str, Any]:
        """Call a method of an object: its out arguments by name. Raises MethodError, and nothing else.

        `user` is the broker's word for who asks (None where it gives none), never the request's own.
        """

    def listen(self, listener: Listener) -> None:
        """Tell this one of every change from now on."""
