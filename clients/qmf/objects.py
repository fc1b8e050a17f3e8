"""What a console gets to see: ids, classes, objects, results of methods, events. Names are the original console's."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from carod.qmf import Method, Property, Statistic, Type
from carod.qmf import SchemaClass as Schema
from qmf.link import QmfError

if TYPE_CHECKING:
    from qmf.broker import Agent, Broker
    from qmf.console import Session

MANY = "Many"
"""After a method's name: call it once for each of a list, without waiting in between."""


Properties: TypeAlias = list[tuple[Property, Any]]
Statistics: TypeAlias = list[tuple[Statistic, Any]]


class ObjectId:
    """What names an object: its agent and its name there. Equal for the same object; fit for a dictionary's key."""

    def __init__(self, values: Mapping[str, Any], agentName: str = "") -> None:
        self.agentName = str(values.get("_agent_name", agentName))
        self.objectName = str(values.get("_object_name", ""))
        self.agentEpoch = int(values.get("_agent_epoch") or 0)

    @classmethod
    def create(cls, agent_name: str, object_name: str, epoch: int = 0) -> ObjectId:
        return cls({"_agent_name": agent_name, "_object_name": object_name, "_agent_epoch": epoch})

    def getAgentBank(self) -> str:
        return self.agentName

    def getBrokerBank(self) -> int:
        return 1

    def getObject(self) -> str:
        return self.objectName

    def getSequence(self) -> int:
        return self.agentEpoch

    def isDurable(self) -> bool:
        """Whether the object keeps this id when its agent restarts."""
        return self.agentEpoch == 0

    def asMap(self) -> dict[str, Any]:
        epoch = {"_agent_epoch": self.agentEpoch} if self.agentEpoch else {}
        return {"_agent_name": self.agentName, "_object_name": self.objectName, **epoch}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectId) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"0-{self.agentEpoch}-1-{self.agentName}-{self.objectName}"

    @property
    def _key(self) -> tuple[str, str, int]:
        return self.agentName, self.objectName, self.agentEpoch


@dataclass(frozen=True)
class ClassKey:
    """What names a class: package, name (in lower case) and the hash of its schema."""

    package: str
    name: str
    hash: uuid.UUID
    type: str = "_data"

    @classmethod
    def from_map(cls, values: Any) -> ClassKey:
        """Raises QmfError for a map that names no class."""
        try:
            digest = values.get("_hash", uuid.UUID(int=0))
            digest = digest if isinstance(digest, uuid.UUID) else uuid.UUID(digest)
            return cls(values["_package_name"], values["_class_name"], digest, values.get("_type", "_data"))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise QmfError(f"{str(values)[:200]!r} names no class") from None

    def getPackageName(self) -> str:
        return self.package

    def getClassName(self) -> str:
        return self.name

    def getHash(self) -> uuid.UUID:
        return self.hash

    def getHashString(self) -> str:
        return str(self.hash)

    def getType(self) -> str:
        return self.type

    def asMap(self) -> dict[str, Any]:
        return {"_package_name": self.package, "_class_name": self.name, "_hash": self.hash, "_type": self.type}

    def __repr__(self) -> str:
        return f"{self.package}:{self.name}:{self.type}({self.hash})"


class SchemaClass:
    """What a class has."""

    def __init__(self, key: ClassKey, schema: Schema) -> None:
        self._key, self._schema = key, schema
        self.methods = {method.name: method for method in schema.methods}
        self.members = {each.name for each in schema.properties} | {each.name for each in schema.statistics}
        self._others: dict[tuple[str, Type], Property] = {}

    def getKey(self) -> ClassKey:
        return self._key

    def getProperties(self) -> list[Property]:
        return list(self._schema.properties)

    def getStatistics(self) -> list[Statistic]:
        return list(self._schema.statistics)

    def getMethods(self) -> list[Method]:
        return list(self._schema.methods)

    def getArguments(self) -> list[Property]:
        """Of an event."""
        return list(self._schema.properties)

    def split(self, values: dict[str, Any], agent: str) -> tuple[Properties, Statistics]:
        """An object's values as properties and statistics, in the schema's order, then those it does not name."""
        properties: Properties = []
        for each in self._schema.properties:
            if each.name in values:
                value = values[each.name]
                is_reference = each.type is Type.REF and isinstance(value, dict)
                properties.append((each, ObjectId(value, agent) if is_reference else value))
        statistics = [(each, values[each.name]) for each in self._schema.statistics if each.name in values]
        if len(properties) + len(statistics) < len(values):
            others = [(name, value) for name, value in values.items() if name not in self.members]
            properties += [(self._other(name, _type(value)), value) for name, value in others]
        return properties, statistics

    def _other(self, name: str, kind: Type) -> Property:
        known = self._others.get((name, kind))
        if known is None:
            known = self._others[name, kind] = Property(name, kind)
        return known

    def __repr__(self) -> str:
        return f"{self._schema.kind.name.capitalize()} Class: {self._key}"


@dataclass(frozen=True)
class MethodResult:
    """What came of a method: `status` 0 and its out arguments, which are attributes too, or another and its text."""

    status: int
    text: str
    outArgs: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.outArgs.get(name)

    def __repr__(self) -> str:
        return f"{self.text} ({self.status}) - {self.outArgs}"


class Object:
    """A managed object as its agent last told of it. Properties and statistics are attributes, methods can be called.

    A property in the schema that the object does not have is None. A reference `x` is an ObjectId, and `_x_` what it
    refers to.
    """

    def __init__(self, agent: Agent, schema: SchemaClass, values: Mapping[str, Any]) -> None:
        self._agent, self._schema = agent, schema
        self._take(values)

    def _take(self, values: Mapping[str, Any]) -> None:
        agent = self._agent.getAgentBank()
        self._properties, self._statistics = self._schema.split(values.get("_values") or {}, agent)
        self._values: dict[str, Any] = {each.name: value for each, value in self._properties}
        self._values |= {each.name: value for each, value in self._statistics}
        self._objectId = ObjectId(values.get("_object_id") or {}, agent)
        self._times = tuple(int(values.get(name) or 0) for name in ("_update_ts", "_create_ts", "_delete_ts"))

    def getAgent(self) -> Agent:
        return self._agent

    def getBroker(self) -> Broker:
        return self._agent.getBroker()

    def getObjectId(self) -> ObjectId:
        return self._objectId

    def getClassKey(self) -> ClassKey:
        return self._schema.getKey()

    def getSchema(self) -> SchemaClass:
        return self._schema

    def getMethods(self) -> list[Method]:
        return self._schema.getMethods()

    def getProperties(self) -> list[tuple[Property, Any]]:
        """Pairs of property and value: those of the schema that it has, then the others that it has."""
        return self._properties

    def getStatistics(self) -> list[tuple[Statistic, Any]]:
        return self._statistics

    def getTimestamps(self) -> tuple[int, ...]:
        """When it was as it is here, when it was created, when it was deleted (or 0): nanoseconds since the epoch."""
        return self._times

    def isDeleted(self) -> bool:
        return self._times[2] != 0

    def getIndex(self) -> str:
        return self._objectId.getObject()

    def update(self, _timeout: float | None = None) -> None:
        """Ask the agent how it is now. Raises QmfError if there is no such object any more."""
        found = self._agent.getObjects(_objectId=self._objectId, _timeout=_timeout)
        if not found:
            raise QmfError(f"object {self.getIndex()} no longer exists")
        self._properties, self._statistics = found[0]._properties, found[0]._statistics
        self._values, self._times = found[0]._values, found[0]._times

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        schema = self.__dict__.get("_schema")
        if schema is not None:
            if name in schema.methods:
                return _Call(self, schema.methods[name])
            if name.endswith(MANY) and name.removesuffix(MANY) in schema.methods:
                return _Calls(self, schema.methods[name.removesuffix(MANY)])
            if name.startswith("_") and name.endswith("_") and isinstance(values.get(name[1:-1]), ObjectId):
                found = self._agent.getObjects(_objectId=values[name[1:-1]])
                return found[0] if found else None
            if name in schema.members:
                return None
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        key = self.getClassKey()
        return f"{key.getPackageName()}:{key.getClassName()}[{self._objectId}] {self.getIndex()}"

    @property
    def _session(self) -> Session:
        return self._agent.session

    def _request(self, method: Method, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"_object_id": self._objectId.asMap(), "_method_name": method.name, "_arguments": arguments}


class _Call:
    """A method of an object: called with its in arguments, in order or by name.

    `_timeout` in seconds; with `_async` it returns a number at once, and the Console's methodResponse gets the result.
    """

    def __init__(self, target: Object, method: Method) -> None:
        self._target, self._method = target, method

    def __call__(
        self, *arguments: Any, _timeout: float | None = None, _async: bool = False, **named: Any
    ) -> MethodResult | int:
        request = self._target._request(self._method, _arguments(self._method, arguments, named))
        session, agent = self._target._session, self._target._agent
        if _async:
            return session._call_later(agent, request, _timeout)
        return _typed(self._method, session._call_methods(agent, [request], _timeout)[0])

    def __repr__(self) -> str:
        return f"<method {self._method} of {self._target}>"


class _Calls:
    """A method of an object, called once for each of many arguments; their results, in order.

    An item is the one argument, or a tuple of them. Many calls are under way at a time.
    """

    def __init__(self, target: Object, method: Method) -> None:
        self._target, self._method = target, method

    def __call__(self, items: Iterable[Any], *, _timeout: float | None = None) -> list[MethodResult]:
        tuples = (item if isinstance(item, tuple) else (item,) for item in items)
        requests = [self._target._request(self._method, _arguments(self._method, each, {})) for each in tuples]
        results = self._target._session._call_methods(self._target._agent, requests, _timeout)
        return [_typed(self._method, result) for result in results]


def _arguments(method: Method, given: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """The in arguments by name; those with a default may be left out. Raises TypeError."""
    inputs = method.inputs
    arguments: dict[str, Any] = {**dict(zip((each.name for each in inputs), given, strict=False)), **named}
    required = [each.name for each in inputs if each.default is None]
    missing = [name for name in required if name not in arguments]
    odd = [name for name in named if name not in {each.name for each in inputs}]
    if missing or odd or len(given) > len(inputs):
        raise TypeError(f"{method} takes {len(required)} to {len(inputs)} arguments, got {len(given) + len(named)}")
    return arguments


def _typed(method: Method, result: MethodResult) -> MethodResult:
    """A result whose binary arguments are bytes: from some brokers, those that are UTF-8 come as text."""
    for each in method.arguments:
        value = result.outArgs.get(each.name)
        if each.binary and isinstance(value, str):
            result.outArgs[each.name] = value.encode()
    return result


def _type(value: Any) -> Type:
    """The type of a property that the schema does not tell of."""
    return _TYPES.get(value.__class__, Type.LSTR)


_TYPES = {bool: Type.BOOL, int: Type.S64, float: Type.DOUBLE, dict: Type.MAP, list: Type.LIST}


@dataclass(frozen=True)
class Event:
    """Something that happened at an agent; `timestamp` in nanoseconds since the epoch."""

    agent: Agent
    classKey: ClassKey
    arguments: dict[str, Any]
    timestamp: int
    severity: int

    def getClassKey(self) -> ClassKey:
        return self.classKey

    def getArguments(self) -> dict[str, Any]:
        return self.arguments

    def getTimestamp(self) -> int:
        return self.timestamp

    def getAgent(self) -> Agent:
        return self.agent

    def __repr__(self) -> str:
        shown = " ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.classKey.package}:{self.classKey.name} {shown}"
