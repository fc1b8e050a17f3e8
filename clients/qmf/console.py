"""A console for QMF agents, with the names that scripts know from the original `qmf.console`:

    session = Session()
    session.addBroker("amqp://localhost:5672")
    for job in session.getObjects(_class="job", _package="mrg.grid", Owner="jane"):
        print(job.CustomId, job.JobStatus)

Calls block; the connection lives in a thread of its own. How-to: docs/how-to/console.md.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import queue
import re
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from carod.amqp import BadEndpoint, Endpoint
from carod.qmf import Opcode, equality, schema_id, word
from carod.qmf import SchemaClass as Schema
from carod.qmf.names import DATA_KEY, EVENT_KEY
from qmf.broker import Agent, Broker
from qmf.link import AgentGone, Indication, QmfError, TimedOut
from qmf.loop import Loop
from qmf.objects import ClassKey, Event, MethodResult, Object, ObjectId, SchemaClass

__all__ = [
    "Agent",
    "AgentGone",
    "Broker",
    "ClassKey",
    "Console",
    "Event",
    "MethodResult",
    "Object",
    "ObjectId",
    "QmfError",
    "SchemaClass",
    "Session",
    "TimedOut",
]

logger = logging.getLogger("carod.qmf")

CONNECT_TIMEOUT = 10.0
TIMEOUT = 60.0
"""Seconds that an agent may take to answer, where a call says nothing else; the original's."""
_URL = re.compile(r"(?:(\w+)://)?(?:([^@/:]*)(?:([/:])(.*))?@)?([^@]*)")


class Console:
    """Is told what agents say by themselves: derive from it and override. Its methods run in a thread of their own."""

    def brokerConnected(self, broker: Broker) -> None: ...

    def brokerDisconnected(self, broker: Broker) -> None: ...

    def newAgent(self, agent: Agent) -> None: ...

    def delAgent(self, agent: Agent) -> None: ...

    def objectProps(self, broker: Broker, record: Object) -> None:
        """An object changed; at most once an object and publish interval of its agent."""

    def event(self, broker: Broker, event: Event) -> None: ...

    def heartbeat(self, agent: Agent, timestamp: int) -> None: ...

    def methodResponse(self, broker: Broker, seq: int, response: MethodResult) -> None:
        """The result of a method called with `_async=True`."""


class Session:
    """Any number of brokers and the agents on them.

    With a `console` it is told of changed objects (`rcvObjects`), events and heartbeats; with `userBindings` only of
    what bindPackage and bindClass name. With `manageConnections` brokers that are away are tried again for ever.
    """

    def __init__(
        self,
        console: Console | None = None,
        rcvObjects: bool = True,
        rcvEvents: bool = True,
        rcvHeartbeats: bool = True,
        manageConnections: bool = False,
        userBindings: bool = False,
    ) -> None:
        self.console, self.manageConnections = console, manageConnections
        self.brokers: list[Broker] = []
        self._heartbeats = console is not None and rcvHeartbeats
        self._topics = [] if console is None or userBindings or not rcvObjects else [f"{DATA_KEY}.#"]
        self._topics += [f"{EVENT_KEY}.#"] if console is not None and rcvEvents else []
        self._schemas: dict[ClassKey, SchemaClass] = {}
        self._keys: dict[str, tuple[int, list[ClassKey]]] = {}
        self._sequence = itertools.count(1)
        self._loop = Loop("qmf.console")
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: queue.SimpleQueue[Callable[[Console], None] | None] = queue.SimpleQueue()
        if console is not None:
            threading.Thread(target=self._tell_console, args=(console,), name="qmf.console calls", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave all brokers and end the session's threads."""
        for broker in list(self.brokers):
            self.delBroker(broker)
        self._told.put(None)
        self._loop.stop()

    def __repr__(self) -> str:
        return f"QMF Console Session Manager (brokers: {len(self.brokers)})"

    # -- brokers and agents ------------------------------------------------------------------------------------

    def addBroker(
        self,
        target: str = "localhost",
        timeout: float | None = None,
        mechanisms: str | None = None,
        *,
        ssl_trustfile: str = "",
        ssl_certfile: str = "",
        ssl_keyfile: str = "",
    ) -> Broker:
        """Connect to a broker and find its agents. Raises QmfError, but with manageConnections tries again for ever.

        `target` is `amqp://user:password@host:port/vhost`, or the original's `user/password@host:port`; `timeout` is
        in seconds. `mechanisms` is accepted as the original has it; user, password and certificate decide.
        """
        endpoint = _endpoint(target, timeout, ssl_trustfile, ssl_certfile, ssl_keyfile)
        broker = self._loop.call(self._add(endpoint))
        self.brokers.append(broker)
        return broker

    async def _add(self, endpoint: Endpoint) -> Broker:
        broker = Broker(self, endpoint, self._topics)
        if self.manageConnections:
            broker._keeping = asyncio.create_task(broker._keep())
        else:
            await broker._connect()
            self._tell(lambda console: console.brokerConnected(broker))
        return broker

    def delBroker(self, broker: Broker) -> None:
        """Disconnect from a broker."""
        self.brokers.remove(broker)
        self._loop.call(broker._close())

    def getBrokers(self) -> list[Broker]:
        return list(self.brokers)

    def getAgents(self, broker: Broker | None = None) -> list[Agent]:
        """The agents that answered, or were heard of, lately."""
        return self._loop.call(self._agents([broker] if broker else self.brokers))

    async def _agents(self, brokers: Sequence[Broker]) -> list[Agent]:
        found = []
        for broker in brokers:
            if not broker.link.living() and broker.link.connected:
                await broker.link.locate()
            found += [Agent(broker, state.name) for state in broker.link.living()]
        return found

    # -- classes -----------------------------------------------------------------------------------------------

    def getPackages(self) -> list[str]:
        """The packages of all agents' classes."""
        return sorted({key.package for key in self._loop.call(self._class_keys())})

    def getClasses(self, packageName: str) -> list[ClassKey]:
        """The classes in a package."""
        keys = self._loop.call(self._class_keys())
        return sorted({key for key in keys if key.package == packageName}, key=lambda key: key.name)

    def getSchema(self, classKey: ClassKey) -> SchemaClass | None:
        """What a class has; None if no agent knows it."""
        return self._loop.call(self._schema_of(classKey))

    async def _class_keys(self) -> list[ClassKey]:
        found = []
        for agent in await self._agents(self.brokers):
            updated = agent.state.schema_updated if agent.state else 0
            known = self._keys.get(agent.agentBank)
            if known is None or known[0] != updated:
                body = {"_what": "SCHEMA_ID"}
                ids = _list(await agent.broker.link.ask(agent.agentBank, Opcode.QUERY_REQUEST, body, TIMEOUT))
                known = self._keys[agent.agentBank] = (updated, [ClassKey.from_map(each) for each in ids])
            found += known[1]
        return found

    async def _schema_of(self, key: ClassKey) -> SchemaClass | None:
        for agent in await self._agents(self.brokers):
            try:
                return await self._schema(agent, key, TIMEOUT)
            except QmfError:
                continue
        return None

    async def _schema(self, agent: Agent, key: ClassKey, timeout: float) -> SchemaClass:
        known = self._schemas.get(key)
        if known is None:
            if key.hash == uuid.UUID(int=0):  # an object of no class: all there is to know is in it
                schema = Schema(key.package, key.name)
            else:
                schema = await agent.broker.link.schema(agent.agentBank, key.package, key.name, key.hash, timeout)
            known = self._schemas[key] = SchemaClass(key, schema)
        return known

    # -- objects -----------------------------------------------------------------------------------------------

    def getObjects(
        self,
        *,
        _class: str | None = None,
        _package: str | None = None,
        _key: ClassKey | None = None,
        _schema: SchemaClass | None = None,
        _objectId: ObjectId | None = None,
        _agent: Agent | None = None,
        _broker: Broker | None = None,
        _timeout: float | None = None,
        **properties: Any,
    ) -> list[Object]:
        """The objects of a class, or the one that an id names, whose properties have these values.

        The class is named by `_class` and `_package`, or by `_key` from getClasses, or by `_schema`. Raises QmfError.
        """
        if _schema is not None:
            _key = _schema.getKey()
        query: dict[str, Any] = {"_what": "OBJECT"}
        if _objectId is not None:
            query["_object_id"] = _objectId.asMap()
        elif _key is not None:
            query["_schema_id"] = schema_id(_key.package, _key.name)
        elif _class is not None:
            query["_schema_id"] = {"_class_name": _class} | ({} if _package is None else {"_package_name": _package})
        else:
            raise TypeError("getObjects needs _class, _key, _schema or _objectId")
        literal = {name: value for name, value in properties.items() if isinstance(value, str | int | float)}
        if literal:  # an agent that does not know of predicates sends all, from which we choose
            query["_where"] = equality(literal)
        timeout = TIMEOUT if _timeout is None else _timeout
        brokers = [_broker] if _broker else self.brokers
        return self._loop.call(self._objects(query, properties, _agent, _objectId, brokers, timeout))

    async def _objects(
        self,
        query: dict[str, Any],
        properties: dict[str, Any],
        agent: Agent | None,
        object_id: ObjectId | None,
        brokers: Sequence[Broker],
        timeout: float,
    ) -> list[Object]:
        agents = [agent] if agent is not None else await self._agents(brokers)
        if agent is None and object_id is not None:
            agents = [each for each in agents if each.agentBank == object_id.getAgentBank()]
        if not any(broker.link.connected for broker in brokers):
            raise QmfError(f"not connected to any broker: {[broker.getFullUrl() for broker in brokers]}")
        results = await asyncio.gather(
            *(self._objects_of(each, query, properties, timeout) for each in agents), return_exceptions=True
        )
        found: list[Object] = []
        errors = [result for result in results if isinstance(result, BaseException)]
        for result in results:
            found += result if isinstance(result, list) else []
        if errors and not found:
            raise errors[0]
        return found

    async def _objects_of(
        self, agent: Agent, query: dict[str, Any], properties: dict[str, Any], timeout: float
    ) -> list[Object]:
        maps = _list(await agent.broker.link.ask(agent.agentBank, Opcode.QUERY_REQUEST, query, timeout))
        return [await self._object(agent, each, timeout) for each in maps if _meant(each, properties, agent.agentBank)]

    async def _object(self, agent: Agent, values: Any, timeout: float) -> Object:
        key = values.get("_schema_id")
        none = ClassKey("", "", uuid.UUID(int=0))
        return Object(agent, await self._schema(agent, ClassKey.from_map(key) if key else none, timeout), values)

    # -- methods -----------------------------------------------------------------------------------------------

    def _call_methods(self, agent: Agent, requests: list[dict[str, Any]], timeout: float | None) -> list[MethodResult]:
        return self._loop.call(self._called(agent, requests, TIMEOUT if timeout is None else timeout))

    async def _called(self, agent: Agent, requests: list[dict[str, Any]], timeout: float) -> list[MethodResult]:
        link = agent.broker.link
        if len(requests) == 1:
            answers = [await link.ask(agent.agentBank, Opcode.METHOD_REQUEST, requests[0], timeout)]
        else:
            answers = await link.ask_all(agent.agentBank, Opcode.METHOD_REQUEST, requests, timeout)
        return [_result(opcode, body) for opcode, body in answers]

    def _call_later(self, agent: Agent, request: dict[str, Any], timeout: float | None) -> int:
        number = next(self._sequence)
        self._loop.call(self._begin(self._respond(agent, number, request, TIMEOUT if timeout is None else timeout)))
        return number

    async def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._start(work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _respond(self, agent: Agent, number: int, request: dict[str, Any], timeout: float) -> None:
        try:
            (result,) = await self._called(agent, [request], timeout)
        except QmfError as error:
            result = MethodResult(7, str(error))
        self._tell(lambda console: console.methodResponse(agent.broker, number, result))

    # -- what agents say by themselves -------------------------------------------------------------------------

    def bindPackage(self, packageName: str) -> None:
        """Hear of changed objects of a package."""
        self._bind(f"{DATA_KEY}.{word(packageName)}.#")

    def bindClass(self, packageName: str, className: str) -> None:
        """Hear of changed objects of a class."""
        self._bind(f"{DATA_KEY}.{word(packageName)}.{word(className.lower())}.#")

    def _bind(self, key: str) -> None:
        self._topics.append(key)
        for broker in self.brokers:
            self._loop.call(broker.link.listen(key))

    def _indicated(self, agent: Agent, indication: Indication) -> None:
        match indication.content:
            case "":
                if self._heartbeats:
                    self._tell(lambda console: console.heartbeat(agent, indication.timestamp))
            case "_data":
                self._start(self._tell_objects(agent, indication.body))
            case "_event":
                self._tell_events(agent, indication.body)

    async def _tell_objects(self, agent: Agent, maps: list[Any]) -> None:
        for each in maps:
            try:
                changed = await self._object(agent, each, TIMEOUT)
            except QmfError as error:
                logger.warning("indication of agent %s dropped: %s", agent.agentBank, error)
                return
            self._tell(functools.partial(_tell_object, agent.broker, changed))

    def _tell_events(self, agent: Agent, maps: list[Any]) -> None:
        for each in maps:
            try:
                key = ClassKey.from_map(each["_schema_id"])
                happened = Event(agent, key, each["_values"], each["_timestamp"], each["_severity"])
            except (QmfError, KeyError, TypeError) as error:
                logger.warning("event of agent %s dropped: %s", agent.agentBank, error)
                continue
            self._tell(functools.partial(_tell_event, agent.broker, happened))

    def _tell(self, what: Callable[[Console], None]) -> None:
        if self.console is not None:
            self._told.put(what)

    def _tell_console(self, console: Console) -> None:
        while (what := self._told.get()) is not None:
            try:
                what(console)
            except Exception:  # what the script's own code raises must not end the thread
                logger.exception("the console's own code failed")


def _tell_object(broker: Broker, changed: Object, console: Console) -> None:
    console.objectProps(broker, changed)


def _tell_event(broker: Broker, happened: Event, console: Console) -> None:
    console.event(broker, happened)


def _list(answer: tuple[str, Any]) -> list[Any]:
    """A query's answer. Raises QmfError for an exception, or what is no answer."""
    opcode, body = answer
    if opcode == Opcode.QUERY_RESPONSE and isinstance(body, list):
        return [each for each in body if isinstance(each, dict)]
    raise QmfError(_result(opcode, body).text)


def _result(opcode: str, body: Any) -> MethodResult:
    match opcode, body:
        case Opcode.METHOD_RESPONSE, {"_arguments": dict(arguments)}:
            return MethodResult(0, "OK", arguments)
        case Opcode.EXCEPTION, {"_values": {"error_code": int(code), "error_text": str(text)}} if code:
            return MethodResult(code, text)
    return MethodResult(7, f"the agent's answer makes no sense: {opcode} {str(body)[:200]}")


def _meant(values: dict[str, Any], properties: dict[str, Any], agent: str) -> bool:
    """Whether an object has these values; references are given as ObjectId."""
    given = values.get("_values")
    if not isinstance(given, dict):
        return False
    for name, wanted in properties.items():
        value = given.get(name)
        if isinstance(wanted, ObjectId) and isinstance(value, dict):
            value = ObjectId(value, agent)
        if value != wanted:
            return False
    return True


def _endpoint(target: str, timeout: float | None, ca_file: str, cert_file: str, key_file: str) -> Endpoint:
    """The broker that a URL means, also in the original's form `user/password@host`. Raises QmfError."""
    match = _URL.fullmatch(target)
    if match is None:
        raise QmfError(f"broker {target!r}: write amqp://user:password@host:port/vhost")
    scheme, user, separator, password, rest = match.groups()
    who = ""
    if user:
        secret = password if separator == ":" else quote(password or "", safe="")
        who = f"{user}:{secret}@"
    try:
        return Endpoint(
            f"{scheme or 'amqp'}://{who}{rest}", name="qmf.console", connect_timeout=timeout or CONNECT_TIMEOUT,
            ca_file=ca_file, cert_file=cert_file, key_file=key_file,
        )  # fmt: skip
    except BadEndpoint as error:
        raise QmfError(str(error)) from None
