"""The words of QMF version 2: exchanges, keys, headers, opcodes, and how agents and objects are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from carod.amqp import Address, Exchange

DIRECT = "qmf.default.direct"
TOPIC = "qmf.default.topic"
EXCHANGES = (Exchange(DIRECT, "direct"), Exchange(TOPIC, "topic"))
"""What both sides declare: a broker that is no Qpid does not have them."""

OPCODE, AGENT, CONTENT, PARTIAL = "qmf.opcode", "qmf.agent", "qmf.content", "partial"
"""Headers. `partial` is on every part of an answer but the last; its value means nothing."""
VERSION_1 = "x-application/qmf"
"""Content type of version 1's binary messages, of which version 2 kept the request for a schema."""

LOCATE_KEY = "console.request.agent_locate"
REQUESTS_KEY = "console.#"
"""What an agent binds on the topic exchange."""
HEARTBEAT_KEY, DATA_KEY, EVENT_KEY = "agent.ind.heartbeat", "agent.ind.data", "agent.ind.event"


class Opcode(StrEnum):
    """What a message is (header `qmf.opcode`)."""

    LOCATE_REQUEST = "_agent_locate_request"
    LOCATE_RESPONSE = "_agent_locate_response"
    HEARTBEAT = "_agent_heartbeat_indication"
    QUERY_REQUEST = "_query_request"
    QUERY_RESPONSE = "_query_response"
    METHOD_REQUEST = "_method_request"
    METHOD_RESPONSE = "_method_response"
    EXCEPTION = "_exception"
    DATA = "_data_indication"


class Content(StrEnum):
    """What is in an answer's list (header `qmf.content`)."""

    SCHEMA_ID = "_schema_id"
    DATA = "_data"
    EVENT = "_event"


SEVERITIES = ("emerg", "alert", "crit", "error", "warn", "note", "info", "debug")
"""By their number, as syslog counts them; in an event's routing key they go by name."""


@dataclass(frozen=True, slots=True)
class AgentName:
    """An agent's name: `vendor:product:instance`."""

    vendor: str
    product: str
    instance: str

    def __str__(self) -> str:
        return f"{self.vendor}:{self.product}:{self.instance}"

    @property
    def address(self) -> Address:
        """Where its requests go."""
        return Address(DIRECT, str(self))

    @property
    def words(self) -> str:
        """Vendor and product as words of a routing key."""
        return f"{word(self.vendor)}.{word(self.product)}"


def word(name: str) -> str:
    """A name as one word of a topic's routing key."""
    return name.replace(".", "_")


def object_name(package: str, class_name: str, name: str) -> str:
    """An object's `_object_name`: unique on its agent, and it tells the class, which a method request does not."""
    return f"{package}:{class_name.lower()}:{name}"


def split_object_name(text: str) -> tuple[str, str, str]:
    """Package, class in lower case, and name of an object; empty strings where it is no name of ours."""
    package, _, rest = text.partition(":")
    class_name, colon, name = rest.partition(":")
    return (package, class_name, name) if colon else ("", "", "")


def object_id(agent: str, name: str, epoch: int = 0) -> dict[str, Any]:
    """An `_object_id`. Epoch 0 says that the object outlives its agent: it keeps its id when the agent restarts."""
    return {"_agent_name": agent, "_object_name": name, "_agent_epoch": epoch}


def schema_id(package: str, class_name: str, **more: Any) -> dict[str, Any]:
    return {"_package_name": package, "_class_name": class_name.lower(), **more}


def equality(values: Mapping[str, Any]) -> list[Any]:
    """The predicate (`_where`) that these properties have these values, as QMF's query API writes it."""
    tests = [["eq", name, ["quote", value]] for name, value in values.items()]
    return tests[0] if len(tests) == 1 else ["and", *tests]
